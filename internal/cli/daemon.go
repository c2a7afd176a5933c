package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/answer"
	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/systemcmd"
	"banger/internal/usage"
	"banger/internal/version"
)

func (a *app) daemon() *cobra.Command {
	c := &cobra.Command{
		Use:   "daemon",
		Short: "look at the owner daemon, restart or stop it",
		Long: `The owner daemon keeps all state. Any command that needs it starts it; VMs go on
without it, and a restart interrupts no command in them.

  banger daemon status     is there one, which, with how many VMs
  banger daemon restart    after an upgrade, or a change of the configuration

In system mode systemd starts it, and "sudo banger system restart" restarts it.`,
	}
	c.AddCommand(a.daemonStatus(), a.daemonRestart(), a.daemonStop(), a.daemonLogs(), a.daemonCensus())
	return c
}

// daemonStatusReply is the JSON of `daemon status`.
type daemonStatusReply struct {
	Running bool       `json:"running"`
	Daemon  *api.Hello `json:"daemon,omitempty"`
}

func (a *app) daemonStatus() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "whether the daemon runs, and what it is",
		Args:  usage.Args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := a.existing(cmd.Context())
			if errors.Is(err, client.ErrNotRunning) {
				return a.print(daemonStatusReply{}, func(w io.Writer) {
					if a.layout.System {
						fmt.Fprintln(w, "not running; start it with: sudo banger system restart")
						return
					}
					fmt.Fprintln(w, "not running; any command that needs it starts it")
				})
			}
			if err != nil {
				return err
			}
			defer d.Close()
			h := d.Greeting()
			return a.print(daemonStatusReply{Running: true, Daemon: &h}, func(w io.Writer) {
				driver := h.Driver
				if h.DriverWhy != "" {
					driver += ": " + h.DriverWhy
				}
				fmt.Fprintf(w, "running   pid %d, %s\nversion   %s\nsocket    %s\nlog       %s\nstate     %s\ndriver    %s\nVMs       %d, %d running\n",
					h.PID, "since "+h.Started.Local().Format(time.RFC3339), h.Version, h.Socket, h.Log, h.State, driver, h.Machines, h.Running)
				if n := h.Network; n != nil && n.Problem != nil {
					fmt.Fprintf(w, "names     %s\n          fix: %s\n", n.Problem.Msg, n.Problem.Hint)
				} else if n != nil {
					fmt.Fprintf(w, "names     of .%s, at %s\n", n.Zone, n.DNS)
				}
				if v := version.Get().String(); v != h.Version {
					hint := "banger daemon restart"
					if a.layout.System {
						hint = "sudo banger system install"
					}
					a.note("banger: this banger is %s, another build\nbanger: hint: %s", v, hint)
				}
			})
		},
	}
}

// existing connects to a daemon that runs, of whatever version.
func (a *app) existing(ctx context.Context) (*client.Client, error) {
	if err := a.load(); err != nil {
		return nil, err
	}
	return client.Connect(ctx, client.Options{Layout: a.layout, AnyVersion: true})
}

// end stops the daemon if it runs, unless that is systemd's business.
func (a *app) end(ctx context.Context) (ran bool, err error) {
	if err := a.load(); err != nil {
		return false, err
	}
	if a.layout.System {
		return false, &api.Error{Code: api.Conflict, Msg: "in system mode systemd runs the daemon, and starts it anew when it ends", Hint: "sudo banger system restart; to stop it: sudo systemctl stop bangerd.service"}
	}
	d, err := a.existing(ctx)
	if errors.Is(err, client.ErrNotRunning) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer d.Close()
	if err := d.Shutdown(ctx); err != nil {
		return true, fmt.Errorf("stopping the daemon: %w", err)
	}
	return true, nil
}

func (a *app) daemonStop() *cobra.Command {
	return &cobra.Command{
		Use:   "stop",
		Short: "stop the daemon; VMs go on",
		Args:  usage.Args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ran, err := a.end(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(map[string]bool{"stopped": ran}, func(w io.Writer) {
				if ran {
					fmt.Fprintln(w, "stopped; running VMs go on")
				} else {
					fmt.Fprintln(w, "not running")
				}
			})
		},
	}
}

func (a *app) daemonRestart() *cobra.Command {
	return &cobra.Command{
		Use:   "restart",
		Short: "stop the daemon and start it again; VMs go on",
		Args:  usage.Args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := a.end(cmd.Context()); err != nil {
				return err
			}
			d, err := a.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer d.Close()
			h := d.Greeting()
			return a.print(h, func(w io.Writer) { fmt.Fprintf(w, "running   pid %d\n", h.PID) })
		},
	}
}

func (a *app) daemonLogs() *cobra.Command {
	return &cobra.Command{
		Use:   "logs",
		Short: "print the daemon's log",
		Args:  usage.Args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.load(); err != nil {
				return err
			}
			if a.layout.System { // its log is the journal
				text, err := systemcmd.Journal(cmd.Context())
				if err != nil {
					return err
				}
				return a.print(answer.Log{File: "journal", Text: text}, func(w io.Writer) { fmt.Fprint(w, text) })
			}
			f, err := os.Open(a.layout.Log)
			if errors.Is(err, os.ErrNotExist) && !a.json {
				a.note("banger: there is no log yet: %s", a.layout.Log)
				return nil
			}
			if err != nil {
				return err
			}
			defer f.Close()
			if a.json {
				text, err := io.ReadAll(f)
				return errors.Join(err, a.print(answer.Log{File: a.layout.Log, Text: string(text)}, nil))
			}
			_, err = io.Copy(a.Stdout, f)
			return err
		},
	}
}

func (a *app) daemonCensus() *cobra.Command {
	return &cobra.Command{
		Use:    "census",
		Short:  "what there is of banger's on this host, and what no VM explains",
		Hidden: true,
		Args:   usage.Args(0, 0, "no arguments"),
		RunE: a.withDaemon(func(ctx context.Context, d *client.Client, _ []string) error {
			c, err := d.Census(ctx)
			if err != nil {
				return err
			}
			return a.print(c, func(w io.Writer) {
				fmt.Fprintf(w, "VMs %d, running %d, VMM processes %d, companions %d, disks %d, runtime directories %d, half-made %d\n",
					c.Machines, c.Running, len(c.VMMs), len(c.Companions), len(c.Disks), len(c.RunDirs), len(c.Staging))
				for _, l := range c.Leaks {
					fmt.Fprintf(w, "leak: %s\n", l)
				}
			})
		}),
	}
}
