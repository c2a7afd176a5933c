package qemu_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/initramfs"
	"banger/internal/testneed"
	"banger/internal/vmm/qemu"
	"banger/internal/vmm/vmmtest"
	"banger/internal/vmtest"
)

// guest is an init that prints a marker and does what the command line says.
const guest = `package main

import (
	"os"
	"strings"
	"syscall"
)

func main() {
	os.Stdout.WriteString("guest: here I am\n")
	_ = os.Mkdir("/proc", 0o755)
	_ = syscall.Mount("proc", "/proc", "proc", 0, "")
	b, _ := os.ReadFile("/proc/cmdline")
	switch {
	case strings.Contains(string(b), "guest.off"):
		_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	case strings.Contains(string(b), "guest.reset"):
		_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
	}
	select {}
}
`

func TestContract(t *testing.T) {
	testneed.QEMU(t)
	k, dir := vmtest.NeedKernel(t), t.TempDir()
	src, bin, cpio := filepath.Join(dir, "init.go"), filepath.Join(dir, "init"), filepath.Join(dir, "initramfs")
	if err := os.WriteFile(src, []byte(guest), 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, src)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the guest: %v\n%s", err, out)
	}
	program, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(cpio)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := initramfs.Build(f, initramfs.In{Agent: program}); err != nil {
		t.Fatal(err)
	}
	khz, err := qemu.TSC(t.Context()) // without it, most of these VMs hang
	if err != nil {
		t.Fatal(err)
	}
	vmmtest.Suite{Driver: qemu.Driver{}, TSCKHz: khz, Kernel: k.Vmlinux, Initramfs: cpio, Marker: "guest: here I am",
		Ends: "guest.off", Resets: "guest.reset", Limit: 2 * time.Minute}.Run(t)
}
