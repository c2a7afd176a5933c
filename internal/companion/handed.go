package companion

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/crash"
	"banger/internal/procid"
	"banger/internal/rootclient"
	"banger/internal/vmm"
	"banger/internal/vmm/channel"
)

// What follows is for a VMM that the root helper has started: it is another
// uid's, not our child, and not ours to signal.

// releaseLimit is for the root helper to end a VM, retryPause from one try to
// the next.
const (
	releaseLimit = 70 * time.Second
	retryPause   = time.Second
)

func (c *companion) helper() rootclient.Client {
	return rootclient.Client{Socket: c.cfg.Handed.Helper}
}

// take takes hold of the VMM and of its channels. A new one is booted.
func (c *companion) take(ctx context.Context) (_ *running, err error) {
	r := &running{stderr: &tail{}, printed: make(chan struct{})}
	r.process = procid.Held(c.cfg.Handed.VMM, inherited(companionapi.PidfdFD, "pidfd"))
	r.channels, err = channel.Take(channel.Handed{Agent: inherited(companionapi.AgentFD, "agent"), Console: inherited(companionapi.ConsoleFD, "console"),
		Control: inherited(companionapi.APIFD, "control"), UID: c.cfg.UID})
	if err != nil {
		return nil, errors.Join(err, r.process.Close())
	}
	c.vmm = r
	crash.Point("companion.ready")
	err = c.attach(ctx, func(ctx context.Context) (vmm.Control, error) {
		if c.cfg.Adopt != nil {
			return c.driver.Attach(ctx, r.channels.Control())
		}
		return c.driver.Boot(ctx, r.channels.Control(), c.cfg.VMM)
	})
	if err == nil {
		crash.Point("companion.vmm-started")
		err = companionapi.Save(c.cfg.Dir, companionapi.RecordName, c.record())
	}
	if err != nil { // whoever handed it over also takes it back
		return nil, errors.Join(err, r.process.Close(), r.channels.Close())
	}
	crash.Point("companion.recorded")
	return r, nil
}

// inherited is a descriptor that we were started with.
func inherited(fd int, name string) *os.File {
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name)
}

// stillborn is the error of a VMM that ended before it ran.
func (c *companion) stillborn() error {
	t := time.NewTimer(drainLimit)
	defer t.Stop()
	select { // what it said may tell why
	case <-c.vmm.printed:
	case <-t.C:
	}
	return &api.Error{Code: api.Internal, Msg: vmm.Label(c.cfg.Driver) + " ended at once", Detail: visibleText(c.console.Tail(tailBytes)),
		Hint: "see what this host lacks: banger doctor"}
}

// executioner has the root helper end the VMM, once that is wanted; which also
// removes what was made for it. It tries until the VMM has ended: the helper may
// just be replaced, and the daemon need not be there.
func (c *companion) executioner(ctx context.Context) {
	select {
	case <-c.doomed:
	case <-ctx.Done():
		return
	}
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-pause.C:
		case <-c.vmm.process.Done():
			return
		case <-ctx.Done():
			return
		}
		asking, cancel := context.WithTimeout(ctx, releaseLimit)
		if err := c.helper().Release(asking, c.cfg.ID); err != nil {
			c.log.Error("having the VMM ended", "err", err)
		}
		cancel()
		pause.Reset(retryPause)
	}
}

// doom wakes the executioner. Once is enough.
func (c *companion) doom() {
	select {
	case c.doomed <- struct{}{}:
	default:
	}
}

// verdict asks the helper how the VMM ended.
func (c *companion) verdict(ctx context.Context) (end rootclient.End, known bool) {
	end, known, err := c.helper().Ended(ctx, c.cfg.ID)
	if err != nil {
		c.log.Error("asking how the VMM ended", "err", err)
	}
	return end, known
}
