package companion

import (
	"context"
	"sync"
	"time"

	"banger/internal/guest"
	"banger/internal/hostclock"
)

const (
	clockLimit = 10 * time.Second // for a guest to take the time
	clockPause = 10 * time.Second // before it is told again
	promptly   = time.Second      // a time that takes longer to arrive is old by then
)

// keepTime sets the guest's clock whenever the host's has jumped: a guest counts
// for itself, and stands still while its host is suspended.
func (c *companion) keepTime(ctx context.Context) {
	jumps := make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() { c.followClock(ctx, jumps) })
	err := hostclock.Watch(ctx, func() {
		select {
		case jumps <- struct{}{}:
		default: // it will be told of this one, too
		}
	})
	if err != nil {
		c.log.Warn("the guest's clock will not follow the host's", "err", err)
	}
	wg.Wait()
}

// followClock tells the guest the time after each jump, until it has taken it
// promptly: one that is paused would read later what was true now.
func (c *companion) followClock(ctx context.Context, jumps <-chan struct{}) {
	again := time.NewTimer(clockPause)
	again.Stop()
	defer again.Stop()
	for {
		select {
		case <-jumps:
		case <-again.C:
		case <-ctx.Done():
			return
		}
		begun := time.Now()
		err := c.setClock(ctx)
		if ctx.Err() == nil && (err != nil || time.Since(begun) > promptly) {
			c.log.Debug("the guest's clock will be set again", "took", time.Since(begun), "err", err)
			again.Reset(clockPause)
		}
	}
}

func (c *companion) setClock(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, clockLimit)
	defer cancel()
	st, err := c.link.Open(ctx)
	if err != nil {
		return err
	}
	return guest.SetClock(ctx, st, time.Now().UnixNano())
}
