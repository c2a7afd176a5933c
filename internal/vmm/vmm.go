// Package vmm describes a virtual machine monitor as data: what to run, and
// what a driver must be able to do with it.
//
// A VMM here always presents the same virtio-mmio machine: block devices found
// by serial or by their order, one channel to the agent, an entropy device and a
// serial console.
// Starting the process is not a driver's business (a root helper or a
// companion does that); turning a [Config] into a command line and speaking
// the VMM's control socket is. Subpackages drive one program each.
package vmm

import (
	"context"
	"net"
	"strings"
)

// Serials of the block devices, by which the guest finds them. At most 20
// bytes, the limit of virtio-blk.
const (
	SerialBase    = "base"    // the image, read-only
	SerialVM      = "vm"      // the VM's own disk
	SerialModules = "modules" // the kernel's modules, read-only
)

// PortName is the name of the agent's virtio-serial port, by which the guest
// finds it in /sys/class/virtio-ports. Where [WordChannel] says vsock, the guest
// calls VsockPort of VsockHost instead.
const (
	PortName  = "banger.agent"
	VsockHost = 2 // the CID that every vsock has for its host
	VsockPort = 1024
)

// Words that a driver adds to the kernel's command line for the agent, as
// WORD=VALUE; without them a guest takes what QEMU offers.
const (
	WordChannel = "banger.channel" // ChannelVsock: the agent's channel is a vsock
	WordDisks   = "banger.disks"   // the serials of vda, vdb, ..., with commas: the VMM has no serials of its own
	WordOff     = "banger.off"     // OffReset: a reset is all that ends the VMM, also to power off

	ChannelVsock = "vsock"
	OffReset     = "reset"
)

// Word returns the value of a word of a kernel's command line, "" if it is not
// there. The last one counts, as it does for the kernel.
func Word(cmdline, word string) string {
	value := ""
	for f := range strings.FieldsSeq(cmdline) {
		if v, ok := strings.CutPrefix(f, word+"="); ok {
			value = v
		}
	}
	return value
}

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
	// Network is the network device, if there is one.
	Network Network `json:"network,omitzero"`
	// Program is the path of the VMM's program; looked for in PATH if empty.
	Program string `json:"program,omitempty"`
	// The listening sockets of channels that are Inherited.
	Agent   File `json:"agent,omitzero"`
	Console File `json:"console,omitzero"`
	Control File `json:"control,omitzero"`
	// Sockets is the directory of those that are Called or Served.
	Sockets File `json:"sockets,omitzero"`
}

// A Network is a TAP of the host and the guest's address on it.
type Network struct {
	TAP string `json:"tap"`
	MAC string `json:"mac"`
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

// How the host reaches one end of a channel, and the VMM the other.
type How int

const (
	// Inherited is a listening socket that the VMM inherits. It serves one
	// connection at a time.
	Inherited How = iota
	// Called is a listening socket of the host's, to which the VMM connects
	// whenever the guest calls.
	Called
	// Served is a listening socket that the VMM makes itself.
	Served
	// Printed is the VMM's standard output.
	Printed
)

// A Channel is one of the three, and the name of its file.
type Channel struct {
	How  How
	Name string
}

// Wiring says how a VMM's channels are laid, and what else whoever starts it
// must know of it.
type Wiring struct {
	Agent, Console, Control Channel
	// Opens are the devices that the VMM opens by name. If there are any, it is
	// started where it can open these and what Config names, and nothing else.
	Opens []string
	// Mute is set if the VMM ends with status 0 when the guest resets, and has
	// no words for that nor for anything else: the guest's own last word, its
	// console and the status are all that tells why it ended.
	Mute bool
}

// A Driver knows one VMM program.
type Driver interface {
	// Name is what users see: "qemu-kvm", "qemu-tcg", "firecracker",
	// "firecracker-jailed".
	Name() string

	// Wiring says how the VMM's channels are laid.
	Wiring() Wiring

	// Argv is the command that runs c, program first. It does nothing else.
	Argv(c Config) ([]string, error)

	// Boot begins the conversation with a VMM that has just been started by
	// Argv of the same c, on a connection to its control channel, and sees to it
	// that the guest runs. The connection is the driver's from then on.
	Boot(ctx context.Context, conn net.Conn, c Config) (Control, error)

	// Attach begins the conversation anew with a VMM whose guest runs.
	Attach(ctx context.Context, conn net.Conn) (Control, error)
}

// Label is what people call the program behind a driver's name.
func Label(driver string) string {
	switch {
	case strings.HasPrefix(driver, "qemu"):
		return "QEMU"
	case strings.HasPrefix(driver, "firecracker"):
		return "Firecracker"
	}
	return "the VMM"
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
	// its own words: one of the End constants. It is "" if the VMM did not say,
	// as one never does whose Wiring is Mute.
	Ended(ctx context.Context) string

	// Close ends the conversation; the VMM goes on.
	Close() error
}
