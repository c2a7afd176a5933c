// Package vmm describes a virtual machine monitor as data: what to run, and
// what a driver must be able to do with it.
//
// A VMM here always presents the same virtio-mmio machine: block devices found
// by serial, one channel to the agent, an entropy device and a serial console.
// Starting the process is not a driver's business (a root helper or a
// companion does that); turning a [Config] into a command line and speaking
// the VMM's control socket is. Subpackages drive one program each.
package vmm

import (
	"context"
	"net"
)

// Serials of the block devices, by which the guest finds them. At most 20
// bytes, the limit of virtio-blk.
const (
	SerialBase    = "base"    // the image, read-only
	SerialVM      = "vm"      // the VM's own disk
	SerialModules = "modules" // the kernel's modules, read-only
)

// PortName is the name of the agent's virtio-serial port, by which the guest
// finds it in /sys/class/virtio-ports.
const PortName = "banger.agent"

// Cmdline is the kernel command line that every guest gets, whatever its VMM;
// a driver adds its own. cryptomgr.notests saves 0.2-0.5 s of self-tests in
// emulation. The list of LSMs leaves AppArmor out: Docker fails where the
// kernel enables it and the image has no parser. panic=-1 reboots at once,
// which reboot=k makes an exit of the VMM.
const Cmdline = "console=ttyS0 reboot=k panic=-1 quiet cryptomgr.notests lsm=landlock,yama,bpf 8250.nr_uarts=1"

// Config is everything a VMM needs. It is data: it can be written to a pipe
// and read in another process.
type Config struct {
	ID        string `json:"id"` // the VM's
	VCPUs     int    `json:"vcpus"`
	MemoryMiB int64  `json:"memory_mib"`
	Cmdline   string `json:"cmdline"` // without what the driver adds
	// TSCKHz is the rate of the host's time stamp counter, 0 if unknown. An
	// emulated guest is told it: it cannot find it out reliably.
	TSCKHz    int64  `json:"tsc_khz,omitempty"`
	Kernel    File   `json:"kernel"`
	Initramfs File   `json:"initramfs"`
	Disks     []Disk `json:"disks"`
	// The listening unix sockets of the three byte channels.
	Agent   File `json:"agent"`
	Console File `json:"console"`
	Control File `json:"control"`
}

// A File is named as the VMM sees it. FD, if not 0, is a descriptor that the
// VMM inherits; a driver prefers it to the name.
type File struct {
	Name string `json:"name,omitempty"`
	FD   int    `json:"fd,omitempty"`
}

// A Disk is one block device.
type Disk struct {
	File     File   `json:"file"`
	Serial   string `json:"serial"`
	ReadOnly bool   `json:"read_only,omitempty"`
}

// A Driver knows one VMM program.
type Driver interface {
	// Name is what users see: "qemu-kvm", "qemu-tcg".
	Name() string

	// Argv is the command that runs c, program first. It does nothing else.
	Argv(c Config) ([]string, error)

	// Attach begins the conversation on a connection to c.Control, which it
	// owns from then on.
	Attach(ctx context.Context, conn net.Conn) (Control, error)
}

// What a [Control] says of the end.
const (
	EndShutdown = "guest-shutdown" // the guest powered off
	EndReset    = "guest-reset"    // the guest restarted
	EndPanic    = "guest-panic"    // the guest said that its kernel panicked
	EndSignal   = "host-signal"    // a signal told the VMM to end
)

// Control steers a running VMM through its control socket.
type Control interface {
	// Ended returns, when the VMM has ended or ctx is done, why it ended, in
	// its own words: one of the End constants. It is "" if the VMM did not say.
	Ended(ctx context.Context) string

	// Close ends the conversation; the VMM goes on.
	Close() error
}
