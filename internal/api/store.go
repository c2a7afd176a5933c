package api

import (
	"net/netip"
	"time"
)

// Image is a base image in the store.
type Image struct {
	Name     string    `json:"name"`
	ID       string    `json:"id"`     // sha256 of the root tar it was made from, hex
	Source   string    `json:"source"` // "catalog:debian-bookworm" or "import"
	Bytes    int64     `json:"bytes"`  // apparent size of the image file
	Used     int64     `json:"used_bytes"`
	Init     string    `json:"init"` // systemd, other or none: what the agent hands over to
	Created  time.Time `json:"created"`
	Machines []string  `json:"machines,omitempty"` // names of the VMs that use it
}

// Kernel is a kernel in the store.
type Kernel struct {
	Name     string    `json:"name"`
	ID       string    `json:"id"`      // sha256 of the tar it was made from, hex
	Release  string    `json:"release"` // what uname -r prints
	Source   string    `json:"source"`
	Bytes    int64     `json:"bytes"` // vmlinux and modules image
	Created  time.Time `json:"created"`
	Machines []string  `json:"machines,omitempty"`
}

// Available is a catalog entry that can be pulled.
type Available struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	Pulled      bool   `json:"pulled"`
}

// PullRequest asks for an image or kernel of the catalog. The reply is a
// stream of [Event]: a result at once if the store has it (and Force is not
// set); "build" if the caller is to build it; "wait", then progress, if
// somebody else does. A waiter gets "build" when the builder has gone.
type PullRequest struct {
	Force bool `json:"force,omitempty"`
}

// Build tells the caller of a pull to run the recipe and to PUT the tar to
// /v1/images/NAME/build/TICKET (or /v1/kernels/...), while the pull request
// stays open: it is the builder's claim and carries the result.
type Build struct {
	Ticket string `json:"ticket"`
}

// Hello is what the daemon says of itself.
type Hello struct {
	Version  string `json:"version"`
	Protocol int    `json:"protocol"`
	PID      int    `json:"pid"`
	Socket   string `json:"socket"`
	Log      string `json:"log"`
	State    string `json:"state"` // state directory
	Driver   string `json:"driver"`
	// DriverWhy says why KVM is not used, if it is not.
	DriverWhy string `json:"driver_why,omitempty"`
	// Problem is why no VM can be started on this host, if none can.
	Problem  *Error    `json:"problem,omitempty"`
	Network  *Network  `json:"network,omitempty"` // what VMs are on; nil in user mode
	Started  time.Time `json:"started"`
	Machines int       `json:"machines"`
	Running  int       `json:"running"`
}

// Network is what VMs are on in system mode, and how they are found by name.
type Network struct {
	Prefix netip.Prefix `json:"prefix"`
	Zone   string       `json:"zone"`          // "vm"
	DNS    string       `json:"dns,omitempty"` // where the zone is answered for; "" if nowhere
	// Problem is why names do not work, if they do not: the port is taken, or the
	// host's resolver cannot be told of it. VMs work without.
	Problem *Error `json:"problem,omitempty"`
	// Mended is what others had last done to the network, and was mended then.
	Mended   []string  `json:"mended,omitempty"`
	MendedAt time.Time `json:"mended_at,omitzero"`
}

// Protocol is the version of the owner API. A daemon answers requests of its
// own version only; the CLI says so and offers `banger daemon restart`.
const Protocol = 1

// ProtocolHeader carries [Protocol] on each request. A client that leaves it
// out, such as curl, is taken to know what it does.
const ProtocolHeader = "Banger-Protocol"

// A starting daemon says one line on the descriptor ReadyFD if it was told to:
// ReadyLine when its socket accepts connections, or an [Error] as JSON.
const (
	ReadyFD   = 3
	ReadyLine = "ready"
)
