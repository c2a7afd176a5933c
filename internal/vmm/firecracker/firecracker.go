// Package firecracker drives Firecracker.
//
// It owns Firecracker's command line, the requests that make a machine of a
// vmm.Config, the conversation on its API socket, and what is known of its
// versions. Requests are values, made by pure functions and sent by a [Client].
// It starts no machine: who does, confines it too.
package firecracker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"

	"banger/internal/api"
	"banger/internal/kvm"
	"banger/internal/vmm"
)

// Program is the program's name in PATH.
const Program = "firecracker"

// Name is the driver's, JailedName that of one that is Jailed.
const (
	Name       = "firecracker"
	JailedName = "firecracker-jailed"
)

// The files of a VM in its jail, by which Firecracker opens them: the directory
// for sockets, kernel and initramfs. See also [JailDisk].
const (
	JailSockets   = "/s"
	JailKernel    = "/kernel"
	JailInitramfs = "/initramfs"
)

// JailDisk is the nth disk in a jail.
func JailDisk(n int) string { return "/disk" + strconv.Itoa(n) }

// The files in Config.Sockets. Firecracker derives the name to which it connects
// for a guest's call from that of the vsock and the port.
const (
	apiName   = "api.sock"
	vsockName = "v.sock"
)

// guestCID is the guest's address on its vsock; every machine has a vsock of its
// own, so that it may be the same.
const guestCID = 3

// A Driver runs VMs with Firecracker.
type Driver struct {
	// Jailed: the root helper starts it, under its jailer, and Argv has no say.
	Jailed bool
}

// Name is Name or JailedName.
func (d Driver) Name() string {
	if d.Jailed {
		return JailedName
	}
	return Name
}

// Wiring says that Firecracker makes its API socket, connects to us when the
// guest calls, and prints the guest's console.
func (Driver) Wiring() vmm.Wiring {
	return vmm.Wiring{
		Agent:   vmm.Channel{How: vmm.Called, Name: vsockName + "_" + strconv.Itoa(vmm.VsockPort)},
		Console: vmm.Channel{How: vmm.Printed, Name: "console.fifo"},
		Control: vmm.Channel{How: vmm.Served, Name: apiName},
		Opens:   []string{kvm.Device},
		Mute:    true,
	}
}

// Find returns the path of the program, which is the one that was chosen if one
// was, or an [*api.Error] that says how to install it.
func Find(chosen string) (string, error) {
	p, err := exec.LookPath(cmp.Or(chosen, Program))
	switch {
	case err == nil:
		return p, nil
	case chosen != "":
		return "", &api.Error{Code: api.Missing, Msg: fmt.Sprintf("looking for Firecracker: firecracker_bin is %s, which cannot be run", chosen), Hint: "correct the configuration, or see " + Releases}
	}
	return "", &api.Error{Code: api.Missing, Msg: "looking for Firecracker: no " + Program + " in PATH", Hint: "see " + Releases}
}

// Argv is the command that runs c. The machine is described to the API later.
// Its own log would come between the lines of the guest's console, so it is
// limited to what explains an end.
func (Driver) Argv(c vmm.Config) ([]string, error) {
	if err := check(c); err != nil {
		return nil, err
	}
	program := c.Program
	if program == "" {
		var err error
		if program, err = Find(""); err != nil {
			return nil, err
		}
	}
	return []string{program, "--api-sock", name(c.Sockets) + "/" + apiName, "--id", "banger-" + c.ID, "--level", "Error"}, nil
}

// check refuses what Firecracker would understand otherwise.
func check(c vmm.Config) error {
	switch {
	case c.ID == "" || strings.ContainsFunc(c.ID, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }):
		return fmt.Errorf("running Firecracker: %q cannot be a VM's id", c.ID)
	case c.VCPUs < 1 || c.VCPUs > 32:
		return &api.Error{Code: api.Unsupported, Msg: fmt.Sprintf("running Firecracker: %d vCPUs are not between 1 and 32", c.VCPUs)}
	case c.MemoryMiB < 1:
		return fmt.Errorf("running Firecracker: %d MiB of memory are not a machine", c.MemoryMiB)
	case c.Sockets == vmm.File{}:
		return errors.New("running Firecracker: the directory for its sockets is missing")
	}
	return nil
}

// name is how Firecracker opens a file: again, by the descriptor that it has.
func name(f vmm.File) string {
	if f.FD != 0 {
		return "/proc/self/fd/" + strconv.Itoa(f.FD)
	}
	return f.Name
}

// cmdline adds what the guest must know: Firecracker has no virtio-serial and no
// serials for disks, and ends with a reset only, for which it has the keyboard
// controller that reboot=k looks for. There is no PCI bus to look for.
func cmdline(c vmm.Config) string {
	serials := make([]string, len(c.Disks))
	for i, d := range c.Disks {
		serials[i] = d.Serial
	}
	words := []string{c.Cmdline, "pci=off", "i8042.noaux", "i8042.nomux", "i8042.dumbkbd",
		vmm.WordChannel + "=" + vmm.ChannelVsock, vmm.WordOff + "=" + vmm.OffReset}
	if len(serials) > 0 {
		words = append(words, vmm.WordDisks+"="+strings.Join(serials, ","))
	}
	return strings.Join(words, " ")
}

// Machine is what makes a new Firecracker the machine that c describes, in
// order; it does not run then.
func Machine(c vmm.Config) ([]Call, error) {
	if err := check(c); err != nil {
		return nil, err
	}
	calls := []Call{
		PutMachine(MachineConfig{VCPUs: c.VCPUs, MemoryMiB: c.MemoryMiB}),
		PutBootSource(BootSource{Kernel: name(c.Kernel), Initrd: name(c.Initramfs), Args: cmdline(c)}),
	}
	for i, d := range c.Disks {
		if d.Serial == "" || len(d.Serial) > 20 || strings.ContainsAny(d.Serial, ", =") {
			return nil, fmt.Errorf("running Firecracker: %q cannot be a disk's serial", d.Serial)
		}
		// Without Writeback a guest's flush would be no flush.
		calls = append(calls, PutDrive(Drive{ID: "disk" + strconv.Itoa(i), Path: name(d.File), ReadOnly: d.ReadOnly, Cache: "Writeback"}))
	}
	if c.Network != (vmm.Network{}) {
		calls = append(calls, PutNetwork(NetworkInterface{ID: "net0", HostDevice: c.Network.TAP, MAC: c.Network.MAC}))
	}
	return append(calls, PutVsock(Vsock{CID: guestCID, Path: name(c.Sockets) + "/" + vsockName}), PutEntropy(Entropy{})), nil
}

// Boot describes the machine to a new Firecracker and starts it. On an error
// conn is closed.
func (Driver) Boot(ctx context.Context, conn net.Conn, c vmm.Config) (vmm.Control, error) {
	calls, err := Machine(c)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	cl := NewClient(conn)
	for _, call := range append(calls, Start()) {
		if err := cl.Do(ctx, call, nil); err != nil {
			_ = cl.Close() // the error above is the one to tell
			return nil, fmt.Errorf("starting the machine: %w", err)
		}
	}
	return control{cl}, nil
}

// Attach looks whether the machine runs. On an error conn is closed.
func (Driver) Attach(ctx context.Context, conn net.Conn) (vmm.Control, error) {
	cl := NewClient(conn)
	var i InstanceInfo
	err := cl.Do(ctx, GetInstance(), &i)
	if err == nil && i.State == StateNotStarted {
		err = errors.New("its machine was never started")
	}
	if err != nil {
		_ = cl.Close() // the error above is the one to tell
		return nil, fmt.Errorf("attaching to Firecracker: %w", err)
	}
	return control{cl}, nil
}

// A control is a running Firecracker, which tells of its end by closing the
// connection.
type control struct{ *Client }

// Ended waits for the end, of which there is nothing to say.
func (c control) Ended(ctx context.Context) string {
	select {
	case <-c.Closed():
	case <-ctx.Done():
	}
	return ""
}
