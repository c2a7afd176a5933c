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

func TestContract(t *testing.T) {
	testneed.QEMU(t)
	k, dir := vmtest.NeedKernel(t), t.TempDir()
	bin, cpio := filepath.Join(dir, "init"), filepath.Join(dir, "initramfs")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "../vmmtest/testdata/guest")
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
	modules, err := k.Modules()
	if err != nil {
		t.Fatal(err)
	}
	if err := initramfs.Build(f, initramfs.In{Agent: program, Modules: modules}); err != nil {
		t.Fatal(err)
	}
	khz, err := qemu.TSC(t.Context()) // without it, most of these VMs hang
	if err != nil {
		t.Fatal(err)
	}
	vmmtest.Suite{Driver: qemu.Driver{}, TSCKHz: khz, Kernel: k.Vmlinux, Initramfs: cpio, Limit: 2 * time.Minute}.Run(t)
}
