// Package e2e runs the real binaries as a user would: a daemon of its own under
// XDG directories of its own, real VMs under QEMU, nothing faked.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
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

	"banger/internal/api"
	"banger/internal/paths"
	"banger/internal/procid"
	"banger/internal/smallimage"
	"banger/internal/testneed"
)

// keep leaves the directories of a failed run behind.
var keep = flag.Bool("keep", false, "keep the XDG directories and print where they are")

// world is where all tests of this package live: the binaries, and the XDG
// directories of one user with the kernel and a small image in the store.
type world struct {
	bin  string
	root string
	env  []string
	as   *syscall.Credential // who runs the commands; nil is us
	by   []string            // a program, with arguments, that runs the commands; may be empty
	keep bool                // its VMs are for the next process

	ready  sync.Once
	golden sync.Once
	err    error
	gerr   error

	vms sharedVMs
}

// sharedVMs are running VMs for tests that leave no traces in them. They are
// deleted with the world.
type sharedVMs struct {
	small, golden         sync.Once
	smallName, goldenName string
}

// small is a running VM of the small image, for all tests that do not stop it.
func (w *world) small(t *testing.T) string {
	t.Helper()
	w.start(t)
	w.vms.small.Do(func() {
		w.vms.smallName = strings.TrimSpace(w.must(t, "vm", "create", "--image", "small", "--memory", "256M"))
	})
	if w.vms.smallName == "" {
		t.Fatal("there is no VM: the test that made it has failed")
	}
	return w.vms.smallName
}

// goldenVM is a running VM of the default image, for all tests that do not stop it.
func (w *world) goldenVM(t *testing.T) string {
	t.Helper()
	w.useGolden(t)
	w.vms.golden.Do(func() {
		w.vms.goldenName = strings.TrimSpace(w.must(t, "vm", "create", "--wait", "boot", "--memory", "1G"))
	})
	if w.vms.goldenName == "" {
		t.Fatal("there is no VM: the test that made it has failed")
	}
	return w.vms.goldenName
}

var shared = &world{}

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(stockEnv) != "" {
		if err := stockKernel(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	code := m.Run()
	if err := shared.end(); err != nil {
		fmt.Fprintln(os.Stderr, "ending the shared world:", err)
		return max(code, 1)
	}
	return code
}

// start builds the binaries, and fills the store with a kernel and the image
// "small".
func (w *world) start(t *testing.T) {
	t.Helper()
	setUp := func() error { return w.useInstalled(t) }
	if !installed() {
		testneed.QEMU(t)
		testneed.Tool(t, "mmdebstrap")
		busybox := testneed.Tool(t, "busybox")
		setUp = func() error { return w.setUp(t, busybox) }
	}
	w.ready.Do(func() {
		w.err = errors.New("the test that did it has failed") // if setUp ends its goroutine
		w.err = setUp()
	})
	if w.err != nil {
		t.Fatalf("setting up: %v", w.err)
	}
}

func (w *world) setUp(t *testing.T, busybox string) error {
	root, err := os.MkdirTemp("", "banger-e2e-")
	if err != nil {
		return err
	}
	w.root = root
	w.bin = filepath.Join(root, "bin")
	build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-o", w.bin+"/", "banger/cmd/...") //nolint:noctx // outlives the first test
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building: %w\n%s", err, out)
	}
	w.env = w.user("u", os.Environ())
	tar := filepath.Join(root, "small.tar")
	f, err := os.Create(tar)
	if err != nil {
		return err
	}
	if err := errors.Join(smallimage.Write(f, busybox), f.Close()); err != nil {
		return err
	}
	for _, args := range [][]string{{"kernel", "pull"}, {"image", "import", "small", tar}} {
		if r := w.banger(t, args...); r.code != 0 {
			return fmt.Errorf("banger %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
		}
	}
	return nil
}

// user gives the environment of a user with XDG directories of their own. What
// was downloaded before is shared: the packages are the same.
func (w *world) user(name string, base []string) []string {
	var env []string
	for _, e := range base {
		if !strings.HasPrefix(e, "XDG_") && !strings.HasPrefix(e, "BANGER_") && !strings.HasPrefix(e, "HOME=") {
			env = append(env, e)
		}
	}
	cache := os.Getenv("BANGER_TEST_CACHE")
	if cache == "" {
		if c, err := os.UserCacheDir(); err == nil {
			cache = filepath.Join(c, "banger-test")
		} else {
			cache = filepath.Join(w.root, name, "cache")
		}
	}
	home := filepath.Join(w.root, name)
	_ = os.MkdirAll(filepath.Join(home, "run"), 0o700) // what is wrong shows at the first command
	return append(env,
		"HOME="+home,
		"XDG_STATE_HOME="+filepath.Join(home, "state"),
		"XDG_CACHE_HOME="+cache,
		"XDG_CONFIG_HOME="+filepath.Join(home, "config"),
		"XDG_RUNTIME_DIR="+filepath.Join(home, "run"),
		"PATH="+w.bin+":"+os.Getenv("PATH"),
		paths.ModeEnv+"=user", // these tests delete all VMs, which an account with system mode would not like
	)
}

// end deletes the VMs, stops the daemon and removes the directories. It may be
// called twice.
func (w *world) end() error {
	if w.root == "" {
		return nil
	}
	var errs []error
	if _, err := os.Stat(w.root); err == nil && w.env != nil && !w.keep {
		errs = append(errs, w.endVMs())
		if l, err := w.find(); err == nil && !installed() {
			errs = append(errs, os.RemoveAll(l.Runtime)) // it may be outside the root
		}
	}
	if *keep {
		fmt.Println("kept:", w.root)
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, os.RemoveAll(w.root))...)
}

// endVMs deletes all VMs and stops the daemon. It is an error if a process of
// this world, told by the directories in its environment, is there afterwards.
func (w *world) endVMs() error {
	run := func(args ...string) (string, error) {
		out, err := w.command(context.Background(), args...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("banger %s: %w: %s", strings.Join(args, " "), err, out)
		}
		return string(out), err
	}
	out, err := run("vm", "list", "-q")
	if names := strings.Fields(out); err == nil && len(names) > 0 {
		_, err = run(append([]string{"vm", "delete"}, names...)...)
	}
	if installed() {
		return errors.Join(err, w.left())
	}
	_, stop := run("daemon", "stop")
	return errors.Join(err, stop, w.left())
}

// left is an error that names the processes of this world that do not end.
func (w *world) left() error {
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	var errs []error
	environs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return err
	}
	for _, path := range environs {
		b, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(b, []byte(w.root+"/")) {
			continue // it has ended, or is nobody of ours
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return err
		}
		id, err := procid.Of(pid)
		if err != nil {
			continue // it has ended
		}
		p, err := procid.Open(id)
		if err != nil {
			continue
		}
		if err := p.Wait(ctx); err != nil {
			argv, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
			errs = append(errs, fmt.Errorf("process %d still runs: %q", pid, argv))
		}
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

// useGolden makes sure that the default image is in the store.
func (w *world) useGolden(t *testing.T) {
	t.Helper()
	w.start(t)
	w.golden.Do(func() {
		w.gerr = errors.New("the test that pulled the image has failed")
		w.pullTogether(t)
		w.gerr = nil
	})
	if w.gerr != nil {
		t.Fatal(w.gerr)
	}
}

func (w *world) command(ctx context.Context, args ...string) *exec.Cmd {
	argv := append(append(slices.Clone(w.by), filepath.Join(w.bin, "banger")), args...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = w.env
	if w.as != nil {
		cmd.Dir, cmd.SysProcAttr = w.getenv("HOME"), &syscall.SysProcAttr{Credential: w.as}
	}
	return cmd
}

// result is what a command did.
type result struct {
	stdout, stderr string
	code           int
}

// limit bounds every command of these tests, so that a hang is a failure with a
// name; emulation on a busy machine is slow, so it is generous.
const limit = 8 * time.Minute

// banger runs a command with an empty stdin.
func (w *world) banger(t *testing.T, args ...string) result {
	t.Helper()
	return w.with(t, nil, args...)
}

// with runs a command with a stdin.
func (w *world) with(t *testing.T, stdin []byte, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), limit)
	defer cancel()
	cmd := w.command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("banger %s: still running after %v\n%s%s", strings.Join(args, " "), limit, stdout.String(), stderr.String())
	}
	r := result{stdout: stdout.String(), stderr: stderr.String(), code: exitCode(t, err)}
	return r
}

func exitCode(t *testing.T, err error) int {
	t.Helper()
	if err == nil {
		return 0
	}
	e, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		t.Fatalf("running banger: %v", err)
	}
	if s, ok := e.Sys().(syscall.WaitStatus); ok && s.Signaled() {
		return 128 + int(s.Signal())
	}
	return e.ExitCode()
}

// must runs a command that has to succeed and returns its stdout.
func (w *world) must(t *testing.T, args ...string) string {
	t.Helper()
	r := w.banger(t, args...)
	if r.code != 0 {
		t.Fatalf("banger %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// vm makes a VM of the small image that is deleted at the end of the test.
func (w *world) vm(t *testing.T, flags ...string) string {
	t.Helper()
	w.start(t)
	args := append([]string{"vm", "create", "--image", "small", "--memory", "256M"}, flags...)
	name := strings.TrimSpace(w.must(t, args...))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of %s:\n%s", name, w.banger(t, "vm", "logs", "-n", "30", name).stdout)
		}
		w.banger(t, "vm", "delete", name)
	})
	return name
}

// show is the JSON of `vm show`.
func (w *world) show(t *testing.T, name string) api.Machine {
	t.Helper()
	var m api.Machine
	decode(t, w.must(t, "vm", "show", "--json", name), &m)
	return m
}

func decode(t *testing.T, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("decoding %.200q: %v", text, err)
	}
}

// census fails the test if anything of banger's is there that no VM explains.
func (w *world) census(t *testing.T) api.Census {
	t.Helper()
	var c api.Census
	decode(t, w.must(t, "daemon", "census", "--json"), &c)
	for _, l := range c.Leaks {
		t.Errorf("leak: %s", l)
	}
	return c
}

// endWith ends the world when the test does.
func (w *world) endWith(t *testing.T) {
	t.Cleanup(func() {
		if err := w.end(); err != nil {
			t.Errorf("ending the test's world: %v", err)
		}
	})
}

// isolated gives a test a user of its own: its own daemon and store, into which
// it imports what it needs. It is for tests that kill daemons and count leaks.
func (w *world) isolated(t *testing.T) *world {
	t.Helper()
	w.start(t)
	root, err := os.MkdirTemp("", "banger-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	o := &world{bin: w.bin, root: root}
	o.ready.Do(func() {}) // it is ready as it is
	o.env = o.user("u", os.Environ())
	o.endWith(t)
	t.Cleanup(func() {
		if log, err := os.ReadFile(o.layout(t).Log); err == nil && t.Failed() {
			t.Logf("the daemon's log ends:\n%s", log[max(0, len(log)-4<<10):])
		}
	})
	return o
}
