package guestlife

import (
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/agentapi"
)

// maxEvents bounds the journal. What comes after is not kept: only problems can
// be that many.
const maxEvents = 1000

// A journal keeps what has happened since the kernel started, for every watch
// from the beginning. The zero journal is ready.
type journal struct {
	mu      sync.Mutex
	events  []agentapi.Event
	changed chan struct{}   // closed at the next change of anything here
	sent    map[*cursor]int // how many events each watch has passed on
}

type cursor struct{ _ byte } // not empty: each has an address of its own

func uptime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // cannot fail
	return time.Duration(ts.Nano())
}

// add records an event. Of the same type and text there is only one.
func (j *journal) add(typ agentapi.EventType, text string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	same := func(e agentapi.Event) bool { return e.Type == typ && e.Text == text }
	if len(j.events) >= maxEvents || slices.ContainsFunc(j.events, same) {
		return
	}
	j.events = append(j.events, agentapi.Event{Type: typ, Uptime: uptime(), Text: text})
	j.wake()
}

func (j *journal) all() []agentapi.Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.events)
}

func (j *journal) wake() {
	if j.changed != nil {
		close(j.changed)
		j.changed = nil
	}
}

// waiter returns a channel that is closed at the next change.
func (j *journal) waiter() <-chan struct{} {
	if j.changed == nil {
		j.changed = make(chan struct{})
	}
	return j.changed
}

// follow calls pass for each event, past and to come, until ctx is done or pass
// fails.
func (j *journal) follow(ctx context.Context, pass func(agentapi.Event) error) error {
	c := &cursor{}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.sent == nil {
		j.sent = map[*cursor]int{}
	}
	j.sent[c] = 0
	defer func() {
		delete(j.sent, c)
		j.wake()
	}()
	for {
		for j.sent[c] < len(j.events) {
			e := j.events[j.sent[c]]
			j.mu.Unlock()
			err := pass(e)
			j.mu.Lock()
			if err != nil {
				return err
			}
			j.sent[c]++
			j.wake()
		}
		wait := j.waiter()
		j.mu.Unlock()
		select {
		case <-wait:
			j.mu.Lock()
		case <-ctx.Done():
			j.mu.Lock()
			return ctx.Err()
		}
	}
}

// flush waits until every watch has passed everything on, or ctx is done.
func (j *journal) flush(ctx context.Context) {
	j.mu.Lock()
	defer j.mu.Unlock()
	behind := func() bool {
		for _, n := range j.sent {
			if n < len(j.events) {
				return true
			}
		}
		return false
	}
	for behind() && ctx.Err() == nil {
		wait := j.waiter()
		j.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
		}
		j.mu.Lock()
	}
}
