// Package systemcmd is the commands below `banger system`: flags in, one call of
// package install, text or JSON out.
//
// It is apart from package cli, which has all commands of daily work, because
// these run as root, once in a while, and speak to no daemon.
package systemcmd

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/answer"
	"banger/internal/api"
	"banger/internal/install"
	"banger/internal/install/choice"
	"banger/internal/install/systemctl"
	"banger/internal/usage"
)

// Env is what the commands need of the program that they belong to.
type Env struct {
	Self    string // the path of this program
	Getenv  func(string) string
	Printer func() answer.Printer // how this run speaks, known when a command runs
}

// Command is `banger system`.
func (e Env) Command() *cobra.Command {
	c := &cobra.Command{
		Use:   "system",
		Short: "install, look at, restart or remove system mode",
		Long: `In system mode VMs run under a jailed Firecracker, each with an address on a
bridge of this host and a name in .vm. Two services do it: bangerd.service, as
you, and bangerd-root.service, as root, which does a handful of things that need
root and nothing else. Installing needs root once; daily work does not.

  sudo banger system install --owner "$USER"    install, upgrade or repair
  banger system status                          how it does, and what is wrong
  sudo banger system restart                    start both anew; VMs go on
  sudo banger system uninstall                  the inverse; VMs' disks stay`,
	}
	c.AddCommand(e.install(), e.status(), e.restart(), e.uninstall())
	for _, sub := range c.Commands() {
		do := sub.RunE
		sub.RunE = func(cmd *cobra.Command, args []string) error { return e.hinted(do(cmd, args)) }
	}
	return c
}

// typed has a command that is to be typed name this program. The installed one is
// in everybody's PATH; one that was just built is not in root's, where "banger"
// is nothing, or the one that is to be upgraded.
func (e Env) typed(command string) string {
	if real, err := filepath.EvalSymlinks(e.Self); err != nil || filepath.Dir(real) == install.BinDir {
		return command
	}
	return strings.ReplaceAll(command, "sudo banger ", "sudo "+e.Self+" ")
}

// hinted is an error whose hint can be typed.
func (e Env) hinted(err error) error {
	if said, ok := err.(*api.Error); ok {
		said := *said // it may be a package's one value
		said.Hint = e.typed(said.Hint)
		return &said
	}
	return err
}

// say is a line of what happens while a person waits.
func (e Env) say(format string, args ...any) {
	if p := e.Printer(); !p.JSON {
		p.Note(format, args...)
	}
}

// to writes lines to w.
func to(w io.Writer) func(string, ...any) {
	return func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
}

func (e Env) install() *cobra.Command {
	var o install.Options
	c := &cobra.Command{
		Use:   "install",
		Short: "install system mode, or upgrade or repair it",
		Long: `install says what it will do and does it: programs in ` + install.BinDir + `
(and ` + install.Command + `), units, /etc/banger, and the services started, now
and at each boot. If a step fails, those before it are undone. It may be typed
again at any time: it replaces what differs, starts the services anew if
anything did, and leaves running VMs and what runs in them alone. What was
chosen once is kept.

It refuses what could not work, with the fix: no KVM, no systemd, no Firecracker
of root's, a prefix, zone or port that is taken, another owner than before.`,
		Args: usage.Args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Self, o.Invoker = e.Self, e.Getenv("SUDO_USER")
			o.Say = e.say
			if o.DryRun {
				o.Say = func(string, ...any) {}
			}
			p, err := install.Install(cmd.Context(), o)
			if err != nil {
				return err
			}
			return e.Printer().Print(p, func(w io.Writer) {
				if o.DryRun {
					p.Print(to(w))
					return
				}
				fmt.Fprintf(w, "system mode is installed for %s; next, as %s: banger vm run\n", p.Record.Owner.Name, p.Record.Owner.Name)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&o.Owner, "owner", "", "the account whose VMs they are (default the one that uses sudo)")
	f.StringArrayVar(&o.Firecrackers, "firecracker", nil, "a Firecracker, with its jailer beside it; may be given several times (default those in PATH)")
	usage.Complete(c, "firecracker", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveDefault // a file
	})
	f.StringVar(&o.Prefix, "prefix", "", "the VMs' addresses (default "+choice.Prefix+", or another that is free)")
	f.StringVar(&o.Bridge, "bridge", "", "the name of their bridge (default "+choice.Bridge+")")
	f.StringVar(&o.Zone, "zone", "", "the zone of their names (default "+choice.Zone+")")
	f.BoolVar(&o.DryRun, "dry-run", false, "say what would be done, and do nothing")
	return c
}

func (e Env) status() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "how system mode does, and what is wrong with it",
		Long: `status tells what is installed, for whom, and whether both services work. It
exits with 125 if something is wrong, and says what to type.`,
		Args: usage.Args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := install.Look(cmd.Context())
			if err != nil {
				return err
			}
			for i := range s.Problems {
				s.Problems[i].Fix = e.typed(s.Problems[i].Fix)
			}
			if err := e.Printer().Print(s, func(w io.Writer) { s.Print(to(w)) }); err != nil {
				return err
			}
			if len(s.Problems) > 0 {
				return answer.ErrTold
			}
			return nil
		},
	}
}

func (e Env) restart() *cobra.Command {
	return &cobra.Command{
		Use:   "restart",
		Short: "start both services anew; VMs go on",
		Args:  usage.Args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := install.Restart(cmd.Context()); err != nil {
				return err
			}
			return e.Printer().Print(map[string]bool{"restarted": true}, func(w io.Writer) { fmt.Fprintln(w, "restarted; both services answer") })
		},
	}
}

func (e Env) uninstall() *cobra.Command {
	var r install.Removal
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "remove system mode; VMs' disks stay unless --purge",
		Long: `uninstall shuts down the VMs that run, stops the services, and removes all that
install has put on this host, the network with it. Disks, images and caches stay
in /var/lib/banger and /var/cache/banger, where the next install finds them;
--purge removes them too, and /run/banger and /run/banger-root. Your own
configuration and keys always stay.`,
		Args: usage.Args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var plan strings.Builder
			r.Say = e.say
			if r.DryRun { // it is the answer
				r.Say = to(&plan)
			}
			done, err := install.Uninstall(cmd.Context(), r)
			if err != nil {
				return err
			}
			return e.Printer().Print(done, func(w io.Writer) {
				fmt.Fprint(w, plan.String())
				if done.Done && len(done.Files)+len(done.Purged) > 0 {
					fmt.Fprintln(w, "system mode is gone from this host")
				}
			})
		},
	}
	c.Flags().BoolVar(&r.Purge, "purge", false, "delete the VMs, images and caches too")
	c.Flags().BoolVar(&r.DryRun, "dry-run", false, "say what would be done, and do nothing")
	return c
}

// Journal is what the owner daemon has logged in system mode. Whether its owner
// may read that is the host's to say: some keep it for administrators.
func Journal(ctx context.Context) (string, error) {
	text, err := systemctl.Journal(ctx, install.DaemonUnit)
	if err != nil || text == "" {
		return "", &api.Error{Code: api.Denied, Msg: "the journal shows you nothing of " + install.DaemonUnit, Hint: "sudo journalctl -u " + install.DaemonUnit, Err: err}
	}
	return text, nil
}
