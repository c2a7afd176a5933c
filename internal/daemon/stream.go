package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"

	"banger/internal/api"
)

// queueLen is how many events may wait for a slow client. A create has some
// twenty; only progress comes without end, and can be left out.
const queueLen = 256

// errSlow ends the request of a client that does not read its events.
var errSlow = errors.New("the client does not read its events")

// A stream answers a request with events. Emitting never blocks: those who
// emit hold VMs or other people's pulls.
type stream struct {
	c      *call
	cancel context.CancelCauseFunc // ends the request
	queue  chan api.Event
	done   chan struct{} // closed when the writer has ended

	mu      sync.Mutex
	started bool
	closed  bool
	err     error // of the writer; read after done
}

// stream begins an answer in events. The context it returns ends with the
// request, and when the client does not read.
func (c *call) stream() (context.Context, *stream) {
	ctx, cancel := context.WithCancelCause(c.r.Context())
	c.events = &stream{c: c, cancel: cancel, queue: make(chan api.Event, queueLen), done: make(chan struct{})}
	return ctx, c.events
}

// emit sends an event. After close it does nothing.
func (s *stream) emit(ev api.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	if !s.started {
		s.started = true
		s.c.answered = true
		go s.write()
	}
	if ev.At.IsZero() {
		ev.At = time.Now().UTC()
	}
	if ev.Type == api.EventProgress && len(s.queue) > queueLen/2 {
		return
	}
	select {
	case s.queue <- ev:
	default:
		s.cancel(errSlow)
	}
}

// begun reports whether anything was emitted.
func (s *stream) begun() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.started
}

// close waits until what was emitted has been sent.
func (s *stream) close() error {
	s.mu.Lock()
	started := s.started
	if !s.closed {
		s.closed = true
		close(s.queue)
	}
	s.mu.Unlock()
	s.cancel(nil)
	if !started {
		return nil
	}
	<-s.done
	return s.err
}

// write sends the queue, one JSON object a line.
func (s *stream) write() {
	defer close(s.done)
	s.c.w.Header().Set("Content-Type", "application/x-ndjson")
	s.c.w.WriteHeader(http.StatusOK)
	for ev := range s.queue {
		if s.err != nil {
			continue // so that nobody waits for room in the queue
		}
		b, err := json.Marshal(ev)
		if err == nil {
			s.c.hurry()
			_, err = s.c.w.Write(append(b, '\n'))
		}
		if err == nil {
			err = s.c.ctl.Flush()
		}
		if err != nil {
			s.err = err
			s.cancel(err)
		}
	}
}
