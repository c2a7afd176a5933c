// Package cli is the banger command: flags in, one call, text or JSON out.
//
// Stdout is the answer, stderr the conversation: progress, notices, errors and
// their hints, all with lower-case sentences. The package keeps no state and
// decides nothing that the daemon could decide; what runs as the user and must
// stay with the user lives here: git on a workspace, mmdebstrap, the ssh child
// and the terminal.
package cli

import (
	"context"
	"io"
	"os"

	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/config"
	"banger/internal/doctorcmd"
	"banger/internal/paths"
	"banger/internal/systemcmd"
	"banger/internal/usage"
	"banger/internal/version"
)

// Env is the world as a command sees it. Main fills what is missing from the
// process, so tests may set only what matters to them.
type Env struct {
	Args   []string // without the program's name
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Getenv func(string) string
	// Self is the path of this program, for ProxyCommand and for finding the
	// daemon beside it.
	Self string
}

func (e Env) withDefaults() Env {
	if e.Stdin == nil {
		e.Stdin = os.Stdin
	}
	if e.Stdout == nil {
		e.Stdout = os.Stdout
	}
	if e.Stderr == nil {
		e.Stderr = os.Stderr
	}
	if e.Getenv == nil {
		e.Getenv = os.Getenv
	}
	return e
}

// app is one run of the program: the environment, and what the global flags
// say. Its commands share it; it is not safe for concurrent use.
type app struct {
	Env
	json  bool
	quiet bool

	layout paths.Layout
	config config.Config
	loaded bool
}

// Main runs one command and returns the exit status of the process: the guest
// command's own; 125 if banger failed, 126 and 127 if the command could not be
// executed or found, 130 if the user interrupted before it ran.
func Main(ctx context.Context, e Env) int {
	a := &app{Env: e.withDefaults()}
	root := a.root()
	root.SetArgs(e.Args)
	root.SetIn(a.Stdin)
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	cmd, err := root.ExecuteContextC(ctx)
	return a.finish(ctx, cmd, err)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "banger",
		Short: "one-command development sandboxes in microVMs",
		Long: `banger runs code somewhere else than on this host: in a VM with its own kernel,
ready in seconds, gone without a trace when you say so.

The command you want most of the time:

  banger vm run                        a clean Debian shell
  banger vm run ./repo                 the same, with a repository at /root/repo
  banger vm run ./repo -- make test    run a command, exit with its status
  banger vm run --rm -- uname -a       gone afterwards

Next: "banger vm list" shows what there is, "banger vm ssh NAME" goes back in,
"banger doctor" says what this host can do. --json makes any answer readable for
programs.`,
		Version:           version.Get().String(),
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: false},
	}
	root.SetVersionTemplate("banger {{.Version}}\n")
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print the answer as JSON")
	root.AddCommand(a.vm(), a.vmList("ps"), a.image(), a.kernel(), a.sshConfig(), a.daemon(), systemcmd.Env{Self: a.Self, Getenv: a.Getenv, Printer: a.printer}.Command(),
		doctorcmd.Env{Self: a.Self, Stderr: a.Stderr, Getenv: a.Getenv, Printer: a.printer}.Command(), a.versionCmd(), a.internal())
	usage.Dress(root)
	return root
}

// load reads the layout and the configuration once.
func (a *app) load() error {
	if a.loaded {
		return nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = ""
	}
	a.layout, err = paths.For(a.Getenv, os.Getuid(), home)
	if err != nil {
		return err
	}
	a.config, err = config.Load(a.layout.Config, home)
	if err != nil {
		return err
	}
	a.loaded = true
	return nil
}

// dial connects to the daemon and starts one if there is none.
func (a *app) dial(ctx context.Context) (*client.Client, error) {
	if err := a.load(); err != nil {
		return nil, err
	}
	return client.Connect(ctx, client.Options{Layout: a.layout, Start: true})
}

// withDaemon is a command's RunE that needs the daemon.
func (a *app) withDaemon(do func(ctx context.Context, d *client.Client, given []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, given []string) error {
		d, err := a.dial(cmd.Context())
		if err != nil {
			return err
		}
		defer d.Close()
		return do(cmd.Context(), d, given)
	}
}
