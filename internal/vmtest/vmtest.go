// Package vmtest is what tests need that start VMs: a test binary that can be
// its own companion and fake VMM, and the smallest guest for a real one.
//
// Only tests use it.
package vmtest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"banger/internal/companion"
	"banger/internal/companionapi"
	"banger/internal/host"
	"banger/internal/userhost"
	"banger/internal/vmm"
	"banger/internal/vmm/fake"
	"banger/internal/vmm/firecracker"
	"banger/internal/vmm/qemu"
)

// Main plays the part that this process was started for, if it was started by
// a test as a companion or as a fake VMM (then ours is set), and returns the
// code to exit with. TestMain calls it first.
func Main(ctx context.Context) (code int, ours bool) {
	if code, ours := fake.Main(ctx); ours {
		return code, true
	}
	if os.Getenv(companionapi.DirEnv) == "" || len(os.Args) != 2 {
		return 0, false
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	err := companion.Run(ctx, companion.Options{
		Drivers: []vmm.Driver{fake.Driver{}, fake.Driver{Calling: true}, qemu.Driver{}, qemu.Driver{KVM: true}, firecracker.Driver{}, firecracker.Driver{Jailed: true}},
		Config:  os.NewFile(companionapi.ConfigFD, "config"),
		Started: os.NewFile(companionapi.StartedFD, "started"),
		Log:     slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		slog.Error("holding the VM", "err", err)
		return 1, true
	}
	return 0, true
}

// Companion is the path of this test binary, which plays the companion.
func Companion(t testing.TB) string {
	t.Helper()
	p, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// ID makes up a VM's id.
func ID(t testing.TB) string {
	t.Helper()
	b := make([]byte, 6)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(b)
}

// ShortDir is a directory for sockets, whose path is shorter than that of
// t.TempDir. It is removed with the test.
func ShortDir(t testing.TB) string {
	t.Helper()
	d, err := os.MkdirTemp("", "bt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(d); err != nil {
			t.Error(err)
		}
	})
	return d
}

// Host is a user-mode host whose companions are this test binary, with the fake
// driver and the test's log unless c says otherwise. It is closed with the test.
func Host(t testing.TB, c userhost.Config) *userhost.Host {
	t.Helper()
	c.CompanionPath = Companion(t)
	if c.RunDir == "" {
		c.RunDir = ShortDir(t)
	}
	if c.Driver == "" {
		c.Driver = fake.Name
	}
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	h, err := userhost.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// FakeSpec is a VM for the fake driver, whose guest misbehaves as words say.
func FakeSpec(t testing.TB, words string) host.Spec {
	t.Helper()
	s := host.Spec{ID: ID(t), Name: "fake", VCPUs: 1, MemoryMiB: 64, Cmdline: words, ConsolePath: filepath.Join(t.TempDir(), "console")}
	s.Kernel, s.Initramfs = file(t, "kernel", os.O_RDONLY), file(t, "initramfs", os.O_RDONLY)
	s.Disks = []host.Disk{
		{File: file(t, "base", os.O_RDONLY), Serial: vmm.SerialBase, ReadOnly: true},
		{File: file(t, "vm", os.O_RDWR), Serial: vmm.SerialVM},
	}
	s.Identity.Hostname = "fake"
	return s
}

// file makes a small file and opens it.
func file(t testing.TB, name string, flags int) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(name), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}
