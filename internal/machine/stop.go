package machine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"banger/internal/api"
	"banger/internal/crash"
	"banger/internal/host"
)

const (
	// stopSlack is what an orderly stop may take beyond the guest's time, until
	// the companion is taken for dead.
	stopSlack = 15 * time.Second
	// killTimeout is how long a VMM has to end after a signal that ends it.
	killTimeout = 5 * time.Second
)

// Stop shuts a VM down, by force after the request's time. It cancels a start
// that is under way. Stopping a stopped VM succeeds.
func (x *Index) Stop(ctx context.Context, ref string, req api.StopMachine) (api.Machine, error) {
	if req.TimeoutSeconds < 0 || req.TimeoutSeconds > 24*3600 {
		return api.Machine{}, &api.Error{
			Code: api.Invalid,
			Msg:  fmt.Sprintf("timeout of %d seconds is not between 0 and a day", req.TimeoutSeconds),
			Hint: "use for example: --timeout 30s",
		}
	}
	timeout := time.Duration(req.TimeoutSeconds) * time.Second
	if timeout == 0 {
		timeout = x.cfg.Limits.Stop
	}
	v, err := x.find(ref)
	if err != nil {
		return api.Machine{}, err
	}
	err = v.ask(ctx, stopping, func(life context.Context) error {
		return v.stop(context.WithoutCancel(ctx), life, timeout)
	})
	return v.machine(), err
}

// stop is Stop in the owner's goroutine; ctx must not end.
func (v *vm) stop(ctx, life context.Context, timeout time.Duration) error {
	switch {
	case v.row.State == api.Stopped:
		return nil
	case v.row.State == api.Failed || v.run == nil:
		return v.settle(ctx, "")
	}
	if err := v.save(ctx, api.Stopping, nil); err != nil {
		return err
	}
	crash.Point("stop.row")
	reason, err := v.shutDown(ctx, life, timeout)
	if err != nil {
		return err
	}
	crash.Point("stop.ended")
	return v.settle(ctx, reason)
}

// shutDown asks the guest to end, through the companion. The reason is a word
// about force, if that is needed. An error means that the daemon ends and the
// VM is left as it is.
func (v *vm) shutDown(ctx, life context.Context, timeout time.Duration) (reason string, err error) {
	ctx, over := v.haltable(ctx, life, ending)
	defer over()
	limited, cancel := context.WithTimeout(ctx, timeout+stopSlack)
	defer cancel()
	killed, err := v.x.cfg.Companion(v.run.Companion()).Stop(limited, timeout)
	switch {
	case closing(context.Cause(ctx)):
		return "", errClosing
	case err != nil && ctx.Err() == nil:
		v.x.cfg.Log.Warn("stopping in an orderly way", "vm", v.row.Name, "err", err)
		return "it was ended by force: " + api.AsError(err).Msg, nil
	case killed:
		return fmt.Sprintf("it did not shut down within %v and was killed", timeout), nil
	}
	return "", nil
}

// settle releases whatever there is of a VMM and brings the VM to stopped, or
// removes it if it is ephemeral.
func (v *vm) settle(ctx context.Context, reason string) error {
	if err := v.x.cfg.Host.Release(ctx, v.id); err != nil {
		return fmt.Errorf("releasing VM %q: %w", v.row.Name, err)
	}
	crash.Point("settle.released")
	v.unfollow()
	v.stage = api.StageNone
	if v.row.Reason = reason; v.row.Ephemeral {
		return v.remove(ctx)
	}
	err := v.save(ctx, api.Stopped, func(r *row) { r.Reason, r.Record = reason, nil })
	if err != nil {
		v.publish() // what is true at least: there is no companion
		v.unsettled = reason
		return err
	}
	crash.Point("settle.done")
	return nil
}

// makeUp settles a VM whose VMM has ended when the end could not be noted, on a
// full disk for example, and tells the host what it could not be told. The
// operation that comes next sees to it.
func (v *vm) makeUp(life context.Context) {
	if v.run == nil && (v.row.State == api.Running || v.row.State == api.Stopping) {
		v.log("noting the end of a VMM", v.settle(context.WithoutCancel(life), v.unsettled))
	}
	if v.row.Untold && v.runs() {
		v.log("telling the host what a VM may reach", v.tellNAT(context.WithoutCancel(life)))
	}
}

// signals are those that may be sent to a VMM.
func signals() map[string]syscall.Signal {
	return map[string]syscall.Signal{
		"TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL, "INT": syscall.SIGINT, "HUP": syscall.SIGHUP,
		"QUIT": syscall.SIGQUIT, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2, "ABRT": syscall.SIGABRT,
	}
}

// Kill sends a signal to a VM's VMM: TERM, KILL, INT, HUP, QUIT, USR1, USR2 or
// ABRT, with or without SIG. A VM without a VMM is killed already.
func (x *Index) Kill(ctx context.Context, ref string, req api.KillMachine) (api.Machine, error) {
	name := strings.TrimPrefix(strings.ToUpper(req.Signal), "SIG")
	if name == "" {
		name = "KILL"
	}
	sig, ok := signals()[name]
	if !ok {
		return api.Machine{}, &api.Error{
			Code: api.Invalid,
			Msg:  fmt.Sprintf("signal %.40q cannot be sent to a VM", req.Signal),
			Hint: "use TERM, KILL, INT, HUP, QUIT, USR1, USR2 or ABRT",
		}
	}
	v, err := x.find(ref)
	if err != nil {
		return api.Machine{}, err
	}
	err = v.ask(ctx, ending, func(context.Context) error { return v.kill(context.WithoutCancel(ctx), sig) })
	return v.machine(), err
}

// kill is Kill in the owner's goroutine; ctx must not end.
func (v *vm) kill(ctx context.Context, sig syscall.Signal) error {
	if v.run == nil {
		if v.row.State == api.Stopped {
			return nil
		}
		return v.settle(ctx, "")
	}
	limited, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	err := v.x.cfg.Companion(v.run.Companion()).Kill(limited, sig)
	crash.Point("kill.sent")
	if err == nil {
		// Most signals end a VMM; one that goes on is not an error.
		select {
		case <-v.run.Done():
		case <-limited.Done():
		}
	}
	select {
	case <-v.run.Done():
		return v.settle(ctx, "")
	default:
	}
	if sig == syscall.SIGKILL {
		return v.settle(ctx, "") // what the companion cannot, Release can
	}
	if err != nil {
		return fmt.Errorf("sending signal to VM %q: %w", v.row.Name, err)
	}
	return nil
}

// onExit is called when the VMM has ended although no operation of ours was
// under way.
func (v *vm) onExit(life context.Context) {
	exit := v.run.Exit()
	v.x.cfg.Log.Info("VMM has ended", "vm", v.row.Name, "reason", exit.Reason, "asked", exit.Asked)
	v.log("after the end of a VMM", v.over(life, exit))
}

// over brings a VM whose VMM has ended to where that leads.
func (v *vm) over(life context.Context, exit host.Exit) error {
	clean := context.WithoutCancel(life)
	reason := exit.Reason
	if exit.Asked {
		reason = ""
	}
	switch {
	case v.row.State == api.Failed:
		err := v.x.cfg.Host.Release(clean, v.id)
		v.unfollow()
		return errors.Join(err, v.save(clean, api.Failed, func(r *row) { r.Record = nil }))
	case v.reboots(exit):
		return v.start(clean, life, "", &teller{})
	case v.row.State == api.Stopped && v.row.Reason != "":
		reason = v.row.Reason // an older reason is the better one
	}
	return v.settle(clean, reason)
}

// reboots reports whether a VM whose VMM has ended so is started again.
func (v *vm) reboots(exit host.Exit) bool {
	return exit.Reboot && v.row.State == api.Running && !v.row.Ephemeral
}
