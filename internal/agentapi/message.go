package agentapi

import (
	"net/netip"
	"time"
)

// Version is the protocol's. The agent is always of the host's own build, since
// it travels in the initramfs, but a VM may run on while banger is upgraded:
// the host refuses an agent whose version it does not know.
const Version = 1

// An Op names an operation.
type Op string

// The operations. One stream serves one operation.
const (
	// OpHello: reply Hello. No further frames.
	OpHello Op = "hello"
	// OpIdentify: Request.Identity; reply Hello when it is in place. PID 1
	// hands over to the image's init only after the first one; a later one
	// (a new companion, a restored template) sets clock and seed only.
	OpIdentify Op = "identify"
	// OpWatch: reply OK, then Event frames: all that have happened, then
	// those that happen, until the stream is closed.
	OpWatch Op = "watch"
	// OpExec: Request.Exec; reply Started or Error (code not_found,
	// not_executable, invalid); then stdin/stdout/... frames; Exit is the
	// last frame and comes after all output has been sent.
	OpExec Op = "exec"
	// OpPut: Request.Put; reply OK; then Data frames of a tar from the host;
	// Done or Error when it is unpacked.
	OpPut Op = "put"
	// OpGet: Request.Get; reply OK; then Data frames of a tar from the guest and
	// perhaps Done; an empty Data frame ends it, an Error frame says why it is
	// not whole.
	OpGet Op = "get"
	// OpDial: Request.Dial; reply OK; from then on the stream is raw bytes,
	// half-closed by closing for writing.
	OpDial Op = "dial"
	// OpSSH: reply OK; then raw bytes of an ssh connection, served by the
	// image's sshd -i or, where there is none, by the agent.
	OpSSH Op = "ssh"
	// OpShutdown: Request.Shutdown; reply OK when the shutdown has begun. The
	// end is the event "frozen" and then the end of the VMM.
	OpShutdown Op = "shutdown"
	// OpClock: Request.UnixNano; sets the clock after a pause; reply OK.
	OpClock Op = "clock"
)

// A Request begins each stream. Only the field of its operation is set.
type Request struct {
	Op       Op        `json:"op"`
	Identity *Identity `json:"identity,omitempty"`
	Exec     *Exec     `json:"exec,omitempty"`
	Put      *Put      `json:"put,omitempty"`
	Get      *Get      `json:"get,omitempty"`
	Dial     *Dial     `json:"dial,omitempty"`
	Shutdown *Shutdown `json:"shutdown,omitempty"`
	UnixNano int64     `json:"unix_nano,omitempty"`
	// Challenge is what OpHello asks to be proved with: see [Prove].
	Challenge string `json:"challenge,omitempty"`
}

// ErrorCode is why the guest refused.
type ErrorCode string

// The error codes of the guest.
const (
	CodeInvalid       ErrorCode = "invalid"
	CodeNotFound      ErrorCode = "not_found"      // exec: no such program; get: no such file; exit code 127
	CodeNotExecutable ErrorCode = "not_executable" // exec: exit code 126
	CodeNoUser        ErrorCode = "no_user"
	CodeNoSpace       ErrorCode = "no_space"
	CodeFailed        ErrorCode = "failed"
)

// Error is what the guest answers instead of a reply. Its text is guest text:
// it passes printable before a person sees it.
type Error struct {
	Code ErrorCode `json:"code"`
	Msg  string    `json:"message"`
}

// Error is the message.
func (e *Error) Error() string { return e.Msg }

// Hello is what the agent says of itself and of the guest.
type Hello struct {
	Version    int    `json:"version"`
	Agent      string `json:"agent"`   // version of the build
	Release    string `json:"release"` // kernel release
	BootID     string `json:"boot_id"` // of the guest's kernel
	Init       string `json:"init"`    // systemd, other or none
	Identified bool   `json:"identified"`
	// OwnSSH reports that OpSSH is served by the agent itself.
	OwnSSH bool `json:"own_ssh"`
	// Proof is [Prove] of the identity's secret, if there is one.
	Proof []byte `json:"proof,omitempty"`
}

// Identity is what makes a guest this VM. Files go to the guest's own disk
// layer, never into the image.
type Identity struct {
	Hostname string `json:"hostname"`
	// MachineID is 32 hex digits, for /etc/machine-id.
	MachineID string `json:"machine_id"`
	// HostKey is an OpenSSH private key in PEM; HostKeyPub its public line.
	HostKey    string `json:"host_key"`
	HostKeyPub string `json:"host_key_pub"`
	// AuthorizedKeys are added to /root/.ssh/authorized_keys, never replaced.
	AuthorizedKeys []string `json:"authorized_keys"`
	// Seed is credited to the guest's random pool.
	Seed     []byte `json:"seed"`
	UnixNano int64  `json:"unix_nano"` // the host's clock when it was sent
	// Files are written below the new root before the image's init runs.
	Files []File `json:"files,omitempty"`
	// Secret, if there is one, is what tells the agent from other processes of
	// the guest, where those can call the host too.
	Secret []byte `json:"secret,omitempty"`
	// Net is the guest's place on the host's network; it has no network if nil.
	Net *Net `json:"net,omitempty"`
}

// Net is how a guest uses its one network device. Its own address is a /32, and
// the gateway is on the link: so neighbours are reached through the host, which
// refuses at once.
// It is in place before the image's init runs, without IPv6, and nothing in the
// image shall ask for another; an identity that is sent again changes nothing.
type Net struct {
	Addr    netip.Addr `json:"addr"`
	Gateway netip.Addr `json:"gateway"`
	// DNS are the resolvers of /etc/resolv.conf, which each start of the VM
	// writes. None if the guest is kept in: then nothing can be looked up, which
	// is to be seen at once.
	DNS []netip.Addr `json:"dns,omitempty"`
}

// File is a small file of an [Identity].
type File struct {
	Path string `json:"path"` // absolute
	Mode uint32 `json:"mode"`
	Data []byte `json:"data"`
}

// Exec is a command: an argv array, never a shell string.
type Exec struct {
	Argv []string `json:"argv"`
	// Env is added to the fixed environment: HOME, USER, LOGNAME and SHELL of
	// the user, PATH, LANG=C.UTF-8, and TERM with a TTY.
	Env  []string `json:"env,omitempty"`
	Dir  string   `json:"dir,omitempty"`  // the user's home if empty
	User string   `json:"user,omitempty"` // a name or uid[:gid] of the guest; root if empty
	TTY  bool     `json:"tty,omitempty"`
	Size Winsize  `json:"size"` // with TTY
}

// Winsize is the size of a terminal.
type Winsize struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Started is the reply to a command that runs.
type Started struct {
	PID int `json:"pid"`
}

// Signal is sent to the command's process group (its foreground group with a
// TTY is reached by typing).
type Signal struct {
	Number int `json:"number"`
}

// Exit is how a command ended: Signal is 0 if it exited by itself.
type Exit struct {
	Code   int `json:"code"`
	Signal int `json:"signal,omitempty"`
}

// Put unpacks a tar below Dir, which is made if it is missing. Entries never
// leave Dir, not even through links that are in it.
type Put struct {
	Dir string `json:"dir"`
	// As, if not empty, renames the tar's single top entry: how `cp a b`
	// gives a file another name. If Dir/As is a directory, the entry goes into it.
	As string `json:"as,omitempty"`
	// Owner keeps the tar's numeric owners; else all becomes root's.
	Owner bool `json:"owner,omitempty"`
	// Sync flushes the file system before Done.
	Sync bool `json:"sync,omitempty"`
}

// Done is the outcome of a put or a get.
type Done struct {
	Files int64 `json:"files"`
	Bytes int64 `json:"bytes"`
	// Skipped names what was left out: sockets, and in a put without Owner
	// devices and fifos too. It may be cut after 100 names.
	Skipped []string `json:"skipped,omitempty"`
}

// Get packs a file or directory of the guest as a tar whose entries begin
// with the path's base name.
type Get struct {
	Path   string `json:"path"`
	Follow bool   `json:"follow,omitempty"` // Path itself may be a link
}

// Dial connects to a socket of the guest.
type Dial struct {
	Network string `json:"network"` // tcp or unix
	Address string `json:"address"` // "127.0.0.1:80", "/run/docker.sock"
}

// Shutdown asks the guest to end.
type Shutdown struct {
	Reboot bool `json:"reboot,omitempty"`
}

// EventType names what happened in the guest.
type EventType string

// The events.
const (
	EventAgent    EventType = "agent" // identity is in place
	EventSockets  EventType = "sockets"
	EventBoot     EventType = "boot"
	EventHandover EventType = "handover" // PID 1 is the image's init now
	EventEnding   EventType = "ending"   // a shutdown has begun, by whomever
	EventFrozen   EventType = "frozen"   // all data is on the VM disk, which is clean; the VMM may be ended
	EventProblem  EventType = "problem"  // Text says what did not work; the boot goes on
)

// Event is something that happened in the guest.
type Event struct {
	Type EventType `json:"type"`
	// Uptime is the guest's, since its kernel started.
	Uptime time.Duration `json:"uptime_ns"`
	Text   string        `json:"text,omitempty"`
}
