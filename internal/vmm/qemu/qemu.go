// Package qemu drives qemu-system-x86_64 with its microvm machine.
//
// It owns QEMU's command line and the conversation on QEMU's control socket
// (QMP). All files reach QEMU as inherited descriptors, so it needs no rights
// in the file system and its seccomp sandbox can be on. The package starts no
// process.
package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"

	"banger/internal/api"
	"banger/internal/vmm"
)

// Program is the program's name in PATH.
const Program = "qemu-system-x86_64"

// The names of the two drivers.
const (
	NameKVM = "qemu-kvm"
	NameTCG = "qemu-tcg"
)

// A Driver runs VMs with QEMU. The zero Driver emulates, with the QEMU in PATH.
type Driver struct {
	KVM  bool   // use the processor's virtualization
	Path string // of the program; looked for in PATH if empty
}

// Name is what users see.
func (d Driver) Name() string {
	if d.KVM {
		return NameKVM
	}
	return NameTCG
}

// Wiring says that QEMU inherits the sockets of all three channels, which have
// connections before it begins: so no byte is printed to nobody.
func (Driver) Wiring() vmm.Wiring {
	return vmm.Wiring{
		Agent:   vmm.Channel{How: vmm.Inherited, Name: "agent.sock"},
		Console: vmm.Channel{How: vmm.Inherited, Name: "console.sock"},
		Control: vmm.Channel{How: vmm.Inherited, Name: "control.sock"},
	}
}

// Find returns the path of the program, or an [*api.Error] that says how to
// install it.
func Find() (string, error) {
	p, err := exec.LookPath(Program)
	if err != nil {
		return "", &api.Error{Code: api.Missing, Msg: "QEMU is not installed: no " + Program + " in PATH",
			Hint: "sudo apt install qemu-system-x86 (Fedora: sudo dnf install qemu-system-x86-core; Arch: sudo pacman -S qemu-system-x86)"}
	}
	return p, nil
}

// Argv is the command that runs c. Files with a descriptor are never opened by
// name; a name is used as it is.
func (d Driver) Argv(c vmm.Config) ([]string, error) {
	if err := check(c); err != nil {
		return nil, err
	}
	program := d.Path
	if program == "" {
		var err error
		if program, err = Find(); err != nil {
			return nil, err
		}
	}
	argv := []string{program, "-name", "banger-" + c.ID,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		// No timer and no interrupt controller of the last century; a clock,
		// ACPI to find the devices and to power off, and the serial console.
		"-machine", "microvm,x-option-roms=off,pit=off,pic=off,rtc=on,acpi=on,isa-serial=on,dump-guest-core=off",
	}
	argv = append(argv, d.processor(c)...)
	argv = append(argv,
		"-smp", strconv.Itoa(c.VCPUs), "-m", strconv.FormatInt(c.MemoryMiB, 10)+"M",
		"-kernel", name(c.Kernel), "-initrd", name(c.Initramfs), "-append", d.cmdline(c),
		"-device", "virtio-rng-device",
	)
	argv = append(argv, channels(c)...)
	return append(argv, disks(c)...), nil
}

// check refuses what would give a command line that means something else.
func check(c vmm.Config) error {
	switch {
	case c.ID == "" || strings.ContainsAny(c.ID, ", ="):
		return fmt.Errorf("running QEMU: %q cannot be a VM's id", c.ID)
	case c.Network != vmm.Network{}:
		return errors.New("running QEMU: a network device is not for it")
	case c.VCPUs < 1 || c.MemoryMiB < 1:
		return fmt.Errorf("running QEMU: %d vCPUs and %d MiB of memory are not a machine", c.VCPUs, c.MemoryMiB)
	}
	for _, d := range c.Disks {
		if d.Serial == "" || len(d.Serial) > 20 || strings.ContainsAny(d.Serial, ", =") {
			return fmt.Errorf("running QEMU: %q cannot be a disk's serial", d.Serial)
		}
	}
	for _, f := range []vmm.File{c.Agent, c.Console, c.Control} {
		if f.FD == 0 && f.Name == "" {
			return errors.New("running QEMU: a socket is missing")
		}
	}
	return nil
}

// processor chooses the accelerator. The cache for translated code is fitted
// to the guest: QEMU's own default is up to 1 GiB for each VM. Without erms and
// fsrm the kernel copies in loops of its own, which emulation runs faster than
// the string instructions: a boot to the first command took 190 ms less of 2.3 s
// of processor time (medians of 6 pairs).
func (d Driver) processor(c vmm.Config) []string {
	if d.KVM {
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	cache := min(max(c.MemoryMiB/4, 64), 512)
	return []string{"-accel", fmt.Sprintf("tcg,thread=multi,tb-size=%d", cache), "-cpu", "max,-erms,-fsrm"}
}

// cmdline adds what an emulated kernel needs to know of its clock. Debian's 6.1
// can hang for ever while it measures the counter itself, often when several
// VMs boot at once; with more than one processor it also gives the counter up
// as unsynchronized and then loses time. lpj is the counter's rate per tick
// of a 250 Hz kernel, Debian's.
//
// reboot=t ends a microvm by a triple fault, at once: it has no keyboard
// controller, and looking for one with reboot=k takes 1.4 s.
func (d Driver) cmdline(c vmm.Config) string {
	line := c.Cmdline + " reboot=t"
	if d.KVM || c.TSCKHz == 0 {
		return line
	}
	const hz = 250
	return fmt.Sprintf("%s tsc_early_khz=%d lpj=%d tsc=reliable", line, c.TSCKHz, c.TSCKHz*1000/hz)
}

// name is how QEMU opens a file that it reads once.
func name(f vmm.File) string {
	if f.FD != 0 {
		return "/dev/fd/" + strconv.Itoa(f.FD)
	}
	return f.Name
}

// channels are the three sockets. QEMU waits for the connections of console
// and agent, which exist before it starts: so no byte is printed to nobody.
func channels(c vmm.Config) []string {
	return []string{
		"-chardev", chardev("console", c.Console) + ",wait=on", "-serial", "chardev:console",
		"-device", "virtio-serial-device",
		"-chardev", chardev("agent", c.Agent) + ",wait=on",
		"-device", "virtserialport,chardev=agent,name=" + vmm.PortName,
		"-chardev", chardev("control", c.Control) + ",wait=off", "-mon", "chardev=control,mode=control",
	}
}

func chardev(id string, f vmm.File) string {
	at := "fd=" + strconv.Itoa(f.FD)
	if f.FD == 0 {
		at = "path=" + strings.ReplaceAll(f.Name, ",", ",,")
	}
	return "socket,id=" + id + "," + at + ",server=on"
}

// blockdev is QEMU's description of a raw disk, in its JSON form because a
// file's name may hold anything.
type blockdev struct {
	Node     string   `json:"node-name"`
	Driver   string   `json:"driver"`
	ReadOnly bool     `json:"read-only"`
	Discard  string   `json:"discard"`
	Cache    cache    `json:"cache"`
	File     fileDisk `json:"file"`
}

type fileDisk struct {
	Driver string `json:"driver"`
	Name   string `json:"filename"`
	AIO    string `json:"aio"`
	Cache  cache  `json:"cache"`
}

// cache through the host's page cache, which all VMs of an image share, with
// the guest's flushes carried out.
type cache struct {
	Direct  bool `json:"direct"`
	NoFlush bool `json:"no-flush"`
}

// disks are found by the guest by their serial. A write error is reported to
// the guest: pausing the VM, the default on a full disk, would look like a hang.
func disks(c vmm.Config) []string {
	var argv []string
	for i, d := range c.Disks {
		file := d.File.Name
		if d.File.FD != 0 {
			set := i + 1
			argv = append(argv, "-add-fd", fmt.Sprintf("fd=%d,set=%d", d.File.FD, set))
			file = "/dev/fdset/" + strconv.Itoa(set)
		}
		discard := "unmap"
		if d.ReadOnly {
			discard = "ignore"
		}
		// Nothing in these types can fail to marshal.
		b, _ := json.Marshal(blockdev{
			Node: "disk" + strconv.Itoa(i), Driver: "raw", ReadOnly: d.ReadOnly, Discard: discard,
			File: fileDisk{Driver: "file", Name: file, AIO: "threads"},
		})
		argv = append(argv, "-blockdev", string(b), "-device",
			fmt.Sprintf("virtio-blk-device,drive=disk%d,serial=%s,werror=report,rerror=report", i, d.Serial))
	}
	return argv
}
