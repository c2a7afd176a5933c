package companion

import (
	"context"
	"time"

	"banger/internal/guest"
	"banger/internal/hostclock"
)

// clockLimit is for a guest to take the time. One that cannot just now gets it
// with its next session.
const clockLimit = 10 * time.Second

// keepTime sets the guest's clock whenever the host's has jumped: a guest counts
// for itself, and stands still while its host is suspended.
func (c *companion) keepTime(ctx context.Context) {
	err := hostclock.Watch(ctx, func() {
		limited, cancel := context.WithTimeout(ctx, clockLimit)
		defer cancel()
		if err := c.setClock(limited); err != nil {
			c.log.Warn("the guest's clock is not set", "err", err)
		}
	})
	if err != nil {
		c.log.Warn("the guest's clock will not follow the host's", "err", err)
	}
}

func (c *companion) setClock(ctx context.Context) error {
	st, err := c.link.Open(ctx)
	if err != nil {
		return err
	}
	return guest.SetClock(ctx, st, time.Now().UnixNano())
}
