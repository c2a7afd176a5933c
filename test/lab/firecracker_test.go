//go:build lab

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/initramfs"
	"banger/internal/testneed"
	"banger/internal/vmm/vmmguest"
	"banger/internal/vmtest"
)

const (
	firecracker = "/lab/firecracker/firecracker"
	jailer      = "/lab/firecracker/jailer"
	marker      = "a guest of Firecracker's is here"
)

// TestMain is the guest's init too, where it is process 1.
func TestMain(m *testing.M) {
	if os.Getpid() == 1 {
		guest()
	}
	if code, ours := vmtest.Main(context.Background()); ours {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// guest is what the guest does: say a word that is not on its command line, and
// end the VM.
func guest() {
	if os.Getenv("driver") != "" { // a word of the command line that the kernel does not know
		vmmguest.Run()
	}
	fmt.Println(strings.ToUpper(marker))
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

func TestFirecrackerVersion(t *testing.T) {
	testneed.Lab(t)
	for _, program := range []string{firecracker, jailer} {
		if got := run(t, program, "--version"); !strings.Contains(got, "v1.12.1") {
			t.Errorf("%s says %q, want v1.12.1", program, got)
		}
	}
}

func TestFirecrackerBootsDebiansKernel(t *testing.T) {
	testneed.Lab(t)
	k, dir := vmtest.NeedKernel(t), t.TempDir()
	config := filepath.Join(dir, "config.json")
	b, err := json.Marshal(map[string]any{
		"boot-source": map[string]any{"kernel_image_path": k.Vmlinux, "initrd_path": ownInitramfs(t, dir),
			"boot_args": "console=ttyS0 reboot=k panic=1 quiet 8250.nr_uarts=1"},
		"drives":         []any{},
		"machine-config": map[string]any{"vcpu_count": 1, "mem_size_mib": 256},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, b, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), firecracker, "--no-api", "--config-file", config).CombinedOutput()
	if err != nil {
		t.Fatalf("firecracker: %v\n%s", err, out)
	}
	if !strings.Contains(string(out), strings.ToUpper(marker)) {
		t.Errorf("got console %q, want the marker on it", out)
	}
}

// ownInitramfs makes an initramfs whose init is this program.
func ownInitramfs(t *testing.T, dir string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	in := initramfs.In{}
	if in.Agent, err = os.ReadFile(self); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "initramfs")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(initramfs.Build(f, in), f.Close()); err != nil {
		t.Fatal(err)
	}
	return name
}
