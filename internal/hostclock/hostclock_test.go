package hostclock_test

import (
	"context"
	"errors"
	"testing"

	"banger/internal/hostclock"
)

// Nothing jumps here, and the watch ends with its context. That it tells of a
// jump takes a clock that may be set: see TestLabClock.
func TestWatchEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- hostclock.Watch(ctx, func() { t.Log("the host's clock was set") })
	}()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Watch() = %v, want nil", err)
	}
	if err := hostclock.Watch(ctx, func() {}); err != nil || !errors.Is(ctx.Err(), context.Canceled) {
		t.Errorf("Watch() = %v, want nil at once", err)
	}
}
