package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/answer"
	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/usage"
)

func (a *app) vm() *cobra.Command {
	c := &cobra.Command{
		Use:   "vm",
		Short: "make, enter, stop and delete VMs",
		Long: `VMs are made by "banger vm run" and live until "banger vm delete", unless --rm
says otherwise. Each has a kernel and a disk of its own.

  banger vm run ./repo -- make test    the command you want most of the time
  banger vm list                       what there is
  banger vm ssh NAME                   a shell in one of them
  banger vm exec NAME -- COMMAND       a command there, exit status kept

A VM is named by its name, its id, or the first four or more digits of the id.`,
	}
	c.AddCommand(a.vmRun(), a.vmCreate(), a.vmList("list", "ls"), a.vmShow(), a.vmSSH(), a.vmExec(), a.vmCp(), a.vmForward(), a.vmLogs(),
		a.vmStart(), a.vmStop(), a.vmRestart(), a.vmKill(), a.vmSet(), a.vmDelete(), a.vmPrune())
	return c
}

func (a *app) vmList(use string, aliases ...string) *cobra.Command {
	var quiet, running bool
	c := &cobra.Command{
		Use:     use,
		Aliases: aliases,
		Short:   "list VMs",
		Args:    usage.Args(0, 0, "no arguments"),
		RunE: a.withDaemon(func(ctx context.Context, d *client.Client, _ []string) error {
			ms, err := d.Machines(ctx)
			if err != nil {
				return fmt.Errorf("listing VMs: %w", err)
			}
			if running {
				ms = slices.DeleteFunc(ms, func(m api.Machine) bool { return m.State != api.Running })
			}
			if ms == nil {
				ms = []api.Machine{} // an empty list, not null, in JSON
			}
			return a.print(ms, func(w io.Writer) {
				if quiet {
					for _, m := range ms {
						fmt.Fprintln(w, m.Name)
					}
					return
				}
				a.printer().Machines(w, ms, running)
			})
		}),
	}
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "names only")
	c.Flags().BoolVarP(&running, "running", "r", false, "only VMs that run")
	return c
}

func (a *app) vmShow() *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME",
		Short:             "show what is known of a VM",
		Args:              usage.Args(1, 1, "a VM"),
		ValidArgsFunction: a.complete(machineNames, 1),
		RunE: a.withDaemon(func(ctx context.Context, d *client.Client, given []string) error {
			m, err := d.Machine(ctx, given[0])
			if err != nil {
				return err
			}
			return a.print(m, func(w io.Writer) { answer.Machine(w, m) })
		}),
	}
}

func (a *app) vmStop() *cobra.Command {
	var timeout time.Duration
	c := a.refCommand("stop", "shut VMs down in order; their disks stay", answer.Did("stopped"),
		func(ctx context.Context, d *client.Client, m api.Machine) (api.Machine, error) {
			got, err := d.StopMachine(ctx, m.ID, api.StopMachine{TimeoutSeconds: int(timeout.Seconds())})
			if err == nil && m.State != api.Stopped && got.Reason != "" { // force was needed
				a.note("banger: %s: %s", got.Name, got.Reason)
			}
			return got, err
		})
	c.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long the guest may take before it is killed")
	return c
}

func (a *app) vmKill() *cobra.Command {
	var signal string
	ended := func(m *api.Machine) string {
		if m != nil && m.State == api.Running {
			return "signalled, and still running"
		}
		return "killed"
	}
	c := a.refCommand("kill", "end VMs at once, or send their VMM a signal", ended,
		func(ctx context.Context, d *client.Client, m api.Machine) (api.Machine, error) {
			return d.KillMachine(ctx, m.ID, api.KillMachine{Signal: signal})
		})
	c.Flags().StringVarP(&signal, "signal", "s", "KILL", "one of TERM, KILL, INT, HUP, QUIT, USR1, USR2, ABRT")
	usage.Values(c, "signal", "TERM", "KILL", "INT", "HUP", "QUIT", "USR1", "USR2", "ABRT")
	return c
}

func (a *app) vmDelete() *cobra.Command {
	c := a.refCommand("delete", "delete VMs and their disks, running or not", answer.Did("deleted"),
		func(ctx context.Context, d *client.Client, m api.Machine) (api.Machine, error) {
			return d.DeleteMachine(ctx, m.ID)
		})
	c.Aliases = []string{"rm"}
	return c
}

func (a *app) vmStart() *cobra.Command {
	now := time.Now()
	started := func(m *api.Machine) string {
		if m != nil && m.Started.Before(now) {
			return "runs already"
		}
		return "started"
	}
	return a.bootCommand("start", "boot stopped VMs", started, (*client.Client).StartMachine)
}

func (a *app) vmRestart() *cobra.Command {
	return a.bootCommand("restart", "stop VMs, if they run, and boot them again", answer.Did("restarted"), (*client.Client).RestartMachine)
}

// bootCall is a call that ends when a guest has come as far as asked.
type bootCall func(*client.Client, context.Context, string, api.StartMachine, func(api.Event) error) (api.Machine, error)

func (a *app) bootCommand(use, short string, done answer.Deed, boot bootCall) *cobra.Command {
	wait, several := api.StageSockets, false
	c := a.refCommand(use, short, done, func(ctx context.Context, d *client.Client, m api.Machine) (api.Machine, error) {
		key, err := a.publicKey()
		if err != nil {
			return api.Machine{}, err
		}
		line, name := bootLine{app: a}, m.Name
		if several { // a line each is more than a terminal redraws
			name = ""
		}
		defer line.unwatch()
		return boot(d, ctx, m.ID, api.StartMachine{Wait: wait, AuthorizedKey: key}, func(ev api.Event) error {
			line.watch(ctx, name, ev)
			return nil
		})
	})
	c.PreRun = func(_ *cobra.Command, refs []string) { several = len(refs) > 1 }
	stageFlag(c, &wait)
	return c
}

func (a *app) vmPrune() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "prune",
		Short: "delete all VMs that do not run",
		Args:  usage.Args(0, 0, "no arguments"),
	}
	c.RunE = a.withDaemon(func(ctx context.Context, d *client.Client, _ []string) error {
		all, err := d.Machines(ctx)
		if err != nil {
			return fmt.Errorf("listing VMs: %w", err)
		}
		idle := slices.DeleteFunc(all, func(m api.Machine) bool { return m.State != api.Stopped && m.State != api.Failed })
		if len(idle) == 0 {
			a.note("nothing to delete: no VM is stopped")
			return a.printer().Tell([]answer.Outcome{}, answer.Did("deleted"))
		}
		if !force {
			a.printer().Machines(a.Stderr, idle, false)
			if err := a.confirm(ctx, fmt.Sprintf("delete %s for good, disks included?", answer.Count(len(idle), "VM")), "banger vm prune -f"); err != nil {
				return err
			}
		}
		refs := make([]string, len(idle))
		for i, m := range idle {
			refs[i] = m.ID
		}
		return a.each(ctx, d, refs, answer.Did("deleted"), func(ctx context.Context, m api.Machine) (api.Machine, error) {
			if m.State != api.Stopped && m.State != api.Failed { // somebody has started it meanwhile
				return m, &api.Error{Code: api.Conflict, Msg: fmt.Sprintf("VM %q is %s now and was left alone", m.Name, m.State)}
			}
			return d.DeleteMachine(ctx, m.ID)
		})
	})
	c.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	return c
}
