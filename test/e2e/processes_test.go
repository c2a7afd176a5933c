package e2e

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/host"
	"banger/internal/paths"
	"banger/internal/procid"
)

// soon bounds what banger has to do by itself after a fault. It takes some
// milliseconds, or the 45 s of a guest that is silent; the rest is for busy machines.
const soon = 3 * time.Minute

// stocked is isolated, with the kernel and the small image in the store. They
// come without a state file, which a daemon then makes from their copies.
func (w *world) stocked(t *testing.T) *world {
	t.Helper()
	o := w.isolated(t)
	from, to := w.layout(t), o.layout(t)
	for _, pair := range [][2]string{{from.Kernels, to.Kernels}, {from.Images, to.Images}} {
		if err := linkTree(pair[0], pair[1]); err != nil {
			t.Fatalf("stocking a store: %v", err)
		}
	}
	return o
}

// linkTree makes a copy of a directory, with the files as links.
func linkTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		return os.Link(path, filepath.Join(to, rel))
	})
}

// getenv looks a variable up as the world's commands do.
func (w *world) getenv(name string) string {
	for _, e := range slices.Backward(w.env) { // the last one counts
		if val, ok := strings.CutPrefix(e, name+"="); ok {
			return val
		}
	}
	return ""
}

// layout is where the world's daemon has its things.
func (w *world) layout(t *testing.T) paths.Layout {
	t.Helper()
	l, err := w.find()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (w *world) find() (paths.Layout, error) {
	uid := os.Getuid()
	if w.as != nil {
		uid = int(w.as.Uid)
	}
	if installed() {
		return paths.System(w.getenv, uid, w.getenv("HOME"))
	}
	return paths.FromEnv(w.getenv, uid, w.getenv("HOME"))
}

// output keeps what a command prints and lets others wait for it.
type output struct {
	mu      sync.Mutex
	b       bytes.Buffer
	changed chan struct{}
}

// Write keeps p.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.changed)
	o.changed = make(chan struct{})
	return o.b.Write(p)
}

func (o *output) look() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String(), o.changed
}

// job is a command that runs while the test does something else.
type job struct {
	t        *testing.T
	name     string
	cmd      *exec.Cmd
	in       io.WriteCloser
	out, err *output
	done     chan struct{}
	failure  error
}

// begin starts a command in a process group of its own, as a shell does. What
// is not written to its stdin does not come; see job.in.
func (w *world) begin(t *testing.T, args ...string) *job {
	t.Helper()
	return start(t, w.command(context.WithoutCancel(t.Context()), args...))
}

func start(t *testing.T, cmd *exec.Cmd) *job {
	t.Helper()
	j := &job{t: t, name: strings.Join(cmd.Args[1:], " "), cmd: cmd, done: make(chan struct{}),
		out: &output{changed: make(chan struct{})}, err: &output{changed: make(chan struct{})}}
	cmd.Stdout, cmd.Stderr = j.out, j.err
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	var err error
	if j.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		j.failure = cmd.Wait()
		close(j.done)
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // all of it has ended, unless the test failed
		<-j.done
	})
	return j
}

// await waits until the command has printed text.
func (j *job) await(text string) {
	j.t.Helper()
	limit := time.NewTimer(limit)
	defer limit.Stop()
	for {
		out, more := j.out.look()
		said, also := j.err.look()
		if strings.Contains(out, text) || strings.Contains(said, text) {
			return
		}
		select {
		case <-more:
		case <-also:
		case <-j.done:
			if out, _ := j.out.look(); strings.Contains(out, text) {
				return
			}
			j.t.Fatalf("banger %s ended without saying %q\n%s%s", j.name, text, out, said)
		case <-limit.C:
			j.t.Fatalf("banger %s does not say %q\n%s%s", j.name, text, out, said)
		}
	}
}

// say writes a line to the command's stdin.
func (j *job) say(line string) {
	j.t.Helper()
	if _, err := io.WriteString(j.in, line+"\n"); err != nil {
		j.t.Errorf("writing to banger %s: %v", j.name, err)
	}
}

// signal sends a signal: KILL to the process, others to its group, as a
// terminal does.
func (j *job) signal(sig syscall.Signal) {
	j.t.Helper()
	pid := -j.cmd.Process.Pid
	if sig == syscall.SIGKILL {
		pid = -pid
	}
	if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		j.t.Fatalf("sending %v to banger %s: %v", sig, j.name, err)
	}
}

// wait waits for the end of the command.
func (j *job) wait() result {
	j.t.Helper()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-j.done:
	case <-t.C:
		out, _ := j.out.look()
		said, _ := j.err.look()
		j.t.Fatalf("banger %s: still running\n%s%s", j.name, out, said)
	}
	out, _ := j.out.look()
	said, _ := j.err.look()
	return result{stdout: out, stderr: said, code: exitCode(j.t, j.failure)}
}

// process opens a process of banger's.
func process(t *testing.T, pid int) *procid.Process {
	t.Helper()
	id, err := procid.Of(pid)
	if err != nil {
		t.Fatalf("looking at process %d: %v", pid, err)
	}
	p, err := procid.Open(id)
	if err != nil {
		t.Fatalf("looking at process %d: %v", pid, err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// murder kills processes, all at once, and waits until they have ended.
func murder(t *testing.T, pids ...int) {
	t.Helper()
	var all []*procid.Process
	for _, pid := range pids {
		all = append(all, process(t, pid))
	}
	for _, p := range all {
		if err := p.Signal(unix.SIGKILL); err != nil {
			t.Fatalf("killing %d: %v", p.ID().PID, err)
		}
	}
	for _, p := range all {
		over(t, p)
	}
}

// over waits for the end of a process.
func over(t *testing.T, p *procid.Process) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), soon)
	defer cancel()
	if err := p.Wait(ctx); err != nil {
		t.Fatalf("process %d does not end: %v", p.ID().PID, err)
	}
}

// daemonPID is the pid of the daemon, which runs.
func (w *world) daemonPID(t *testing.T) int {
	t.Helper()
	var s struct {
		Running bool
		Daemon  api.Hello
	}
	decode(t, w.must(t, "daemon", "status", "--json"), &s)
	if !s.Running {
		t.Fatal("the daemon does not run")
	}
	return s.Daemon.PID
}

// record says which processes a running VM has.
func (w *world) record(t *testing.T, name string) host.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if w.as != nil { // a companion speaks to its own account
		var r host.Record
		b, err := os.ReadFile(filepath.Join(filepath.Dir(w.show(t, name).Companion), companionapi.RecordName))
		if err != nil {
			t.Fatal(err)
		}
		decode(t, string(b), &r)
		return r
	}
	s, err := companionapi.New(w.show(t, name).Companion).Status(ctx)
	if err != nil {
		t.Fatalf("asking the companion of %s: %v", name, err)
	}
	return s.Record
}

// until asks again and again until ok is true, for what there is no event.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	limit := time.NewTimer(soon)
	defer limit.Stop()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for !ok() {
		select {
		case <-again.C:
		case <-limit.C:
			t.Fatalf("waiting in vain: %s", what)
		}
	}
}

// becomes waits until a VM is in a state.
func (w *world) becomes(t *testing.T, name string, want api.State) api.Machine {
	t.Helper()
	var m api.Machine
	until(t, name+" is "+string(want), func() bool {
		m = w.show(t, name)
		return m.State == want
	})
	return m
}

// bootID tells the boots of a guest apart.
func (w *world) bootID(t *testing.T, name string) string {
	t.Helper()
	return w.must(t, "vm", "exec", name, "--", "cat", "/proc/sys/kernel/random/boot_id")
}

// nothing fails the test if there is anything left of banger's but the daemon.
func (w *world) nothing(t *testing.T) {
	t.Helper()
	var c api.Census
	// What is going is not gone: an operation under way is not a leak yet.
	until(t, "all is gone", func() bool {
		c = api.Census{}
		decode(t, w.must(t, "daemon", "census", "--json"), &c)
		return c.Machines == 0 && len(c.VMMs)+len(c.Companions)+len(c.Disks)+len(c.RunDirs)+len(c.Staging)+len(c.Leaks) == 0
	})
	l := w.layout(t)
	for _, dir := range []string{l.VMs, l.VMRun} {
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) > 0 {
			t.Errorf("%s holds %v (%v), want nothing", dir, entries, err)
		}
	}
	for _, pid := range w.processes(t) {
		if pid.daemon {
			continue
		}
		t.Errorf("process %d is left: %s", pid.pid, pid.cmdline)
	}
}

// A left is a process of a world.
type left struct {
	pid     int
	daemon  bool
	cmdline string
}

func (l left) String() string { return strconv.Itoa(l.pid) }

// processes finds all processes that have the world's home directory in their
// environment: its daemon, companions, VMMs and commands.
func (w *world) processes(t *testing.T) []left {
	t.Helper()
	// An account has its home for all of it.
	mark := []byte("HOME=" + w.getenv("HOME") + "\x00")
	run := []byte(companionapi.DirEnv + "=" + w.layout(t).VMRun + "/")
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var found []left
	for _, dir := range all {
		env, err := os.ReadFile(dir + "/environ")
		if err != nil || !bytes.Contains(env, mark) && !bytes.Contains(env, run) {
			continue
		}
		cmdline, _ := os.ReadFile(dir + "/cmdline") // a zombie has none
		args := strings.Split(string(cmdline), "\x00")
		l := left{daemon: filepath.Base(args[0]) == "bangerd", cmdline: strings.Join(args, " ")}
		if l.pid, err = strconv.Atoi(filepath.Base(dir)); err == nil && len(cmdline) > 0 {
			found = append(found, l)
		}
	}
	return found
}
