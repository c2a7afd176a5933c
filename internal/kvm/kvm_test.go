package kvm

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"banger/internal/testneed"
	"unsafe"
)

func TestHardware(t *testing.T) {
	for name, tt := range map[string]struct {
		cpuinfo string
		want    bool
	}{
		"Intel":          {"processor\t: 0\nflags\t\t: fpu vmx sse\n", true},
		"AMD":            {"flags\t\t: fpu svm\n", true},
		"neither":        {"flags\t\t: fpu vmmcall svm_lock\nflags: vmx\n", false},
		"nothing":        {"", false},
		"vmx flags only": {"vmx flags\t: vmx\nflags\t\t: fpu\n", false},
	} {
		if got := hardware(strings.NewReader(tt.cpuinfo)); got != tt.want {
			t.Errorf("%s: hardware() = %v, want %v", name, got, tt.want)
		}
	}
}

// The kernel reads these structures: their sizes are in the ioctl numbers.
func TestSizes(t *testing.T) {
	for name, tt := range map[string]struct {
		got  uintptr
		want uintptr
	}{
		"region": {unsafe.Sizeof(region{}), kvmSetUserMemoryRegion >> 16 & 0x3fff},
		"regs":   {unsafe.Sizeof(regs{}), kvmSetRegs >> 16 & 0x3fff},
		"sregs":  {unsafe.Sizeof(sregs{}), kvmGetSregs >> 16 & 0x3fff},
		"code":   {uintptr(len(code)), 0x8e},
	} {
		if tt.got != tt.want {
			t.Errorf("size of %s = %d, want %d", name, tt.got, tt.want)
		}
	}
}

// The machine decides what Probe says; it must say it in time and with a reason.
func TestProbe(t *testing.T) {
	begin := time.Now()
	v := Probe(t.Context())
	t.Logf("Probe() = %+v after %v", v, time.Since(begin))
	if v.Usable == (v.Why != "") {
		t.Errorf("Probe() = %+v: want usable, or a reason", v)
	}
}

// What the running probe says must fit what the signs say: a KVM without the
// processor's help is found out by its speed alone.
func TestRunFindsOutAnInterpreter(t *testing.T) {
	dev, err := os.OpenFile(Device, os.O_RDWR, 0)
	if err != nil {
		testneed.Missing(t, Device)
	}
	defer dev.Close()
	v := run(t.Context(), dev)
	t.Logf("run() = %+v", v)
	if v.Usable && softwareOnly() {
		t.Errorf("run() = usable, though the processor offers no virtualization")
	}
	if !v.Usable && v.Why == "" {
		t.Error("run() has no reason")
	}
}

func TestRunIsInterrupted(t *testing.T) {
	dev, err := os.OpenFile(Device, os.O_RDWR, 0)
	if err != nil {
		testneed.Missing(t, Device)
	}
	defer dev.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if v := run(ctx, dev); v.Usable {
		t.Errorf("run() with a dead context = %+v, want not usable", v)
	}
}
