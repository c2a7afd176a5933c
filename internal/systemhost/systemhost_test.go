package systemhost_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/crash"
	"banger/internal/host"
	"banger/internal/host/hosttest"
	"banger/internal/procid"
	"banger/internal/rootapi"
	"banger/internal/rootclient"
	helper "banger/internal/rootclient/fake"
	"banger/internal/systemhost"
	"banger/internal/vmm"
	"banger/internal/vmm/fake"
	"banger/internal/vmm/firecracker"
	"banger/internal/vmtest"
)

func TestMain(m *testing.M) {
	if code, ours := vmtest.Main(context.Background()); ours {
		os.Exit(code)
	}
	if spec := os.Getenv(launchEnv); spec != "" {
		if err := launcher(context.Background(), spec); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A kit is a fake root helper and what hosts of it share.
type kit struct {
	*helper.Helper
	dir string
}

func newKit(t *testing.T) kit {
	t.Helper()
	dir := vmtest.ShortDir(t)
	return kit{helper.Start(t, vmtest.ShortDir(t)), dir}
}

// host is the host as a process finds it that has just started.
func (k kit) host(t *testing.T, change ...func(*systemhost.Config)) *systemhost.Host {
	t.Helper()
	c := systemhost.Config{RunDir: k.dir, CompanionPath: vmtest.Companion(t), Helper: k.Client, Driver: fake.NameCalling,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, f := range change {
		f(&c)
	}
	h, err := systemhost.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func TestContract(t *testing.T) {
	k := newKit(t)
	hosttest.Suite{
		New:  func(t *testing.T) host.Host { return k.host(t) },
		Spec: func(t *testing.T) host.Spec { return vmtest.FakeSpec(t, "") },
	}.Run(t)
}

// launchEnv makes this test binary a process that launches a VM and dies.
const launchEnv = "BANGER_TEST_LAUNCH"

// job is what the launching process is told.
type job struct{ RunDir, Socket, ID, Work string }

// launcher launches and releases a VM, unless it is killed before.
func launcher(ctx context.Context, spec string) error {
	var j job
	if err := json.Unmarshal([]byte(spec), &j); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	h, err := systemhost.New(systemhost.Config{RunDir: j.RunDir, CompanionPath: self, Helper: rootclient.Client{Socket: j.Socket}, Driver: fake.NameCalling})
	if err != nil {
		return err
	}
	file, err := os.Open(self)
	if err != nil {
		return err
	}
	_, err = h.Launch(ctx, host.Spec{ID: j.ID, VCPUs: 1, MemoryMiB: 64, Kernel: file, Initramfs: file, ConsolePath: j.Work + "/console",
		Disks: []host.Disk{{File: file, Serial: "base", ReadOnly: true}}})
	return errors.Join(err, h.Release(ctx, j.ID))
}

// The launching process dies between any two steps; the next one finds what
// there is, by the id alone, and can go on with it or remove it.
func TestDeathOfTheLauncher(t *testing.T) {
	for _, point := range []string{"launch.dir-made", "launch.vmm-started", "launch.companion-started", "launch.config-sent", "launch.started", "release.killed"} {
		for _, adopt := range []bool{false, true} {
			name := point + " then release"
			if adopt {
				name = point + " then adopt"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				k := newKit(t)
				j := job{RunDir: k.dir, Socket: k.Socket, ID: vmtest.ID(t), Work: t.TempDir()}
				spec, err := json.Marshal(j)
				if err != nil {
					t.Fatal(err)
				}
				cmd := exec.CommandContext(t.Context(), vmtest.Companion(t))
				cmd.Env = append(os.Environ(), launchEnv+"="+string(spec), crash.Env+"="+point)
				out, err := cmd.CombinedOutput()
				if cmd.ProcessState == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("the launcher did not die at the point: %v\n%s", err, out)
				}
				h := k.host(t)
				if held := hosttest.Find(t, h, j.ID); held == nil {
					t.Error("the census does not see what is left")
				}
				if adopt {
					r, err := h.Adopt(t.Context(), host.Record{ID: j.ID})
					if err != nil && !errors.Is(err, host.ErrGone) {
						t.Errorf("Adopt() = %v, want a run or ErrGone", err)
					}
					if err == nil && !r.Record().VMM.Alive() {
						t.Error("Adopt() found a dead VMM")
					}
				}
				hosttest.Release(t, h, j.ID)
			})
		}
	}
}

// The companion dies between any two steps of its start: Launch says so and
// leaves nothing; or, right after it has answered, others take over until it is
// too much.
func TestDeathOfTheCompanion(t *testing.T) {
	for _, point := range []string{"companion.listening", "companion.ready", "companion.vmm-started", "companion.recorded"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			h := newKit(t).host(t, func(c *systemhost.Config) { c.Env = []string{crash.Env + "=" + point} })
			spec := vmtest.FakeSpec(t, "")
			if _, err := h.Launch(t.Context(), spec); err == nil {
				t.Error("Launch() = nil, want an error")
			}
			if held := hosttest.Find(t, h, spec.ID); held != nil {
				t.Errorf("Launch() failed and left %+v", *held)
			}
		})
	}
	t.Run("always", func(t *testing.T) {
		t.Parallel()
		h := newKit(t).host(t, func(c *systemhost.Config) { c.Env = []string{crash.Env + "=companion.told"} })
		r := hosttest.Launch(t, h, vmtest.FakeSpec(t, ""))
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if e := hosttest.Ended(ctx, t, r); e.Reason != "its companions kept dying" {
			t.Errorf("Exit() = %+v, want its companions kept dying", e)
		}
	})
}

// The helper dies before it has answered: what it did is undone, or done again.
func TestLostReplies(t *testing.T) {
	k := newKit(t)
	h, spec := k.host(t), vmtest.FakeSpec(t, "")
	k.Lose(rootapi.Start, 1)
	if _, err := h.Launch(t.Context(), spec); api.CodeOf(err) != api.Missing {
		t.Errorf("Launch() = %v, want that the helper does not answer", err)
	}
	if held := hosttest.Find(t, h, spec.ID); held != nil {
		t.Errorf("Launch() failed and left %+v", *held)
	}
	r := hosttest.Launch(t, h, spec)
	hosttest.Home(t.Context(), t, r, api.StageAgent)
	k.Lose(rootapi.Adopt, 4) // more than a client puts up with by itself
	kill(t, r.Record().Companion)
	c := companionapi.New(r.Companion())
	var st companionapi.Status
	for st.Stage == "" {
		if t.Context().Err() != nil {
			t.Fatal("no new companion")
		}
		st, _ = c.Status(t.Context()) // none may be there yet
	}
	k.Lose(rootapi.Release, 1) // the companion's own
	if err := c.Kill(t.Context(), 0); err != nil {
		t.Errorf("Kill() = %v", err)
	}
	if e := hosttest.Ended(t.Context(), t, r); e.Reason != "it was killed (vm kill)" {
		t.Errorf("Exit() = %+v, want killed", e)
	}
}

// A VM is not given up because the helper cannot look at it just now.
func TestHelperFailsForAWhile(t *testing.T) {
	k := newKit(t)
	h, spec := k.host(t), vmtest.FakeSpec(t, "")
	r := hosttest.Launch(t, h, spec)
	hosttest.Home(t.Context(), t, r, api.StageAgent)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	kill(t, r.Record().Companion)
	k.Fail(rootapi.Adopt, 2)
	again, err := k.host(t).Adopt(t.Context(), r.Record())
	if err != nil {
		t.Fatalf("Adopt() = %v, want the VM", err)
	}
	if got, want := again.Record().VMM, r.Record().VMM; got != want {
		t.Errorf("Adopt() found VMM %v, want %v", got, want)
	}
}

// A lease ends its VM without a daemon, and keeps doing so after a takeover.
func TestLease(t *testing.T) {
	for name, lose := range map[string]bool{"first companion": false, "second companion": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newKit(t)
			h, spec := k.host(t), vmtest.FakeSpec(t, "")
			spec.Lease = true
			r := hosttest.Launch(t, h, spec)
			c := hosttest.Home(t.Context(), t, r, api.StageAgent)
			l, err := c.Lease(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if lose {
				kill(t, r.Record().Companion)
				_ = l.Close() // it is lost
				for l, err = c.Lease(t.Context()); err != nil; l, err = c.Lease(t.Context()) {
					if t.Context().Err() != nil { // none may be there yet
						t.Fatal("no new companion")
					}
				}
			}
			if err := errors.Join(h.Close(), l.Close()); err != nil {
				t.Fatal(err)
			}
			p, err := procid.Open(r.Record().VMM)
			if err == nil {
				err = p.Wait(t.Context())
			}
			if err != nil && !errors.Is(err, procid.ErrDead) {
				t.Fatal(err)
			}
			_, err = k.host(t).Adopt(t.Context(), r.Record())
			if gone, ok := errors.AsType[*host.Gone](err); !ok || gone.Exit.Reason != "its lease ended" {
				t.Errorf("Adopt() = %v, want that its lease ended", err)
			}
		})
	}
}

// kill kills a process and waits for its end.
func kill(t *testing.T, id procid.ID) {
	t.Helper()
	p, err := procid.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := errors.Join(p.Signal(syscall.SIGKILL), p.Wait(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// Nobody sees the VMM die: the helper knows why.
func TestDeathThatNobodySaw(t *testing.T) {
	k := newKit(t)
	h, spec := k.host(t), vmtest.FakeSpec(t, "")
	r := hosttest.Launch(t, h, spec)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	kill(t, r.Record().Companion)
	kill(t, r.Record().VMM)
	_, err := k.host(t).Adopt(t.Context(), r.Record())
	if gone, ok := errors.AsType[*host.Gone](err); !ok || gone.Exit.Reason != "the VMM was killed by signal 9" {
		t.Errorf("Adopt() = %v, want that it was killed by signal 9", err)
	}
}

func TestLaunchRefuses(t *testing.T) {
	k := newKit(t)
	h := k.host(t)
	for name, tt := range map[string]struct {
		change func(*host.Spec)
		want   string
	}{
		"no id":              {func(s *host.Spec) { s.ID = "" }, `"" is not a VM's id`},
		"no kernel":          {func(s *host.Spec) { s.Kernel = nil }, "kernel or initramfs is missing"},
		"no vCPU":            {func(s *host.Spec) { s.VCPUs = 0 }, "0 vCPUs are not between 1 and 32"},
		"many vCPUs":         {func(s *host.Spec) { s.VCPUs = 33 }, "33 vCPUs are not between 1 and 32"},
		"little memory":      {func(s *host.Spec) { s.MemoryMiB = 63 }, "63 MiB of memory are not between 64 and 1048576"},
		"much memory":        {func(s *host.Spec) { s.MemoryMiB = 1<<20 + 1 }, "are not between 64 and 1048576"},
		"no disk":            {func(s *host.Spec) { s.Disks = nil }, "0 disks are not between 1 and 4"},
		"many disks":         {func(s *host.Spec) { s.Disks = append(s.Disks, s.Disks[0], s.Disks[0], s.Disks[0]) }, "5 disks are not between 1 and 4"},
		"no disk file":       {func(s *host.Spec) { s.Disks[0].File = nil }, `disk "base" has no file`},
		"a disk not to read": {func(s *host.Spec) { s.Disks[0].ReadOnly = false }, `disk "base" is not open for reading and writing`},
		"a foreign address":  {func(s *host.Spec) { s.Net = &host.Net{Addr: netip.MustParseAddr("10.0.0.1")} }, "10.0.0.1 is no guest's in 172.16.0.0/24"},
		"a console nowhere":  {func(s *host.Spec) { s.ConsolePath = "/nowhere/console" }, "opening console"},
	} {
		s := vmtest.FakeSpec(t, "")
		tt.change(&s)
		_, err := h.Launch(t.Context(), s)
		if err == nil || !strings.Contains(hosttest.Explain(err), tt.want) {
			t.Errorf("%s: Launch() = %v, want %q", name, err, tt.want)
		}
		if s.ID != "" && hosttest.Find(t, h, s.ID) != nil {
			t.Errorf("%s: Launch() left something", name)
		}
	}
	k.Tell(fake.Refuse)
	if _, err := h.Launch(t.Context(), vmtest.FakeSpec(t, "")); api.CodeOf(err) != api.Internal || !strings.Contains(err.Error(), "the VMM has ended") {
		t.Errorf("Launch() of a VMM that refuses = %v, want internal", err)
	}
}

// The config names a Firecracker of the install record; an index crosses.
func TestProgram(t *testing.T) {
	k := newKit(t)
	for path, want := range map[string]int{"": 0, helper.Firecrackers[0]: 0, helper.Firecrackers[1]: 1} {
		h, spec := k.host(t, func(c *systemhost.Config) { c.Program = path }), vmtest.FakeSpec(t, "")
		hosttest.Launch(t, h, spec)
		for _, q := range k.Asked() {
			if q.ID == spec.ID && q.Launch != nil && q.Launch.Firecracker != want {
				t.Errorf("%q: the helper was asked for Firecracker %d, want %d", path, q.Launch.Firecracker, want)
			}
		}
	}
	h := k.host(t, func(c *systemhost.Config) { c.Program = "/home/me/firecracker" })
	_, err := h.Launch(t.Context(), vmtest.FakeSpec(t, ""))
	if api.CodeOf(err) != api.Denied || !strings.Contains(err.Error(), helper.Firecrackers[1]) {
		t.Errorf("Launch() with another Firecracker = %v, want a refusal that names those there are", err)
	}
}

// A Firecracker that is too old, for banger or for a kernel, is refused with what
// it lacks; one that is replaced is asked again.
func TestVersion(t *testing.T) {
	k := newKit(t)
	path := filepath.Join(t.TempDir(), "firecracker")
	k.Record(path)
	h := k.host(t, func(c *systemhost.Config) { c.Driver = "" })
	is := func(version string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte("#!/bin/sh\necho Firecracker v"+version+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := h.Firecracker(t.Context()); api.CodeOf(err) != api.Missing {
		t.Errorf("Firecracker() where there is none = %v, want missing", err)
	}
	is("1.4.10")
	if _, _, err := h.Firecracker(t.Context()); api.CodeOf(err) != api.Unsupported || !strings.Contains(err.Error(), "1.5.0") {
		t.Errorf("Firecracker() of an old one = %v, want a refusal with the oldest that can be used", err)
	}
	is("1.7.0")
	if at, v, err := h.Firecracker(t.Context()); at != path || v.String() != "1.7.0" || err != nil {
		t.Errorf("Firecracker() = %q, %v, %v; want %q, 1.7.0", at, v, err, path)
	}
	s := vmtest.FakeSpec(t, "")
	s.KernelConfig = "CONFIG_ACPI=y\n"
	if _, err := h.Launch(t.Context(), s); api.CodeOf(err) != api.Unsupported || !strings.Contains(err.Error(), "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES") {
		t.Errorf("Launch() of a kernel that it does not suit = %v, want what the kernel lacks", err)
	}
	if hosttest.Find(t, h, s.ID) != nil {
		t.Error("a refused Launch() left something")
	}
}

// Where nobody answers, whatever is asked says what to do.
func TestNoHelper(t *testing.T) {
	h, err := systemhost.New(systemhost.Config{RunDir: vmtest.ShortDir(t), CompanionPath: vmtest.Companion(t), Driver: fake.NameCalling,
		Helper: rootclient.Client{Socket: "/nowhere/root.sock"}})
	if err != nil {
		t.Fatal(err)
	}
	_, launch := h.Launch(t.Context(), vmtest.FakeSpec(t, ""))
	_, census := h.Census(t.Context())
	_, _, program := h.Firecracker(t.Context())
	for name, err := range map[string]error{"Launch": launch, "Census": census, "Firecracker": program, "Release": h.Release(t.Context(), vmtest.ID(t)),
		"SetNAT": h.SetNAT(t.Context(), vmtest.ID(t), true)} {
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.Missing || e.Hint != "sudo banger system restart" {
			t.Errorf("%s() = %#v, want that the helper is missing", name, err)
		}
	}
}

// One that hangs is told from one that is not there.
func TestSilentHelper(t *testing.T) {
	socket := filepath.Join(vmtest.ShortDir(t), "root.sock")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // nobody accepts
	h, err := systemhost.New(systemhost.Config{RunDir: vmtest.ShortDir(t), CompanionPath: vmtest.Companion(t), Driver: fake.NameCalling,
		Helper: rootclient.Client{Socket: socket}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, census := h.Census(ctx)
	_, _, program := h.Firecracker(ctx)
	for name, err := range map[string]error{"Census": census, "Firecracker": program, "SetNAT": h.SetNAT(ctx, vmtest.ID(t), true)} {
		if e, ok := errors.AsType[*api.Error](err); !ok && name != "Census" || ok && (e.Code != api.Timeout || e.Hint != "sudo banger system restart") {
			t.Errorf("%s() = %#v, want a timeout and what to do", name, err)
		}
	}
}

// What crosses to the companion is where things are in the jail, and the network
// that the helper made.
func TestNetwork(t *testing.T) {
	k := newKit(t)
	h, spec := k.host(t), vmtest.FakeSpec(t, "")
	spec.Net = &host.Net{Addr: netip.MustParseAddr("172.16.0.9"), NAT: true}
	r := hosttest.Launch(t, h, spec)
	var c companionapi.Config
	if err := companionapi.Load(filepath.Dir(r.Companion()), companionapi.ConfigName, &c); err != nil {
		t.Fatal(err)
	}
	if want := (vmm.Network{TAP: "bvm" + spec.ID, MAC: "02:fc:ac:10:00:09"}); c.VMM.Network != want {
		t.Errorf("the companion was told of network %+v, want %+v", c.VMM.Network, want)
	}
	if c.VMM.Kernel.Name != "/kernel" || c.VMM.Disks[1].File.Name != "/disk1" || c.VMM.Disks[1].ReadOnly || !c.VMM.Disks[0].ReadOnly {
		t.Errorf("the companion was told of %+v", c.VMM)
	}
	calls, err := firecracker.Machine(c.VMM)
	text := fmt.Sprint(calls)
	for _, call := range calls {
		text += fmt.Sprintf(" %+v", call.Body)
	}
	for _, want := range []string{"/kernel", "/initramfs", "/disk0", "/disk1", "/s/v.sock", "bvm" + spec.ID} {
		if err != nil || !strings.Contains(text, want) {
			t.Errorf("Firecracker would be told %s, %v; want %s in it", text, err, want)
		}
	}
	if err := h.SetNAT(t.Context(), spec.ID, false); err != nil {
		t.Errorf("SetNAT() = %v", err)
	}
	if err := h.SetNAT(t.Context(), vmtest.ID(t), false); api.CodeOf(err) != api.NotFound {
		t.Errorf("SetNAT() of no VM = %v, want not found", err)
	}
	if err := companionapi.New(r.Companion()).Kill(t.Context(), syscall.SIGSTOP); api.CodeOf(err) != api.Unsupported {
		t.Errorf("Kill(STOP) = %v, want unsupported", err)
	}
}
