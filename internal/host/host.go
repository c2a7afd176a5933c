// Package host says what a VM needs from the machine it runs on, as the one
// interface that package machine knows.
//
// A [Host] starts VMMs and gives them back; it keeps no state that it cannot
// read back from the machine itself. [Turns] shares its processors out among
// boots. Disks, rows and identities are the daemon's. User mode implements it in
// package userhost, system mode in systemhost; all implementations pass the suite
// in host/hosttest.
package host

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"banger/internal/agentapi"
	"banger/internal/procid"

	"golang.org/x/sys/unix"
)

// ErrGone is returned by [Host.Adopt] when the recorded VMM no longer runs.
var ErrGone = errors.New("the VMM is gone")

// Spec is what to run. The descriptors are the caller's, who may close them
// when Launch has returned.
type Spec struct {
	ID        string // 12 lower-case hex digits
	Name      string // for messages only
	VCPUs     int
	MemoryMiB int64
	Kernel    *os.File // an uncompressed ELF
	// KernelConfig is what the kernel was built with, as its config file; it is
	// not known if empty.
	KernelConfig string
	Initramfs    *os.File
	Disks        []Disk
	Identity     agentapi.Identity
	// Lease makes the VM end when its leaseholder's connection to the
	// companion closes. Until one is taken the VM lives on.
	Lease bool
	// ConsolePath is where the companion keeps the console, 8 MiB and its
	// predecessor ".1", bounded whatever the guest prints.
	ConsolePath string
	// Cmdline is added to the kernel's command line.
	Cmdline string
	// Net is the VM's place on the host's network; it has no network if nil.
	Net *Net
}

// Net is a VM's place on the host's network. Its MAC and its TAP follow from it
// and from the id.
type Net struct {
	Addr netip.Addr // leased to this VM alone
	NAT  bool       // see SetNAT
}

// A Disk is one block device.
type Disk struct {
	File     *os.File
	Serial   string
	ReadOnly bool
}

// Check refuses a disk that is not open as it is to be used: a VMM would say so in
// its own way, or write to what must not be written.
func (d Disk) Check() error {
	if d.File == nil {
		return fmt.Errorf("starting the VMM: disk %q has no file", d.Serial)
	}
	raw, err := d.File.SyscallConn()
	if err != nil {
		return fmt.Errorf("looking at disk %q: %w", d.Serial, err)
	}
	var flags int
	var got error
	if err := raw.Control(func(fd uintptr) { flags, got = unix.FcntlInt(fd, unix.F_GETFL, 0) }); err != nil {
		got = err
	}
	if got != nil {
		return fmt.Errorf("looking at disk %q: %w", d.Serial, got)
	}
	want, how := unix.O_RDWR, "reading and writing"
	if d.ReadOnly {
		want, how = unix.O_RDONLY, "reading only"
	}
	if flags&unix.O_ACCMODE != want {
		return fmt.Errorf("starting the VMM: disk %q is not open for %s", d.Serial, how)
	}
	return nil
}

// A Host runs VMMs.
type Host interface {
	// Launch starts a VMM and its companion and returns when the VMM has
	// begun to run, long before the guest has. On an error, and when ctx ends
	// first, it leaves nothing. What it started outlives ctx and the process.
	Launch(ctx context.Context, s Spec) (Run, error)

	// Adopt finds again what Launch made, after a restart of the daemon or
	// the death of the companion, which is then replaced. ErrGone: the VMM no
	// longer runs; [Record.Exit] of the wrapped *Gone may say why.
	Adopt(ctx context.Context, r Record) (Run, error)

	// Release ends whatever there is of id and removes what Launch made. It
	// is idempotent and works from any half-state, knowing only the id.
	Release(ctx context.Context, id string) error

	// Census lists everything that Launch made and Release has not removed.
	Census(ctx context.Context) ([]Held, error)

	// SetNAT lets a VM that runs out of the host, or keeps it in and ends what it
	// has open. Unsupported if the host gives VMs no network. After any other error
	// it may have been done, or half done.
	SetNAT(ctx context.Context, id string, nat bool) error
}

// A Run is a VMM that was started or adopted.
type Run interface {
	// Record is what must be saved for Adopt.
	Record() Record
	// Companion is the path of the companion's socket.
	Companion() string
	// Done is closed when the VMM has ended, for whatever reason.
	Done() <-chan struct{}
	// Exit says why, once Done is closed.
	Exit() Exit
}

// A Record finds a Run again.
type Record struct {
	ID        string    `json:"id"`
	Driver    string    `json:"driver"`
	VMM       procid.ID `json:"vmm"`
	Companion procid.ID `json:"companion"`
}

// Exit is why a VMM ended.
type Exit struct {
	// Reason is a sentence part for people: "the guest powered off", "QEMU was
	// killed by signal 9", "the host was restarted".
	Reason string `json:"reason"`
	// Asked is set if a stop, kill or lost lease of ours ended it.
	Asked bool `json:"asked,omitempty"`
	// Clean is set if the guest said that its disk was clean.
	Clean bool `json:"clean,omitempty"`
	// Reboot is set if the guest asked to be started again.
	Reboot bool `json:"reboot,omitempty"`
}

// Gone is an ErrGone that knows why.
type Gone struct{ Exit Exit }

// Error tells the reason.
func (g *Gone) Error() string { return "the VMM is gone: " + g.Exit.Reason }

// Is makes errors.Is(err, ErrGone) true.
func (g *Gone) Is(target error) bool { return target == ErrGone }

// Held is what a census finds of one id.
type Held struct {
	ID        string
	VMM       int // pid, 0 if there is none
	Companion int // pid, 0 if there is none
	Dir       string
}
