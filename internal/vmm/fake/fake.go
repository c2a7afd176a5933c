// Package fake is a VMM without a machine: a small process that speaks on the
// three channels as a guest does, and can be told to misbehave.
//
// It lets everything above a driver be tested in milliseconds, with all that a
// real VMM does to its surroundings: it is a process that is killed, runs on when its
// starter dies, floods, hangs and lies. Commands run on the host, in a temporary
// directory. Only tests use it: their TestMain calls [Main].
package fake

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"banger/internal/vmm"
)

// Name is the driver's, NameCalling that of one that is Calling.
const (
	Name        = "fake"
	NameCalling = "fake-calling"
)

// verb is the argument by which a test binary knows that it is the VMM.
const verb = "banger-fake-vmm"

// dirEnv is companionapi.DirEnv, below which commands run: a fake that is
// killed leaves nothing that releasing the VM does not remove.
const dirEnv = "BANGER_VM_DIR"

// Words on the kernel command line that make the guest misbehave.
const (
	Silent  = "fake.silent"  // never calls home
	Die     = "fake.die"     // kills itself at once
	DieHome = "fake.diehome" // kills itself when it has its identity
	Refuse  = "fake.refuse"  // the VMM does not start: prints why and exits with 1
	Flood   = "fake.flood"   // prints without end
	Garbage = "fake.garbage" // sends random bytes on the agent channel without end
	Hang    = "fake.hang"    // agrees to shut down and does nothing
	Panic   = "fake.panic"   // prints a kernel's last words and resets
	Off     = "fake.off"     // powers off at once
	Reboot  = "fake.reboot"  // restarts when it has its identity
	Slow    = "fake.slow"    // reaches the stage agent and no other
	Gossip  = "fake.gossip"  // reports problems without end
)

// Hello is the first line on the console.
const Hello = "fake guest: here I am"

// Bye is the last line on the console of a guest that was asked to end.
const Bye = "fake guest: ending"

// A Driver runs this very program as the VMM.
type Driver struct {
	Path string // of a program that calls Main; os.Executable if empty
	// Calling lays the channels as Firecracker has them: the guest calls, the
	// console is printed, and there is no word of the end.
	Calling bool
}

// Name is Name or NameCalling.
func (d Driver) Name() string {
	if d.Calling {
		return NameCalling
	}
	return Name
}

// The files of one that is Calling.
const (
	calledName = "call.sock"
	servedName = "served.sock"
)

// Wiring is that of QEMU, or that of Firecracker.
func (d Driver) Wiring() vmm.Wiring {
	if d.Calling {
		return vmm.Wiring{Agent: vmm.Channel{How: vmm.Called, Name: calledName}, Console: vmm.Channel{How: vmm.Printed, Name: "console.fifo"},
			Control: vmm.Channel{How: vmm.Served, Name: servedName}, Mute: true}
	}
	return vmm.Wiring{Agent: vmm.Channel{Name: "agent.sock"}, Console: vmm.Channel{Name: "console.sock"}, Control: vmm.Channel{Name: "control.sock"}}
}

// Argv runs Main with c as its argument.
func (d Driver) Argv(c vmm.Config) ([]string, error) {
	if d.Path == "" {
		p, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("looking for the fake VMM: %w", err)
		}
		d.Path = p
	}
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("running the fake VMM: %w", err)
	}
	return []string{d.Path, verb, "banger-" + c.ID, string(b)}, nil
}

// last is the second message of the control channel; the first is an empty line.
type last struct {
	Ended string `json:"ended"`
}

type control struct {
	conn net.Conn
	done chan struct{}

	mu     sync.Mutex
	reason string
}

// Boot is Attach: the machine runs by itself.
func (d Driver) Boot(ctx context.Context, conn net.Conn, _ vmm.Config) (vmm.Control, error) {
	return d.Attach(ctx, conn)
}

// Attach waits for the machine's first word, then for the reason of its end.
func (Driver) Attach(ctx context.Context, conn net.Conn) (vmm.Control, error) {
	c := &control{conn: conn, done: make(chan struct{})}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	r := bufio.NewReaderSize(conn, 4096)
	if _, err := r.ReadSlice('\n'); err != nil {
		conn.Close()
		return nil, fmt.Errorf("attaching to the fake VMM: %w", err)
	}
	go func() {
		defer close(c.done)
		var l last
		line, err := r.ReadSlice('\n')
		if err != nil || json.Unmarshal(line, &l) != nil {
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.reason = l.Ended
	}()
	return c, nil
}

// Ended waits for the reason.
func (c *control) Ended(ctx context.Context) string {
	select {
	case <-c.done:
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reason
}

// Close ends the conversation.
func (c *control) Close() error {
	if err := c.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
