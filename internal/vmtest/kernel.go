package vmtest

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/api"
	"banger/internal/bzimage"
	"banger/internal/recipe"
	"banger/internal/testneed"

	"golang.org/x/sys/unix"
)

// KernelEnv may name a directory that holds vmlinux and kernel.tar: then no
// kernel is built.
const KernelEnv = "BANGER_TEST_KERNEL"

// A Kernel is what tests boot.
type Kernel struct {
	Vmlinux string // path of the uncompressed ELF
	Tar     string // path of the recipe's tar, with the modules
}

// NeedKernel returns the default kernel. It is built once per account, by
// mmdebstrap, below the user's cache directory, while other test binaries wait;
// that takes a minute or two. Where it cannot be built, the test ends: see
// testneed.Missing.
func NeedKernel(t testing.TB) Kernel {
	t.Helper()
	k, err := MakeKernel(t.Context())
	var lacks *api.Error
	if errors.As(err, &lacks) && lacks.Code == api.Missing {
		testneed.Missing(t, "a kernel, for which something is missing: "+err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// MakeKernel is NeedKernel for programs that are no tests.
func MakeKernel(ctx context.Context) (Kernel, error) {
	if dir := os.Getenv(KernelEnv); dir != "" {
		return Kernel{filepath.Join(dir, "vmlinux"), filepath.Join(dir, "kernel.tar")}, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return Kernel{}, err
	}
	dir := filepath.Join(cache, "banger-test", recipe.DefaultKernel)
	k := Kernel{filepath.Join(dir, "vmlinux"), filepath.Join(dir, "kernel.tar")}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Kernel{}, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return Kernel{}, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return Kernel{}, err
	}
	if _, err := os.Stat(k.Vmlinux); err == nil { // made last
		return k, nil
	}
	r, err := recipe.Kernel(recipe.DefaultKernel)
	if err != nil {
		return Kernel{}, err
	}
	o := recipe.Options{CacheDir: filepath.Join(dir, "cache")}
	err = replace(k.Tar, func(w io.Writer) error {
		o.Out = w
		return recipe.Run(ctx, r, o)
	})
	if err == nil {
		err = replace(k.Vmlinux, func(w io.Writer) error { return vmlinux(w, k.Tar) })
	}
	if err != nil {
		return Kernel{}, fmt.Errorf("building a kernel for tests: %w", err)
	}
	return k, nil
}

// replace writes a file as a whole.
func replace(name string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".tmp-")
	if err != nil {
		return err
	}
	err = errors.Join(write(f), f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// vmlinux writes the kernel inside the kernel inside the tar.
func vmlinux(w io.Writer, kernelTar string) error {
	err := errors.New("reading kernel tar: it holds no vmlinuz")
	each := walk(kernelTar, func(name string, r io.Reader) error {
		if !strings.HasPrefix(path.Base(name), "vmlinuz") {
			return nil
		}
		b, rerr := io.ReadAll(r)
		if rerr != nil {
			return rerr
		}
		elf, rerr := bzimage.Extract(b)
		if rerr != nil {
			return rerr
		}
		_, err = w.Write(elf)
		return nil
	})
	return errors.Join(each, err)
}

// walk calls f for each file of a tar.
func walk(name string, f func(name string, r io.Reader) error) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	for r := tar.NewReader(file); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil && h.Typeflag == tar.TypeReg {
			err = f(h.Name, r)
		}
		if err != nil {
			return fmt.Errorf("reading %s: %w", name, err)
		}
	}
}
