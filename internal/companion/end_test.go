package companion

import (
	"strings"
	"syscall"
	"testing"

	"banger/internal/host"
	"banger/internal/vmm"
)

func TestReasons(t *testing.T) {
	killed := ending{label: "QEMU", known: true, status: syscall.WaitStatus(9)}
	failed := ending{label: "QEMU", known: true, status: syscall.WaitStatus(1 << 8)}
	said := failed
	said.stderr = "qemu: no memory"
	for name, tt := range map[string]struct {
		in   ending
		want host.Exit
	}{
		"power off":            {ending{word: vmm.EndShutdown, clean: true, began: true}, host.Exit{Reason: "the guest powered off", Clean: true}},
		"asked power off":      {ending{word: vmm.EndShutdown, asked: true}, host.Exit{Reason: "it was stopped", Asked: true}},
		"reboot":               {ending{word: vmm.EndReset, began: true, clean: true}, host.Exit{Reason: "the guest rebooted", Reboot: true, Clean: true}},
		"reboot after a panic": {ending{word: vmm.EndReset, began: true, panicked: true}, host.Exit{Reason: "the guest rebooted", Reboot: true}},
		"panic":                {ending{word: vmm.EndReset, panicked: true}, host.Exit{Reason: "the guest's kernel panicked"}},
		"told panic":           {ending{word: vmm.EndPanic}, host.Exit{Reason: "the guest's kernel panicked"}},
		"signal":               {killed, host.Exit{Reason: "QEMU was killed by signal 9"}},
		"told to end":          {ending{label: "QEMU", word: vmm.EndSignal}, host.Exit{Reason: "QEMU was told to end by a signal"}},
		"failure":              {failed, host.Exit{Reason: "QEMU ended with code 1"}},
		"failure with words":   {said, host.Exit{Reason: "QEMU ended with code 1: qemu: no memory"}},
		"adopted":              {ending{label: "QEMU"}, host.Exit{Reason: "QEMU ended without saying why"}},
		"lease":                {ending{word: vmm.EndShutdown, intent: &intent{leaseEnded}}, host.Exit{Reason: "its lease ended", Asked: true}},
		"slow power off":       {ending{intent: &intent{poweredOff}, clean: true}, host.Exit{Reason: "the guest powered off", Clean: true}},
		"mute power off":       {ending{mute: true, known: true, began: true, kind: "poweroff", clean: true}, host.Exit{Reason: "the guest powered off", Clean: true}},
		"mute reboot":          {ending{mute: true, known: true, began: true, kind: "reboot"}, host.Exit{Reason: "the guest rebooted", Reboot: true}},
		"mute sudden reset":    {ending{mute: true, known: true}, host.Exit{Reason: "the guest rebooted", Reboot: true}},
		"mute panic":           {ending{mute: true, known: true, panicked: true}, host.Exit{Reason: "the guest's kernel panicked"}},
		"mute failure": {ending{mute: true, label: "Firecracker", known: true, status: syscall.WaitStatus(148 << 8), began: true, kind: "poweroff"},
			host.Exit{Reason: "Firecracker ended with code 148"}},
		"mute, killed":             {ending{mute: true, label: "Firecracker", known: true, status: 9}, host.Exit{Reason: "Firecracker was killed by signal 9"}},
		"mute, adopted":            {ending{mute: true, label: "Firecracker"}, host.Exit{Reason: "Firecracker ended without saying why"}},
		"mute, adopted, power off": {ending{mute: true, began: true, asked: true}, host.Exit{Reason: "it was stopped", Asked: true}},
		"mute, adopted, panic":     {ending{mute: true, panicked: true}, host.Exit{Reason: "the guest's kernel panicked"}},
	} {
		if got := tt.in.exit(); got != tt.want {
			t.Errorf("%s: exit() = %+v, want %+v", name, got, tt.want)
		}
	}
}

func TestTailKeepsTheEndAndHarmlessText(t *testing.T) {
	var tl tail
	for range 1000 {
		if n, err := tl.Write([]byte("noise \x1b]0;x\a\n")); n != 13 || err != nil {
			t.Fatalf("Write() = %d, %v", n, err)
		}
	}
	_, _ = tl.Write([]byte(strings.Repeat("z", 3*tailBytes) + "\nqemu: -chardev: info: QEMU waiting for connection on: x\nqemu: the \x00end\n\n"))
	if got := tl.last(); got != "qemu: the end" {
		t.Errorf("last() = %q, want the last line", got)
	}
	if got := tl.lines(); len(got) > tailBytes || strings.ContainsAny(got, "\x1b\a") || strings.Contains(got, "waiting") {
		t.Errorf("lines() = %q, want at most %d harmless bytes", got, tailBytes)
	}
}
