package mux

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
)

// A Stream is one byte stream each way. Read and Write may be called at the same
// time, each from one goroutine; the other methods from any.
type Stream struct {
	y    *yamux.Stream
	s    *Session
	ours bool // opened here, not accepted

	closed atomic.Bool
	mu     sync.Mutex // held by Read
}

// Read returns io.EOF when the other end has closed or half-closed,
// net.ErrClosed when this end has closed, and ErrEnded when the session broke
// down before the other end had closed.
func (s *Stream) Read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		return 0, net.ErrClosed
	}
	n, err := s.y.Read(b)
	if errors.Is(err, io.EOF) {
		// yamux says EOF also when the session breaks down.
		if !s.s.finished(s.y.StreamID()) && !s.closed.Load() {
			return n, ErrEnded
		}
	}
	return n, s.why(err)
}

// Write waits until the channel has taken b, not until the other end has read
// it. It fails with net.ErrClosed once this end has closed, or the other end has
// and gets more than it can throw away.
func (s *Stream) Write(b []byte) (int, error) {
	if s.closed.Load() {
		return 0, net.ErrClosed
	}
	n, err := s.y.Write(b)
	return n, s.why(err)
}

func (s *Stream) why(err error) error {
	switch {
	case err == nil:
		return nil
	case s.closed.Load(), errors.Is(err, yamux.ErrStreamClosed):
		return net.ErrClosed
	}
	return ended(err)
}

// CloseWrite says that nothing more will be written: the other end reads io.EOF
// behind all that was. Reading goes on.
func (s *Stream) CloseWrite() error { return s.why(s.y.Close()) }

// patience is how much is thrown away of what comes after Close before the
// other end is told that nobody will ever read it. It is less than half a window:
// so much the other end may always send to who has read all there was.
const patience = 256 << 10

// Close ends both directions and never waits. What was written before is
// delivered, then the other end reads io.EOF. What it still sends is thrown
// away; if that is much, its writes fail.
func (s *Stream) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.s.closing(s.y.StreamID(), func() {
		if s.ours {
			<-s.s.slots
		}
	})
	past := time.Unix(1, 0)
	_ = s.y.SetWriteDeadline(past) // ends a Write that waits for the window
	_ = s.y.SetReadDeadline(past)  // and a Read
	go func() {
		_ = s.y.Close()
		s.mu.Lock() // the last Read has ended
		defer s.mu.Unlock()
		b := make([]byte, 4<<10)
		for { // what came before; no more will
			if _, err := s.y.Read(b); err != nil {
				break
			}
		}
		s.y.Shrink() // it may be long until the other end ends
	}()
	return nil
}
