package lab

import (
	"bytes"
	"os"
	"strings"
	"sync"
)

// console keeps what the machine prints on its console: in a file, up to a
// bound, and the end of it in memory.
type console struct {
	mu       sync.Mutex
	f        *os.File // nil if nobody wants it
	left     int64
	last     []byte
	inGuest  bool // it has told of a fault while KVM ran a guest
	panicked chan struct{}
}

// enterGuest is a function of KVM's that stands in the trace of such a fault and
// nowhere else.
const enterGuest = "svm_vcpu_run"

// consoleBytes bounds the file: a machine may print for ever.
const consoleBytes = 16 << 20

func newConsole(path string) (*console, error) {
	c := &console{left: consoleBytes, panicked: make(chan struct{})}
	if path == "" {
		return c, nil
	}
	var err error
	c.f, err = os.Create(path)
	return c, err
}

// Write takes what the machine prints.
func (c *console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.f != nil && c.left > 0 {
		n, err := c.f.Write(b[:min(int64(len(b)), c.left)])
		if c.left -= int64(n); err != nil {
			c.left = 0 // the tail is still there
		}
	}
	c.last = append(c.last, b...)
	c.inGuest = c.inGuest || bytes.Contains(c.last[max(0, len(c.last)-len(b)-len(enterGuest)):], []byte(enterGuest))
	c.last = c.last[max(0, len(c.last)-tailBytes):]
	// The line says why, so it is waited for.
	if _, why, found := bytes.Cut(c.last, []byte("Kernel panic - not syncing")); found && bytes.IndexByte(why, '\n') >= 0 {
		select {
		case <-c.panicked:
		default:
			close(c.panicked)
		}
	}
	return len(b), nil
}

// brokeInGuest is whether there was a fault while KVM ran a guest.
func (c *console) brokeInGuest() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inGuest
}

// tail is the last lines.
func (c *console) tail() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	const most = 40
	lines := strings.Split(strings.TrimSpace(strings.ReplaceAll(string(c.last), "\r", "")), "\n")
	return strings.Join(lines[max(0, len(lines)-most):], "\n")
}

func (c *console) close() error {
	if c.f == nil {
		return nil
	}
	return c.f.Close()
}
