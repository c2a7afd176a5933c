package main

import (
	"bufio"
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/vmm"
	"banger/internal/vmm/qemu"
)

// TestMarkerInitRuns runs the bare guest's init on this host: it is a program
// like any other.
func TestMarkerInitRuns(t *testing.T) {
	program := markerInit()
	if _, err := elf.NewFile(bytes.NewReader(program)); err != nil {
		t.Fatalf("the init is no ELF program: %v", err)
	}
	path := filepath.Join(t.TempDir(), "init")
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != marker {
		t.Errorf("it printed %q (%v), want %q", line, err, marker)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Errorf("it ended by itself: %v", err)
	}
	_ = cmd.Wait() // it was killed
}

func TestStripKeepsTheMachine(t *testing.T) {
	f := vmm.File{Name: "x"}
	for _, kvm := range []bool{false, true} {
		d := qemu.Driver{KVM: kvm, Path: "/usr/bin/qemu"}
		full, err := d.Argv(vmm.Config{ID: "i", VCPUs: 1, MemoryMiB: 256, Cmdline: "quiet", TSCKHz: 1_000_000,
			Kernel: vmm.File{Name: "/vmlinux"}, Initramfs: vmm.File{Name: "/initrd"}, Agent: f, Console: f, Control: f,
			Disks: []vmm.Disk{{File: f, Serial: "base"}}})
		if err != nil {
			t.Fatal(err)
		}
		accel := []string{"-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max,-erms,-fsrm"}
		cmdline := "quiet reboot=t tsc_early_khz=1000000 lpj=4000000 tsc=reliable"
		if kvm {
			accel, cmdline = []string{"-accel", "kvm", "-cpu", "host"}, "quiet reboot=t"
		}
		got := strip(full)
		want := append([]string{"/usr/bin/qemu", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
			"-machine", full[slices.Index(full, "-machine")+1]}, accel...)
		want = append(want, "-smp", "1", "-m", "256M", "-kernel", "/vmlinux", "-initrd", "/initrd", "-append", cmdline)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("kvm %v: want -, got +\n%s", kvm, diff)
		}
	}
}
