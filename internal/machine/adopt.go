package machine

import (
	"context"
	"errors"
	"time"

	"banger/internal/api"
	"banger/internal/host"
)

// statusTimeout is how long an adopted companion has to say how things are.
const statusTimeout = 5 * time.Second

// adopt finds a VM again after a restart of the daemon. What takes long, such
// as the rest of a boot, is left to the function that it returns.
func (v *vm) adopt(life context.Context) (then func()) {
	then = func() {}
	clean := context.WithoutCancel(life)
	var err error
	switch r := v.row; {
	case r.State == api.Deleting || !r.Made:
		err = v.remove(clean)
	case r.Record == nil && (r.State == api.Stopped || r.State == api.Failed):
		// Nothing was started, or all was released.
	case r.Record == nil:
		err = v.settle(clean, "the daemon ended while it was starting")
	default:
		then, err = v.adoptRun(life)
	}
	v.log("adopting VM", err)
	if v.row.Untold && v.runs() {
		v.log("telling the host what a VM may reach", v.tellNAT(clean))
	}
	if v.x.cfg.Store.Fresh() && !v.deleted {
		v.log("adopting VM", v.x.cfg.KnownHost(v.row.Name, v.id, v.row.Identity.HostKeyPub))
	}
	if v.row.Autostart && v.row.BootID != v.x.cfg.BootID && !v.deleted {
		resume := then
		then = func() {
			resume()
			v.autostart(life)
		}
	}
	return then
}

// autostart starts a VM because the host was started, whatever it did before
// that. What this daemon cannot finish the next one does.
func (v *vm) autostart(life context.Context) {
	clean := context.WithoutCancel(life)
	v.makeUp(life)
	if v.run == nil && v.row.State == api.Running {
		return // what there was of it could not be released
	}
	reason := v.row.Reason
	if s := v.row.State; s == api.Stopped || s == api.Failed {
		v.x.cfg.Log.Info("starting VM after a start of the host", "vm", v.row.Name)
		err := v.start(clean, life, "", &teller{})
		v.log("starting VM after a start of the host", err)
		if closing(err) {
			return
		}
		if reason = v.row.Reason; err != nil && reason == "" && api.CodeOf(err) != api.Interrupted {
			reason = "it could not be started after a start of the host: " + api.AsError(err).Msg
		}
	}
	if !v.deleted {
		v.log("noting an autostart", v.save(clean, v.row.State, func(r *row) { r.Reason, r.BootID = reason, v.x.cfg.BootID }))
	}
}

// adoptRun takes over the VMM that the row tells of, or says why it has gone.
func (v *vm) adoptRun(life context.Context) (then func(), err error) {
	then = func() {}
	clean := context.WithoutCancel(life)
	run, err := v.x.cfg.Host.Adopt(life, *v.row.Record)
	switch {
	case life.Err() != nil:
		return then, nil
	case err != nil:
		return v.gonePast(life, err)
	}
	v.follow(life, run)
	record := run.Record()
	limited, cancel := context.WithTimeout(life, statusTimeout)
	defer cancel()
	status, err := v.x.cfg.Companion(run.Companion()).Status(limited)
	if err != nil {
		// Its events will tell, or its end will.
		v.x.cfg.Log.Warn("asking an adopted companion", "vm", v.row.Name, "err", err)
	}
	v.stage = status.Stage
	if v.row.Ephemeral && err == nil && !status.LeaseTaken {
		// The request that made it ended with the last daemon.
		return then, v.remove(clean)
	}
	state := v.row.State
	if (state == api.Starting || state == api.Failed) && v.stage.Reached(api.StageAgent) {
		state = api.Running
	}
	if err := v.save(clean, state, func(r *row) {
		r.Record = &record
		if state == api.Running {
			r.Reason = ""
		}
		if r.Started.IsZero() && state == api.Running {
			r.Started = time.Now()
		}
	}); err != nil {
		return then, err
	}
	switch state {
	case api.Starting:
		then = func() { v.log("resuming a boot", v.resume(life)) }
	case api.Stopping:
		then = func() { v.log("resuming a stop", v.stop(clean, life, v.x.cfg.Limits.Stop)) }
	}
	return then, nil
}

// log logs what nobody waits for; the end of the daemon is not worth a line.
func (v *vm) log(doing string, err error) {
	if err != nil && !closing(err) {
		v.x.cfg.Log.Error(doing, "vm", v.row.Name, "err", err)
	}
}

// gonePast notes the end of a VMM that ended while no daemon looked, or that
// cannot be adopted. A boot that follows from it is left to the function that it
// returns.
func (v *vm) gonePast(life context.Context, cause error) (then func(), err error) {
	exit := host.Exit{Reason: "it cannot be taken over: " + cause.Error()}
	if errors.Is(cause, host.ErrGone) {
		exit.Reason = "its VMM ended while the daemon was away"
	}
	if g, ok := errors.AsType[*host.Gone](cause); ok {
		exit = g.Exit
	}
	v.x.cfg.Log.Info("VMM is gone", "vm", v.row.Name, "reason", exit.Reason, "asked", exit.Asked)
	if v.reboots(exit) {
		return func() { v.log("starting VM whose guest rebooted", v.over(life, exit)) }, nil
	}
	return func() {}, v.over(life, exit)
}

// resume waits for the rest of a boot that an earlier daemon began; one that
// stays silent is tried anew, but not for a lease that nobody would take again.
func (v *vm) resume(life context.Context) error {
	clean := context.WithoutCancel(life)
	ctx, over := v.haltable(clean, life, stopping)
	err := v.awaitAgent(ctx, life, &teller{})
	over()
	if _, silent := errors.AsType[*silence](err); silent && !v.row.Ephemeral {
		return v.start(clean, life, "", &teller{})
	}
	if err != nil && !closing(err) && v.row.State == api.Starting {
		return errors.Join(err, v.settle(clean, ""))
	}
	return err
}

// onLost is called when the companion has gone but perhaps not the VMM: then a
// new companion takes over, and what hung on the old one's lease has ended.
func (v *vm) onLost(life context.Context, cause error) {
	v.waitEnd(life)
	select {
	case <-life.Done():
		return
	case <-v.ended():
		v.onExit(life)
		return
	default:
	}
	v.x.cfg.Log.Warn("companion is lost", "vm", v.row.Name, "err", cause)
	if v.row.Ephemeral || v.row.State == api.Deleting {
		v.log("deleting a VM that has lost its companion", v.remove(context.WithoutCancel(life)))
		return
	}
	then, err := v.adoptRun(life)
	v.log("replacing a companion", err)
	then()
}
