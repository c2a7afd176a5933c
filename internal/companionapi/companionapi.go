// Package companionapi is the language of a companion's unix socket, and a
// client for it.
//
// Each connection begins with one line of JSON, a [Request], and is answered
// with one line, a [Reply]. What follows depends on the operation. Only the
// owner's uid is served. The client is used by the daemon (stages, stop, kill)
// and by the CLI (streams, lease, console).
package companionapi

import (
	"time"

	"banger/internal/agentapi"
	"banger/internal/api"
	"banger/internal/host"
	"banger/internal/procid"
	"banger/internal/vmm"
)

// Version of this protocol. A companion lives as long as its VM, so a newer
// daemon may meet an older companion: it refuses what it does not know.
const Version = 1

// An Op names an operation.
type Op string

// The operations.
const (
	// OpStatus: the reply holds Status.
	OpStatus Op = "status"
	// OpEvents: after the reply, one JSON Event a line: all so far, then those
	// that happen; the connection closes after the exit event.
	OpEvents Op = "events"
	// OpStream: waits until the stage After is reached, replies, and is from
	// then on one stream of the agent session: raw bytes, half-close kept. If
	// the VM ends first, the reply is an error.
	OpStream Op = "stream"
	// OpLease: after the reply the connection is the lease. When it closes, the
	// VMM is killed, unless the byte 'k' (keep) was sent before, which is
	// answered by an empty line.
	OpLease Op = "lease"
	// OpConsole: after the reply the console's bytes, the last Tail of them (all
	// that is kept if 0), and with Follow all that come until the VM ends.
	OpConsole Op = "console"
	// OpStop: asks the agent for a shutdown; replies when the VMM has ended.
	// After Timeout it kills the VMM and says so in Reply.Killed.
	OpStop Op = "stop"
	// OpKill: sends Signal to the VMM; with KILL or TERM it replies when the
	// VMM has ended.
	OpKill Op = "kill"
)

// Request is the first line of a connection.
type Request struct {
	Version int           `json:"version"`
	Op      Op            `json:"op"`
	After   api.Stage     `json:"after,omitempty"`
	Tail    int64         `json:"tail,omitempty"`
	Follow  bool          `json:"follow,omitempty"`
	Timeout time.Duration `json:"timeout_ns,omitempty"`
	Signal  int           `json:"signal,omitempty"`
}

// Reply is the answer to it.
type Reply struct {
	Error  *api.Error `json:"error,omitempty"`
	Status *Status    `json:"status,omitempty"`
	Killed bool       `json:"killed,omitempty"`
	Exit   *host.Exit `json:"exit,omitempty"` // stop, kill
}

// Status is what a companion knows of its VM.
type Status struct {
	ID         string          `json:"id"`
	Record     host.Record     `json:"record"`
	Stage      api.Stage       `json:"stage"`
	Agent      *agentapi.Hello `json:"agent,omitempty"`
	LeaseTaken bool            `json:"lease_taken"` // a lease is or was held
	LeaseHeld  bool            `json:"lease_held"`
	Streams    int             `json:"streams"` // open streams of clients
	Exit       *host.Exit      `json:"exit,omitempty"`
}

// EventType names an event.
type EventType string

// The events.
const (
	EventStage   EventType = "stage"   // Stage is reached
	EventProblem EventType = "problem" // Text: something in the guest did not work
	EventEnding  EventType = "ending"  // the guest has begun to shut down
	EventExit    EventType = "exit"    // the VMM has ended; the last event
)

// Event is something that happened to the VM.
type Event struct {
	Type  EventType  `json:"type"`
	At    time.Time  `json:"at"`
	Stage api.Stage  `json:"stage,omitempty"`
	Text  string     `json:"text,omitempty"`
	Exit  *host.Exit `json:"exit,omitempty"`
	Init  string     `json:"init,omitempty"` // with stage agent: systemd, other or none
}

// Config is what a host tells a new companion, as JSON on a pipe.
type Config struct {
	ID string `json:"id"`
	// Dir is the VM's runtime directory, mode 0700, made by the host. The
	// companion keeps companion.sock, record.json and exit.json there, and the
	// listening sockets agent.sock, console.sock and control.sock.
	Dir         string            `json:"dir"`
	ConsolePath string            `json:"console_path"`
	Driver      string            `json:"driver"`
	VMM         vmm.Config        `json:"vmm"`
	Identity    agentapi.Identity `json:"identity"`
	Lease       bool              `json:"lease,omitempty"`
	// LeaseTaken is set, with Adopt, if a lease was held when the companion
	// before this one died: a new one must be taken soon.
	LeaseTaken bool `json:"lease_taken,omitempty"`
	// AgentKnown is set, with Adopt, if an agent has the identity already.
	AgentKnown bool `json:"agent_known,omitempty"`
	// UID and GID are the VMM's if the companion runs as root; 0 otherwise.
	UID int `json:"uid,omitempty"`
	GID int `json:"gid,omitempty"`
	// Adopt, if set, makes the companion take over a VMM that runs already,
	// through the sockets in Dir, instead of starting one.
	Adopt *host.Record `json:"adopt,omitempty"`
	// Handed, if set, makes the companion hold a VMM that the root helper has
	// started: without Adopt it is to be configured and booted.
	Handed *Handed `json:"handed,omitempty"`
}

// Handed is a VMM of another uid, Config.UID. The companion inherits the ends of
// its channels, and VMM names its files as the VMM sees them.
type Handed struct {
	Helper string    `json:"helper,omitempty"` // socket of the root helper, which can end the VMM; the usual one if empty
	VMM    procid.ID `json:"vmm"`
}

// The descriptors of a VMM that is handed over. The root helper replies with
// them in this order.
const (
	PidfdFD   = FilesFD + iota
	AgentFD   // a listening socket
	APIFD     // a connection
	ConsoleFD // the reading end of a pipe
)

// Started is what a new companion reports to the host, as one JSON line on a
// pipe, when the VMM runs or could not be started.
type Started struct {
	Record    host.Record `json:"record"`
	Companion procid.ID   `json:"companion"`
	Error     *api.Error  `json:"error,omitempty"`
}

// KeepByte ends a lease without ending the VM.
const KeepByte = 'k'

// DirEnv is set, to Config.Dir, in the environment of a companion and of its
// VMM: how a host finds the processes of a VM whose records are lost.
const DirEnv = "BANGER_VM_DIR"

// The descriptors that a new companion inherits.
const (
	ConfigFD  = 3 // a pipe: reads Config
	StartedFD = 4 // a pipe: writes Started
	FilesFD   = 5 // the first of the files that Config.VMM names by descriptor
)

// File names in a VM's runtime directory.
const (
	SocketName        = "companion.sock"
	ConfigName        = "config.json" // Config without secrets, for the next companion
	LogName           = "companion.log"
	RecordName        = "record.json" // host.Record, written before and after the VMM starts
	ExitName          = "exit.json"   // host.Exit, written when the VMM has ended
	AgentSocketName   = "agent.sock"
	ConsoleSocketName = "console.sock"
	ControlSocketName = "control.sock"
)
