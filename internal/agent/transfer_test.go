package agent_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/agent"
	"banger/internal/agentapi"
	"banger/internal/api"
	"banger/internal/guest"
	"banger/internal/tartree"
)

func put(t *testing.T, p agentapi.Put, pack func(io.Writer) error) (agentapi.Done, error) {
	t.Helper()
	return guest.Put(t.Context(), open(t, agent.Config{}), p, pack)
}

func TestPutThenGet(t *testing.T) {
	t.Parallel()
	from, inside, to := filepath.Join(t.TempDir(), "tree"), t.TempDir(), t.TempDir()
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	for i := range 300 {
		name := filepath.Join(from, fmt.Sprintf("d%d", i%7), fmt.Sprintf("f %d\n'", i))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, big[:i*100], 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(from, "big"), big, 0o755); err != nil {
		t.Fatal(err)
	}
	done, err := put(t, agentapi.Put{Dir: inside, Sync: true}, func(w io.Writer) error {
		_, err := tartree.Pack(t.Context(), w, from, tartree.PackOptions{})
		return err
	})
	if err != nil || done.Files != 309 {
		t.Fatalf("Put: %+v, %v; want 309 files", done, err)
	}
	pr, pw := io.Pipe()
	go func() {
		_, err := guest.Get(context.WithoutCancel(t.Context()), open(t, agent.Config{}), agentapi.Get{Path: filepath.Join(inside, "tree")}, pw)
		pw.CloseWithError(err)
	}()
	if _, err := tartree.Unpack(t.Context(), to, pr, tartree.Options{Foreign: true}); err != nil {
		t.Fatalf("Unpack of a Get: %v", err)
	}
	for _, name := range []string{"big", "d4/f 207\n'"} {
		a, err1 := os.ReadFile(filepath.Join(from, name))
		b, err2 := os.ReadFile(filepath.Join(to, "tree", name))
		if err := errors.Join(err1, err2); err != nil || !bytes.Equal(a, b) {
			t.Errorf("%s: %d bytes became %d, %v", name, len(a), len(b), err)
		}
	}
}

func TestPutOfABrokenSource(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	broken := errors.New("the source broke")
	done, err := put(t, agentapi.Put{Dir: dir}, func(w io.Writer) error {
		tw := tar.NewWriter(w)
		_ = tw.WriteHeader(&tar.Header{Name: "half", Typeflag: tar.TypeReg, Mode: 0o644, Size: 1 << 20})
		_, _ = tw.Write(make([]byte, 300_000))
		return broken
	})
	if !errors.Is(err, broken) || done.Files != 0 {
		t.Errorf("Put = %+v, %v; want the source's error", done, err)
	}
}

func TestPutThatTheGuestRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writes := 0
	_, err := put(t, agentapi.Put{Dir: dir}, func(w io.Writer) error {
		tw := tar.NewWriter(w)
		_ = tw.WriteHeader(&tar.Header{Name: "../out", Typeflag: tar.TypeReg, Mode: 0o644, Size: 1 << 40})
		for b := make([]byte, 64<<10); ; writes++ { // ends only by the guest's word
			if _, err := tw.Write(b); err != nil {
				return err
			}
		}
	})
	g, ok := errors.AsType[*agentapi.Error](err)
	if !ok || g.Code != agentapi.CodeInvalid || !strings.Contains(g.Msg, `"../out"`) || api.CodeOf(err) != api.Invalid {
		t.Errorf("Put of ../out: %v after %d writes, want invalid with the name", err, writes)
	}
}

func TestPutBelowAFile(t *testing.T) {
	t.Parallel()
	_, err := put(t, agentapi.Put{Dir: "/dev/full/x"}, func(io.Writer) error { return nil })
	if api.CodeOf(err) != api.Invalid {
		t.Errorf("Put below a file: %v, want code invalid", err)
	}
}

func TestPutLostInTheMiddle(t *testing.T) {
	t.Parallel()
	s := open(t, agent.Config{})
	_, err := guest.Put(t.Context(), s, agentapi.Put{Dir: t.TempDir()}, func(w io.Writer) error {
		s.Close()
		for {
			if _, err := w.Write(make([]byte, 100_000)); err != nil {
				return err
			}
		}
	})
	if api.CodeOf(err) != api.GuestLost {
		t.Errorf("Put on a stream that was closed: %v, want code guest_lost", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	_, err = guest.Put(ctx, open(t, agent.Config{}), agentapi.Put{Dir: t.TempDir()}, func(w io.Writer) error {
		cancel(why)
		for {
			if _, err := w.Write(make([]byte, 100_000)); err != nil {
				return err
			}
		}
	})
	if !errors.Is(err, why) {
		t.Errorf("Put with a context that ended: %v, want its cause", err)
	}
}

func TestGetOfNothing(t *testing.T) {
	t.Parallel()
	_, err := guest.Get(t.Context(), open(t, agent.Config{}), agentapi.Get{Path: "/no/such"}, io.Discard)
	if api.CodeOf(err) != api.NotFound || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("Get of nothing: %v, want code not_found", err)
	}
	full := errors.New("full")
	_, err = guest.Get(t.Context(), open(t, agent.Config{}), agentapi.Get{Path: "/usr/bin"}, writerFunc(func([]byte) (int, error) { return 0, full }))
	if !errors.Is(err, full) {
		t.Errorf("Get into a full writer: %v", err)
	}
}

func TestDial(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"tcp", "unix"} {
		address := "127.0.0.1:0"
		if network == "unix" {
			address = filepath.Join(t.TempDir(), "s")
		}
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() { // answers only when the client has half-closed
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			b, _ := io.ReadAll(c)
			fmt.Fprintf(c, "%d bytes", len(b))
		}()
		raw, err := guest.Dial(t.Context(), open(t, agent.Config{}), agentapi.Dial{Network: network, Address: l.Addr().String()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := raw.Write(make([]byte, 1_000_000)); err != nil {
			t.Fatal(err)
		}
		if err := raw.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(raw); string(b) != "1000000 bytes" {
			t.Errorf("%s: answer %q, %v", network, b, err)
		}
	}
	for _, d := range []agentapi.Dial{{Network: "udp", Address: "127.0.0.1:9"}, {Network: "unix", Address: "/no/such"}, {Network: "tcp", Address: "x"}} {
		_, err := guest.Dial(t.Context(), open(t, agent.Config{}), d)
		if _, ok := errors.AsType[*agentapi.Error](err); !ok {
			t.Errorf("Dial(%+v): %v, want the guest's refusal", d, err)
		}
	}
}

func TestReaper(t *testing.T) {
	if os.Getenv("BANGER_TEST_REAPER") == "" {
		// It takes every child's status: a process of its own, then.
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		exit, out, errs, err := run(t, agentapi.Exec{Argv: []string{self, "-test.run=^TestReaper$"}, Env: []string{"BANGER_TEST_REAPER=1"}}, "")
		if err != nil || exit.Code != 0 {
			t.Errorf("%+v, %v\n%s%s", exit, err, out, errs)
		}
		return
	}
	reaped(t)
}

// reaped checks that a Reaper hands over the status of its own children only.
func reaped(t *testing.T) {
	t.Helper()
	var r agent.Reaper
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	for code := range 50 {
		ch, err := r.Start(func() (int, error) {
			p, err := os.StartProcess("/bin/sh", []string{"sh", "-c", fmt.Sprintf("exit %d", code)}, &os.ProcAttr{})
			if err != nil {
				return 0, err
			}
			return p.Pid, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		select {
		case ws := <-ch:
			if ws.ExitStatus() != code {
				t.Errorf("exit %d came as %v", code, ws)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("exit %d was never told", code)
		}
	}
	cancel()
	<-done
}
