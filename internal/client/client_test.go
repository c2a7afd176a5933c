package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/api"
	"banger/internal/paths"
)

func TestEvents(t *testing.T) {
	const machine = `{"type":"machine","machine":{"name":"web"}}` + "\n"
	for name, tt := range map[string]struct {
		in   string
		seen int
		code api.Code // "" for a result
	}{
		"a result":           {machine + `{"type":"result","machine":{"name":"web"}}` + "\n", 1, ""},
		"an error":           {machine + `{"type":"error","error":{"code":"timeout","message":"late"}}` + "\n", 1, api.Timeout},
		"cut off":            {machine, 1, api.Internal},
		"nothing":            {"", 0, api.Internal},
		"no JSON":            {machine + "x\n", 1, api.Internal},
		"an empty line":      {"\n" + `{"type":"result"}` + "\n", 0, ""},
		"a line without end": {strings.Repeat("x", maxReply+1), 0, api.Internal},
		"of a later version": {`{"type":"news","more":1}` + "\n" + `{"type":"result"}` + "\n", 1, ""},
	} {
		seen := 0
		_, err := events(strings.NewReader(tt.in), func(api.Event) error { seen++; return nil })
		if (err == nil) != (tt.code == "") || err != nil && api.CodeOf(err) != tt.code || seen != tt.seen {
			t.Errorf("%s: events() = %v after %d events, want code %q after %d", name, err, seen, tt.code, tt.seen)
		}
	}
}

func TestAwaitReady(t *testing.T) {
	for name, tt := range map[string]struct {
		line string
		code api.Code
	}{
		"ready":         {"ready\n", ""},
		"an error":      {`{"code":"invalid","message":"config.toml: log_level"}` + "\n", api.Invalid},
		"death":         {"", api.Internal},
		"half a word":   {"rea", api.Internal},
		"another voice": {"hello\n", api.VersionSkew},
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, tt.line); err != nil {
			t.Fatal(err)
		}
		w.Close()
		err = awaitReady(t.Context(), r)
		if (err == nil) != (tt.code == "") || err != nil && api.CodeOf(err) != tt.code {
			t.Errorf("%s: awaitReady() = %v, want code %q", name, err, tt.code)
		}
		r.Close()
	}
}

func TestAwaitReadyEndsWithItsContext(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(enough)
	if err := awaitReady(ctx, r); !errors.Is(err, enough) {
		t.Errorf("awaitReady() = %v, want %v", err, enough)
	}
}

func TestLockExcludesAndEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "start.lock")
	unlock, err := lock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := lock(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second lock() = %v, want its deadline", err)
	}
	unlock()
	// The one that was given up is let go of as soon as it is got.
	again, err := lock(t.Context(), path)
	if err != nil {
		t.Fatalf("lock() after unlock = %v", err)
	}
	again()
}

// server answers on a socket as h does.
func server(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close() })
	c := newClient(socket)
	t.Cleanup(c.Close)
	return c
}

func TestErrorsCrossUnchanged(t *testing.T) {
	c := server(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(api.ProtocolHeader) != fmt.Sprint(api.Protocol) {
			t.Errorf("%s is %q", api.ProtocolHeader, r.Header.Get(api.ProtocolHeader))
		}
		switch r.URL.EscapedPath() {
		case "/v1/machines/a%2Fb":
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"code":"not_found","message":"no such VM","hint":"banger vm list","detail":"x"}`)
		default:
			w.WriteHeader(http.StatusTeapot)
			fmt.Fprint(w, "short and stout")
		}
	})
	_, err := c.Machine(t.Context(), "a/b")
	if e, ok := errors.AsType[*api.Error](err); !ok || *e != (api.Error{Code: api.NotFound, Msg: "no such VM", Hint: "banger vm list", Detail: "x"}) {
		t.Errorf("Machine() = %#v", err)
	}
	if _, err := c.Machines(t.Context()); api.CodeOf(err) != api.Internal || !strings.Contains(err.Error(), "418") {
		t.Errorf("Machines() of another server = %v", err)
	}
}

// A body that blocks, such as a terminal, ends with the request.
func TestBlockedBodyEndsWithItsContext(t *testing.T) {
	c := server(t, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	r, w := io.Pipe()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, _ = w.Write([]byte("begin"))
		cancel()
	}()
	if _, err := c.ImportImage(ctx, "small", r, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("ImportImage() = %v, want context.Canceled", err)
	}
}

func TestDeadDaemonIsToldFromAMissingOne(t *testing.T) {
	dir := t.TempDir()
	l := paths.Layout{Socket: filepath.Join(dir, "s"), Runtime: dir}
	if _, err := Connect(t.Context(), Options{Layout: l}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Connect() without a socket = %v, want ErrNotRunning", err)
	}
	// One that ends with the connection in its queue is as good as none.
	ln, err := net.Listen("unix", l.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	if _, err := Connect(t.Context(), Options{Layout: l}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Connect() to one that hangs up = %v, want ErrNotRunning", err)
	}
}

// In system mode systemd starts the daemon: a client never does.
func TestSystemModeStartsNothing(t *testing.T) {
	dir := t.TempDir()
	l := paths.Layout{System: true, Socket: filepath.Join(dir, "s"), Runtime: filepath.Join(dir, "run"), State: filepath.Join(dir, "state")}
	_, err := Connect(t.Context(), Options{Layout: l, Start: true})
	e, ok := errors.AsType[*api.Error](err)
	if !ok || !errors.Is(err, ErrNotRunning) || !strings.Contains(e.Hint, "sudo banger system restart") || !strings.Contains(e.Msg, l.Socket) {
		t.Errorf("Connect() = %v, want ErrNotRunning with a hint to restart", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("Connect() made %v, %v", entries, err)
	}
	if e, ok := errors.AsType[*api.Error](skew(api.Hello{}, true)); !ok || !strings.Contains(e.Hint, "system install") {
		t.Errorf("skew() in system mode = %+v", e)
	}
}

// While systemd starts the daemon, a command waits for its socket; otherwise it
// says at once that there is none.
func TestWaitsForADaemonThatIsComing(t *testing.T) {
	dir := t.TempDir()
	l := paths.Layout{System: true, Socket: filepath.Join(dir, "s"), Runtime: dir}
	c := newClient(l.Socket)
	defer c.Close()
	for _, state := range []string{"inactive", "failed", ""} {
		if err := c.coming(t.Context(), l, func(context.Context) string { return state }); !notRunning(err) {
			t.Errorf("coming() of one that is %q = %v, want that there is none", state, err)
		}
	}
	asked := make(chan bool, 10)
	go func() {
		<-asked
		ln, err := net.Listen("unix", l.Socket+"~")
		if err != nil {
			t.Error(err)
			return
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"version":"new"}`) }), ReadHeaderTimeout: time.Minute}
		t.Cleanup(func() { srv.Close() })
		if err := os.Rename(l.Socket+"~", l.Socket); err != nil {
			t.Error(err)
		}
		_ = srv.Serve(ln)
	}()
	if err := c.coming(t.Context(), l, func(context.Context) string { asked <- true; return "activating" }); err != nil || c.hello.Version != "new" {
		t.Errorf("coming() = %v, the daemon is %+v", err, c.hello)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	gone := newClient(filepath.Join(dir, "none"))
	if err := gone.coming(ctx, l, func(context.Context) string { cancel(enough); return "active" }); !errors.Is(err, enough) {
		t.Errorf("coming() that is given up = %v", err)
	}
}

func TestSmallBodiesAreNotCopied(t *testing.T) {
	b := bytes.NewReader([]byte("{}"))
	if got := interruptible(t.Context(), b); got != io.Reader(b) {
		t.Errorf("interruptible() wraps a body in memory: its length would be lost")
	}
}
