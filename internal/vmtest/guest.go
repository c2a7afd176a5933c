package vmtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/internal/agentapi"
	"banger/internal/disk"
	"banger/internal/ext4"
	"banger/internal/host"
	"banger/internal/initramfs"
	"banger/internal/smallimage"
	"banger/internal/testneed"
	"banger/internal/vmm"
)

// A Guest is a real guest, as small as can be: the default kernel, the agent,
// and busybox.
type Guest struct {
	Vmlinux   string
	Initramfs string
	Base      string // an image
}

// GuestEnv may name a directory that holds a guest, as MakeGuest leaves it: then
// none is made.
const GuestEnv = "BANGER_TEST_GUEST"

// NeedGuest makes a guest in a directory of t's. It ends the test where
// something that it takes is missing.
func NeedGuest(t testing.TB) Guest {
	t.Helper()
	if dir := os.Getenv(GuestEnv); dir != "" {
		return guestIn(dir, NeedKernel(t))
	}
	testneed.QEMU(t)
	if _, err := smallimage.Busybox(); err != nil {
		testneed.Missing(t, err.Error())
	}
	g, err := MakeGuest(t.Context(), NeedKernel(t), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func guestIn(dir string, k Kernel) Guest {
	return Guest{Vmlinux: k.Vmlinux, Initramfs: filepath.Join(dir, "initramfs"), Base: filepath.Join(dir, "base")}
}

// MakeGuest makes a guest in dir, for programs that are no tests.
func MakeGuest(ctx context.Context, k Kernel, dir string) (Guest, error) {
	busybox, err := smallimage.Busybox()
	if err != nil {
		return Guest{}, err
	}
	g, agent := guestIn(dir, k), filepath.Join(dir, "agent")
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-o", agent, "banger/cmd/banger-vsock-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return Guest{}, fmt.Errorf("building the agent: %w\n%s", err, out)
	}
	in := initramfs.In{}
	if in.Agent, err = os.ReadFile(agent); err != nil {
		return Guest{}, err
	}
	if in.Modules, err = modules(k.Tar); err != nil {
		return Guest{}, err
	}
	if err := replace(g.Initramfs, func(w io.Writer) error { return initramfs.Build(w, in) }); err != nil {
		return Guest{}, err
	}
	image, err := os.Create(g.Base)
	if err != nil {
		return Guest{}, err
	}
	defer image.Close()
	r, w := io.Pipe()
	go func() { w.CloseWithError(smallimage.Write(w, busybox)) }()
	if _, err := ext4.Write(ctx, r, image, ext4.Options{Label: "small"}); err != nil {
		return Guest{}, fmt.Errorf("making the small image: %w", err)
	}
	return g, nil
}

// modules are those of the initramfs, in its order.
func modules(kernelTar string) ([]initramfs.Module, error) {
	want := initramfs.ModuleNames()
	found := make([]initramfs.Module, len(want))
	err := walk(kernelTar, func(name string, r io.Reader) error {
		base, ok := strings.CutSuffix(path.Base(name), ".ko")
		i := slices.Index(want, base)
		if !ok || i < 0 {
			return nil
		}
		b, err := io.ReadAll(r)
		found[i] = initramfs.Module{Name: base, Data: b}
		return err
	})
	return slices.DeleteFunc(found, func(m initramfs.Module) bool { return m.Name == "" }), err
}

// Spec is a VM with this guest, with a disk and a console of its own.
func (g Guest) Spec(t testing.TB) host.Spec {
	t.Helper()
	dir := t.TempDir()
	vmDisk := filepath.Join(dir, "vm.ext4")
	if err := disk.Create(t.Context(), vmDisk, ext4.MinFormat); err != nil {
		t.Fatal(err)
	}
	s := host.Spec{ID: ID(t), Name: "small", VCPUs: 1, MemoryMiB: 256, ConsolePath: filepath.Join(dir, "console"),
		Kernel: open(t, g.Vmlinux, os.O_RDONLY), Initramfs: open(t, g.Initramfs, os.O_RDONLY),
		Disks: []host.Disk{
			{File: open(t, g.Base, os.O_RDONLY), Serial: vmm.SerialBase, ReadOnly: true},
			{File: open(t, vmDisk, os.O_RDWR), Serial: vmm.SerialVM},
		},
		Identity: agentapi.Identity{Hostname: "small", MachineID: strings.Repeat("0a", 16), Seed: make([]byte, 32), UnixNano: time.Now().UnixNano(),
			HostKey: "-----BEGIN OPENSSH PRIVATE KEY-----\n", HostKeyPub: "ssh-ed25519 AAAA small"},
	}
	return s
}

// open opens a file until the test ends.
func open(t testing.TB, name string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(name, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return f
}
