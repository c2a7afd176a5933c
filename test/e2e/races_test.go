package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/host"
	"banger/internal/testneed"
)

// A watcher sees what appears in directories.
type watcher struct {
	t *testing.T
	f *os.File
	b []byte // events that were read and not looked at
}

func watch(t *testing.T, dirs ...string) *watcher {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{t: t, f: os.NewFile(uintptr(fd), "inotify")}
	t.Cleanup(func() { w.f.Close() })
	for _, dir := range dirs {
		w.add(dir)
	}
	return w
}

func (w *watcher) add(dir string) {
	w.t.Helper()
	err := unix.ErrnoName(unix.EBADF)
	raw, e := w.f.SyscallConn()
	if e == nil {
		e = raw.Control(func(fd uintptr) {
			if _, e := unix.InotifyAddWatch(int(fd), dir, unix.IN_CREATE|unix.IN_MOVED_TO); e != nil {
				err = e.Error()
			} else {
				err = ""
			}
		})
	}
	if e != nil || err != "" {
		w.t.Fatalf("watching %s: %v, %s", dir, e, err)
	}
}

// next waits for a name to appear.
func (w *watcher) next() string {
	w.t.Helper()
	const head = unix.SizeofInotifyEvent
	if len(w.b) == 0 {
		if err := w.f.SetReadDeadline(time.Now().Add(limit)); err != nil {
			w.t.Fatal(err)
		}
		b := make([]byte, 4<<10)
		n, err := w.f.Read(b)
		if err != nil {
			w.t.Fatalf("nothing appears: %v", err)
		}
		w.b = b[:n]
	}
	end := head + int(w.b[12]) + int(w.b[13])<<8 // the length of the name, inotify(7)
	name := string(bytes.TrimRight(w.b[head:end], "\x00"))
	w.b = w.b[end:]
	return name
}

// A birth is a VM that comes to be, as one can see from outside.
type birth struct {
	t    *testing.T
	w    *world
	rows *watcher // the VMs' directories
	runs *watcher // their runtime directories
	id   string
}

// expect prepares to see the next VM of a world.
func (w *world) expect(t *testing.T) *birth {
	t.Helper()
	w.must(t, "vm", "list") // the daemon has made its directories
	l := w.layout(t)
	return &birth{t: t, w: w, rows: watch(t, l.VMs), runs: watch(t, l.VMRun)}
}

// row waits for the row, whose directory comes next.
func (b *birth) row() {
	b.t.Helper()
	b.id = b.rows.next()
}

// launch waits for the launch to begin.
func (b *birth) launch() {
	b.t.Helper()
	b.id = b.runs.next()
}

func (b *birth) dir() string { return filepath.Join(b.w.layout(b.t).VMRun, b.id) }

// vmm waits until there is a VMM.
func (b *birth) vmm() {
	b.t.Helper()
	b.launch()
	in := watch(b.t, b.dir())
	for {
		var r host.Record
		if companionapi.Load(b.dir(), companionapi.RecordName, &r) == nil && r.VMM.PID != 0 {
			return
		}
		in.next()
	}
}

// reach waits for an event of the companion.
func (b *birth) reach(ok func(companionapi.Event) bool) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), limit)
	defer cancel()
	seen := false
	err := companionapi.New(filepath.Join(b.dir(), companionapi.SocketName)).Events(ctx, func(e companionapi.Event) {
		if ok(e) {
			seen = true
			cancel()
		}
	})
	if !seen {
		b.t.Fatalf("the companion's event does not come: %v", err)
	}
}

// gone waits until the VM is being deleted: its companion has gone.
func (b *birth) gone() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), limit)
	defer cancel()
	_ = companionapi.New(filepath.Join(b.dir(), companionapi.SocketName)).Events(ctx, func(companionapi.Event) {})
	if ctx.Err() != nil {
		b.t.Fatal("the VM does not end")
	}
}

func (b *birth) agent() {
	b.t.Helper()
	b.vmm()
	b.reach(func(e companionapi.Event) bool { return e.Stage.Reached(api.StageAgent) })
}

// The client of a VM that is to be gone, or is not there yet, is interrupted or
// dies in each phase: nothing is left.
func TestClientEnds(t *testing.T) {
	t.Parallel()
	w := shared.stocked(t)
	rm := []string{"vm", "run", "--rm", "--image", "small", "--memory", "256M", "--", "sh", "-c", "echo here; exec sleep 1000"}
	short := append(slices.Clone(rm[:8]), "true")
	stay := []string{"vm", "run", "--image", "small", "--memory", "256M", "--", "true"}
	const kill, ctrlC, hangup = syscall.SIGKILL, syscall.SIGINT, syscall.SIGHUP
	command := func(_ *birth, j *job) { j.await("here") }
	end := func(b *birth, _ *job) {
		b.agent()
		b.gone()
	}
	for _, tt := range []struct {
		phase   string
		args    []string
		await   func(*birth, *job)
		signals []syscall.Signal
	}{
		{"at once", rm, func(*birth, *job) {}, []syscall.Signal{kill, ctrlC}},
		{"row", rm, func(b *birth, _ *job) { b.row() }, []syscall.Signal{kill, ctrlC}},
		{"launch", rm, func(b *birth, _ *job) { b.launch() }, []syscall.Signal{kill, ctrlC}},
		{"VMM", rm, func(b *birth, _ *job) { b.vmm() }, []syscall.Signal{kill, ctrlC, hangup}},
		{"agent", rm, func(b *birth, _ *job) { b.agent() }, []syscall.Signal{kill, ctrlC}},
		{"command", rm, command, []syscall.Signal{kill, ctrlC, hangup}},
		{"end", short, end, []syscall.Signal{kill, ctrlC}},
		{"VMM without --rm", stay, func(b *birth, _ *job) { b.vmm() }, []syscall.Signal{kill, ctrlC}},
	} {
		for _, sig := range tt.signals {
			t.Run(fmt.Sprintf("%s, %v", tt.phase, sig), func(t *testing.T) {
				b := w.expect(t)
				j := w.begin(t, tt.args...)
				tt.await(b, j)
				j.signal(sig)
				want := []int{130}
				switch {
				case sig == kill:
					want = []int{137}
				case sig == hangup:
					want = []int{129, 130}
				case tt.phase == "end":
					want = []int{0, 130}
				}
				if r := j.wait(); !slices.Contains(want, r.code) {
					t.Errorf("banger %s = %d, want one of %v\n%s%s", j.name, r.code, want, r.stdout, r.stderr)
				}
				w.nothing(t)
			})
		}
	}
}

// Many at once, twice over.
func TestTenAtOnce(t *testing.T) {
	t.Parallel()
	w := shared.stocked(t)
	for range 2 {
		w.ten(t, nil)
	}
}

// ten runs ten VMs at once, besides others, and checks that all is well after.
func (w *world) ten(t *testing.T, others []*job) {
	t.Helper()
	jobs := others
	for range 10 {
		jobs = append(jobs, w.begin(t, "vm", "run", "--rm", "--image", "small", "--memory", "128M", "--", "true"))
	}
	for _, j := range jobs {
		if r := j.wait(); r.code != 0 {
			t.Errorf("banger %s = %d, want 0\n%s%s", j.name, r.code, r.stdout, r.stderr)
		}
	}
	w.nothing(t)
}

// However many commands find no daemon, one is started.
func TestOneDaemon(t *testing.T) {
	t.Parallel()
	w := shared.isolated(t)
	for range 2 {
		var jobs []*job
		for range 20 {
			jobs = append(jobs, w.begin(t, "vm", "list", "--json"))
		}
		for _, j := range jobs {
			if r := j.wait(); r.code != 0 || r.stdout != "[]\n" {
				t.Errorf("banger %s = %d, %q, %q; want no VMs", j.name, r.code, r.stdout, r.stderr)
			}
		}
		var daemons []left
		for _, p := range w.processes(t) {
			if p.daemon {
				daemons = append(daemons, p)
			}
		}
		if len(daemons) != 1 {
			t.Fatalf("%d daemons run: %v, want one", len(daemons), daemons)
		}
		murder(t, daemons[0].pid)
	}
}

// mostExecuted is how many programs a `vm run --rm -- true` may execute: the
// client, the companion, the VMM, and one to spare.
const mostExecuted = 4

func TestProcessesExecuted(t *testing.T) {
	t.Parallel()
	strace := testneed.Tool(t, "strace")
	w := shared.stocked(t)
	dir := t.TempDir()
	traced := func(to string, args ...string) *job {
		argv := append([]string{"-f", "--seccomp-bpf", "-e", "trace=execve,execveat", "-e", "signal=none", "-o", filepath.Join(dir, to), "--",
			filepath.Join(w.bin, "banger")}, args...)
		cmd := exec.CommandContext(context.WithoutCancel(t.Context()), strace, argv...)
		cmd.Env = w.env
		return start(t, cmd)
	}
	run := []string{"vm", "run", "--rm", "--image", "small", "--memory", "256M", "--", "true"}
	executed := func(name string) []string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, "execve") && !strings.Contains(line, " resumed>") && !strings.Contains(line, "= -1 ") {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
		return lines
	}
	daemon := traced("daemon", "vm", "list", "--json")
	daemon.await("[]")
	w.must(t, run...) // what is kept from then on: the blank disk, the initramfs
	before := executed("daemon")
	if r := traced("client", run...).wait(); r.code != 0 {
		t.Fatalf("banger vm run = %d\n%s", r.code, r.stderr)
	}
	w.must(t, "daemon", "stop")
	daemon.wait()
	all := append(executed("client"), executed("daemon")[len(before):]...)
	if len(all) > mostExecuted || len(all) < 3 {
		t.Errorf("%d programs were executed, want 3 to %d:\n%s", len(all), mostExecuted, strings.Join(all, "\n"))
	}
}
