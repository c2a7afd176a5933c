package companion_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/internal/agentapi"
	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/guest"
	"banger/internal/host/hosttest"
	"banger/internal/vmm/fake"
)

// rss is the most memory that a process has had, and its threads, as the kernel
// counts.
func rss(t *testing.T, pid int) (kib, threads int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		n, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
		switch key {
		case "VmHWM":
			kib = n
		case "Threads":
			threads = n
		}
	}
	return kib, threads
}

// Whatever a guest's agent says, its companion stays small, goes on answering,
// and ends the VM when it is told to; every call ends when it should.
func TestLyingGuests(t *testing.T) {
	for _, name := range fake.Lies() {
		t.Run(name, func(t *testing.T) {
			v := start(t, fake.Lie+name)
			hosttest.Home(v.ctx, t, v.run, api.StageAgent)
			pid := v.run.Record().Companion.PID
			before, _ := rss(t, pid)
			v.provoke()
			quick := func(what string, limit time.Duration, f func(ctx context.Context) error) {
				t.Helper()
				ctx, cancel := context.WithTimeout(v.ctx, limit)
				defer cancel()
				if err := f(ctx); err != nil {
					t.Errorf("%s = %v", what, err)
				}
			}
			quick("Status()", 5*time.Second, func(ctx context.Context) error { _, err := v.Status(ctx); return err })
			quick("Console()", 5*time.Second, func(ctx context.Context) error {
				r, err := v.Console(ctx, 100, false)
				if err != nil {
					return err
				}
				defer r.Close()
				b, err := io.ReadAll(r)
				if err == nil && !bytes.Contains(b, []byte("fake guest")) {
					err = fmt.Errorf("it holds %q", b)
				}
				return err
			})
			after, threads := rss(t, pid)
			if after > before+32<<10 {
				t.Errorf("the companion grew from %d to %d KiB, want at most 32 MiB more", before, after)
			}
			if threads > 50 {
				t.Errorf("the companion has %d threads", threads)
			}
			quick("Stop()", 8*time.Second, func(ctx context.Context) error { _, err := v.Stop(ctx, time.Second); return err })
			e := hosttest.Ended(v.ctx, t, v.run)
			if strings.ContainsAny(e.Reason, "\x1b\a\n") || len(e.Reason) > 1000 {
				t.Errorf("the reason of the end is %.2000q", e.Reason)
			}
		})
	}
}

// A client that has gone holds no stream, although the guest does not end it.
func TestStreamsOfClientsThatAreGone(t *testing.T) {
	v := start(t, fake.Lie+"no-answer")
	hosttest.Home(v.ctx, t, v.run, api.StageAgent)
	half, err := v.Stream(v.ctx, api.StageAgent)
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	for i, st := range []*companionapi.Stream{half, nil, nil} {
		if st == nil {
			if st, err = v.Stream(v.ctx, api.StageAgent); err != nil {
				t.Fatal(err)
			}
		}
		if err := agentapi.NewConn(st).WriteJSON(agentapi.KindRequest, agentapi.Request{Op: agentapi.OpExec, Exec: &agentapi.Exec{}}); err != nil {
			t.Fatal(err)
		}
		if err := st.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			st.Close()
		}
	}
	for {
		s, err := v.Status(v.ctx)
		if err != nil {
			t.Fatalf("Status() = %v; want 1 stream, that of the client which has only half closed", err)
		}
		if s.Streams == 1 {
			break
		}
	}
}

// provoke runs commands, the first of which sets the guest off, and gives each
// a second. None may end well, hang, or say what a terminal would obey.
func (v *vm) provoke() {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.ctx, time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for range fake.Commands {
		wg.Go(func() {
			st, err := v.Stream(ctx, api.StageAgent)
			if err != nil {
				return
			}
			_, err = guest.Exec(ctx, st, agentapi.Exec{Argv: []string{"sleep", "9"}},
				guest.IO{Stdin: bytes.NewReader(make([]byte, 4<<20)), Stdout: io.Discard, Stderr: io.Discard})
			if err == nil {
				v.t.Error("a command of a liar ended well")
			}
			if text := fmt.Sprint(err); strings.ContainsAny(text, "\x1b\a\n") || len(text) > 4000 {
				v.t.Errorf("the error is %.5000q", text)
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	late, stop := context.WithTimeout(v.ctx, 10*time.Second)
	defer stop()
	select {
	case <-done:
	case <-late.Done():
		v.t.Error("a command goes on although its context has ended")
		if p := v.run.Record().Companion; p.Alive() { // where it hangs is in its log
			_ = syscall.Kill(p.PID, syscall.SIGQUIT)
		}
	}
}
