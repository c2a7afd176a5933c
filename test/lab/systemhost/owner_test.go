//go:build lab

package systemhost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/agentapi"
	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/guest"
	"banger/internal/host"
	"banger/internal/host/hosttest"
	"banger/internal/initramfs"
	"banger/internal/procid"
	"banger/internal/systemhost"
	"banger/internal/testneed"
	"banger/internal/vmm/firecracker"
	"banger/internal/vmtest"
)

// limit is for whatever a guest does on a busy machine.
const limit = 3 * time.Minute

// asOwner ends a test where it is not TestSystemHost that runs it.
func asOwner(t *testing.T) {
	t.Helper()
	if os.Getuid() != ownerUID {
		testneed.Missing(t, "the owner's account, as which TestSystemHost runs it")
	}
}

// newHost is the host as a process finds it that has just started.
func newHost(t *testing.T) *systemhost.Host {
	t.Helper()
	h, err := systemhost.New(systemhost.Config{RunDir: runDir, CompanionPath: "/usr/local/libexec/banger/banger-companion", Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	must(t, err)
	t.Cleanup(func() { must(t, h.Close()) })
	return h
}

// kill kills a VMM, which the owner may neither signal nor, in the daemon's unit,
// see.
func kill(t *testing.T, id procid.ID) {
	t.Helper()
	root(t, "kill -9 "+id.String()+" && tail --pid="+id.String()+" -s 0.05 -f /dev/null")
}

const killHelper = "kill -9 $(systemctl show -p MainPID --value bangerd-root) 2>/dev/null; true"

func TestOwnerContract(t *testing.T) {
	asOwner(t)
	g := vmtest.NeedGuest(t)
	hosttest.Suite{New: func(t *testing.T) host.Host { return newHost(t) }, Spec: func(t *testing.T) host.Spec { return g.Spec(t) },
		Kill: kill, Many: 3, Limit: limit}.Run(t)
}

func TestOwnerCheck(t *testing.T) {
	asOwner(t)
	h := newHost(t)
	must(t, h.Check(t.Context()))
	if path, v, err := h.Firecracker(t.Context()); path != programs+"/firecracker" || v.String() != "1.12.1" || err != nil {
		t.Errorf("Firecracker() = %s, %v, %v", path, v, err)
	}
	if name, why := h.Driver(t.Context()); name != firecracker.JailedName || why != "" {
		t.Errorf("Driver() = %q, %q", name, why)
	}
}

// The helper is killed at any time while VMs are started: each is there or not.
func TestOwnerHelperDies(t *testing.T) {
	asOwner(t)
	g, h := vmtest.NeedGuest(t), newHost(t)
	launched := 0
	for _, after := range []time.Duration{0, 50 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond, 900 * time.Millisecond} {
		spec := g.Spec(t)
		ctx, cancel := context.WithTimeout(t.Context(), after)
		killed := make(chan struct{})
		go func() {
			defer close(killed)
			<-ctx.Done()
			root(t, killHelper)
		}()
		r, err := h.Launch(t.Context(), spec)
		<-killed
		cancel()
		if err != nil {
			t.Logf("killed after %v: %v", after, err)
			if held := hosttest.Find(t, h, spec.ID); held != nil {
				t.Errorf("Launch failed with the helper killed after %v, and left %+v", after, held)
			}
			continue
		}
		launched++
		hosttest.Home(t.Context(), t, r, api.StageAgent)
		hosttest.Release(t, h, spec.ID)
	}
	t.Logf("%d of 5 were launched all the same", launched)
}

// Everybody but the VMM dies, in any order, and the VM goes on.
func TestOwnerSurvival(t *testing.T) {
	asOwner(t)
	spec := vmtest.NeedGuest(t).Spec(t)
	first := newHost(t)
	r := hosttest.Launch(t, first, spec)
	hosttest.Home(t.Context(), t, r, api.StageAgent)
	rec := r.Record()
	boot := inGuest(t, r, nil, "cat", "/proc/sys/kernel/random/boot_id")
	// It prints while nobody reads.
	inGuest(t, r, nil, "sh", "-c", "setsid sh -c 'while sleep 0.02; do echo still here; done' </dev/null >/dev/ttyS0 2>&1 &")
	root(t, killHelper)
	must(t, first.Close()) // as the daemon's death
	p, err := procid.Open(rec.Companion)
	must(t, err)
	must(t, p.Signal(syscall.SIGKILL), p.Wait(t.Context()), p.Close())
	second := newHost(t)
	r, err = second.Adopt(t.Context(), rec)
	if err != nil {
		t.Fatalf("Adopt() = %v", hosttest.Explain(err))
	}
	if now := r.Record(); now.VMM != rec.VMM || now.Companion == rec.Companion || now.Driver != firecracker.JailedName {
		t.Errorf("adopted %+v, launched %+v", now, rec)
	}
	if got := inGuest(t, r, nil, "cat", "/proc/sys/kernel/random/boot_id"); got != boot {
		t.Errorf("the guest is another: boot %s, it was %s", got, boot)
	}
	st, err := companionapi.New(r.Companion()).Status(t.Context())
	if err != nil || st.Stage == api.StageNone {
		t.Errorf("Status() = %+v, %v", st, err)
	}
	hosttest.Release(t, second, spec.ID)
	hosttest.Release(t, second, spec.ID)
	if rec.VMM.Alive() {
		t.Error("the VMM lives after Release")
	}
}

// A lease ends its VM while there is no daemon, and even though the helper has
// just been killed.
func TestOwnerLease(t *testing.T) {
	asOwner(t)
	g, h := vmtest.NeedGuest(t), newHost(t)
	spec := g.Spec(t)
	spec.Lease = true
	r := hosttest.Launch(t, h, spec)
	c := hosttest.Home(t.Context(), t, r, api.StageAgent)
	l, err := c.Lease(t.Context())
	must(t, err, h.Close())
	root(t, killHelper)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var last companionapi.Event
	over := make(chan error)
	go func() { over <- c.Events(ctx, func(e companionapi.Event) { last = e }) }()
	must(t, l.Close(), <-over)
	if last.Exit == nil || last.Exit.Reason != "its lease ended" || !last.Exit.Asked {
		t.Errorf("the last event is %+v, want that the lease ended", last)
	}
	_, err = newHost(t).Adopt(t.Context(), r.Record())
	if gone, ok := errors.AsType[*host.Gone](err); !ok || gone.Exit.Reason != "its lease ended" {
		t.Errorf("Adopt() = %v, want that the lease ended", err)
	}
	hosttest.Release(t, h, spec.ID)
}

// What kills a VMM is told, whether its companion lives or not.
func TestOwnerReasons(t *testing.T) {
	asOwner(t)
	g, h := vmtest.NeedGuest(t), newHost(t)
	launch := func(t *testing.T) (host.Spec, host.Run, companionapi.Client) {
		spec := g.Spec(t)
		r := hosttest.Launch(t, h, spec)
		return spec, r, hosttest.Home(t.Context(), t, r, api.StageAgent)
	}
	t.Run("OutOfMemory", func(t *testing.T) {
		spec, r, _ := launch(t)
		root(t, "systemctl set-property --runtime banger-vm-"+spec.ID+".service MemoryMax=20M")
		if e := hosttest.Ended(t.Context(), t, r); !strings.Contains(e.Reason, "used more memory than its VM's limit") {
			t.Errorf("Exit() = %+v, want a lack of memory", e)
		}
	})
	t.Run("NobodyWatches", func(t *testing.T) {
		_, r, _ := launch(t)
		first := newHost(t)
		must(t, h.Close())
		p, err := procid.Open(r.Record().Companion)
		must(t, err, p.Signal(syscall.SIGKILL), p.Wait(t.Context()), p.Close())
		kill(t, r.Record().VMM)
		_, err = first.Adopt(t.Context(), r.Record())
		if gone, ok := errors.AsType[*host.Gone](err); !ok || gone.Exit.Reason != "Firecracker was killed by signal 9" {
			t.Errorf("Adopt() = %v, want that it was killed by signal 9", err)
		}
	})
	t.Run("Reboot", func(t *testing.T) {
		_, r, c := launch(t)
		st, err := c.Stream(t.Context(), api.StageAgent)
		must(t, err)
		must(t, guest.Shutdown(t.Context(), st, agentapi.Shutdown{Reboot: true}))
		if got, want := hosttest.Ended(t.Context(), t, r), (host.Exit{Reason: "the guest rebooted", Clean: true, Reboot: true}); got != want {
			t.Errorf("Exit() = %+v, want %+v", got, want)
		}
	})
	t.Run("Signals", func(t *testing.T) {
		_, r, c := launch(t)
		if err := c.Kill(t.Context(), syscall.SIGSTOP); api.CodeOf(err) != api.Unsupported {
			t.Errorf("Kill(STOP) = %v, want unsupported", err)
		}
		must(t, c.Kill(t.Context(), syscall.SIGTERM))
		if e := hosttest.Ended(t.Context(), t, r); e.Reason != "it was killed (vm kill)" || !e.Asked {
			t.Errorf("Exit() = %+v, want killed", e)
		}
	})
}

// A VM with an address has a network device with the address's MAC; who may not
// be let out is said.
func TestOwnerNetwork(t *testing.T) {
	asOwner(t)
	g, h := vmtest.NeedGuest(t), newHost(t)
	spec := g.Spec(t)
	spec.Net = &host.Net{Addr: netip.MustParseAddr("172.16.0.9")}
	r := hosttest.Launch(t, h, spec)
	hosttest.Home(t.Context(), t, r, api.StageAgent)
	driver(t, r)
	if got := inGuest(t, r, nil, "cat", "/sys/class/net/eth0/address"); got != "02:fc:ac:10:00:09" {
		t.Errorf("eth0's address in the guest is %q", got)
	}
	if got := root(t, "cat /sys/class/net/bvm"+spec.ID+"/operstate; nft list ruleset | grep -c 172.16.0.9"); got == "" {
		t.Error("the host has no such TAP")
	}
	if b, err := os.ReadFile(spec.ConsolePath); err != nil || len(b) == 0 || bytes.Contains(b, []byte(":main")) {
		t.Errorf("the console holds %.500q, %v; want what the guest printed, without Firecracker's log", b, err)
	}
	must(t, h.SetNAT(t.Context(), spec.ID, true), h.SetNAT(t.Context(), spec.ID, false))
	if err := h.SetNAT(t.Context(), "ffffffffffff", true); err == nil {
		t.Error("SetNAT() of no VM = nil")
	}
	other := g.Spec(t)
	other.Net = spec.Net
	if _, err := h.Launch(t.Context(), other); api.CodeOf(err) != api.Conflict || !strings.Contains(err.Error(), spec.ID) {
		t.Errorf("Launch() with an address in use = %v, want a conflict with %s", err, spec.ID)
	}
	inherits(t, r)
}

// driver loads the guest's driver for network devices, if its init has not.
func driver(t *testing.T, r host.Run) {
	t.Helper()
	modules, err := vmtest.NeedKernel(t).Modules()
	must(t, err)
	for _, name := range initramfs.NetModules() {
		for _, m := range modules {
			if m.Name == name {
				inGuest(t, r, m.Data, "sh", "-c", "cat >/tmp/m.ko && busybox insmod /tmp/m.ko 2>&1; true")
			}
		}
	}
}

// inGuest runs a command in the guest.
func inGuest(t *testing.T, r host.Run, in []byte, argv ...string) string {
	t.Helper()
	st, err := companionapi.New(r.Companion()).Stream(t.Context(), api.StageAgent)
	must(t, err)
	var out, errs bytes.Buffer
	exit, err := guest.Exec(t.Context(), st, agentapi.Exec{Argv: argv}, guest.IO{Stdin: bytes.NewReader(in), Stdout: &out, Stderr: &errs})
	if err != nil || exit.Code != 0 {
		t.Errorf("%s in the guest: %+v, %v\n%s", strings.Join(argv, " "), exit, err, errs.String())
	}
	return strings.TrimSpace(out.String())
}

// inherits looks at what the companion has open: nothing of the VM's files.
func inherits(t *testing.T, r host.Run) {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%v/fd/*", r.Record().Companion))
	must(t, err)
	if len(fds) == 0 {
		t.Error("the companion's descriptors cannot be seen")
	}
	for _, fd := range fds {
		at, err := os.Readlink(fd)
		if err == nil && (strings.HasPrefix(at, cache) || strings.HasPrefix(at, state) && !strings.HasSuffix(at, "/console")) {
			t.Errorf("the companion has %s open, as %s", at, filepath.Base(fd))
		}
	}
}
