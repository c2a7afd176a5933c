package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/lab"
	"banger/internal/paths"
	"banger/internal/recipe"
	"banger/internal/testneed"
	"banger/internal/vmtest"
)

// installed reports whether the tests run in the lab machine, as the owner of an
// installed banger: the same tests, but system mode, Firecracker and the host's
// network. Those that need a daemon of their own are not named in lab.txt.
func installed() bool { return os.Getenv(testneed.LabEnv) == "1" }

// useInstalled makes the world that of the owner, and fills the store from the
// files that the lab brought. Where the tests are root, it installs banger first;
// their commands are the owner's all the same.
func (w *world) useInstalled(t *testing.T) error {
	root, err := os.MkdirTemp("", "banger-e2e-")
	if err != nil {
		return err
	}
	w.root, w.bin = root, "/usr/local/bin"
	w.env = slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "XDG_") && !strings.HasPrefix(e, "XDG_RUNTIME_DIR=") })
	w.env = append(w.env, "PATH="+w.bin+":"+os.Getenv("PATH"))
	if os.Getuid() == 0 {
		if err := w.becomeOwner(); err != nil {
			return err
		}
		if out, err := exec.CommandContext(t.Context(), "sh", "-c", "modprobe kvm-amd && udevadm settle").CombinedOutput(); err != nil {
			return fmt.Errorf("loading KVM: %w\n%s", err, out)
		}
		out, err := exec.CommandContext(t.Context(), lab.Dir+"/bin/banger", "system", "install", "--owner", lab.Owner,
			"--firecracker", lab.Dir+"/firecracker/firecracker").CombinedOutput()
		t.Logf("banger system install:\n%s", out)
		if err != nil {
			return fmt.Errorf("installing: %w", err)
		}
	}
	if err := w.stock(); err != nil {
		return err
	}
	small := filepath.Join(os.Getenv(vmtest.GuestEnv), "small.tar")
	if r := w.banger(t, "image", "show", "small"); r.code == 0 {
		return nil
	}
	if r := w.banger(t, "image", "import", "small", small); r.code != 0 {
		return fmt.Errorf("importing the small image: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	return nil
}

// stockEnv makes this program the one that stocks the owner's store.
const stockEnv = "BANGER_E2E_STOCK"

// stock has the kernel put into the owner's store, by the owner: what `kernel
// pull` does, without a mirror in reach. A daemon serves nobody else but root, who
// would not trust it.
func (w *world) stock() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self) //nolint:noctx // outlives the first test
	cmd.Env = append(slices.Clone(w.env), stockEnv+"=1")
	if w.as != nil {
		cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Credential: w.as}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("stocking the store: %w\n%s", err, out)
	}
	return nil
}

// stockKernel is the other side of stock.
func stockKernel(ctx context.Context) error {
	home, err := os.UserHomeDir()
	if err != nil {
		return err
	}
	l, err := paths.For(os.Getenv, os.Getuid(), home)
	if err != nil {
		return err
	}
	c, err := client.Connect(ctx, client.Options{Layout: l})
	if err != nil {
		return err
	}
	defer c.Close()
	tar := filepath.Join(os.Getenv(vmtest.KernelEnv), "kernel.tar")
	_, err = c.PullKernel(ctx, recipe.DefaultKernel, api.PullRequest{}, send(tar), nil)
	return err
}

// becomeOwner makes the owner run the commands of tests that are root.
func (w *world) becomeOwner() error {
	u, err := user.Lookup(lab.Owner)
	if err != nil {
		return err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return err
	}
	w.as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	w.env = append(w.env, "HOME="+u.HomeDir, "USER="+u.Username, "LOGNAME="+u.Username, "XDG_RUNTIME_DIR=/run/user/"+u.Uid)
	return errors.Join(os.Chmod(w.root, 0o755), os.Chown(w.root, int(uid), int(gid)))
}

// send builds by copying a file.
func send(path string) client.BuildFunc {
	return func(_ context.Context, w io.Writer) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	}
}
