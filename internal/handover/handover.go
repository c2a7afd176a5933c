// Package handover is the language between the processes of the agent's program
// in a guest: PID 1, which builds the root, and the agent, which speaks to the
// host, and those that stand in for them. All of them run the same file.
//
// It holds the names they find each other by and the few messages they
// exchange. It mounts nothing and serves nothing.
package handover

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// The roles of the program, as argv[0]. A leading @ says to systemd that the
// process is needed to the very end and must not be signalled by the final
// sweep (systemd.io/ROOT_STORAGE_DAEMONS).
const (
	AgentRole   = "@banger-agent"
	StandbyRole = "@banger-standby" // waits for the agent's death and takes its place
	HookRole    = "/shutdown"       // what systemd-shutdown runs last, as PID 1
)

// Where things are before the image's init runs.
const (
	NewRoot = "/newroot" // becomes / at the hand-over
	BaseDir = "/base"    // the image, read-only
	DiskDir = "/disk"    // the VM's disk
	HookDir = "/hook"    // holds the program as "shutdown"; becomes /run/initramfs
)

// Where things are in the new root.
const (
	RunDir   = "/run/banger"
	StageDir = RunDir + "/stage"  // systemd makes a socket here at each stage
	LifePath = RunDir + "/life"   // what a restarted agent must know
	Secret   = RunDir + "/secret" // proves to the host that its reader is the agent
	SSHDir   = RunDir + "/ssh"    // host_key, host_key.pub and authorized_keys of this VM
)

// Expedite is a file of the kernel: 1 there makes RCU's grace periods short, at
// the price of interrupting all processors. It is for the time of the boot.
const Expedite = "/sys/kernel/rcu_expedited"

// Names in [StageDir].
const (
	StageSockets  = "sockets"
	StageBoot     = "boot"
	StagePowerOff = "poweroff" // a shutdown of this kind has begun
	StageReboot   = "reboot"
	StageHalt     = "halt"
)

// Abstract unix sockets of the agent.
const (
	FinalSocket  = "@banger-final"  // the hook asks for the disk to be frozen
	NotifySocket = "@banger-notify" // systemd says READY=1 at the end of start-up
)

// The inherited descriptors of an agent.
const (
	ConnFD = 3 // the [Conn] with PID 1
	DiskFD = 4 // the VM disk's root directory; only of an agent that is started anew
	// StandbyFD is read by a standby: its end of file is the agent's death.
	StandbyFD = 3
)

// Restart is argv[1] of an agent that takes the place of one that died: the new
// root is its root already.
const Restart = "restart"

// The kinds of init.
const (
	InitSystemd = "systemd"
	InitOther   = "other"
	InitNone    = "none" // the image has none: PID 1 stays and reaps
)

// Mounted says that the new root is complete.
type Mounted struct {
	Init     string   // the kind
	Problems []string // a line each
}

// A Conn joins PID 1 and the agent. PID 1 sends Mounted once; the agent answers
// Go when the image's init may run; PID 1 says Gone by closing (it has become
// that init) or in words (it stays).
type Conn struct{ f *os.File }

// Pair returns PID 1's end, and the agent's to be inherited.
func Pair() (ours Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return Conn{}, nil, fmt.Errorf("joining init and agent: %w", err)
	}
	return Open(fds[0]), os.NewFile(uintptr(fds[1]), "handover"), nil
}

// Open returns the end that fd is. A descriptor that is inherited blocks, which
// would cost a thread for each wait.
func Open(fd int) Conn {
	_ = unix.SetNonblock(fd, true) // only slower without
	return Conn{os.NewFile(uintptr(fd), "handover")}
}

// Close ends the conversation.
func (c Conn) Close() error { return c.f.Close() }

// SendMounted tells the agent of the new root.
func (c Conn) SendMounted(m Mounted) error {
	return c.send([]byte(strings.Join(append([]string{m.Init}, m.Problems...), "\n")))
}

// Mounted waits for PID 1's message.
func (c Conn) Mounted() (m Mounted, err error) {
	b, err := c.receive()
	if err != nil {
		return m, fmt.Errorf("waiting for the new root: %w", err)
	}
	lines := strings.Split(string(b), "\n")
	return Mounted{lines[0], lines[1:]}, nil
}

// Go lets PID 1 hand over.
func (c Conn) Go() error { return c.send([]byte("go")) }

// WaitGo waits for Go. io.EOF means that the agent died.
func (c Conn) WaitGo() error {
	_, err := c.receive()
	return err
}

// Stayed says that PID 1 has changed its root and goes on as init.
func (c Conn) Stayed() error { return c.send([]byte("stayed")) }

// WaitGone waits until PID 1 has changed its root. Its closing is no error.
func (c Conn) WaitGone() error {
	_, err := c.receive()
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (c Conn) send(b []byte) error {
	_, err := c.f.Write(b)
	return err
}

func (c Conn) receive() ([]byte, error) {
	b := make([]byte, 32<<10)
	n, err := c.f.Read(b)
	return b[:n], err
}
