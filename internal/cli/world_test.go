package cli_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/paths"
	"banger/internal/recipe"
)

// agentName is the file in the state directory that stands for the agent.
const agentName = "agent"

// A world is a user: a home, XDG directories, a daemon of their own, a kernel
// and an image called small.
type world struct {
	home   string
	layout paths.Layout
	env    []string
}

// newWorld makes one below dir; close ends it.
func newWorld(ctx context.Context, dir string) (w world, err error) {
	run, err := os.MkdirTemp("", "bc") // short: it holds sockets
	if err != nil {
		return w, err
	}
	vars := map[string]string{
		"HOME": filepath.Join(dir, "home"), "XDG_RUNTIME_DIR": run, "XDG_STATE_HOME": filepath.Join(dir, "state"),
		"XDG_CACHE_HOME": filepath.Join(dir, "cache"), "XDG_CONFIG_HOME": filepath.Join(dir, "home", ".config"),
		"PATH": os.Getenv("PATH"), paths.ModeEnv: "user", "TZ": "UTC", "TERM": "xterm", "NO_COLOR": "1",
		"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null",
		"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org",
	}
	w.home = vars["HOME"]
	for k, v := range vars {
		w.env = append(w.env, k+"="+v)
	}
	if w.layout, err = paths.FromEnv(func(k string) string { return vars[k] }, os.Getuid(), w.home); err != nil {
		return w, err
	}
	if err := errors.Join(os.MkdirAll(w.layout.Config, 0o700), w.layout.Make()); err != nil {
		return w, err
	}
	// Not the host's: its size is no part of what is tested.
	if err := os.WriteFile(w.layout.ConfigFile, []byte("[vm_defaults]\nvcpu = 1\nmemory_mib = 1024\ndisk_size = \"8G\"\n"), 0o600); err != nil {
		return w, err
	}
	if err := os.WriteFile(filepath.Join(w.layout.State, agentName), []byte("\x7fELF agent"), 0o755); err != nil {
		return w, err
	}
	if err := w.furnish(ctx); err != nil {
		return w, errors.Join(err, w.close(context.WithoutCancel(ctx)))
	}
	return w, nil
}

// furnish puts a kernel and an image into the store, past the recipes.
func (w world) furnish(ctx context.Context) error {
	return w.with(ctx, func(c *client.Client) error {
		_, err := c.PullKernel(ctx, recipe.DefaultKernel, api.PullRequest{}, func(_ context.Context, out io.Writer) error {
			return writeTar(out, kernelFiles())
		}, nil)
		if err != nil {
			return err
		}
		var b bytes.Buffer
		if err := writeTar(&b, map[string]string{"etc/os-release": "ID=small\n", "bin/sh": "#!"}); err != nil {
			return err
		}
		_, err = c.ImportImage(ctx, "small", &b, nil)
		return err
	})
}

// options are how a client of this world starts a daemon.
func (w world) options() client.Options {
	return client.Options{Layout: w.layout, DaemonPath: self("bangerd"), Start: true, Env: w.env}
}

// self is the path of this binary as one of its programs.
func self(name string) string {
	p, err := exec.LookPath(name)
	if err != nil {
		panic("testscript.Main makes " + name)
	}
	return p
}

// with talks to the world's daemon, which it starts, and ends it.
func (w world) with(ctx context.Context, f func(*client.Client) error) error {
	c, err := client.Connect(ctx, w.options())
	if err != nil {
		return fmt.Errorf("%w\n%s", err, w.log())
	}
	defer c.Close()
	if err := errors.Join(f(c), c.Shutdown(ctx)); err != nil {
		return fmt.Errorf("%w\n%s", err, w.log())
	}
	return w.awaitUnlocked()
}

// awaitUnlocked waits until no daemon holds the state directory.
func (w world) awaitUnlocked() error {
	f, err := os.Open(w.layout.Lock)
	if err != nil {
		return err
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
}

func (w world) log() string {
	b, err := os.ReadFile(w.layout.Log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// close deletes all VMs and fails if anything is left then, or was there
// before and is no VM's.
func (w world) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := w.with(ctx, func(c *client.Client) error {
		s, err := c.Reconcile(ctx)
		if err != nil || len(s.Leaks) > 0 {
			return fmt.Errorf("census: %+v, %w", s, err)
		}
		ms, err := c.Machines(ctx)
		for _, m := range ms {
			_, derr := c.DeleteMachine(ctx, m.ID)
			err = errors.Join(err, derr)
		}
		return errors.Join(err, nothing(ctx, c))
	})
	return errors.Join(err, os.RemoveAll(filepath.Dir(w.layout.Runtime)))
}

// nothing is an error if there is anything of a VM.
func nothing(ctx context.Context, c *client.Client) error {
	s, err := c.Reconcile(ctx)
	if err != nil {
		return err
	}
	if s.Machines+len(s.VMMs)+len(s.Companions)+len(s.Disks)+len(s.RunDirs)+len(s.Staging)+len(s.Leaks) > 0 {
		return fmt.Errorf("census: got %+v, want nothing", s)
	}
	return nil
}

// user is a world for a test that is no script.
func user(t *testing.T) world {
	t.Helper()
	w, err := newWorld(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return w
}

// banger is a command of this world, to be started.
func (w world) banger(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "banger", args...)
	cmd.Env, cmd.Dir = w.env, w.home
	return cmd
}

// kernelRelease is what `uname -r` would say.
const kernelRelease = "6.1.0-test"

// kernelFiles are a kernel that the store takes and nothing boots.
func kernelFiles() map[string]string {
	m := "lib/modules/" + kernelRelease + "/"
	var config strings.Builder
	for _, name := range strings.Fields(`BLK_DEV_INITRD DEVTMPFS TMPFS PROC_FS SYSFS UNIX INET CGROUPS INOTIFY_USER EXT4_FS
		SERIAL_8250_CONSOLE MODULES VIRTIO VIRTIO_MMIO VIRTIO_CONSOLE VIRTIO_BLK OVERLAY_FS`) {
		fmt.Fprintf(&config, "CONFIG_%s=y\n", name)
	}
	return map[string]string{
		"boot/vmlinuz-" + kernelRelease: "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x3e\x00" + strings.Repeat("\x00", 4096),
		"boot/config-" + kernelRelease:  config.String(),
		m + "modules.dep.bin":           "index",
		m + "kernel/net/dummy.ko":       "\x7fELF dummy",
	}
}

// writeTar writes files, and the directories that they are in.
func writeTar(w io.Writer, files map[string]string) error {
	tw := tar.NewWriter(w)
	dirs := map[string]bool{}
	for name := range files {
		for d := filepath.Dir(name); d != "."; d = filepath.Dir(d) {
			dirs[d+"/"] = true
		}
	}
	var names []string
	for d := range dirs {
		names = append(names, d)
	}
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		h := &tar.Header{Name: name, Mode: 0o755, Size: int64(len(files[name])), Typeflag: tar.TypeReg}
		if dirs[name] {
			h.Typeflag = tar.TypeDir
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.WriteString(tw, files[name]); err != nil {
			return err
		}
	}
	return tw.Close()
}
