//go:build lab

package lab

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"banger/internal/kvm"
	"banger/internal/testneed"
)

// run runs a program of the machine's and returns what it prints.
func run(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestMachineIsWhole(t *testing.T) {
	testneed.Lab(t)
	b, err := os.ReadFile("/proc/1/comm")
	if got := strings.TrimSpace(string(b)); got != "systemd" || err != nil {
		t.Errorf("PID 1 is %q (%v), want systemd", got, err)
	}
	if got := run(t, "systemctl", "is-system-running"); got != "running" {
		t.Errorf("systemd says %q, want running\n%s", got, run(t, "systemctl", "--failed"))
	}
	if got := run(t, "ls", "/sys/class/net"); got != "lo" {
		t.Errorf("the network devices are %q, want lo alone", got)
	}
	if got := run(t, "stat", "-f", "-c", "%T", "/"); got != "ext2/ext3" {
		t.Errorf("the root is on %q, want ext4", got)
	}
	if got := run(t, "stat", "-f", "-c", "%T", "/sys/fs/cgroup"); got != "cgroup2fs" {
		t.Errorf("cgroups are %q, want the second version", got)
	}
}

func TestKVM(t *testing.T) {
	testneed.Lab(t)
	run(t, "modprobe", "kvm-amd")
	if v := kvm.Probe(t.Context()); !v.Usable {
		t.Errorf("got %+v, want a KVM that runs guests", v)
	}
}
