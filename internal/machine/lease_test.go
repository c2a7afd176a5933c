package machine_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"banger/internal/api"
	"banger/internal/host"
	"banger/internal/host/fakehost"
)

// createEphemeral begins a --rm create and returns when it has told its
// result. over gets what Create returns; cancel is the client that goes.
func createEphemeral(t *testing.T, w *world) (m api.Machine, cancel func(), over <-chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	result, end := make(chan api.Machine, 1), make(chan error, 1)
	go func() {
		end <- w.x.Create(ctx, api.CreateMachine{Name: "brief", Spec: spec(), Ephemeral: true}, func(e api.Event) {
			if e.Type == api.EventResult {
				result <- *e.Machine
			}
		})
	}()
	select {
	case m := <-result:
		return m, cancel, end
	case err := <-end:
		t.Fatalf("Create ended before its result: %v", err)
		panic("unreachable")
	}
}

func TestEphemeralWithoutLeaseIsDeleted(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	_, cancel, over := createEphemeral(t, w)
	cancel()
	if err := <-over; err != nil {
		t.Errorf("Create = %v", err)
	}
	if got := w.state("brief"); got != "" {
		t.Errorf("the VM is %q, want it gone", got)
	}
	w.clean(t)
}

func TestEphemeralLivesAsLongAsItsLease(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	m, cancel, over := createEphemeral(t, w)
	end, err := w.host.TakeLease(m.ID)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-over; err != nil {
		t.Errorf("Create = %v", err)
	}
	if got := w.state("brief"); got != api.Running {
		t.Errorf("with a lease the VM is %q, want running", got)
	}
	if err := w.x.Restart(t.Context(), "brief", api.StartMachine{}, nil); api.CodeOf(err) != api.Conflict {
		t.Errorf("Restart = %v, want a conflict", err)
	}
	end()
	w.eventually(t, "brief", "")
	w.clean(t)
}

func TestEphemeralGoesHoweverItEnds(t *testing.T) {
	for name, ends := range map[string]func(t *testing.T, w *world, m api.Machine){
		"guest powers off": func(_ *testing.T, w *world, m api.Machine) {
			w.host.End(m.ID, host.Exit{Reason: "the guest powered off"})
		},
		"guest reboots": func(_ *testing.T, w *world, m api.Machine) {
			w.host.End(m.ID, host.Exit{Reason: "the guest rebooted", Reboot: true})
		},
		"companion killed": func(_ *testing.T, w *world, m api.Machine) { w.host.KillCompanion(m.ID) },
		"stop": func(t *testing.T, w *world, m api.Machine) {
			if _, err := w.x.Stop(t.Context(), m.ID, api.StopMachine{}); err != nil {
				t.Errorf("Stop: %v", err)
			}
		},
		"kill": func(t *testing.T, w *world, m api.Machine) {
			if _, err := w.x.Kill(t.Context(), m.ID, api.KillMachine{}); err != nil {
				t.Errorf("Kill: %v", err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, t.TempDir(), nil)
			m, _, over := createEphemeral(t, w)
			if _, err := w.host.TakeLease(m.ID); err != nil {
				t.Fatal(err)
			}
			ends(t, w, m)
			w.eventually(t, "brief", "")
			if err := <-over; err != nil {
				t.Errorf("Create = %v", err)
			}
			w.clean(t)
		})
	}
}

// bootBriefly begins a --rm create whose guest is silent, and returns when its
// lease is taken; end is the client that is killed, over gets what Create returns.
func bootBriefly(t *testing.T, w *world) (m api.Machine, end func(), over <-chan error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		_, _, err := w.create(t.Context(), api.CreateMachine{Name: "brief", Ephemeral: true})
		done <- err
	}()
	synctest.Wait()
	m, err := w.x.Get("brief")
	if err != nil || m.State != api.Starting {
		t.Fatalf("VM = %+v, %v; want it starting", m, err)
	}
	if end, err = w.host.TakeLease(m.ID); err != nil {
		t.Fatal(err)
	}
	return m, end, done
}

// A client that is killed during the boot takes its VM along: nobody would wait
// for a second attempt, nor take its lease.
func TestBootIsNotTriedAgainWithoutItsLease(t *testing.T) {
	inBubble(t, behave(fakehost.Behaviour{Silent: true}), func(t *testing.T, w *world) {
		m, end, over := bootBriefly(t, w)
		end()
		if err := <-over; api.CodeOf(err) != api.Interrupted || !strings.Contains(err.Error(), "its lease ended") {
			t.Errorf("Create = %v, want that the lease ended", err)
		}
		if got, n := w.state("brief"), w.host.Launches(m.ID); got != "" || n != 1 {
			t.Errorf("the VM is %q after %d launches, want it gone after one", got, n)
		}
	})
}

// The same with a daemon that has come in the middle of the boot.
func TestResumedBootIsNotTriedAgainForALease(t *testing.T) {
	for name, ends := range map[string]func(end func()){
		"silent": func(func()) { <-time.After(time.Minute) }, // more than an agent has
		"ended":  func(end func()) { end() },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				silent := fakehost.Behaviour{Silent: true}
				w := newWorld(t, dir, behave(silent))
				m, _, over := bootBriefly(t, w)
				w.stop()
				if err := <-over; api.CodeOf(err) != api.Interrupted {
					t.Errorf("Create = %v, want that the daemon ended", err)
				}
				w = newWorld(t, dir, func(w *world) { w.host.Adopted = silent })
				end, err := w.host.TakeLease(m.ID)
				if err != nil {
					t.Fatal(err)
				}
				ends(end)
				synctest.Wait()
				if got, n := w.state("brief"), w.host.Launches(m.ID); got != "" || n != 0 {
					t.Errorf("the VM is %q after %d launches, want it gone without one", got, n)
				}
				w.clean(t)
				w.stop()
			})
		})
	}
}
