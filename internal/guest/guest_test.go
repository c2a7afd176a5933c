package guest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/internal/agentapi"
	"banger/internal/api"
	"banger/internal/guest"
)

// A frame is what a scripted agent sends.
type frame struct {
	kind    agentapi.Kind
	payload string
}

// pipe is a stream within the process. net.Pipe has no half-close, and what is
// tested here needs none but that of Dial, which the agent's tests have.
type pipe struct{ net.Conn }

func (pipe) CloseWrite() error { return nil }

// scripted is an agent that reads the request, sends frames and then closes, or
// reads on if stay is set. It never does more.
func scripted(t *testing.T, stay bool, frames ...frame) guest.Stream {
	t.Helper()
	host, inside := net.Pipe()
	go func() {
		defer inside.Close()
		conn := agentapi.NewConn(inside)
		if _, _, err := conn.Read(); err != nil {
			return
		}
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			_, _ = io.Copy(io.Discard, inside)
		}()
		for _, f := range frames {
			if f.kind == 0 { // bytes that are no frame
				if _, err := io.WriteString(inside, f.payload); err != nil {
					return
				}
				continue
			}
			if conn.Write(f.kind, []byte(f.payload)) != nil {
				return
			}
		}
		if stay {
			<-drained
		}
	}()
	t.Cleanup(func() { host.Close() })
	return pipe{host}
}

func ok(v string) frame { return frame{agentapi.KindOK, v} }

func TestExecNeverMakesUpACode(t *testing.T) {
	t.Parallel()
	exit := func(s string) frame { return frame{agentapi.KindExit, s} }
	for _, tt := range []struct {
		name   string
		frames []frame
		code   api.Code // empty: no error
		want   agentapi.Exit
	}{
		{"nothing at all", nil, api.GuestLost, agentapi.Exit{}},
		{"only OK", []frame{ok("{}")}, api.GuestLost, agentapi.Exit{}},
		{"lost after output", []frame{ok("{}"), {agentapi.KindStdout, "x"}}, api.GuestLost, agentapi.Exit{}},
		{"lost within a frame", []frame{ok("{}"), {0, "x\x00\x00\x00\x09{"}}, api.GuestLost, agentapi.Exit{}},
		{"exit", []frame{ok(`{"pid":5}`), exit(`{"code":7}`)}, "", agentapi.Exit{Code: 7}},
		{"signal", []frame{ok(`{"pid":5}`), exit(`{"code":137,"signal":9}`)}, "", agentapi.Exit{Code: 137, Signal: 9}},
		{"exit that is no number", []frame{ok("{}"), exit(`{"code":"0"}`)}, api.GuestFailed, agentapi.Exit{}},
		{"exit 256", []frame{ok("{}"), exit(`{"code":256}`)}, api.GuestFailed, agentapi.Exit{}},
		{"exit -1", []frame{ok("{}"), exit(`{"code":-1}`)}, api.GuestFailed, agentapi.Exit{}},
		{"signal 999", []frame{ok("{}"), exit(`{"signal":999}`)}, api.GuestFailed, agentapi.Exit{}},
		{"exit that is empty", []frame{ok("{}"), exit("")}, api.GuestFailed, agentapi.Exit{}},
		{"frame of another operation", []frame{ok("{}"), {agentapi.KindDone, "{}"}}, api.GuestFailed, agentapi.Exit{}},
		{"frame of no kind", []frame{ok("{}"), {'?', "{}"}}, api.GuestFailed, agentapi.Exit{}},
		{"frame over the cap", []frame{ok("{}"), {0, "o\xff\xff\xff\xff"}}, api.GuestFailed, agentapi.Exit{}},
		{"reply that is no JSON", []frame{ok("{")}, api.GuestFailed, agentapi.Exit{}},
		{"exit as a reply", []frame{exit(`{"code":0}`)}, api.GuestFailed, agentapi.Exit{}},
		{"window of three bytes", []frame{ok("{}"), {agentapi.KindWindow, "abc"}}, api.GuestFailed, agentapi.Exit{}},
		{"error that is no JSON", []frame{{agentapi.KindError, "["}}, api.GuestFailed, agentapi.Exit{}},
		{"error late", []frame{ok("{}"), {agentapi.KindError, `{"code":"failed","message":"m"}`}}, api.GuestFailed, agentapi.Exit{}},
		{"error of no known code", []frame{{agentapi.KindError, `{"code":"0","message":"m"}`}}, api.GuestFailed, agentapi.Exit{}},
		{"invalid", []frame{{agentapi.KindError, `{"code":"invalid","message":"m"}`}}, api.Invalid, agentapi.Exit{}},
		{"no space", []frame{{agentapi.KindError, `{"code":"no_space","message":"m"}`}}, api.NoSpace, agentapi.Exit{}},
	} {
		got, err := guest.Exec(t.Context(), scripted(t, false, tt.frames...), agentapi.Exec{Argv: []string{"x"}}, guest.IO{})
		if tt.code == "" && err != nil || tt.code != "" && (err == nil || api.CodeOf(err) != tt.code) {
			t.Errorf("%s: %v, want code %q", tt.name, err, tt.code)
		}
		if got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestGuestTextIsHarmless(t *testing.T) {
	t.Parallel()
	evil := "\x1b]0;title\x07\u009b31m\x00" + strings.Repeat("long ", 10_000)
	b, err := json.Marshal(agentapi.Error{Code: agentapi.CodeNotFound, Msg: evil})
	if err != nil {
		t.Fatal(err)
	}
	_, err = guest.Exec(t.Context(), scripted(t, false, frame{agentapi.KindError, string(b)}), agentapi.Exec{Argv: []string{"x"}}, guest.IO{})
	g, is := errors.AsType[*agentapi.Error](err)
	if !is || g.Code != agentapi.CodeNotFound {
		t.Fatalf("Exec: %v, want the guest's error in the chain", err)
	}
	if s := err.Error(); strings.ContainsAny(s, "\x1b\x07\x00\u009b") || len(s) > 4000 {
		t.Errorf("the message has control characters or %d bytes: %.200q", len(s), s)
	}
	h, err := json.Marshal(agentapi.Hello{Version: agentapi.Version, Release: evil, Init: evil})
	if err != nil {
		t.Fatal(err)
	}
	hello, err := guest.Hello(t.Context(), scripted(t, true, ok(string(h))))
	if err != nil || strings.ContainsAny(hello.Release+hello.Init, "\x1b\x07\x00\u009b") || len(hello.Release) > 300 {
		t.Errorf("Hello: %.200q, %v", hello.Release, err)
	}
}

func TestHelloOfAnotherVersion(t *testing.T) {
	t.Parallel()
	for _, v := range []string{`{"version":0}`, `{"version":99}`, `{}`} {
		if _, err := guest.Hello(t.Context(), scripted(t, true, ok(v))); api.CodeOf(err) != api.VersionSkew {
			t.Errorf("Hello %s: %v, want code version_skew", v, err)
		}
	}
	if _, err := guest.Identify(t.Context(), scripted(t, true, ok(`{"version":1,"identified":true}`)), agentapi.Identity{}); err != nil {
		t.Errorf("Identify: %v", err)
	}
}

func TestReplyOnly(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]func(context.Context, guest.Stream) error{
		"shutdown": func(ctx context.Context, s guest.Stream) error {
			return guest.Shutdown(ctx, s, agentapi.Shutdown{})
		},
		"clock": func(ctx context.Context, s guest.Stream) error { return guest.SetClock(ctx, s, 1) },
		"dial": func(ctx context.Context, s guest.Stream) error {
			_, err := guest.Dial(ctx, s, agentapi.Dial{Network: "tcp", Address: "x:1"})
			return err
		},
		"ssh": func(ctx context.Context, s guest.Stream) error { _, err := guest.SSH(ctx, s); return err },
	} {
		if err := call(t.Context(), scripted(t, true, ok("{}"))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := call(t.Context(), scripted(t, true, frame{agentapi.KindError, `{"code":"failed","message":"no"}`})); api.CodeOf(err) != api.GuestFailed {
			t.Errorf("%s refused: %v, want code guest_failed", name, err)
		}
		if err := call(t.Context(), scripted(t, false)); api.CodeOf(err) != api.GuestLost {
			t.Errorf("%s lost: %v, want code guest_lost", name, err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("enough")
		cancel(why)
		if err := call(ctx, scripted(t, true)); !errors.Is(err, why) {
			t.Errorf("%s with a context that has ended: %v, want its cause", name, err)
		}
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	var got []agentapi.Event
	err := guest.Watch(t.Context(), scripted(t, false, ok("{}"),
		frame{agentapi.KindNews, `{"type":"agent","uptime_ns":5}`},
		frame{agentapi.KindNews, `{"type":"problem","uptime_ns":-5,"text":"\u001b[2J"}`},
	), func(e agentapi.Event) { got = append(got, e) })
	if api.CodeOf(err) != api.GuestLost {
		t.Errorf("Watch ended with %v, want code guest_lost", err)
	}
	if len(got) != 2 || got[0].Type != agentapi.EventAgent || got[1].Uptime != 0 || strings.Contains(got[1].Text, "\x1b") {
		t.Errorf("events: %+v", got)
	}
}

func TestPutBelievesNoEarlySuccess(t *testing.T) {
	t.Parallel()
	endless := func(w io.Writer) error {
		for {
			if _, err := w.Write(make([]byte, 100_000)); err != nil {
				return err
			}
		}
	}
	_, err := guest.Put(t.Context(), scripted(t, true, ok("{}"), frame{agentapi.KindDone, `{"files":1}`}), agentapi.Put{Dir: "/x"}, endless)
	if api.CodeOf(err) != api.GuestFailed {
		t.Errorf("Put with Done before its end: %v, want code guest_failed", err)
	}
	_, err = guest.Put(t.Context(), scripted(t, true, ok("{}"), frame{agentapi.KindError, `{"code":"no_space","message":"/x/f: no space"}`}), agentapi.Put{Dir: "/x"}, endless)
	if api.CodeOf(err) != api.NoSpace {
		t.Errorf("Put on a full disk: %v, want code no_space", err)
	}
	if _, err := guest.Put(t.Context(), scripted(t, true), agentapi.Put{Dir: "/\xff"}, endless); api.CodeOf(err) != api.Invalid {
		t.Errorf("Put into a path that is not UTF-8: %v, want code invalid", err)
	}
}

func TestGet(t *testing.T) {
	t.Parallel()
	data := func(s string) frame { return frame{agentapi.KindData, s} }
	for _, tt := range []struct {
		name   string
		frames []frame
		code   api.Code
	}{
		{"whole", []frame{ok("{}"), data("ab"), data("c"), data("")}, ""},
		{"with Done", []frame{ok("{}"), data("abc"), {agentapi.KindDone, `{"files":1,"skipped":["s"]}`}, data("")}, ""},
		{"cut", []frame{ok("{}"), data("abc")}, api.GuestLost},
		{"failed", []frame{ok("{}"), data("abc"), {agentapi.KindError, `{"code":"failed","message":"m"}`}}, api.GuestFailed},
		{"missing", []frame{{agentapi.KindError, `{"code":"not_found","message":"m"}`}}, api.NotFound},
		{"other frame", []frame{ok("{}"), {agentapi.KindStdout, "abc"}}, api.GuestFailed},
	} {
		var b bytes.Buffer
		_, err := guest.Get(t.Context(), scripted(t, tt.code != api.GuestLost, tt.frames...), agentapi.Get{Path: "/x"}, &b)
		if tt.code == "" && (err != nil || b.String() != "abc") || tt.code != "" && api.CodeOf(err) != tt.code {
			t.Errorf("%s: %q, %v; want code %q", tt.name, b.String(), err, tt.code)
		}
	}
}

// What a guest counts is its own word, and may be absurd.
func TestDoneIsBounded(t *testing.T) {
	t.Parallel()
	names, err := json.Marshal(slices.Repeat([]string{"\x1b[2J"}, 50_000))
	if err != nil {
		t.Fatal(err)
	}
	d, err := guest.Get(t.Context(), scripted(t, true, ok("{}"),
		frame{agentapi.KindDone, `{"files":-1,"bytes":-9223372036854775808,"skipped":` + string(names) + `}`}, frame{agentapi.KindData, ""}), agentapi.Get{Path: "/x"}, io.Discard)
	if err != nil || d.Files != 0 || d.Bytes != 0 || len(d.Skipped) != 100 || d.Skipped[0] != "^[[2J" {
		t.Errorf("Get = %d files, %d bytes, %d names left out, %v; want 0, 0, 100 and no error", d.Files, d.Bytes, len(d.Skipped), err)
	}
}

// A window that the guest never opens holds stdin back, not the command.
func TestStdinWaitsForTheWindow(t *testing.T) {
	t.Parallel()
	host, inside := net.Pipe()
	sent := make(chan int, 1)
	go func() {
		defer inside.Close()
		conn := agentapi.NewConn(inside)
		_, _, _ = conn.Read()
		_ = conn.Write(agentapi.KindOK, []byte("{}"))
		n := 0
		for n < agentapi.StdinWindow {
			k, b, err := conn.Read()
			if err != nil || k != agentapi.KindStdin {
				break
			}
			n += len(b)
		}
		_ = inside.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, b, err := conn.Read(); err == nil {
			n += len(b)
		}
		sent <- n
		_ = conn.WriteJSON(agentapi.KindExit, agentapi.Exit{})
	}()
	_, err := guest.Exec(t.Context(), pipe{host}, agentapi.Exec{Argv: []string{"x"}}, guest.IO{Stdin: zeros{}})
	if n := <-sent; err != nil || n != agentapi.StdinWindow {
		t.Errorf("%d bytes of stdin were sent, %v; want %d", n, err, agentapi.StdinWindow)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }
