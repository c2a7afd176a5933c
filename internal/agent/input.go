package agent

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"time"

	"banger/internal/agentapi"
)

// errWindow is the error of a client that sends more than was agreed.
var errWindow = errors.New("more stdin than the window allows")

// An inlet holds stdin until a process takes it, so that whoever reads frames
// never waits for the process.
type inlet struct {
	f    *os.File // a pipe's end, or a terminal's
	pty  bool
	took func(n int) // called after n more bytes have been written

	mu     sync.Mutex // guards the rest
	wake   sync.Cond
	queue  [][]byte
	size   int
	closed bool // the end follows the queue
	dead   bool // the process reads no more
}

func newInlet(f *os.File, pty bool, took func(int)) *inlet {
	in := &inlet{f: f, pty: pty, took: took}
	in.wake.L = &in.mu
	return in
}

// add queues a copy of b; empty is the end of stdin.
func (in *inlet) add(b []byte) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	defer in.wake.Signal()
	if in.dead || in.closed {
		return nil
	}
	if len(b) == 0 {
		in.closed = true
		return nil
	}
	if in.size+len(b) > agentapi.StdinWindow {
		return errWindow
	}
	in.size += len(b)
	in.queue = append(in.queue, bytes.Clone(b))
	return nil
}

// next waits for bytes; nil is the end.
func (in *inlet) next() []byte {
	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.queue) == 0 && !in.closed && !in.dead {
		in.wake.Wait()
	}
	if in.dead || len(in.queue) == 0 {
		return nil
	}
	b := in.queue[0]
	in.queue[0] = nil
	in.queue = in.queue[1:]
	in.size -= len(b)
	return b
}

// pump writes what is queued until the end, or until the process reads no more.
// Then it closes a pipe; a terminal stays open for output.
func (in *inlet) pump() {
	last := byte(0)
	for {
		b := in.next()
		if b == nil {
			break
		}
		if _, err := in.f.Write(b); err != nil {
			in.stop()
			break
		}
		last = b[len(b)-1]
		in.took(len(b))
	}
	if !in.pty {
		_ = in.f.Close()
		return
	}
	in.mu.Lock()
	ended := in.closed && !in.dead
	in.mu.Unlock()
	if ended {
		_, _ = in.f.Write(endOfInput(in.f, last))
	}
}

// stop throws away what is queued and ends pump.
func (in *inlet) stop() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.dead, in.queue = true, nil
	_ = in.f.SetWriteDeadline(time.Unix(1, 0)) // ends a Write that waits; fails harmlessly on a closed pipe
	in.wake.Signal()
}
