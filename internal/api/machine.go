package api

import (
	"net/netip"
	"time"
)

// A State is where a VM is in its life. The owner daemon alone changes it.
type State string

// The states, and who may follow whom: see package machine.
const (
	Stopped  State = "stopped"  // no VMM; the disk holds everything
	Starting State = "starting" // a boot is under way
	Running  State = "running"  // the agent has called home
	Stopping State = "stopping" // a shutdown is under way
	Failed   State = "failed"   // the last boot did not call home; its VMM may be alive for vm logs
	Deleting State = "deleting" // resources are being released; ends with the row
)

// A Stage is how far the guest's boot has come.
type Stage string

// The stages, in order. An image without systemd has no sockets and boot of
// its own: they are reached together with agent.
const (
	StageNone    Stage = ""        // the agent has not called home
	StageAgent   Stage = "agent"   // disks, files and identity are in place; the image's init may not run yet
	StageSockets Stage = "sockets" // systemd has reached sockets.target: docker.sock and ssh accept and queue
	StageBoot    Stage = "boot"    // the default target is reached
)

// Reached reports whether s is at least want.
func (s Stage) Reached(want Stage) bool { return s.order() >= want.order() }

// Valid reports whether s is one of agent, sockets and boot.
func (s Stage) Valid() bool { return s.order() > 0 }

func (s Stage) order() int {
	switch s {
	case StageAgent:
		return 1
	case StageSockets:
		return 2
	case StageBoot:
		return 3
	}
	return 0
}

// A Source says where a value of a spec came from.
type Source string

// The sources, strongest first.
const (
	FromFlag    Source = "flag"
	FromConfig  Source = "config"
	FromHost    Source = "host"    // derived from the host's CPUs and memory
	FromBuiltin Source = "builtin" // the floor
)

// Spec is the size of a VM. The CLI resolves it and sends explicit values.
type Spec struct {
	VCPUs     int   `json:"vcpus"`
	MemoryMiB int64 `json:"memory_mib"`
	DiskBytes int64 `json:"disk_bytes"` // size of the VM disk as the guest sees it
}

// Workspace is what `vm run PATH` has put into a VM.
type Workspace struct {
	GuestPath string `json:"guest_path"`
	Source    string `json:"source"` // absolute path on the host
	Commit    string `json:"commit,omitempty"`
}

// Machine is a VM as the daemon tells it. It is a copied snapshot.
type Machine struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	State     State      `json:"state"`
	Reason    string     `json:"reason,omitempty"` // why it is stopped or failed, if that was not asked for
	Stage     Stage      `json:"stage,omitempty"`
	Image     string     `json:"image"`
	ImageID   string     `json:"image_id"` // digest of the base image; stays when the name moves on
	Kernel    string     `json:"kernel"`
	Spec      Spec       `json:"spec"`
	Driver    string     `json:"driver,omitempty"` // see vmm.Driver; while it runs
	Network   string     `json:"network"`          // one of the networks below
	Address   netip.Addr `json:"address,omitzero"` // leased to it as long as it exists
	NAT       bool       `json:"nat"`              // it may reach the internet
	Autostart bool       `json:"autostart"`        // it is started after a restart of the host
	Ephemeral bool       `json:"ephemeral"`        // deleted when its lease ends (--rm)
	Workspace *Workspace `json:"workspace,omitempty"`
	Created   time.Time  `json:"created"`
	Started   time.Time  `json:"started,omitzero"` // last successful start
	// Companion is the path of the companion's socket while a VMM runs, for
	// streams that go past the daemon: see package companionapi.
	Companion string `json:"companion,omitempty"`
	VMMPID    int    `json:"vmm_pid,omitempty"`
	DiskUsed  int64  `json:"disk_used_bytes"` // bytes the VM disk takes on the host
}

// The networks that a VM can have, as words for people too.
const (
	NetworkNone     = "none"              // user mode: what it needs comes over banger's own channel
	NetworkHost     = "host only"         // the host reaches it, and it reaches nothing by itself
	NetworkInternet = "host and internet" // it has NAT
)

// NoNetwork refuses what needs a network where VMs have none.
func NoNetwork(what string) error {
	return &Error{
		Code: Unsupported,
		Msg:  what + " needs VMs that have a network, and in user mode they have none",
		Hint: `install system mode with: sudo banger system install --owner "$USER"`,
	}
}

// CreateMachine asks for a new VM. The reply is a stream of [Event].
//
// With Ephemeral the request is the VM's first lease: if it ends before a
// lease is held at the companion, the VM is deleted.
type CreateMachine struct {
	Name          string     `json:"name,omitempty"`  // made up if empty
	Image         string     `json:"image,omitempty"` // the default image if empty
	Spec          Spec       `json:"spec"`
	Ephemeral     bool       `json:"ephemeral,omitempty"`
	NoStart       bool       `json:"no_start,omitempty"`
	NAT           bool       `json:"nat,omitempty"`  // unsupported where VMs have no network
	Wait          Stage      `json:"wait,omitempty"` // result is sent when this stage is reached; sockets if empty
	AuthorizedKey string     `json:"authorized_key"` // the user's public key, one line
	Workspace     *Workspace `json:"workspace,omitempty"`
}

// StartMachine asks for a boot. The reply is a stream of [Event].
type StartMachine struct {
	Wait          Stage  `json:"wait,omitempty"`
	AuthorizedKey string `json:"authorized_key"`
}

// StopMachine asks for an orderly shutdown; after TimeoutSeconds (30 if zero)
// the VMM is killed and the reason says so.
type StopMachine struct {
	TimeoutSeconds int `json:"timeout_seconds,omitempty"`
}

// KillMachine sends a signal to the VMM; KILL if empty.
type KillMachine struct {
	Signal string `json:"signal,omitempty"`
}

// SetMachine changes a VM; nil means "as it is". Sizes need a stopped VM, and
// a disk only grows. NAT is changed at once, also of a VM that runs, and what a
// VM that loses it has open ends.
type SetMachine struct {
	Name      *string    `json:"name,omitempty"`
	VCPUs     *int       `json:"vcpus,omitempty"`
	MemoryMiB *int64     `json:"memory_mib,omitempty"`
	DiskBytes *int64     `json:"disk_bytes,omitempty"`
	NAT       *bool      `json:"nat,omitempty"`
	Autostart *bool      `json:"autostart,omitempty"`
	Workspace *Workspace `json:"workspace,omitempty"`
}

// An Event is one line of the NDJSON stream that long requests answer with.
// The last line is a "result" or an "error".
type Event struct {
	Type EventType `json:"type"`
	At   time.Time `json:"at"`

	Phase   string   `json:"phase,omitempty"`   // phase: a step's name, such as "disk"
	Machine *Machine `json:"machine,omitempty"` // machine, started, result
	Stage   Stage    `json:"stage,omitempty"`   // stage
	Attempt int      `json:"attempt,omitempty"` // started: 1, then 2
	Build   *Build   `json:"build,omitempty"`   // build
	Done    int64    `json:"done,omitempty"`    // progress
	Total   int64    `json:"total,omitempty"`   // progress; 0 if unknown
	Text    string   `json:"text,omitempty"`    // notice: a sentence for the user
	Image   *Image   `json:"image,omitempty"`   // result of an image request
	Kernel  *Kernel  `json:"kernel,omitempty"`  // result of a kernel request
	Error   *Error   `json:"error,omitempty"`   // error
}

// EventType says which fields of an [Event] are set.
type EventType string

// The event types.
const (
	EventPhase    EventType = "phase"    // a named step begins
	EventMachine  EventType = "machine"  // the row exists
	EventStarted  EventType = "started"  // a VMM runs; Machine.Companion can be dialled
	EventStage    EventType = "stage"    // the guest has come further
	EventProgress EventType = "progress" // of a shared pull
	EventBuild    EventType = "build"    // you are the one that builds: see Build
	EventWait     EventType = "wait"     // somebody else builds
	EventNotice   EventType = "notice"   // a sentence for the user
	EventResult   EventType = "result"
	EventError    EventType = "error"
)
