package systemhost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"banger/internal/api"
	"banger/internal/host"
	"banger/internal/procid"
	"banger/internal/rootapi"
	"banger/internal/rootclient"
	"banger/internal/vmm"

	"golang.org/x/sys/unix"
)

// vmms are VMMs that the helper has started. Each is a process of a uid of its
// own: it can be waited for, and nothing else; /proc may not show it.
type vmms struct {
	helper rootclient.Client
	driver string
}

// Open implements keeper.VMMs. Where /proc hides other users' processes, a pid
// that was used again cannot be told from the VMM: then its companion is lost
// too, and the helper, asked for the ends that another needs, knows.
func (vmms) Open(_ context.Context, r host.Record) (*procid.Process, error) {
	dead := fmt.Errorf("opening process %d: %w", r.VMM.PID, procid.ErrDead)
	boot, err := procid.BootID()
	if err != nil {
		return nil, err
	}
	if r.VMM.PID == 0 || r.VMM.BootID != boot {
		return nil, dead
	}
	fd, err := unix.PidfdOpen(r.VMM.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, dead
	}
	if err != nil {
		return nil, fmt.Errorf("opening process %d: %w", r.VMM.PID, err)
	}
	p := procid.Held(r.VMM, os.NewFile(uintptr(fd), "pidfd"))
	now, err := procid.Of(r.VMM.PID)
	if p.Ended() || err == nil && now != r.VMM {
		return nil, errors.Join(dead, p.Close())
	}
	return p, nil
}

// endsOf are the descriptors of a VM, in the order in which a companion has them.
func endsOf(v *rootclient.VM) []*os.File { return []*os.File{v.Pidfd, v.Agent, v.API, v.Console} }

// comesBack is the pause before a helper is asked again that does not answer.
const comesBack = time.Second

// Ends implements keeper.VMMs. The guest's calls reach the new listener from then
// on, so it is asked for only when there is no companion. A helper that is not
// there, as while it is upgraded, is waited for: its VMs are not lost for that.
func (m vmms) Ends(ctx context.Context, r host.Record) ([]*os.File, error) {
	for {
		v, err := m.helper.Adopt(ctx, r.ID)
		refused, _ := errors.AsType[*rootapi.Error](err)
		switch {
		case err == nil && (v.PID != r.VMM.PID || v.StartTime != r.VMM.Start):
			rootapi.CloseAll(endsOf(v))
			return nil, fmt.Errorf("taking over VM %s: process %d runs in the place of %d: %w", r.ID, v.PID, r.VMM.PID, procid.ErrDead)
		case err == nil:
			return endsOf(v), nil
		case refused != nil && refused.Code == rootapi.NotFound:
			return nil, fmt.Errorf("taking over VM %s: %w (%v)", r.ID, procid.ErrDead, err)
		case refused != nil && refused.Code != rootapi.Failed, ctx.Err() != nil:
			return nil, explain("taking over the VMM", err)
		}
		pause, done := context.WithTimeout(ctx, comesBack)
		<-pause.Done()
		done()
	}
}

// End implements keeper.VMMs.
func (m vmms) End(ctx context.Context, r host.Record) error {
	ctx, cancel := context.WithTimeout(ctx, helperLimit)
	defer cancel()
	return explain("ending the VMM", m.helper.Release(ctx, r.ID))
}

// whyLimit is for systemd to have noticed an end.
const whyLimit = 5 * time.Second

// Why implements keeper.VMMs.
func (m vmms) Why(ctx context.Context, r host.Record) string {
	if r.VMM.PID == 0 { // one that nobody knows: what runs is not it
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, whyLimit)
	defer cancel()
	end, known, err := m.helper.Ended(ctx, r.ID)
	if err != nil || !known || end.String() == "" {
		return "" // not known is an answer
	}
	return vmm.Label(m.driver) + " " + end.String()
}

// Census implements keeper.VMMs.
func (m vmms) Census(ctx context.Context) (map[string]int, error) {
	ctx, cancel := context.WithTimeout(ctx, helperLimit)
	defer cancel()
	held, err := m.helper.Census(ctx)
	if err != nil {
		return nil, explain("looking for VMs", err)
	}
	found := map[string]int{}
	for _, v := range held {
		found[v.ID] = 0
		if v.Unit.Running() {
			found[v.ID] = int(v.Unit.PID)
		}
	}
	return found, nil
}

// restart is what to do about a helper that does not answer as it should.
const restart = "sudo banger system restart"

// codes are the helper's in the daemon's words.
var codes = map[rootapi.Code]api.Code{rootapi.Invalid: api.Invalid, rootapi.Denied: api.Denied, rootapi.Exists: api.Conflict,
	rootapi.NotFound: api.NotFound, rootapi.Failed: api.Internal}

// explain puts what the helper says, or why it says nothing, into the daemon's
// words.
func explain(attempt string, err error) error {
	if err == nil {
		return nil
	}
	if refused, ok := errors.AsType[*rootapi.Error](err); ok {
		code, known := codes[refused.Code]
		if !known {
			code = api.Internal
		}
		return &api.Error{Code: code, Msg: attempt + ": the root helper refused: " + refused.Message, Hint: "banger doctor", Err: err}
	}
	switch {
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w", attempt, err)
	case errors.Is(err, context.DeadlineExceeded): // ours: who asks us sets none
		return &api.Error{Code: api.Timeout, Msg: attempt + ": the root helper does not answer in time", Hint: restart, Err: err}
	}
	return &api.Error{Code: api.Missing, Msg: attempt + ": the root helper does not answer", Detail: err.Error(), Hint: restart, Err: err}
}
