// Package rootapi is what the owner daemon may ask of root: seven verbs, as
// values that can refuse themselves, and the packets that carry them.
//
// Ids, numbers and open descriptors go in; never a path, a name, an argv or an
// address outside the guests' prefix. What they lead to is package rootd's.
package rootapi

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Protocol is the version of these words; both sides must have the same.
const Protocol = 1

// Socket is where the helper listens: SOCK_SEQPACKET, one request and one reply
// a connection.
const Socket = "/run/banger-root/bangerd-root.sock"

// Limits of a launch. The uids of VMs begin at FirstUID: a block for those with
// an address, by its host part, and as many for those without.
const (
	MaxVCPUs             = 32
	MinMemory, MaxMemory = 64, 1 << 20 // MiB
	FixedFiles, MaxDisks = 2, 4        // kernel and initramfs; disks after them
	FirstUID, UIDBlock   = 1879048192, 1 << 16
)

// A Verb says what is asked for.
type Verb string

// The verbs. There is no eighth without a decision record.
const (
	Hello     Verb = "hello"    // who answers
	Start     Verb = "launch"   // one jailed Firecracker
	Adopt     Verb = "adopt"    // give again what launch replied
	Release   Verb = "release"  // leave nothing of a VM
	SetPolicy Verb = "policy"   // let a VM out of the host or keep it in, and end what it has open
	Resolve   Verb = "resolver" // route the zone's names to a port of 127.0.0.1; 0: no longer
	Census    Verb = "census"   // what there is of every VM
)

// A Request is a verb and what belongs to it; all else is zero.
type Request struct {
	Verb   Verb    `json:"verb"`
	ID     string  `json:"id,omitempty"` // of a VM: 12 lower-case hex digits
	Launch *Launch `json:"launch,omitempty"`
	NAT    bool    `json:"nat,omitempty"`
	Port   uint16  `json:"port,omitempty"`
}

// Launch describes one jailed Firecracker, with its API socket and nothing
// configured. It is one transaction: on any failure nothing of it remains.
//
// The files travel beside it as open descriptors, which prove the sender's
// right to them: kernel, initramfs, then the disks.
type Launch struct {
	VCPUs       int        `json:"vcpus"`
	MemoryMiB   int64      `json:"memory_mib"`
	Firecracker int        `json:"firecracker"` // which of the install record's
	Addr        netip.Addr `json:"addr"`        // zero: no network
	NAT         bool       `json:"nat"`
	ReadOnly    uint       `json:"read_only"` // bit n: disk n is read-only
}

// Check reports the first thing wrong with a request that came with so many
// descriptors.
func (r Request) Check(files int, in Install) error {
	legal := Request{Verb: r.Verb}
	switch r.Verb {
	case Hello, Census:
	case Resolve:
		legal.Port = r.Port
	case Adopt, Release:
		legal.ID = r.ID
	case SetPolicy:
		legal.ID, legal.NAT = r.ID, r.NAT
	case Start:
		legal.ID, legal.Launch = r.ID, r.Launch
	default:
		return Errorf(Invalid, "verb: %.40q is none of the seven", r.Verb)
	}
	switch {
	case r != legal:
		return Errorf(Invalid, "%s: a field came that does not belong to it", r.Verb)
	case !ValidID(r.ID) && r.Verb != Hello && r.Verb != Census && r.Verb != Resolve:
		return Errorf(Invalid, "id: %.40q is not 12 lower-case hex digits", r.ID)
	case r.Launch != nil:
		return r.Launch.check(files, in)
	case r.Verb == Start:
		return Errorf(Invalid, "launch: it is not described")
	case files != 0:
		return Errorf(Invalid, "files: got %d, and %s takes none", files, r.Verb)
	}
	return nil
}

func (l *Launch) check(files int, in Install) error {
	disks := files - FixedFiles
	switch {
	case l.VCPUs < 1 || l.VCPUs > MaxVCPUs:
		return Errorf(Invalid, "vcpus: %d is not in 1..%d", l.VCPUs, MaxVCPUs)
	case l.MemoryMiB < MinMemory || l.MemoryMiB > MaxMemory:
		return Errorf(Invalid, "memory_mib: %d is not in %d..%d", l.MemoryMiB, MinMemory, MaxMemory)
	case l.Firecracker < 0 || l.Firecracker >= len(in.Programs):
		return Errorf(Invalid, "firecracker: %d, and %d are installed", l.Firecracker, len(in.Programs))
	case l.Addr.IsValid() && !in.Guest(l.Addr):
		return Errorf(Invalid, "addr: %v is no guest's in %v", l.Addr, in.Prefix)
	case !l.Addr.IsValid() && l.NAT:
		return Errorf(Invalid, "nat: it needs an address")
	case disks < 1 || disks > MaxDisks:
		return Errorf(Invalid, "files: got %d, want a kernel, an initramfs and 1 to %d disks", files, MaxDisks)
	case l.ReadOnly >= 1<<disks:
		return Errorf(Invalid, "read_only: %#b names a disk that did not come", l.ReadOnly)
	}
	return nil
}

// ValidID reports whether id can be a VM's.
func ValidID(id string) bool { return len(id) == 12 && strings.Trim(id, "0123456789abcdef") == "" }

// A Reply is an error or what the verb asked for.
type Reply struct {
	Error   *Error   `json:"error,omitempty"`
	Version *Version `json:"version,omitempty"` // hello
	VM      *VM      `json:"vm,omitempty"`      // launch, adopt
	Held    []Held   `json:"held,omitempty"`    // census
	Mended  []string `json:"mended,omitempty"`  // census: of the network; a new bridge needs its resolver again
}

// Version tells who answers, and what record it goes by.
type Version struct {
	Protocol int     `json:"protocol"`
	Build    string  `json:"build"`
	Install  Install `json:"install"`
}

// VM is a running Firecracker. Descriptors come with it, in this order: a
// pidfd, the listener that the guest's calls to port 1024 reach, a connection
// to the API, and the reading end of the console.
type VM struct {
	UID          uint32 `json:"uid"`
	Unit         string `json:"unit"`
	InvocationID string `json:"invocation_id"`
	PID          int    `json:"pid"`
	StartTime    uint64 `json:"start_time"`    // field 22 of /proc/PID/stat
	TAP          string `json:"tap,omitempty"` // "" without a network
	MAC          string `json:"mac,omitempty"`
}

// The order of a VM's descriptors, and how many there are.
const (
	FilePidfd = iota
	FileAgent
	FileAPI
	FileConsole
	VMFiles
)

// Held is what there is of one VM.
type Held struct {
	ID      string     `json:"id"`
	Dir     bool       `json:"dir,omitempty"`
	Network bool       `json:"network,omitempty"` // a TAP or set elements
	Addr    netip.Addr `json:"addr,omitzero"`
	Unit    *Unit      `json:"unit,omitempty"`
}

// Unit is a VM's service as systemd tells it; after the VMM's end, until
// release, it says why.
type Unit struct {
	Active       string `json:"active"` // "active", "failed", ...
	Sub          string `json:"sub"`    // "running"; "exited": ended with status 0
	Result       string `json:"result"` // "success", "exit-code", "signal", "oom-kill", ...
	Code         uint32 `json:"code"`   // 1 exited, 2 killed, 3 dumped core
	Status       uint32 `json:"status"` // exit status or signal
	PID          uint32 `json:"pid,omitempty"`
	InvocationID string `json:"invocation_id,omitempty"`
}

// Running reports whether the VMM lives.
func (u *Unit) Running() bool {
	return u != nil && u.PID != 0 && u.Active == "active" && u.Sub == "running"
}

// A Code says what kind of refusal an [Error] is. The list only grows.
type Code string

// The codes.
const (
	Invalid  Code = "invalid"   // the request is not one that can be granted
	Denied   Code = "denied"    // who asks, or a file or program, has not the right
	Exists   Code = "exists"    // the id or the address is in use
	NotFound Code = "not_found" // there is no such VM, or its VMM has ended
	Failed   Code = "failed"    // the host could not do it; nothing is left of the try
)

// An Error crosses the socket unchanged.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

// Error is the message.
func (e *Error) Error() string { return e.Message }

// Errorf makes an [Error].
func Errorf(code Code, format string, args ...any) error {
	return &Error{code, fmt.Sprintf(format, args...)}
}

// InstallPath is the install record, in a directory of root's.
const InstallPath = "/etc/banger/install.json"

// Install is what `system install` decided. The helper goes by it alone.
type Install struct {
	Owner    Owner        `json:"owner"`
	Prefix   netip.Prefix `json:"prefix"`
	Bridge   string       `json:"bridge"`
	Zone     string       `json:"zone"` // without dots around it
	Programs []Program    `json:"programs"`
}

// Owner is the one account besides root that the helper serves.
type Owner struct {
	UID  uint32 `json:"uid"`
	GID  uint32 `json:"gid"`
	Name string `json:"name"`
	Home string `json:"home"`
}

// Program is one Firecracker and its jailer, as absolute paths without links.
type Program struct {
	Firecracker string `json:"firecracker"`
	Jailer      string `json:"jailer"`
}

var plainPath = regexp.MustCompile(`^(/[A-Za-z0-9._+=~,@-]+)+$`)

// ReadInstall reads the record at path. It is root's word, and is not doubted:
// package record checks it before it is written.
func ReadInstall(path string) (in Install, err error) {
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &in)
	}
	if err != nil {
		return Install{}, fmt.Errorf("reading install record %s: %w", path, err)
	}
	return in, nil
}

// PlainPath reports whether a path is absolute, as short as it can be and of
// ordinary characters, so that systemd expands nothing in it.
func PlainPath(path string) bool { return plainPath.MatchString(path) && filepath.Clean(path) == path }

// Guest reports whether a VM may have the address: any of the prefix but the
// network's, the bridge's and the broadcast address.
func (in Install) Guest(a netip.Addr) bool {
	host := in.UID(a) - FirstUID
	return in.Prefix.Contains(a) && host > 1 && host < 1<<(32-in.Prefix.Bits())-1
}

// UID is the uid and gid that belong to an address of the prefix. Two live VMs
// never share an address, so they never share a uid.
func (in Install) UID(a netip.Addr) uint32 {
	b := a.As16()
	return FirstUID + binary.BigEndian.Uint32(b[12:])&(1<<(32-in.Prefix.Bits())-1)
}

// Addr is the inverse of UID; the zero address for any other uid.
func (in Install) Addr(uid uint32) netip.Addr {
	b := in.Prefix.Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])|(uid-FirstUID))
	if a := netip.AddrFrom4(b); in.Guest(a) && in.UID(a) == uid {
		return a
	}
	return netip.Addr{}
}
