package cli

import (
	"cmp"
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/session"
	"banger/internal/sshconf"
	"banger/internal/usage"
)

func (a *app) vmSSH() *cobra.Command {
	c := &cobra.Command{
		Use:   "ssh NAME [-- COMMAND...]",
		Short: "a shell in a running VM, or a command through its login shell",
		Long: `ssh runs OpenSSH to the VM through banger's own channel, so it needs no network;
the host key is known before the first connection. With a command, the guest's
login shell interprets it, as ssh does: "banger vm exec" passes arguments as
they are.

  banger vm ssh web
  banger vm ssh web -- 'ls /srv | wc -l'`,
		Args: func(cmd *cobra.Command, given []string) error {
			if positional, _ := usage.Split(cmd, given); len(positional) > 1 {
				return usage.Error("banger vm ssh "+positional[0]+" -- "+strings.Join(positional[1:], " "), "vm ssh needs -- before a command")
			}
			return usage.Args(1, 1, "a VM")(cmd, given)
		},
		ValidArgsFunction: a.complete(runningNames, 1),
	}
	c.RunE = a.withDaemon(func(ctx context.Context, d *client.Client, given []string) error {
		positional, command := usage.Split(c, given)
		if a.json {
			return usage.Error("banger --json vm exec "+positional[0]+" -- COMMAND", "vm ssh has no JSON: what ssh prints goes where it goes")
		}
		m, err := a.runningOf(ctx, d, positional[0])
		if err != nil {
			return err
		}
		l, err := a.login(m, command)
		if err != nil {
			return err
		}
		err = status(a.session(m).SSH(ctx, l))
		if len(command) == 0 {
			a.reminder(ctx, d, m, err)
		}
		return err
	})
	return c
}

// login is what OpenSSH needs to enter a VM, in its workspace if it has one.
func (a *app) login(m api.Machine, command []string) (session.Login, error) {
	program, err := session.OpenSSH()
	if err != nil {
		return session.Login{}, err
	}
	key, err := a.keyPath()
	if err != nil {
		return session.Login{}, err
	}
	l := session.Login{Program: program, Self: a.Self, Key: key, KnownHosts: a.layout.KnownHosts, Command: command}
	if m.Workspace != nil {
		l.Dir = m.Workspace.GuestPath
	}
	return l, nil
}

// reminder says after a session, which ended like that, that the VM is still
// there. Who has powered it off in the session is told as much as is known.
func (a *app) reminder(ctx context.Context, d *client.Client, m api.Machine, ended error) {
	still := "is still running"
	if g, ok := errors.AsType[*guestExit](ended); ok && g.Code == session.ConnectionLost {
		still = "was still running when the connection ended"
	}
	now, err := d.Machine(context.WithoutCancel(ctx), m.ID)
	switch {
	case err != nil:
		return // there is nothing to remind of
	case now.State == api.Running:
		a.dim("%[1]s %[2]s\n  go back in:  banger vm ssh %[1]s\n  stop it:     banger vm stop %[1]s\n  delete it:   banger vm delete %[1]s", m.Name, still)
	default:
		a.dim("%[1]s is %[2]s\n  start it:    banger vm start %[1]s\n  delete it:   banger vm delete %[1]s", m.Name, now.State)
	}
}

// publicKey is the line that opens VMs; the key is made if it is missing.
func (a *app) publicKey() (string, error) {
	key, err := a.keyPath()
	if err != nil {
		return "", err
	}
	return sshconf.EnsureKey(key, a.config.SSHKeyPath != "")
}

func (a *app) keyPath() (string, error) {
	if err := a.load(); err != nil {
		return "", err
	}
	return cmp.Or(a.config.SSHKeyPath, a.layout.Key), nil
}

// internal holds what other programs call, such as ssh's ProxyCommand.
func (a *app) internal() *cobra.Command {
	c := &cobra.Command{Use: "internal", Short: "for banger's own use", Hidden: true}
	var socket string
	proxy := &cobra.Command{
		Use:   "ssh-proxy [HOST]",
		Short: "connect stdin and stdout to a VM's ssh server",
		Args:  usage.Args(0, 1, "a host"),
		RunE: func(cmd *cobra.Command, given []string) error {
			ctx := cmd.Context()
			if socket == "" {
				if len(given) == 0 {
					return usage.Error("banger ssh-config", "ssh-proxy needs a host")
				}
				m, err := a.running(ctx, strings.TrimSuffix(given[0], ".vm"))
				if err != nil {
					return err
				}
				socket = m.Companion
			}
			s := a.session(api.Machine{Companion: socket})
			return s.Proxy(ctx)
		},
	}
	proxy.Flags().StringVar(&socket, "socket", "", "the companion's socket")
	c.AddCommand(proxy)
	return c
}
