// Package doctorcmd is `banger doctor`: it gathers what is to be checked, has
// packages doctor and doctor/system check it, and prints the rows.
//
// It is apart from package cli, whose commands need a configuration that can be
// read and a daemon that answers: here either may be what is wrong.
package doctorcmd

import (
	"cmp"
	"context"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/spf13/cobra"

	"banger/internal/answer"
	"banger/internal/client"
	"banger/internal/config"
	"banger/internal/doctor"
	"banger/internal/doctor/system"
	"banger/internal/paths"
	"banger/internal/recipe"
	"banger/internal/sshconf"
	"banger/internal/usage"
)

// Env is what the command needs of the program that it belongs to.
type Env struct {
	Self    string // the path of this program
	Stderr  io.Writer
	Getenv  func(string) string
	Printer func() answer.Printer // how this run speaks, known when the command runs
}

// Command is `banger doctor`.
func (e Env) Command() *cobra.Command {
	var fix bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "say what this host can do, and what it lacks",
		Long: `doctor checks what VMs need of this host and of your account, and says for each
thing that is not as it should be what to type. It exits with 125 if anything
makes VMs impossible. With --fix it does what needs no root and cannot harm.`,
		Args: usage.Args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			rows, err := e.examine(cmd.Context())
			if err == nil && fix && doctor.Mend(cmd.Context(), rows, doctor.Self(e.Self, e.Stderr), e.Printer().Note) {
				rows, err = e.examine(cmd.Context())
			}
			if err == nil {
				err = e.Printer().Print(rows, func(w io.Writer) { answer.Table(w, "STATUS CHECK DETAIL", doctor.Table(rows)) })
			}
			if err == nil && doctor.Failed(rows) {
				err = answer.ErrTold
			}
			return err
		},
	}
	c.Flags().BoolVar(&fix, "fix", false, "make the fixes that need no root")
	return c
}

func (e Env) examine(ctx context.Context) ([]doctor.Row, error) {
	s, err := e.subject()
	if err != nil {
		return nil, err
	}
	return system.Examine(ctx, host(s), s), nil
}

// subject gathers what is checked; a configuration that cannot be read is one
// of the findings, not the end.
func (e Env) subject() (s doctor.Subject, err error) {
	home, err := os.UserHomeDir()
	if err != nil {
		home = ""
	}
	if s.Layout, err = paths.For(e.Getenv, os.Getuid(), home); err != nil {
		return s, err
	}
	s.Config, s.ConfigErr = config.Load(s.Layout.Config, home)
	s.DefaultImage, s.DefaultKernel = cmp.Or(s.Config.DefaultImageName, recipe.DefaultImage), recipe.DefaultKernel
	sizes, err := s.Config.Resolve(config.Sizes{}, config.ThisHost())
	if err != nil && s.ConfigErr == nil {
		s.ConfigErr = err
	}
	s.Sizes = sizes
	s.SSHInclude = sshconf.Included(home, filepath.Join(s.Layout.Config, "ssh_config"))
	return s, nil
}

// host is the real one. The daemon is asked once.
func host(s doctor.Subject) doctor.Host {
	h := doctor.ThisHost()
	h.Recipes = func() error {
		r, err := recipe.Image(recipe.DefaultImage)
		if err != nil {
			return err
		}
		_, err = recipe.Check(r, recipe.Options{Mirror: s.Config.Mirror, CacheDir: s.Layout.Cache})
		return err
	}
	var once sync.Once
	var said doctor.Daemon
	var err error
	h.Daemon = func(ctx context.Context) (doctor.Daemon, error) {
		once.Do(func() { said, err = ask(ctx, s.Layout) })
		return said, err
	}
	return h
}

// ask asks a daemon that runs, of whatever version.
func ask(ctx context.Context, l paths.Layout) (out doctor.Daemon, err error) {
	d, err := client.Connect(ctx, client.Options{Layout: l, AnyVersion: true})
	if err != nil {
		return out, err
	}
	defer d.Close()
	out.Hello = d.Greeting()
	if out.Images, err = d.Images(ctx); err != nil {
		return out, err
	}
	if out.Kernels, err = d.Kernels(ctx); err != nil {
		return out, err
	}
	out.Census, err = d.Census(ctx)
	return out, err
}
