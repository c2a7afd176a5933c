package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"banger/internal/api"
	"banger/internal/paths"
	"banger/internal/smallimage"
	"banger/internal/vmm/qemu"
)

// The names of the images, and the size of the machines. One processor is what
// both sides get: with more, a kernel that is emulated starts more slowly.
const (
	small  = "small"
	golden = "debian-bookworm"
)

var (
	smallSpec  = spec{vcpus: 1, memoryMiB: 256}
	goldenSpec = spec{vcpus: 1, memoryMiB: 1024}
)

// limit is for one command. Emulation on a busy machine is slow; a hang must
// end all the same.
const limit = 15 * time.Minute

// A lab is where things are measured: a user of banger of their own, with the
// kernel and the small image in their store, and the bare VMM beside them.
type lab struct {
	out    io.Writer // progress
	banger string
	root   string // temporary, holds everything but the cache
	env    []string
	layout paths.Layout
	hello  api.Hello

	bare       *bare
	row        string // that is being measured
	haveGolden bool
	guest      *api.Machine // a running VM of the golden image, if a row wanted one
	watched    []int        // processes whose time is told although they run
}

// tell writes a line of progress.
func (l *lab) tell(format string, args ...any) {
	// Nobody may be listening.
	_, _ = fmt.Fprintf(l.out, format+"\n", args...)
}

// newLab makes the directories. What is downloaded or built from packages is
// shared with the tests, so that it is fetched once.
func newLab(bangerPath string, out io.Writer) (*lab, error) {
	root, err := os.MkdirTemp("", "banger-bench-")
	if err != nil {
		return nil, fmt.Errorf("making a directory: %w", err)
	}
	l := &lab{out: out, banger: bangerPath, root: root}
	cache := os.Getenv("BANGER_TEST_CACHE")
	if cache == "" {
		if c, err := os.UserCacheDir(); err == nil {
			cache = filepath.Join(c, "banger-test")
		} else {
			cache = filepath.Join(root, "cache")
		}
	}
	own := map[string]string{
		"HOME": root, "XDG_STATE_HOME": filepath.Join(root, "state"), "XDG_CONFIG_HOME": filepath.Join(root, "config"),
		"XDG_RUNTIME_DIR": filepath.Join(root, "run"), "XDG_CACHE_HOME": cache,
		"PATH": filepath.Dir(bangerPath) + ":" + os.Getenv("PATH"),
		// An account that has system mode would be measured there, VMs of its own and all.
		paths.ModeEnv: "user",
	}
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if own[name] == "" && !strings.HasPrefix(name, "XDG_") && !strings.HasPrefix(name, "BANGER_") {
			l.env = append(l.env, e)
		}
	}
	for name, v := range own {
		l.env = append(l.env, name+"="+v)
	}
	if err := os.Mkdir(own["XDG_RUNTIME_DIR"], 0o700); err != nil {
		return nil, errors.Join(fmt.Errorf("making a directory: %w", err), os.RemoveAll(root))
	}
	l.layout, err = paths.FromEnv(func(name string) string { return own[name] }, os.Getuid(), root)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(root))
	}
	return l, nil
}

// fill puts kernel and small image into the store and makes the bare side.
func (l *lab) fill(ctx context.Context) error {
	busybox, err := smallimage.Busybox()
	if err != nil {
		return err
	}
	tar := filepath.Join(l.root, "small.tar")
	f, err := os.Create(tar)
	if err != nil {
		return fmt.Errorf("making the small image: %w", err)
	}
	if err := errors.Join(smallimage.Write(f, busybox), f.Close()); err != nil {
		return err
	}
	for _, args := range [][]string{{"kernel", "pull"}, {"image", "import", small, tar}} {
		l.tell("banger %s", strings.Join(args, " "))
		if _, err := l.run(ctx, args...); err != nil {
			return err
		}
	}
	if err := l.refresh(ctx); err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join(l.layout.Kernels, "*", "vmlinux"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("looking for the kernel in %s: %d found, want 1 (%w)", l.layout.Kernels, len(found), err)
	}
	l.bare, err = newBare(ctx, l.root, found[0], qemu.Driver{KVM: l.hello.Driver != qemu.NameTCG}, smallSpec)
	return err
}

// refresh asks the daemon who it is; it is watched from then on.
func (l *lab) refresh(ctx context.Context) error {
	var reply struct {
		Daemon api.Hello `json:"daemon"`
	}
	if _, err := l.run(ctx, "vm", "list"); err != nil { // starts it, if it does not run
		return err
	}
	if err := l.ask(ctx, &reply, "daemon", "status"); err != nil {
		return err
	}
	l.hello, l.watched = reply.Daemon, []int{reply.Daemon.PID}
	return nil
}

// needGolden makes sure that the default image is in the store.
func (l *lab) needGolden(ctx context.Context) error {
	if l.haveGolden {
		return nil
	}
	l.tell("banger image pull %s (minutes, the first time)", golden)
	if _, err := l.run(ctx, "image", "pull", golden); err != nil {
		return err
	}
	l.haveGolden = true
	return nil
}

// goldenVM returns a VM of the default image that has finished booting.
func (l *lab) goldenVM(ctx context.Context) (api.Machine, error) {
	if l.guest != nil {
		return *l.guest, nil
	}
	l.tell("booting a VM of %s", golden)
	// With room in its memory for the workspace, so that both sides write to that.
	args := append([]string{"vm", "create", "--name", "guest", "--image", golden, "--wait", "boot"},
		spec{vcpus: goldenSpec.vcpus, memoryMiB: 2 * goldenSpec.memoryMiB}.flags()...)
	if _, err := l.run(ctx, args...); err != nil {
		return api.Machine{}, err
	}
	var m api.Machine
	if err := l.ask(ctx, &m, "vm", "show", "guest"); err != nil {
		return m, err
	}
	l.guest = &m
	return m, nil
}

// end deletes every VM, stops the daemon and takes the directories away.
func (l *lab) end(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	out, err := l.run(ctx, "vm", "list", "-q")
	if names := strings.Fields(out); err == nil && len(names) > 0 {
		_, err = l.run(ctx, append([]string{"vm", "delete"}, names...)...)
	}
	_, serr := l.run(ctx, "daemon", "stop")
	return errors.Join(err, serr, os.RemoveAll(l.root))
}

// command is a command of this lab's user. It is killed when ctx ends.
func (l *lab) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = l.env
	return cmd
}

// run runs banger and returns its stdout; the error holds what it said.
func (l *lab) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return output(l.command(ctx, l.banger, args...))
}

func output(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("running %s: %w\n%s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

// ask runs banger with --json and decodes the answer.
func (l *lab) ask(ctx context.Context, v any, args ...string) error {
	out, err := l.run(ctx, append(args, "--json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		return fmt.Errorf("reading the answer of banger %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// doing is a side that runs one banger command.
func (l *lab) doing(args ...string) side {
	return func(ctx context.Context) (outcome, error) {
		_, err := l.run(ctx, args...)
		return outcome{}, err
	}
}
