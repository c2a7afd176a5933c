package cli

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/agentapi"
	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/session"
	"banger/internal/usage"
)

func exitOnly(code int) agentapi.Exit { return agentapi.Exit{Code: code} }

func (a *app) vmExec() *cobra.Command {
	var spec session.Command
	var tty bool
	c := &cobra.Command{
		Use:   "exec NAME [flags] -- COMMAND...",
		Short: "run a command in a running VM, exit with its status",
		Long: `exec runs a command in a VM: arguments arrive as they are, stdin, stdout and
stderr are connected, and the exit status is the command's own (128+n for signal
n; 125 if banger failed, 126 and 127 if the command could not be run or found).

It runs as root in the VM's workspace, or in /root if it has none.

  banger vm exec web -- systemctl status docker
  banger vm exec web -- sh -c 'ls /srv | wc -l'
  git diff | banger vm exec web -- git apply`,
		ValidArgsFunction: a.complete(runningNames, 1),
		Args: func(cmd *cobra.Command, given []string) error {
			positional, command := usage.Split(cmd, given)
			if len(positional) == 1 && len(command) > 0 {
				return nil
			}
			hint := []string{"NAME", "--", "COMMAND"}
			switch len(positional) {
			case 0:
			case 1:
				hint[0] = positional[0]
			default:
				hint = append([]string{positional[0], "--"}, positional[1:]...)
			}
			return usage.Error("banger vm exec "+strings.Join(hint, " "), "vm exec needs a VM, then --, then the command")
		},
		RunE: func(cmd *cobra.Command, given []string) error {
			positional, command := usage.Split(cmd, given)
			spec.Argv = command
			var wantTTY *bool
			if cmd.Flags().Changed("tty") {
				wantTTY = &tty
			}
			m, err := a.running(cmd.Context(), positional[0])
			if err != nil {
				return err
			}
			if spec.Dir == "" && m.Workspace != nil && spec.User == "" {
				spec.Dir = m.Workspace.GuestPath
			}
			return a.command(cmd.Context(), m, spec, wantTTY)
		},
	}
	c.Flags().StringArrayVarP(&spec.Env, "env", "e", nil, "set NAME=VALUE, or pass NAME on from here")
	c.Flags().StringVarP(&spec.Dir, "workdir", "w", "", "directory to run in (default: the workspace, or the home of the user)")
	c.Flags().StringVarP(&spec.User, "user", "u", "", "run as this user of the guest, a name or uid[:gid]")
	c.Flags().BoolVarP(&tty, "tty", "t", false, "a terminal for the command (default: if stdin and stdout are terminals)")
	c.PreRunE = func(*cobra.Command, []string) (err error) {
		spec.Env, err = a.passEnv(spec.Env)
		return err
	}
	return c
}

// passEnv completes --env NAME with the value it has here; what has none here
// has none there.
func (a *app) passEnv(env []string) (out []string, err error) {
	for _, e := range env {
		name, _, set := strings.Cut(e, "=")
		if name == "" {
			return nil, usage.Error("banger vm exec NAME --env KEY=VALUE -- COMMAND", "--env: %q has no name", e)
		}
		if !set {
			if e = a.Getenv(name); e == "" {
				continue
			}
			e = name + "=" + e
		}
		out = append(out, e)
	}
	return out, nil
}

// running finds a VM that must be running.
func (a *app) running(ctx context.Context, ref string) (api.Machine, error) {
	d, err := a.dial(ctx)
	if err != nil {
		return api.Machine{}, err
	}
	defer d.Close()
	return a.runningOf(ctx, d, ref)
}

func (a *app) runningOf(ctx context.Context, d *client.Client, ref string) (api.Machine, error) {
	m, err := d.Machine(ctx, ref)
	if err != nil {
		return m, err
	}
	switch m.State {
	case api.Running, api.Starting, api.Stopping:
		if m.Companion != "" {
			return m, nil // the companion waits for the agent, or says why not
		}
	case api.Failed:
		return m, &api.Error{Code: api.Conflict, Msg: fmt.Sprintf("VM %q %s", m.Name, cmp.Or(m.Reason, "did not boot")), Hint: "banger vm logs " + m.Name}
	}
	msg := fmt.Sprintf("VM %q is %s", m.Name, m.State)
	if m.Reason != "" {
		msg += ": " + m.Reason
	}
	hint := "banger vm start " + m.Name
	if m.State == api.Deleting {
		hint = "banger vm list"
	}
	return m, &api.Error{Code: api.Conflict, Msg: msg, Hint: hint}
}
