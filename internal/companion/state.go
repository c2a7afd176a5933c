package companion

import (
	"context"
	"sync"
	"time"

	"banger/internal/agentapi"
	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/host"
)

// state is what is known of the VM, and who waits for it to change. Its
// methods may be called from several goroutines.
type state struct {
	mu      sync.Mutex
	changed chan struct{}

	stage   api.Stage
	agent   *agentapi.Hello
	events  []companionapi.Event // bounded by what agentlink passes on
	ended   *host.Exit
	ending  bool   // the guest has begun to shut down
	kind    string // how it will end, if it said so
	frozen  bool   // its disk is clean
	intent  *intent
	stop    int  // stops under way
	asked   bool // there was a stop
	streams int

	leaseHeld, leaseTaken, leaseKept bool
}

// intent is an end that we cause.
type intent struct{ reason string }

func newState() *state { return &state{changed: make(chan struct{})} }

// update changes the state and wakes whoever waits.
func (s *state) update(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// await waits until ok says so, which is called with the lock held.
func (s *state) await(ctx context.Context, ok func() bool) error {
	for {
		s.mu.Lock()
		done, changed := ok(), s.changed
		s.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// tell adds an event. The caller is in update.
func (s *state) tell(e companionapi.Event) {
	e.At = time.Now()
	s.events = append(s.events, e)
}

// reach moves the stage forward. The caller is in update.
func (s *state) reach(to api.Stage) {
	if s.stage.Reached(to) {
		return
	}
	s.stage = to
	e := companionapi.Event{Type: companionapi.EventStage, Stage: to}
	if s.agent != nil && to == api.StageAgent {
		e.Init = s.agent.Init
	}
	s.tell(e)
}

// intend notes why the VMM is about to be ended by us; the first one counts.
func (s *state) intend(i intent) {
	s.update(func() {
		if s.intent == nil {
			s.intent = &i
		}
	})
}

func (s *state) intended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.intent != nil
}

func (s *state) exit(e host.Exit) {
	s.update(func() {
		s.ended = &e
		s.tell(companionapi.Event{Type: companionapi.EventExit, Exit: &e})
	})
}

// exited returns the exit, nil if the VM runs.
func (s *state) exited() *host.Exit {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

func (s *state) lease() (held, taken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leaseHeld, s.leaseTaken
}

func (s *state) isEnding() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ending
}

func (s *state) agentKnown() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.agent != nil
}

func (s *state) kept() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leaseKept
}

// hello is called by the link when the agent has its identity. The stage comes
// with the agent's own event, which says that the identity is in place; an
// agent that is met again may have said so before.
func (c *companion) hello(h agentapi.Hello) {
	c.state.update(func() {
		c.state.agent = &h
		c.state.reach(api.StageAgent)
	})
	if len(c.cfg.Identity.Secret) == 0 {
		return
	}
	if err := c.saveConfig(); err != nil {
		c.log.Error("saving that the agent is known", "err", err)
	}
}

// event is called by the link for each thing that happens in the guest.
func (c *companion) event(e agentapi.Event) {
	s := c.state
	kill := false
	s.update(func() {
		switch e.Type {
		case agentapi.EventAgent:
			s.reach(api.StageAgent)
		case agentapi.EventSockets:
			s.reach(api.StageSockets)
		case agentapi.EventBoot:
			s.reach(api.StageSockets)
			s.reach(api.StageBoot)
		case agentapi.EventProblem:
			s.tell(companionapi.Event{Type: companionapi.EventProblem, Text: e.Text})
		case agentapi.EventEnding, agentapi.EventFrozen:
			if !s.ending {
				s.ending = true
				s.tell(companionapi.Event{Type: companionapi.EventEnding})
			}
			if e.Type == agentapi.EventEnding && e.Text != "" {
				s.kind = e.Text
			}
			s.frozen = s.frozen || e.Type == agentapi.EventFrozen
			kill = s.frozen && s.stop > 0
		}
	})
	if kill { // all that counts is on the disk; the guest's power off takes longer
		c.end(intent{reason: stopped})
	} else if e.Type == agentapi.EventFrozen {
		time.AfterFunc(freezeLimit, func() { c.end(intent{reason: poweredOff}) })
	}
}
