package guestlife

import (
	"context"
	"errors"
	"testing"
	"time"

	"banger/internal/agentapi"
)

func TestJournalReplaysAndFollows(t *testing.T) {
	var j journal
	j.add(agentapi.EventAgent, "")
	j.add(agentapi.EventAgent, "") // said once
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	got := make(chan agentapi.Event)
	ended := make(chan error, 1)
	go func() {
		ended <- j.follow(ctx, func(e agentapi.Event) error { got <- e; return nil })
	}()
	if e := <-got; e.Type != agentapi.EventAgent || e.Uptime <= 0 {
		t.Errorf("first event %+v, want agent with an uptime", e)
	}
	j.add(agentapi.EventBoot, "")
	if e := <-got; e.Type != agentapi.EventBoot {
		t.Errorf("second event %+v, want boot", e)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("follow = %v, want Canceled", err)
	}
}

func TestFlushWaitsForTheWatches(t *testing.T) {
	var j journal
	j.flush(t.Context()) // nobody watches
	pass, passed := make(chan struct{}), make(chan struct{})
	go func() {
		_ = j.follow(t.Context(), func(agentapi.Event) error {
			close(passed)
			<-pass
			return nil
		})
	}()
	j.add(agentapi.EventFrozen, "")
	<-passed
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	j.flush(short)
	if short.Err() == nil {
		t.Error("flush returned before the watch had passed the event on")
	}
	close(pass)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if j.flush(ctx); ctx.Err() != nil {
		t.Error("flush did not return after the watch had passed the event on")
	}
}

func TestAWatchThatFailsDoesNotHoldTheEnd(t *testing.T) {
	var j journal
	j.add(agentapi.EventFrozen, "")
	broken := errors.New("broken")
	if err := j.follow(t.Context(), func(agentapi.Event) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("follow = %v, want broken", err)
	}
	j.flush(t.Context())
}

func TestJournalIsBounded(t *testing.T) {
	var j journal
	for i := range 2 * maxEvents {
		j.add(agentapi.EventProblem, string(rune('a'+i%26))+time.Duration(i).String())
	}
	if n := len(j.all()); n != maxEvents {
		t.Errorf("%d events kept, want %d", n, maxEvents)
	}
}
