package rootclient

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"banger/internal/rootapi"
)

// End is how a VMM ended.
type End struct {
	Status  syscall.WaitStatus
	Starved bool // killed for want of memory
}

// String is a sentence part for people, "" for an end without a fault.
func (e End) String() string {
	switch {
	case e.Starved:
		return "was killed: it used more memory than its VM's limit"
	case e.Status.Signaled():
		return fmt.Sprintf("was killed by signal %d", e.Status.Signal())
	case e.Status.ExitStatus() != 0:
		return fmt.Sprintf("ended with code %d", e.Status.ExitStatus())
	}
	return ""
}

// lookAgain is how long systemd is given to notice an end that a pidfd has told.
const lookAgain = 20 * time.Millisecond

// Ended tells how the VMM of id ended, until it is released; known is false
// afterwards. There is no event for systemd's taking notice, so it is asked until
// it has, or ctx ends.
func (c Client) Ended(ctx context.Context, id string) (end End, known bool, err error) {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for {
		u, err := c.unit(ctx, id)
		if err != nil || u == nil {
			return End{}, false, err
		}
		if u.Active == "failed" || u.Active == "inactive" || u.Sub == "exited" {
			return endOf(u), true, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return End{}, false, fmt.Errorf("asking how VM %s ended: %w", id, context.Cause(ctx))
		}
	}
}

// unit is the service of one VM, nil if there is none.
func (c Client) unit(ctx context.Context, id string) (*rootapi.Unit, error) {
	held, err := c.Census(ctx)
	for _, h := range held {
		if h.ID == id {
			return h.Unit, err
		}
	}
	return nil, err
}

// endOf puts systemd's words into those of wait(2).
func endOf(u *rootapi.Unit) End {
	const exited, dumped = 1, 3 // CLD_EXITED, CLD_DUMPED
	e := End{Starved: u.Result == "oom-kill"}
	switch u.Code {
	case 0: // it never ran
	case exited:
		e.Status = syscall.WaitStatus(u.Status & 0xff << 8)
	case dumped:
		e.Status = syscall.WaitStatus(u.Status&0x7f | 0x80)
	default:
		e.Status = syscall.WaitStatus(u.Status & 0x7f)
	}
	return e
}
