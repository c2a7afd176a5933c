package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/crash"
	"banger/internal/disk"
	"banger/internal/host"
	"banger/internal/machine/rows"
	"banger/internal/printable"
)

const (
	// attempts is how often a boot is tried: one in some hundreds hangs in
	// emulation on a busy host, and the second does not.
	attempts = 2
	// tailBytes and tailLines are how much of the console an error shows.
	tailBytes, tailLines = 8 << 10, 12
	// grace is how long the VMM's end may come after the companion's.
	grace = time.Second
)

// Start boots a VM; events as for [Index.Create]. For a running VM it only
// waits for the stage asked for. If ctx ends before the agent has called home,
// the VM is stopped again.
func (x *Index) Start(ctx context.Context, ref string, req api.StartMachine, emit func(api.Event)) error {
	return x.bring(ctx, ref, req, emit, func(v *vm, life context.Context, t *teller) error {
		if v.row.State == api.Running {
			return nil
		}
		return v.start(ctx, life, req.AuthorizedKey, t)
	})
}

// Restart stops a VM in an orderly way, if it runs, and starts it. An
// ephemeral VM cannot be restarted: its lease ends with its VMM.
func (x *Index) Restart(ctx context.Context, ref string, req api.StartMachine, emit func(api.Event)) error {
	return x.bring(ctx, ref, req, emit, func(v *vm, life context.Context, t *teller) error {
		if v.row.Ephemeral {
			return &api.Error{Code: api.Conflict, Msg: fmt.Sprintf("VM %q is deleted when it stops (--rm): it cannot be restarted", v.row.Name)}
		}
		t.phase("stop")
		if err := v.stop(context.WithoutCancel(ctx), life, x.cfg.Limits.Stop); err != nil {
			return err
		}
		return v.start(ctx, life, req.AuthorizedKey, t)
	})
}

// bring runs a starting operation and waits for the stage asked for.
func (x *Index) bring(ctx context.Context, ref string, req api.StartMachine, emit func(api.Event),
	do func(v *vm, life context.Context, t *teller) error) error {
	want, err := stageOf(req.Wait)
	if err != nil {
		return err
	}
	v, err := x.find(ref)
	if err != nil {
		return err
	}
	t := &teller{emit: emit}
	err = v.ask(ctx, patient, func(life context.Context) error { return do(v, life, t) })
	if err != nil {
		return err
	}
	if err := v.awaitStage(ctx, want, t); err != nil {
		return err
	}
	t.machine(api.EventResult, v)
	return nil
}

// stageOf is the stage to wait for: sockets unless another is asked for.
func stageOf(s api.Stage) (api.Stage, error) {
	if s == api.StageNone {
		return api.StageSockets, nil
	}
	if !s.Valid() {
		return s, &api.Error{Code: api.Invalid, Msg: fmt.Sprintf("no stage %q to wait for", string(s)), Hint: "use --wait agent, --wait sockets or --wait boot"}
	}
	return s, nil
}

// start is a boot that was asked for; if it does not come to pass, the VM is
// as stopped as before.
func (v *vm) start(ctx, life context.Context, userKey string, t *teller) error {
	if v.run != nil || v.row.Record != nil { // of a failed boot
		if err := v.x.cfg.Host.Release(ctx, v.id); err != nil {
			return fmt.Errorf("releasing the last boot of VM %q: %w", v.row.Name, err)
		}
		v.unfollow()
	}
	v.stage = api.StageNone // how far the last boot came, if the guest asked for this one
	address, err := v.x.table.Lease(v.id)
	if err != nil {
		return err
	}
	err = v.save(ctx, api.Starting, func(r *row) {
		r.Reason, r.Record = "", nil
		r.Address, r.Untold = address, false // the launch tells
		if userKey != "" {
			r.UserKey = userKey
		}
	})
	if err != nil {
		return err
	}
	crash.Point("start.row")
	err = v.boot(ctx, life, t)
	if err != nil && v.row.State == api.Starting && !closing(err) {
		return errors.Join(err, v.settle(context.WithoutCancel(ctx), ""))
	}
	return err
}

// boot brings a VM in state starting to running, or to failed. After any other
// error it is still starting and there may be a VMM: the caller settles that,
// unless the error is that of the daemon's end.
func (v *vm) boot(ctx, life context.Context, t *teller) error {
	ctx, over := v.haltable(ctx, life, stopping)
	defer over()
	for attempt := 1; ; attempt++ {
		err := v.attempt(ctx, life, attempt, t)
		silent, ok := errors.AsType[*silence](err)
		switch {
		case !ok:
			return err
		case attempt == attempts:
			return v.fail(context.WithoutCancel(ctx), silent)
		}
		v.x.cfg.Log.Warn("boot did not come up, trying once more", "vm", v.row.Name, "err", err)
		t.notice(err.Error() + "; trying once more")
		crash.Point("boot.retry")
		if err := v.x.cfg.Host.Release(context.WithoutCancel(ctx), v.id); err != nil {
			return fmt.Errorf("releasing the first boot of VM %q: %w", v.row.Name, err)
		}
		v.unfollow()
	}
}

// A silence is a boot that did not call home.
type silence struct {
	name, why string
	ended     bool // the VMM did
}

func (s *silence) Error() string { return fmt.Sprintf("VM %q %s", s.name, s.why) }

// attempt launches the VM once, when it is its turn, and waits for the agent.
func (v *vm) attempt(ctx, life context.Context, n int, t *teller) error {
	v.stage = api.StageNone
	defer v.x.turns.Take(ctx, func() { t.phase("queue") })()
	t.phase("launch")
	run, err := v.launch(ctx, t)
	if ctx.Err() != nil && err != nil {
		return interrupted(ctx, fmt.Sprintf("starting VM %q", v.row.Name))
	}
	if err != nil {
		return fmt.Errorf("starting VM %q: %w", v.row.Name, err)
	}
	crash.Point("boot.launched")
	record := run.Record()
	v.follow(life, run)
	err = v.save(context.WithoutCancel(ctx), api.Starting, func(r *row) { r.Record = &record })
	if err != nil {
		return err
	}
	crash.Point("boot.recorded")
	t.attempt = n
	t.machine(api.EventStarted, v)
	t.phase("guest")
	// The guest's kernel starts meanwhile: the copy costs no time.
	if err := v.copyRow(); err != nil {
		v.x.cfg.Log.Error("writing copy of row", "vm", v.row.Name, "err", err)
	}
	return v.awaitAgent(ctx, life, t)
}

// launch opens everything the VM boots from and starts its VMM.
func (v *vm) launch(ctx context.Context, t *teller) (_ host.Run, err error) {
	from, err := v.x.cfg.Images.Open(ctx, v.row.Origin)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	own, err := disk.Open(v.path(rows.DiskName))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, own.Close()) }()
	crash.Point("boot.opened")
	spec := host.Spec{
		ID: v.id, Name: v.row.Name,
		VCPUs: v.row.Spec.VCPUs, MemoryMiB: v.row.Spec.MemoryMiB,
		Kernel: from.Kernel, KernelConfig: from.KernelConfig, Initramfs: from.Initramfs,
		Disks:       append(from.Disks[:len(from.Disks):len(from.Disks)], host.Disk{File: own, Serial: from.Serial}),
		Lease:       v.row.Ephemeral,
		ConsolePath: v.path(rows.ConsoleName),
	}
	v.row.Introduce(&spec, v.x.cfg.Net, time.Now())
	if n := spec.Identity.Net; n != nil && v.row.NAT && len(n.DNS) == 0 {
		t.notice("this host asks no name server that a guest could ask too: it will find no names until default_dns is set in the configuration")
	}
	return v.x.cfg.Host.Launch(ctx, spec)
}

// awaitAgent waits until the agent calls home and notes that the VM runs.
func (v *vm) awaitAgent(ctx, life context.Context, t *teller) error {
	limit := v.x.limits(v.row.Record.Driver).Agent
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for !v.stage.Reached(api.StageAgent) {
		select {
		case e := <-v.watch.events:
			v.note(life, e)
			if e.Type == companionapi.EventProblem {
				t.notice(printable.Line(e.Text, 200))
			}
		case <-v.run.Done():
			end := &silence{v.row.Name, "ended before its guest called home: " + v.run.Exit().Reason, true}
			if v.run.Exit().Asked { // whoever held its lease has gone, or had it killed
				return &api.Error{Code: api.Interrupted, Msg: end.Error()}
			}
			return end
		case err := <-v.watch.lost:
			if !v.waitEnd(ctx) { // else Done has the better reason
				return &silence{v.row.Name, "lost its companion before its guest called home: " + err.Error(), true}
			}
		case <-timer.C:
			return &silence{v.row.Name, fmt.Sprintf("did not call home within %v", limit), false}
		case <-ctx.Done():
			return interrupted(ctx, fmt.Sprintf("starting VM %q", v.row.Name))
		}
	}
	crash.Point("boot.called")
	err := v.save(context.WithoutCancel(ctx), api.Running, func(r *row) { r.Started = time.Now() })
	if err == nil {
		crash.Point("boot.running")
	}
	return err
}

// waitEnd gives the VMM a moment to end, and reports whether it has.
func (v *vm) waitEnd(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	select {
	case <-v.run.Done():
		return true
	case <-ctx.Done():
		return false
	}
}

// fail notes that the last attempt was in vain. Its VMM, if it still runs, is
// left for vm logs, and a VM that was to be deleted with its lease is kept.
func (v *vm) fail(ctx context.Context, s *silence) error {
	e := &api.Error{
		Code:   api.Timeout,
		Msg:    fmt.Sprintf("%v, in %d attempts (stage reached: none)", s, attempts),
		Hint:   "see its console with: banger vm logs " + v.row.Name,
		Detail: v.consoleTail(),
	}
	var err error
	if s.ended {
		e.Code = api.GuestLost
		err = v.x.cfg.Host.Release(ctx, v.id)
		v.unfollow()
	}
	err = errors.Join(err, v.save(ctx, api.Failed, func(r *row) {
		r.Reason, r.Ephemeral = s.why, false
		if s.ended {
			r.Record = nil
		}
	}))
	if err != nil {
		return errors.Join(e, err)
	}
	crash.Point("boot.failed")
	return e
}

// consoleTail is the end of the console, made harmless; "" if there is none.
func (v *vm) consoleTail() string {
	f, err := os.Open(v.path(rows.ConsoleName))
	if err != nil {
		return ""
	}
	defer f.Close()
	if fi, err := f.Stat(); err == nil && fi.Size() > tailBytes {
		_, _ = f.Seek(-tailBytes, io.SeekEnd) // a file can be sought in
	}
	b, err := io.ReadAll(io.LimitReader(f, tailBytes))
	if err != nil {
		return ""
	}
	return printable.LastLines(b, tailLines)
}

// awaitStage waits, outside the owner's goroutine, until a running VM has
// reached a stage, and tells each that it reaches.
func (v *vm) awaitStage(ctx context.Context, want api.Stage, t *teller) error {
	p, changed := v.lookAndWait()
	driver := ""
	if p.row.Record != nil {
		driver = p.row.Record.Driver
	}
	limit := v.x.limits(driver).Stage
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		t.stages(p.stage)
		switch {
		case p.row.State != api.Running:
			return v.stoppedWaiting(p)
		case p.stage.Reached(want):
			return nil
		}
		select {
		case <-changed:
			p, changed = v.lookAndWait()
		case <-ctx.Done():
			return interrupted(ctx, fmt.Sprintf("waiting for VM %q", p.row.Name))
		case <-timer.C:
			return &api.Error{
				Code:   api.Timeout,
				Msg:    fmt.Sprintf("VM %q has reached stage %s, but not %s within %v", p.row.Name, p.stage, want, limit),
				Hint:   "see its console with: banger vm logs " + p.row.Name,
				Detail: v.consoleTail(),
			}
		}
	}
}

// stoppedWaiting is the error for who waits for a stage of a VM that has ended.
func (v *vm) stoppedWaiting(p published) error {
	e := &api.Error{Code: api.GuestLost, Msg: fmt.Sprintf("VM %q ended before it was ready", p.row.Name), Hint: "see its console with: banger vm logs " + p.row.Name}
	if p.row.Reason != "" {
		e.Msg += ": " + p.row.Reason
	}
	if p.row.Ephemeral { // and goes, with its console
		e.Hint, e.Detail = "", v.consoleTail()
	}
	return e
}
