package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/api"
	"banger/internal/client"
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
// files that the lab brought.
func (w *world) useInstalled(t *testing.T) error {
	root, err := os.MkdirTemp("", "banger-e2e-")
	if err != nil {
		return err
	}
	w.root, w.bin = root, "/usr/local/bin"
	w.env = slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "XDG_") && !strings.HasPrefix(e, "XDG_RUNTIME_DIR=") })
	w.env = append(w.env, "PATH="+w.bin+":"+os.Getenv("PATH"))
	l, err := paths.System(os.Getenv, os.Getuid(), os.Getenv("HOME"))
	if err != nil {
		return err
	}
	c, err := client.Connect(t.Context(), client.Options{Layout: l})
	if err != nil {
		return err
	}
	defer c.Close()
	// What `kernel pull` would send, without a mirror in reach.
	tar := filepath.Join(os.Getenv(vmtest.KernelEnv), "kernel.tar")
	if _, err := c.PullKernel(t.Context(), recipe.DefaultKernel, api.PullRequest{}, send(tar), nil); err != nil {
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
