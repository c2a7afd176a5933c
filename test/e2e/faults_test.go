package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"banger/internal/api"
)

// steady is a script that waits for a line and ends with a code of its own.
const steady = `echo begun; read -r line; echo "got $line"; exit 7`

// quiet starts, in a VM, a command and an ssh session that wait for a line.
func (w *world) quiet(t *testing.T, vm string) []*job {
	t.Helper()
	jobs := []*job{
		w.begin(t, "vm", "exec", vm, "--", "sh", "-c", steady),
		w.begin(t, "vm", "ssh", vm, "--", steady),
	}
	for _, j := range jobs {
		j.await("begun")
	}
	return jobs
}

// undisturbed sends the line and checks that nothing was lost.
func undisturbed(t *testing.T, jobs []*job) {
	t.Helper()
	for _, j := range jobs {
		j.say("a line")
		if r := j.wait(); r.code != 7 || r.stdout != "begun\ngot a line\n" {
			t.Errorf("banger %s = %d, %q, %q; want 7 and its line", j.name, r.code, r.stdout, r.stderr)
		}
	}
}

// broken checks that commands whose guest was lost say so.
func broken(t *testing.T, jobs []*job) {
	t.Helper()
	for _, j := range jobs {
		if r := j.wait(); r.code != 125 || !strings.Contains(r.stderr, "banger: ") {
			t.Errorf("banger %s = %d, %q, %q; want 125 and why", j.name, r.code, r.stdout, r.stderr)
		}
	}
}

// The daemon is stopped, restarted and killed, the companion is killed, and
// both: the VM runs on, on the same VMM, and with the companion alive so does
// everything in it.
func TestDaemonAndCompanionEnd(t *testing.T) {
	t.Parallel()
	w := shared.stocked(t)
	vm := w.vm(t)
	boot, vmm := w.bootID(t, vm), w.show(t, vm).VMMPID
	same := func(t *testing.T) {
		t.Helper()
		if m := w.show(t, vm); m.State != api.Running || m.VMMPID != vmm {
			t.Errorf("the VM is %s with VMM %d, want running with %d", m.State, m.VMMPID, vmm)
		}
		if got := w.bootID(t, vm); got != boot {
			t.Errorf("the guest has booted again: %s, was %s", got, boot)
		}
		w.census(t)
	}
	for _, tt := range []struct {
		name string
		do   func(t *testing.T)
		then func(*testing.T, []*job)
	}{
		{"daemon stop", func(t *testing.T) { w.must(t, "daemon", "stop") }, undisturbed},
		{"daemon restart", func(t *testing.T) { w.must(t, "daemon", "restart") }, undisturbed},
		{"daemon killed", func(t *testing.T) { murder(t, w.daemonPID(t)) }, undisturbed},
		{"companion killed", func(t *testing.T) { murder(t, w.record(t, vm).Companion.PID) }, broken},
		{"companion and daemon killed", func(t *testing.T) { murder(t, w.record(t, vm).Companion.PID, w.daemonPID(t)) }, broken},
		{"companion killed without a daemon", func(t *testing.T) {
			pid := w.record(t, vm).Companion.PID
			w.must(t, "daemon", "stop")
			murder(t, pid)
		}, broken},
	} {
		if !t.Run(tt.name, func(t *testing.T) {
			jobs := w.quiet(t, vm)
			tt.do(t)
			tt.then(t, jobs)
			same(t)
		}) {
			return // the next one would only say the same
		}
	}
}

// The VMM ends in ways that nobody asked for: the VM is stopped, says why, and
// starts again with its disk.
func TestVMMEnds(t *testing.T) {
	t.Parallel()
	w := shared.stocked(t)
	vm := w.vm(t)
	w.must(t, "vm", "exec", vm, "--", "sh", "-c", "echo kept >/root/kept; sync")
	wipe := func(t *testing.T) {
		if err := os.RemoveAll(w.layout(t).Runtime); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name, reason string
		do           func(t *testing.T)
	}{
		{"VMM killed", "QEMU was killed by signal 9", func(t *testing.T) {
			murder(t, w.show(t, vm).VMMPID)
		}},
		// The daemon may have started another companion before the VMM was quite dead.
		{"VMM and companion killed", "QEMU ended while nobody watched it|QEMU ended without saying why", func(t *testing.T) {
			r := w.record(t, vm)
			murder(t, r.Companion.PID, r.VMM.PID)
		}},
		{"VMM killed without a daemon", "QEMU was killed by signal 9", func(t *testing.T) {
			pid := w.show(t, vm).VMMPID
			w.must(t, "daemon", "stop")
			murder(t, pid)
		}},
		// The boot id stays, so this is a little less than a restart of the host.
		{"all killed and the runtime directory wiped", "QEMU ended while nobody watched it", func(t *testing.T) {
			r := w.record(t, vm)
			murder(t, w.daemonPID(t), r.Companion.PID, r.VMM.PID)
			wipe(t)
		}},
	} {
		if !t.Run(tt.name, func(t *testing.T) {
			jobs := w.quiet(t, vm)
			tt.do(t)
			broken(t, jobs)
			if m := w.becomes(t, vm, api.Stopped); !slices.Contains(strings.Split(tt.reason, "|"), m.Reason) || m.VMMPID != 0 {
				t.Errorf("the VM stopped because %q with VMM %d, want %q and none", m.Reason, m.VMMPID, tt.reason)
			}
			w.census(t)
			w.must(t, "vm", "start", vm)
			if got := w.must(t, "vm", "exec", vm, "--", "cat", "/root/kept"); got != "kept\n" {
				t.Errorf("the file on its disk is %q, want %q", got, "kept\n")
			}
		}) {
			return
		}
	}
}

// mostConsole is what a guest's console may take on the host: two files of
// 8 MiB each.
const mostConsole = 16 << 20

// A guest prints as fast as it can: the log stays bounded, all else works. At
// what emulation prints in a moment the files do not change yet; that they do
// so in time is tested where they are kept.
func TestConsoleFlood(t *testing.T) {
	t.Parallel()
	w := shared.stocked(t)
	vm := w.vm(t)
	dir := filepath.Join(w.layout(t).VMs, w.show(t, vm).ID)
	size := func() (n int64) {
		logs, err := filepath.Glob(filepath.Join(dir, "console*"))
		if err != nil || len(logs) == 0 {
			t.Fatalf("%s has consoles %v (%v)", dir, logs, err)
		}
		for _, log := range logs {
			if st, err := os.Stat(log); err == nil {
				n += st.Size()
			}
		}
		return n
	}
	flood := w.begin(t, "vm", "exec", vm, "--", "sh", "-c", "exec yes \033]0\\;flood >/dev/ttyS0")
	until(t, "the flood has come", func() bool { return size() > 256<<10 })
	if got := w.must(t, "vm", "exec", vm, "--", "echo", "well"); got != "well\n" {
		t.Errorf("a command says %q meanwhile", got)
	}
	if got := w.must(t, "vm", "list", "-q"); got != vm+"\n" {
		t.Errorf("the list is %q meanwhile", got)
	}
	if got := w.must(t, "vm", "logs", "-n", "5", vm); strings.Contains(got, "\033") || !strings.Contains(got, "flood") {
		t.Errorf("the log ends with %q, want the flood, made harmless", got)
	}
	flood.signal(syscall.SIGINT)
	if r := flood.wait(); r.code != 130 {
		t.Errorf("the flood ended with %d, want 130\n%s", r.code, r.stderr)
	}
	if n := size(); n > mostConsole {
		t.Errorf("the console takes %d bytes, want at most %d", n, mostConsole)
	}
	w.must(t, "vm", "stop", vm)
}
