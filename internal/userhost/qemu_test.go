package userhost_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/host"
	"banger/internal/host/hosttest"
	"banger/internal/testneed"
	"banger/internal/userhost"
	"banger/internal/vmm/qemu"
	"banger/internal/vmtest"
)

// The same contract with real VMs, which take a while in emulation.
func TestContractWithQEMU(t *testing.T) {
	g, dir := vmtest.NeedGuest(t), vmtest.ShortDir(t)
	suite := hosttest.Suite{
		New: func(t *testing.T) host.Host {
			return vmtest.Host(t, userhost.Config{RunDir: dir, Driver: qemu.NameTCG})
		},
		Spec: func(t *testing.T) host.Spec { return g.Spec(t) },
		Many: 3, Limit: 3 * time.Minute,
	}
	suite.Run(t)
	t.Run("UnprivilegedIfRoot", func(t *testing.T) { unprivileged(t, suite) })
	t.Run("PanicOfTheGuest", func(t *testing.T) { panics(t, suite) })
}

// As root, the VMM is nobody of this machine, and has no capability.
func unprivileged(t *testing.T, s hosttest.Suite) {
	t.Parallel()
	testneed.Root(t)
	r := hosttest.Launch(t, s.New(t), s.Spec(t))
	b, err := os.ReadFile("/proc/" + r.Record().VMM.String() + "/status")
	if err != nil {
		t.Fatal(err)
	}
	status := map[string]string{}
	for line := range strings.Lines(string(b)) {
		key, val, _ := strings.Cut(line, ":")
		status[key] = strings.TrimSpace(val)
	}
	if f := strings.Fields(status["Uid"]); len(f) != 4 || f[0] != f[1] || f[0] == "0" || strings.TrimLeft(f[0], "12") == "" {
		t.Errorf("the VMM's uids are %v, want one that is not root's", f)
	}
	for key, want := range map[string]string{"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "Groups": "", "Seccomp": "2"} {
		if got := status[key]; got != want {
			t.Errorf("the VMM's %s is %q, want %q", key, got, want)
		}
	}
}

// panics boots a guest whose kernel has no root to go on with.
func panics(t *testing.T, s hosttest.Suite) {
	t.Parallel()
	spec := s.Spec(t)
	spec.Cmdline = "rdinit=/none init=/none"
	ctx, cancel := context.WithTimeout(t.Context(), s.Limit)
	defer cancel()
	r := hosttest.Launch(t, s.New(t), spec)
	var events []companionapi.Event
	if err := companionapi.New(r.Companion()).Events(ctx, func(e companionapi.Event) { events = append(events, e) }); err != nil {
		t.Fatal(err)
	}
	if n := len(events); n != 1 || events[0].Exit == nil || events[0].Stage != api.StageNone {
		t.Errorf("events = %+v, want the exit alone", events)
	}
	if e := hosttest.Ended(ctx, t, r); e.Reason != "the guest's kernel panicked" || e.Clean || e.Asked {
		t.Errorf("Exit() = %+v, want a panic", e)
	}
}
