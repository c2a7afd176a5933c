package machine_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"banger/internal/api"
	"banger/internal/host"
	"banger/internal/host/fakehost"
)

// inBubble runs f with virtual time in a world of its own.
func inBubble(t *testing.T, prepare func(w *world), f func(t *testing.T, w *world)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, dir, prepare)
		f(t, w)
		w.clean(t)
		w.stop()
	})
}

func TestSilentGuestIsTriedTwiceAndKept(t *testing.T) {
	silent := fakehost.Behaviour{Silent: true, Console: "first\n\x1b[2Jlast words\n"}
	inBubble(t, behave(silent), func(t *testing.T, w *world) {
		start := time.Now()
		_, events, err := w.create(t.Context(), api.CreateMachine{Name: "web"})
		e := api.AsError(err)
		if e.Code != api.Timeout || !strings.Contains(e.Msg, "did not call home within 45s") || !strings.Contains(e.Msg, "stage reached") {
			t.Errorf("Create = %v (%s), want a timeout with the stage", err, e.Code)
		}
		if e.Hint != "see its console with: banger vm logs web" || !strings.Contains(e.Detail, "last words") || strings.Contains(e.Detail, "\x1b") {
			t.Errorf("hint %q, detail %q; want the command, and the console made harmless", e.Hint, e.Detail)
		}
		if took := time.Since(start); took != 90*time.Second {
			t.Errorf("it took %v, want twice 45s", took)
		}
		m, err := w.x.Get("web")
		if err != nil || m.State != api.Failed || m.VMMPID == 0 || w.host.Launches(m.ID) != 2 {
			t.Errorf("VM = %+v, %v, %d launches; want it failed, alive, after two", m, err, w.host.Launches(m.ID))
		}
		if got := strings.Join(types(events), ","); !strings.Contains(got, "started 1,phase guest,notice,phase launch,started 2") {
			t.Errorf("events %s, want a notice between two starts", got)
		}
		if files, err := w.x.Console("web"); err != nil || len(files) != 2 {
			t.Errorf("Console = %v, %v", files, err)
		}
		// It calls home after all.
		w.host.CallHome(m.ID)
		w.eventually(t, "web", api.Running)
	})
}

func TestSecondAttemptSucceeds(t *testing.T) {
	for name, first := range map[string]fakehost.Behaviour{
		"silent": {Silent: true},
		"ends":   {Ends: &host.Exit{Reason: "the guest's kernel panicked"}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(w *world) {
				w.host.Behave = func(_ string, n int) fakehost.Behaviour {
					if n == 1 {
						return first
					}
					return fakehost.Behaviour{Delay: 40 * time.Second}
				}
			}, func(t *testing.T, w *world) {
				m, events, err := w.create(t.Context(), api.CreateMachine{Name: "web"})
				if err != nil || m.State != api.Running || w.host.Launches(m.ID) != 2 {
					t.Errorf("Create = %+v, %v; want it running after two launches", m, err)
				}
				for _, e := range events {
					if e.Type == api.EventNotice && !strings.Contains(e.Text, "trying once more") {
						t.Errorf("notice %q, want what is done", e.Text)
					}
				}
			})
		})
	}
}

func TestGuestThatEndsTwice(t *testing.T) {
	ends := fakehost.Behaviour{Ends: &host.Exit{Reason: "the guest's kernel panicked"}, Console: "Kernel panic"}
	inBubble(t, behave(ends), func(t *testing.T, w *world) {
		_, _, err := w.create(t.Context(), api.CreateMachine{Name: "web", Ephemeral: true})
		if e := api.AsError(err); e.Code != api.GuestLost || !strings.Contains(e.Msg, "panicked") || e.Detail != "Kernel panic" {
			t.Errorf("Create = %v, want why, and the console", err)
		}
		if m, err := w.x.Get("web"); err != nil || m.State != api.Failed || m.VMMPID != 0 || m.Ephemeral {
			t.Errorf("VM = %+v, %v; want it failed and kept", m, err)
		}
	})
}

func TestStageThatDoesNotCome(t *testing.T) {
	half := fakehost.Behaviour{Upto: api.StageAgent}
	inBubble(t, behave(half), func(t *testing.T, w *world) {
		_, _, err := w.create(t.Context(), api.CreateMachine{Name: "web", Ephemeral: true})
		if api.CodeOf(err) != api.Timeout || !strings.Contains(err.Error(), "reached stage agent, but not sockets") {
			t.Errorf("Create = %v, want a timeout that names both stages", err)
		}
		if m, err := w.x.Get("web"); err != nil || m.State != api.Running || m.Ephemeral || m.Stage != api.StageAgent {
			t.Errorf("VM = %+v, %v; want it running and kept", m, err)
		}
	})
}

func TestStopCancelsStart(t *testing.T) {
	inBubble(t, behave(fakehost.Behaviour{Silent: true}), func(t *testing.T, w *world) {
		if _, _, err := w.create(t.Context(), api.CreateMachine{Name: "web", NoStart: true}); err != nil {
			t.Fatal(err)
		}
		started := make(chan error)
		go func() { started <- w.x.Start(t.Context(), "web", api.StartMachine{}, nil) }()
		synctest.Wait()
		if got := w.state("web"); got != api.Starting {
			t.Fatalf("state %q, want starting", got)
		}
		begin := time.Now()
		m, err := w.x.Stop(t.Context(), "web", api.StopMachine{})
		if err != nil || m.State != api.Stopped || time.Since(begin) != 0 {
			t.Errorf("Stop = %q, %v after %v; want it stopped at once", m.State, err, time.Since(begin))
		}
		if err := <-started; api.CodeOf(err) != api.Interrupted || !strings.Contains(err.Error(), "was stopped meanwhile") {
			t.Errorf("Start = %v, want interrupted by the stop", err)
		}
	})
}

func TestDeleteCancelsCreate(t *testing.T) {
	inBubble(t, behave(fakehost.Behaviour{Silent: true}), func(t *testing.T, w *world) {
		created := make(chan error)
		go func() {
			_, _, err := w.create(t.Context(), api.CreateMachine{Name: "web"})
			created <- err
		}()
		synctest.Wait()
		if _, err := w.x.Delete(t.Context(), "web"); err != nil && api.CodeOf(err) != api.NotFound {
			t.Errorf("Delete: %v", err)
		}
		if err := <-created; api.CodeOf(err) != api.Interrupted {
			t.Errorf("Create = %v, want interrupted", err)
		}
		if w.state("web") != "" {
			t.Errorf("the VM is still there: %q", w.state("web"))
		}
	})
}

func TestKillCutsAnOrderlyStopShort(t *testing.T) {
	inBubble(t, behave(fakehost.Behaviour{StopHangs: true}), func(t *testing.T, w *world) {
		w.mustCreate(t, "web")
		begin := time.Now()
		m, err := w.x.Stop(t.Context(), "web", api.StopMachine{TimeoutSeconds: 7})
		if err != nil || time.Since(begin) != 7*time.Second || !strings.Contains(m.Reason, "did not shut down within 7s") {
			t.Errorf("Stop = %q, %v after %v; want force after 7s, said", m.Reason, err, time.Since(begin))
		}
		if err := w.x.Start(t.Context(), "web", api.StartMachine{}, nil); err != nil {
			t.Fatal(err)
		}
		stopped := make(chan error)
		go func() { _, err := w.x.Stop(t.Context(), "web", api.StopMachine{}); stopped <- err }()
		synctest.Wait()
		begin = time.Now()
		if m, err := w.x.Kill(t.Context(), "web", api.KillMachine{}); err != nil || m.State != api.Stopped {
			t.Errorf("Kill = %q, %v; want stopped", m.State, err)
		}
		if err := <-stopped; err != nil || time.Since(begin) != 0 {
			t.Errorf("Stop = %v after %v; want success at once", err, time.Since(begin))
		}
	})
}

func TestListNeverWaits(t *testing.T) {
	inBubble(t, behave(fakehost.Behaviour{Silent: true}), func(t *testing.T, w *world) {
		over := make(chan error)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			_, _, err := w.create(ctx, api.CreateMachine{Name: "web"})
			over <- err
		}()
		synctest.Wait()
		begin := time.Now()
		if l := w.x.List(); len(l) != 1 || l[0].State != api.Starting || time.Since(begin) != 0 {
			t.Errorf("List = %+v after %v, want the starting VM at once", l, time.Since(begin))
		}
		cancel()
		if err := <-over; api.CodeOf(err) != api.Interrupted || !errors.Is(err, context.Canceled) {
			t.Errorf("Create after cancel = %v, want interrupted", err)
		}
		if w.state("web") != "" {
			t.Errorf("an interrupted create left a VM that is %q", w.state("web"))
		}
	})
}

func TestInterruptedStartLeavesItStopped(t *testing.T) {
	inBubble(t, behave(fakehost.Behaviour{Silent: true}), func(t *testing.T, w *world) {
		if _, _, err := w.create(t.Context(), api.CreateMachine{Name: "web", NoStart: true}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := w.x.Start(ctx, "web", api.StartMachine{}, nil); api.CodeOf(err) != api.Interrupted {
			t.Errorf("Start = %v, want interrupted", err)
		}
		if got := w.state("web"); got != api.Stopped {
			t.Errorf("state %q, want stopped", got)
		}
	})
}

func TestLimitsStretchInACrowd(t *testing.T) {
	inBubble(t, behave(fakehost.Behaviour{Delay: 2 * time.Minute}), func(t *testing.T, w *world) {
		// 45 s are too few for each, but 3 x 45 s for many at once are not.
		many := 3*runtime.NumCPU() + 4
		results := make(chan error, many)
		for range many {
			go func() {
				_, _, err := w.create(t.Context(), api.CreateMachine{NoStart: true})
				results <- err
			}()
		}
		for range many {
			if err := <-results; err != nil {
				t.Fatal(err)
			}
		}
		for _, m := range w.x.List() {
			go func() { results <- w.x.Start(t.Context(), m.ID, api.StartMachine{}, nil) }()
		}
		for range many {
			// The first few began before there was a crowd, and were tried again.
			if err := <-results; err != nil {
				t.Errorf("Start: %v", err)
			}
		}
	})
}
