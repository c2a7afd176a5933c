package companion_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/internal/agentapi"
	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/host"
	"banger/internal/host/hosttest"
	"banger/internal/procid"
	"banger/internal/unixsock"
	"banger/internal/userhost"
	"banger/internal/vmm/fake"
	"banger/internal/vmtest"
)

func TestMain(m *testing.M) {
	if code, ours := vmtest.Main(context.Background()); ours {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// A vm is a companion with a fake guest that does what words say.
type vm struct {
	companionapi.Client
	t    *testing.T
	ctx  context.Context
	host *userhost.Host
	spec host.Spec
	run  host.Run
}

func start(t *testing.T, words string, change ...func(*host.Spec)) *vm {
	t.Helper()
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	v := &vm{t: t, ctx: ctx, host: vmtest.Host(t, userhost.Config{}), spec: vmtest.FakeSpec(t, words)}
	for _, f := range change {
		f(&v.spec)
	}
	v.run = hosttest.Launch(t, v.host, v.spec)
	v.Client = companionapi.New(v.run.Companion())
	return v
}

func leased(s *host.Spec) { s.Lease = true }

func (v *vm) wantEnd(want host.Exit) {
	v.t.Helper()
	if got := hosttest.Ended(v.ctx, v.t, v.run); got != want {
		v.t.Errorf("Exit() = %+v, want %+v", got, want)
	}
}

func TestEventsFromBeginningToEnd(t *testing.T) {
	v := start(t, "")
	hosttest.Home(v.ctx, t, v.run, api.StageBoot)
	if err := v.Kill(v.ctx, syscall.SIGSTOP); err != nil {
		t.Errorf("Kill(STOP) = %v", err)
	}
	if err := v.Kill(v.ctx, syscall.SIGCONT); err != nil {
		t.Errorf("Kill(CONT) = %v", err)
	}
	if err := v.Kill(v.ctx, 99); api.CodeOf(err) != api.Invalid {
		t.Errorf("Kill(99) = %v, want invalid", err)
	}
	var wg sync.WaitGroup
	var got []string
	begun := make(chan struct{}) // before anything ends
	wg.Go(func() {
		err := v.Events(v.ctx, func(e companionapi.Event) {
			if len(got) == 0 {
				close(begun)
			}
			got = append(got, strings.TrimSpace(string(e.Type)+" "+string(e.Stage)+" "+e.Init))
		})
		if err != nil {
			t.Errorf("Events() = %v", err)
		}
	})
	select {
	case <-begun:
	case <-v.ctx.Done():
	}
	for range 3 { // several stops are one
		wg.Go(func() {
			// One that comes late finds that all is over.
			if killed, err := v.Stop(v.ctx, 20*time.Second); killed || err != nil && api.CodeOf(err) != api.GuestLost {
				t.Errorf("Stop() = %v, %v; want false, nil", killed, err)
			}
		})
	}
	wg.Wait()
	want := "stage agent none, stage sockets, stage boot, ending, exit"
	if s := strings.Join(got, ", "); s != want {
		t.Errorf("events are %q, want %q", s, want)
	}
	v.wantEnd(host.Exit{Reason: "it was stopped", Asked: true, Clean: true})
	if _, err := v.Status(v.ctx); api.CodeOf(err) != api.GuestLost {
		t.Errorf("Status() after the end = %v, want guest_lost", err)
	}
}

func TestEndsOfTheGuest(t *testing.T) {
	for words, want := range map[string]host.Exit{
		fake.Panic:   {Reason: "the guest's kernel panicked"},
		fake.Reboot:  {Reason: "the guest rebooted", Reboot: true},
		fake.DieHome: {Reason: "the VMM was killed by signal 9"},
	} {
		t.Run(words, func(t *testing.T) { start(t, words).wantEnd(want) })
	}
}

func TestGuestThatNeverCallsHome(t *testing.T) {
	for _, words := range []string{fake.Silent, fake.Garbage} {
		t.Run(words, func(t *testing.T) {
			v := start(t, words)
			short, cancel := context.WithTimeout(v.ctx, 200*time.Millisecond)
			defer cancel()
			if _, err := v.Stream(short, api.StageAgent); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Stream() = %v, want the deadline", err)
			}
			if st, err := v.Status(v.ctx); err != nil || st.Stage != api.StageNone || st.Streams != 0 {
				t.Errorf("Status() = %+v, %v; want no stage and no streams", st, err)
			}
			// A stream that waits is told of the end.
			waiting := make(chan error)
			go func() {
				_, err := v.Stream(v.ctx, api.StageAgent)
				waiting <- err
			}()
			if killed, err := v.Stop(v.ctx, 20*time.Second); !killed || err != nil {
				t.Errorf("Stop() = %v, %v; want true: nobody could be asked", killed, err)
			}
			if err := <-waiting; api.CodeOf(err) != api.GuestLost {
				t.Errorf("Stream() of an ended VM = %v, want guest_lost", err)
			}
			v.wantEnd(host.Exit{Reason: "it was stopped by force: the agent has not called home", Asked: true})
		})
	}
}

func TestGuestThatHangsInItsShutdown(t *testing.T) {
	v := start(t, fake.Hang)
	hosttest.Home(v.ctx, t, v.run, api.StageAgent)
	if killed, err := v.Stop(v.ctx, 300*time.Millisecond); !killed || err != nil {
		t.Errorf("Stop() = %v, %v; want true", killed, err)
	}
	v.wantEnd(host.Exit{Reason: "it was stopped by force: the guest did not shut down within 300ms", Asked: true})
}

// A guest that prints without end costs two files and nobody's patience.
func TestFlood(t *testing.T) {
	v := start(t, fake.Flood)
	r, err := v.Console(v.ctx, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	const enough = 40 << 20
	if n, err := io.CopyN(io.Discard, r, enough); n != enough {
		t.Errorf("a follower read %d bytes, %v; want %d", n, err, enough)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	hosttest.Home(v.ctx, t, v.run, api.StageBoot)
	for _, name := range []string{v.spec.ConsolePath, v.spec.ConsolePath + ".1"} {
		if st, err := os.Stat(name); err != nil || st.Size() > 8<<20 {
			t.Errorf("Stat(%s) = %v, %v; want at most 8 MiB", name, st, err)
		}
	}
	tail, err := v.Console(v.ctx, 1000, false)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	if b, err := io.ReadAll(tail); err != nil || len(b) < 900 || len(b) > 20<<20 {
		t.Errorf("the tail has %d bytes, %v; want some 1000", len(b), err)
	}
}

// A follower that is far behind when the VM is stopped and released gets the
// rest all the same, to the last byte.
func TestFollowerBehind(t *testing.T) {
	v := start(t, fake.Flood)
	r, err := v.Console(v.ctx, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	hosttest.Home(v.ctx, t, v.run, api.StageBoot)
	if n, err := io.CopyN(io.Discard, r, 1<<20); err != nil {
		t.Fatalf("a follower read %d bytes, %v", n, err)
	}
	if _, err := v.Stop(v.ctx, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { hosttest.Release(t, v.host, v.spec.ID) })
	got, rerr := io.ReadAll(r)
	wg.Wait()
	file, err := os.ReadFile(v.spec.ConsolePath)
	want := file[max(0, len(file)-4096):]
	if err = errors.Join(rerr, err); err != nil || len(want) == 0 || !bytes.HasSuffix(got, want) {
		t.Errorf("a follower read %d bytes to the end, %v; want the last to be those of the console's file, which has %d", len(got), err, len(file))
	}
}

// A guest that reports without end is heard 256 times.
func TestGossip(t *testing.T) {
	v := start(t, fake.Gossip)
	hosttest.Home(v.ctx, t, v.run, api.StageBoot)
	problems := 0
	ctx, cancel := context.WithCancel(v.ctx)
	defer cancel()
	_ = v.Events(ctx, func(e companionapi.Event) {
		if e.Type == companionapi.EventProblem {
			problems++
			if strings.ContainsAny(e.Text, "\x1b\a") {
				t.Errorf("an event's text is %q, want it printable", e.Text)
			}
		}
		if problems == 256 {
			cancel()
		}
	})
	if problems != 256 {
		t.Errorf("%d problems were told, want 256", problems)
	}
}

// The first bytes that a guest prints are there, whenever somebody asks, and so
// are the last before its disk is frozen.
func TestConsole(t *testing.T) {
	v := start(t, "")
	follow, err := v.Console(v.ctx, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	defer follow.Close()
	hosttest.Home(v.ctx, t, v.run, api.StageAgent)
	if _, err := v.Stop(v.ctx, time.Minute); err != nil {
		t.Fatal(err)
	}
	want := fake.Hello + "\r\n" + fake.Bye + "\r\n"
	if b, err := io.ReadAll(follow); err != nil || string(b) != want {
		t.Errorf("a follower read %q, %v; want %q", b, err, want)
	}
	if b, err := os.ReadFile(v.spec.ConsolePath); err != nil || string(b) != want {
		t.Errorf("the console's file holds %q, %v; want %q", b, err, want)
	}
}

func TestLease(t *testing.T) {
	t.Run("its end is the VM's", func(t *testing.T) {
		v := start(t, "", leased)
		l, err := v.Lease(v.ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Lease(v.ctx); api.CodeOf(err) != api.Conflict {
			t.Errorf("a second Lease() = %v, want a conflict", err)
		}
		if st, err := v.Status(v.ctx); err != nil || !st.LeaseHeld || !st.LeaseTaken {
			t.Errorf("Status() = %+v, %v; want the lease held", st, err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		v.wantEnd(host.Exit{Reason: "its lease ended", Asked: true})
	})
	t.Run("kept", func(t *testing.T) {
		v := start(t, "", leased)
		l, err := v.Lease(v.ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Keep(); err != nil {
			t.Errorf("Keep() = %v", err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := v.Lease(v.ctx); api.CodeOf(err) != api.Conflict {
			t.Errorf("Lease() of a kept VM = %v, want a conflict", err)
		}
		hosttest.Home(v.ctx, t, v.run, api.StageBoot)
	})
	t.Run("none", func(t *testing.T) {
		v := start(t, "")
		if _, err := v.Lease(v.ctx); api.CodeOf(err) != api.Conflict {
			t.Errorf("Lease() = %v, want a conflict", err)
		}
	})
	t.Run("lost with the VM", func(t *testing.T) {
		v := start(t, "", leased)
		l, err := v.Lease(v.ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		lost := l.Lost()
		if err := v.Kill(v.ctx, 0); err != nil {
			t.Fatal(err)
		}
		<-lost
	})
	t.Run("taken again", func(t *testing.T) {
		v := start(t, "", leased)
		l, err := v.Lease(v.ctx)
		if err != nil {
			t.Fatal(err)
		}
		old := v.run.Record().Companion
		signal(t, old, syscall.SIGKILL)
		<-l.Lost()
		l.Close()
		for {
			if l, err = v.Lease(v.ctx); err == nil || v.ctx.Err() != nil {
				break
			}
		}
		if err != nil {
			t.Fatalf("Lease() at the next companion = %v", err)
		}
		l.Close()
		v.wantEnd(host.Exit{Reason: "its lease ended", Asked: true})
	})
}

func signal(t *testing.T, id procid.ID, sig syscall.Signal) {
	t.Helper()
	p, err := procid.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

func TestToldToEnd(t *testing.T) {
	v := start(t, "")
	signal(t, v.run.Record().Companion, syscall.SIGTERM)
	v.wantEnd(host.Exit{Reason: "its companion was told to end", Asked: true})
}

// exec runs a command in the guest and returns what it prints.
func (v *vm) exec(in []byte, argv ...string) ([]byte, agentapi.Exit, error) {
	var exit agentapi.Exit
	st, err := v.Stream(v.ctx, api.StageAgent)
	if err != nil {
		return nil, exit, err
	}
	defer st.Close()
	c := agentapi.NewConn(st)
	if err := c.WriteJSON(agentapi.KindRequest, agentapi.Request{Op: agentapi.OpExec, Exec: &agentapi.Exec{Argv: argv}}); err != nil {
		return nil, exit, err
	}
	sent := make(chan error, 1)
	go func() {
		for rest := in; len(rest) > 0; {
			n := min(len(rest), agentapi.Chunk)
			if err := c.Write(agentapi.KindStdin, rest[:n]); err != nil {
				sent <- err
				return
			}
			rest = rest[n:]
		}
		sent <- c.Write(agentapi.KindStdin, nil)
	}()
	var out []byte
	for {
		k, b, err := c.Read()
		switch {
		case err != nil:
			return out, exit, err
		case k == agentapi.KindStdout:
			out = append(out, b...)
		case k == agentapi.KindExit:
			return out, exit, errors.Join(agentapi.Decode(b, &exit), <-sent)
		case k == agentapi.KindError:
			return out, exit, fmt.Errorf("%s", b)
		}
	}
}

func TestStreams(t *testing.T) {
	v := start(t, "")
	in := make([]byte, 8<<20)
	if _, err := rand.Read(in); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			out, exit, err := v.exec(in, "cat")
			if err != nil || exit != (agentapi.Exit{}) || !bytes.Equal(in, out) {
				t.Errorf("cat gave %d bytes, %+v, %v; want the %d it got", len(out), exit, err, len(in))
			}
		})
	}
	for code := range 20 {
		wg.Go(func() {
			if _, exit, err := v.exec(nil, "sh", "-c", fmt.Sprintf("exit %d", code)); err != nil || exit.Code != code {
				t.Errorf("exit %d gave %+v, %v", code, exit, err)
			}
		})
	}
	wg.Wait()
	// A stream that the VM's end cuts has no exit: nobody takes it for a result.
	cut := make(chan error)
	go func() {
		_, _, err := v.exec(nil, "sh", "-c", "echo begun; exec cat /dev/zero")
		cut <- err
	}()
	if err := v.Kill(v.ctx, 0); err != nil {
		t.Fatal(err)
	}
	if err := <-cut; err == nil {
		t.Error("a command of a killed VM gave a result, want an error")
	}
}

func TestBadRequests(t *testing.T) {
	v := start(t, "")
	for name, tt := range map[string]struct {
		line string
		want api.Code
	}{
		"no JSON":         {"GET / HTTP/1.1\n", api.Invalid},
		"another version": {`{"version":99,"op":"status"}` + "\n", api.VersionSkew},
		"no operation":    {`{"version":1,"op":"dance"}` + "\n", api.VersionSkew},
		"no stage":        {`{"version":1,"op":"stream","after":"dinner"}` + "\n", api.Invalid},
		"over length":     {strings.Repeat("x", companionapi.MaxLine+1) + "\n", api.Internal},
	} {
		c, err := unixsock.Dial(v.ctx, v.Path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, tt.line) // the companion may close before all is written
		b, err := io.ReadAll(c)
		c.Close()
		if !strings.Contains(string(b), `"code":"`+string(tt.want)+`"`) {
			t.Errorf("%s: the reply is %q, %v; want %s", name, b, err, tt.want)
		}
	}
	if _, err := v.Status(v.ctx); err != nil {
		t.Errorf("Status() afterwards = %v", err)
	}
}
