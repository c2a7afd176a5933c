// Package hosttest is the contract of host.Host as tests, which every
// implementation passes, with every VMM.
package hosttest

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/host"
	"banger/internal/procid"
)

// A Suite is what to test. New and Spec are required.
type Suite struct {
	// New is the host as a process finds it that has just started: each call
	// sees what the ones before have left.
	New func(t *testing.T) host.Host
	// Spec is a VM whose agent calls home. Each call is another VM.
	Spec func(t *testing.T) host.Spec
	// Kill kills a VMM, as somebody else does; a signal from here if nil.
	Kill func(t *testing.T, vmm procid.ID)
	// Many is how many VMs run at once in the test of that; 10 if 0.
	Many int
	// Limit is for whatever a guest does; 20 s if 0.
	Limit time.Duration
}

// Run runs the suite.
func (s Suite) Run(t *testing.T) {
	if s.Many == 0 {
		s.Many = 10
	}
	if s.Kill == nil {
		s.Kill = kill
	}
	if s.Limit == 0 {
		s.Limit = 20 * time.Second
	}
	t.Run("LifeOfAVM", s.life)
	t.Run("LaunchIsExclusive", s.exclusive)
	t.Run("EndedContextLeavesNothing", s.ended)
	t.Run("AdoptAfterARestart", s.adopt)
	t.Run("AdoptOfTheDead", s.gone)
	t.Run("LostCompanionIsReplaced", s.companion)
	t.Run("LostVMMIsTold", s.vmm)
	t.Run("ReleaseOfNothing", s.nothing)
	t.Run("ManyAtOnce", s.many)
}

func (s Suite) ctx(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), s.Limit)
	t.Cleanup(cancel)
	return ctx
}

// Launch launches a VM, which is released with the test.
func Launch(t *testing.T, h host.Host, spec host.Spec) host.Run {
	t.Helper()
	r, err := h.Launch(t.Context(), spec)
	t.Cleanup(func() { Release(t, h, spec.ID) })
	if err != nil {
		t.Fatalf("Launch() = %v", Explain(err))
	}
	return r
}

// Release releases id and checks that nothing of it is left.
func Release(t *testing.T, h host.Host, id string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	if err := h.Release(ctx, id); err != nil {
		t.Errorf("Release() = %v", err)
	}
	if held := Find(t, h, id); held != nil {
		t.Errorf("after Release the census still has %+v", *held)
	}
}

// Find looks for id in a census.
func Find(t *testing.T, h host.Host, id string) *host.Held {
	t.Helper()
	all, err := h.Census(context.WithoutCancel(t.Context()))
	if err != nil {
		t.Fatalf("Census() = %v", err)
	}
	for _, v := range all {
		if v.ID == id {
			return &v
		}
	}
	return nil
}

// Explain is an error with its detail.
func Explain(err error) string {
	if e, ok := errors.AsType[*api.Error](err); ok && e.Detail != "" {
		return err.Error() + "\n" + e.Detail
	}
	return err.Error()
}

// Home waits until the VM has reached a stage.
func Home(ctx context.Context, t *testing.T, r host.Run, stage api.Stage) companionapi.Client {
	t.Helper()
	c := companionapi.New(r.Companion())
	st, err := c.Stream(ctx, stage)
	if err != nil {
		t.Fatalf("waiting for stage %s: %v", stage, err)
	}
	if err := st.Close(); err != nil {
		t.Error(err)
	}
	return c
}

// Ended waits for the end and returns its reason.
func Ended(ctx context.Context, t *testing.T, r host.Run) host.Exit {
	t.Helper()
	select {
	case <-r.Done():
		return r.Exit()
	case <-ctx.Done():
		t.Fatal("the VMM has not ended in time")
		return host.Exit{}
	}
}

func (s Suite) life(t *testing.T) {
	t.Parallel()
	ctx, h, spec := s.ctx(t), s.New(t), s.Spec(t)
	r := Launch(t, h, spec)
	rec := r.Record()
	if rec.ID != spec.ID || !rec.VMM.Alive() || !rec.Companion.Alive() {
		t.Errorf("Record() = %+v, want two living processes of %s", rec, spec.ID)
	}
	if v := Find(t, h, spec.ID); v == nil || v.VMM != rec.VMM.PID || v.Companion != rec.Companion.PID {
		t.Errorf("the census has %+v, want the processes of %+v", v, rec)
	}
	c := Home(ctx, t, r, api.StageAgent)
	st, err := c.Status(ctx)
	if err != nil || !st.Stage.Reached(api.StageAgent) || st.Record != rec || st.Agent == nil {
		t.Errorf("Status() = %+v, %v; want stage agent and %+v", st, err, rec)
	}
	if killed, err := c.Stop(ctx, s.Limit); err != nil || killed {
		t.Errorf("Stop() = %v, %v; want false, nil", killed, err)
	}
	if e := Ended(ctx, t, r); e.Reason != "it was stopped" || !e.Asked || !e.Clean {
		t.Errorf("Exit() = %+v, want an asked, clean stop", e)
	}
	if rec.VMM.Alive() {
		t.Error("the VMM is alive after Done")
	}
	Release(t, h, spec.ID)
	if b, err := os.ReadFile(spec.ConsolePath); err != nil || len(b) == 0 {
		t.Errorf("the console holds %d bytes, %v; want some", len(b), err)
	}
}

func (s Suite) exclusive(t *testing.T) {
	t.Parallel()
	h, spec := s.New(t), s.Spec(t)
	r := Launch(t, h, spec)
	if _, err := h.Launch(t.Context(), spec); api.CodeOf(err) != api.Conflict {
		t.Errorf("second Launch() = %v, want a conflict", err)
	}
	if !r.Record().VMM.Alive() {
		t.Error("the second Launch ended the first VMM")
	}
}

func (s Suite) ended(t *testing.T) {
	t.Parallel()
	h := s.New(t)
	for _, after := range []time.Duration{0, time.Millisecond, 10 * time.Millisecond, 40 * time.Millisecond} {
		spec := s.Spec(t)
		ctx, cancel := context.WithTimeout(t.Context(), after)
		r, err := h.Launch(ctx, spec)
		cancel()
		if err == nil { // it was faster
			if !r.Record().VMM.Alive() {
				t.Error("the end of Launch's context ended the VMM")
			}
			Release(t, h, spec.ID)
			continue
		}
		if held := Find(t, h, spec.ID); held != nil {
			t.Errorf("Launch ended after %v (%v) and left %+v", after, err, *held)
		}
	}
}

func (s Suite) adopt(t *testing.T) {
	t.Parallel()
	ctx, spec := s.ctx(t), s.Spec(t)
	first := Launch(t, s.New(t), spec)
	Home(ctx, t, first, api.StageAgent)
	h := s.New(t)
	r, err := h.Adopt(ctx, first.Record())
	if err != nil {
		t.Fatalf("Adopt() = %v", Explain(err))
	}
	if got, want := r.Record(), first.Record(); got != want {
		t.Errorf("adopted %+v, want %+v", got, want)
	}
	if err := Home(ctx, t, r, api.StageAgent).Kill(ctx, 0); err != nil {
		t.Errorf("Kill() = %v", err)
	}
	if e := Ended(ctx, t, r); e.Reason != "it was killed (vm kill)" || !e.Asked {
		t.Errorf("Exit() = %+v, want killed", e)
	}
	if e := Ended(ctx, t, first); e.Reason != "it was killed (vm kill)" {
		t.Errorf("the first run's Exit() = %+v, want killed", e)
	}
	Release(t, h, spec.ID)
}

func (s Suite) gone(t *testing.T) {
	t.Parallel()
	ctx, spec, h := s.ctx(t), s.Spec(t), s.New(t)
	r := Launch(t, h, spec)
	rec := r.Record()
	if err := companionapi.New(r.Companion()).Kill(ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	want := Ended(ctx, t, r)
	_, err := s.New(t).Adopt(ctx, rec)
	gone, ok := errors.AsType[*host.Gone](err)
	if !ok || gone.Exit != want || !errors.Is(err, host.ErrGone) {
		t.Errorf("Adopt() = %v, want gone because of %+v", err, want)
	}
	Release(t, h, spec.ID)
	rec.VMM.BootID = "another"
	if _, err = s.New(t).Adopt(ctx, rec); err == nil || !strings.Contains(err.Error(), "the host was restarted") {
		t.Errorf("Adopt() of another boot = %v, want the host restarted", err)
	}
}

func kill(t *testing.T, id procid.ID) {
	t.Helper()
	p, err := procid.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (s Suite) companion(t *testing.T) {
	t.Parallel()
	ctx, spec := s.ctx(t), s.Spec(t)
	h := s.New(t)
	r := Launch(t, h, spec)
	c := Home(ctx, t, r, api.StageAgent)
	st, err := c.Stream(ctx, api.StageAgent)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	old := r.Record()
	kill(t, old.Companion)
	if n, err := st.Read(make([]byte, 1)); err == nil {
		t.Errorf("a stream of the dead companion read %d bytes, want an end", n)
	}
	var got companionapi.Status
	for got.Stage == "" { // until the new one has met the agent
		if err := ctx.Err(); err != nil {
			t.Fatalf("no new companion: %v", err)
		}
		got, _ = c.Status(ctx) // none may be there yet
	}
	if got.Record.VMM != old.VMM || got.Record.Companion == old.Companion {
		t.Errorf("after the loss the record is %+v, want the VMM of %+v and another companion", got.Record, old)
	}
	if killed, err := c.Stop(ctx, s.Limit); err != nil || killed {
		t.Errorf("Stop() = %v, %v; want false, nil", killed, err)
	}
	if e := Ended(ctx, t, r); !e.Clean || !e.Asked {
		t.Errorf("Exit() = %+v, want an asked, clean stop", e)
	}
	Release(t, h, spec.ID)
}

func (s Suite) vmm(t *testing.T) {
	t.Parallel()
	ctx, spec, h := s.ctx(t), s.Spec(t), s.New(t)
	r := Launch(t, h, spec)
	s.Kill(t, r.Record().VMM)
	if e := Ended(ctx, t, r); !strings.HasSuffix(e.Reason, "was killed by signal 9") || e.Asked || e.Clean {
		t.Errorf("Exit() = %+v, want killed by signal 9", e)
	}
	Release(t, h, spec.ID)
	again := s.Spec(t)
	again.ID = spec.ID
	Launch(t, h, again)
}

func (s Suite) nothing(t *testing.T) {
	t.Parallel()
	h := s.New(t)
	for range 2 {
		Release(t, h, "000000000000")
	}
	for _, id := range []string{"", ".", "..", "../../etc", "0123456789AB", "0123456789abc"} {
		if err := h.Release(t.Context(), id); api.CodeOf(err) != api.Invalid {
			t.Errorf("Release(%q) = %v, want invalid", id, err)
		}
	}
}

func (s Suite) many(t *testing.T) {
	t.Parallel()
	ctx, h := s.ctx(t), s.New(t)
	var wg sync.WaitGroup
	for range s.Many {
		spec := s.Spec(t)
		wg.Go(func() {
			r, err := h.Launch(ctx, spec)
			if err != nil {
				t.Errorf("Launch() = %v", Explain(err))
				return
			}
			st, err := companionapi.New(r.Companion()).Stream(ctx, api.StageAgent)
			if err != nil {
				t.Errorf("Stream() = %v", err)
			} else {
				st.Close()
			}
			if err := h.Release(ctx, spec.ID); err != nil {
				t.Errorf("Release() = %v", err)
			}
		})
	}
	wg.Wait()
}
