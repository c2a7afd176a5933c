// Package kvm finds out whether this machine's /dev/kvm can run a guest.
//
// That the device exists, opens and makes a VM says little: where KVM is built
// on page tables alone, without the processor's help, an ordinary kernel is
// interpreted instruction by instruction and never gets anywhere. So the probe
// lets a guest compute something and looks at the time. It keeps nothing: whoever
// asks often remembers the answer, which holds until the machine starts again.
package kvm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Device is what KVM users open.
const Device = "/dev/kvm"

// Verdict is what the probe found.
type Verdict struct {
	// Usable is set if a guest has run at the speed of the processor.
	Usable bool `json:"usable"`
	// Why is a sentence part for people; empty if Usable.
	Why string `json:"why,omitempty"`
	// Fix is what could be done about it, if anything.
	Fix string `json:"fix,omitempty"`
	// Denied is set if it is there, and not for this account to open.
	Denied bool `json:"denied,omitempty"`
}

// Probe runs a tiny guest and says whether KVM is usable. It takes some
// milliseconds where it is, at most two seconds where it is not, and ends
// early with ctx.
func Probe(ctx context.Context) Verdict {
	dev, err := os.OpenFile(Device, os.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return Verdict{Why: "this machine has no " + Device, Fix: "switch virtualization on in the firmware, or (in a VM) nested virtualization on its host, and load kvm_intel or kvm_amd"}
	case errors.Is(err, os.ErrPermission):
		return Verdict{Why: "you may not open " + Device, Fix: "sudo usermod -aG kvm $USER, then log in again", Denied: true}
	case err != nil:
		return Verdict{Why: fmt.Sprintf("opening %s: %v", Device, err)}
	}
	defer dev.Close()
	if softwareOnly() {
		return Verdict{Why: Device + " is page-table based (kvm_pvm) and the processor offers no virtualization: an ordinary kernel would be interpreted"}
	}
	return run(ctx, dev)
}

// softwareOnly reports the one known KVM that needs no support of the
// processor and has none here either.
func softwareOnly() bool {
	if _, err := os.Stat("/sys/module/kvm_pvm"); err != nil {
		return false
	}
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return false
	}
	defer f.Close()
	return !hardware(f)
}

// hardware says whether a /proc/cpuinfo names Intel's or AMD's extension.
func hardware(cpuinfo io.Reader) bool {
	sc := bufio.NewScanner(cpuinfo)
	for sc.Scan() {
		key, val, _ := strings.Cut(sc.Text(), ":")
		if strings.TrimSpace(key) != "flags" {
			continue
		}
		for flag := range strings.FieldsSeq(val) {
			if flag == "vmx" || flag == "svm" {
				return true
			}
		}
		return false // all processors of a machine are alike
	}
	return false
}
