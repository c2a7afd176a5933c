//go:build lab

package lab

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/agentapi"
	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/host"
	"banger/internal/host/hosttest"
	"banger/internal/initramfs"
	"banger/internal/testneed"
	"banger/internal/userhost"
	driver "banger/internal/vmm/firecracker"
	"banger/internal/vmm/vmmtest"
	"banger/internal/vmtest"
)

// inPath puts Firecracker where user mode looks for it.
func inPath(t *testing.T) {
	t.Helper()
	t.Setenv("PATH", filepath.Dir(firecracker)+":"+os.Getenv("PATH"))
}

// The contract of a driver, with a guest that this program is the init of.
func TestFirecrackerDriver(t *testing.T) {
	testneed.Lab(t)
	inPath(t)
	k, dir := vmtest.NeedKernel(t), t.TempDir()
	modules, err := k.Modules()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	in := initramfs.In{Modules: modules}
	if in.Agent, err = os.ReadFile(self); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "initramfs")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(initramfs.Build(f, in), f.Close()); err != nil {
		t.Fatal(err)
	}
	vmmtest.Suite{Driver: driver.Driver{}, Kernel: k.Vmlinux, Initramfs: name, Words: "driver=yes", Limit: 2 * time.Minute}.Run(t)
}

// The contract of a host, with Firecracker chosen by the probe.
func TestUserHostWithFirecracker(t *testing.T) {
	testneed.Lab(t)
	inPath(t)
	g, dir := vmtest.NeedGuest(t), vmtest.ShortDir(t)
	newHost := func(t *testing.T) host.Host {
		h := vmtest.Host(t, userhost.Config{RunDir: dir, Driver: driver.Name})
		return h
	}
	hosttest.Suite{New: newHost, Spec: func(t *testing.T) host.Spec { return g.Spec(t) }, Many: 3, Limit: 3 * time.Minute}.Run(t)
	t.Run("Confined", func(t *testing.T) { confined(t, newHost(t), g.Spec(t)) })
	t.Run("GuestEndsItself", func(t *testing.T) {
		for _, reboot := range []bool{false, true} {
			endsItself(t, newHost(t), g.Spec(t), reboot)
		}
	})
	t.Run("BootTime", func(t *testing.T) { bootTime(t, newHost(t), g) })
}

// A VMM is nobody of this machine, has no capability, and its own filters.
func confined(t *testing.T, h host.Host, spec host.Spec) {
	r := hosttest.Launch(t, h, spec)
	hosttest.Home(t.Context(), t, r, api.StageAgent)
	b, err := os.ReadFile("/proc/" + r.Record().VMM.String() + "/status")
	if err != nil {
		t.Fatal(err)
	}
	status := map[string]string{}
	for line := range strings.Lines(string(b)) {
		key, val, _ := strings.Cut(line, ":")
		status[key] = strings.TrimSpace(val)
	}
	if f := strings.Fields(status["Uid"]); os.Getuid() == 0 && (len(f) != 4 || f[0] != f[1] || f[0] == "0") {
		t.Errorf("the VMM's uids are %v, want one that is not root's", f)
	}
	if log, err := os.ReadFile(filepath.Join(filepath.Dir(r.Companion()), companionapi.LogName)); err != nil || strings.Contains(string(log), "Landlock") {
		t.Errorf("the companion says %q, %v; want nothing about Landlock", log, err)
	}
	for key, want := range map[string]string{"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"} {
		if got := status[key]; got != want {
			t.Errorf("the VMM's %s is %q, want %q", key, got, want)
		}
	}
}

// endsItself has the agent end the guest without anybody waiting to kill it.
func endsItself(t *testing.T, h host.Host, spec host.Spec, reboot bool) {
	t.Helper()
	r := hosttest.Launch(t, h, spec)
	hosttest.Home(t.Context(), t, r, api.StageAgent)
	st, err := companionapi.New(r.Companion()).Stream(t.Context(), api.StageAgent)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if err := agentapi.NewConn(st).WriteJSON(agentapi.KindRequest, agentapi.Request{Op: agentapi.OpShutdown, Shutdown: &agentapi.Shutdown{Reboot: reboot}}); err != nil {
		t.Fatal(err)
	}
	want := host.Exit{Reason: "the guest powered off", Clean: true}
	if reboot {
		want = host.Exit{Reason: "the guest rebooted", Clean: true, Reboot: true}
	}
	if got := hosttest.Ended(t.Context(), t, r); got != want {
		t.Errorf("Exit() = %+v, want %+v", got, want)
	}
}

// bootTime says how long a guest takes to call home.
func bootTime(t *testing.T, h host.Host, g vmtest.Guest) {
	for range 3 {
		spec := g.Spec(t)
		begin := time.Now()
		r := hosttest.Launch(t, h, spec)
		launched := time.Since(begin)
		c := hosttest.Home(t.Context(), t, r, api.StageAgent)
		t.Logf("launched in %v, agent in %v", launched, time.Since(begin))
		if _, err := c.Stop(t.Context(), time.Minute); err != nil {
			t.Error(err)
		}
	}
}
