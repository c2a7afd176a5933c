package machine_test

import (
	"context"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"banger/internal/api"
	"banger/internal/host/fakehost"
	"banger/internal/machine"
)

// TestBootsTakeTurns starts twice as many VMs as may boot at once: how long
// that takes tells how many did.
func TestBootsTakeTurns(t *testing.T) {
	for name, tt := range map[string]struct {
		b    fakehost.Behaviour
		want time.Duration
	}{
		"two rounds":           {fakehost.Behaviour{Delay: time.Second}, 2 * time.Second},
		"slow ones":            {fakehost.Behaviour{Delay: 25 * time.Second}, 35 * time.Second}, // a turn lasts 10 s at most
		"launches that failed": {fakehost.Behaviour{LaunchErr: context.DeadlineExceeded}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, behave(tt.b), func(t *testing.T, w *world) {
				start, many := time.Now(), 2*runtime.NumCPU()
				results := make(chan error, many)
				for range many {
					go func() {
						_, _, err := w.create(t.Context(), api.CreateMachine{})
						results <- err
					}()
				}
				for range many {
					if err := <-results; (err != nil) != (tt.b.LaunchErr != nil) {
						t.Errorf("Create: %v", err)
					}
				}
				if took := time.Since(start); took != tt.want {
					t.Errorf("%d boots on %d CPUs took %v, want %v", many, runtime.NumCPU(), took, tt.want)
				}
			})
		})
	}
}

// TestQueuedBootIsInterrupted gives up a VM that waits for its turn.
func TestQueuedBootIsInterrupted(t *testing.T) {
	inBubble(t, behave(fakehost.Behaviour{Delay: 5 * time.Second}), func(t *testing.T, w *world) {
		others := make(chan error)
		for range runtime.NumCPU() {
			go func() {
				_, _, err := w.create(t.Context(), api.CreateMachine{})
				others <- err
			}()
		}
		synctest.Wait() // all of them boot now
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, events, err := w.create(ctx, api.CreateMachine{Name: "late"})
		if api.CodeOf(err) != api.Interrupted {
			t.Errorf("Create = %v, want interrupted", err)
		}
		if !slices.ContainsFunc(events, func(e api.Event) bool { return e.Phase == "queue" }) {
			t.Errorf("the events are %+v, want the phase queue among them", events)
		}
		if _, err := w.x.Get("late"); api.CodeOf(err) != api.NotFound {
			t.Errorf("Get of a VM that was given up = %v, want not found", err)
		}
		for range runtime.NumCPU() {
			if err := <-others; err != nil {
				t.Error(err)
			}
		}
	})
}

// TestQueuedBootIsCutShort asks for the end of a VM that waits for its turn:
// nobody waits for the boots before it, and its turn is not lost to others.
func TestQueuedBootIsCutShort(t *testing.T) {
	for name, end := range map[string]func(ctx context.Context, x *machine.Index) error{
		"stop": func(ctx context.Context, x *machine.Index) error {
			_, err := x.Stop(ctx, "late", api.StopMachine{})
			return err
		},
		"kill": func(ctx context.Context, x *machine.Index) error {
			_, err := x.Kill(ctx, "late", api.KillMachine{})
			return err
		},
		"delete": func(ctx context.Context, x *machine.Index) error { _, err := x.Delete(ctx, "late"); return err },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, behave(fakehost.Behaviour{Delay: 5 * time.Second}), func(t *testing.T, w *world) {
				if _, _, err := w.create(t.Context(), api.CreateMachine{Name: "late", NoStart: true}); err != nil {
					t.Fatal(err)
				}
				others, late := make(chan error), make(chan error, 1)
				boot := func() { _, _, err := w.create(t.Context(), api.CreateMachine{}); others <- err }
				for range runtime.NumCPU() {
					go boot()
				}
				synctest.Wait() // all of them boot now
				go func() { late <- w.x.Start(t.Context(), "late", api.StartMachine{}, nil) }()
				synctest.Wait()
				begun := time.Now()
				if err := end(t.Context(), w.x); err != nil {
					t.Errorf("it failed: %v", err)
				}
				if err := <-late; api.CodeOf(err) != api.Interrupted || time.Since(begun) != 0 {
					t.Errorf("Start = %v after %v, want interrupted at once", err, time.Since(begun))
				}
				go boot()
				for range runtime.NumCPU() + 1 {
					if err := <-others; err != nil {
						t.Error(err)
					}
				}
				if took := time.Since(begun); took != 10*time.Second {
					t.Errorf("the others took %v, want two rounds", took)
				}
			})
		})
	}
}
