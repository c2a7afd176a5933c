package cli

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/spf13/cobra"

	"banger/internal/answer"
	"banger/internal/config"
	"banger/internal/doctor"
	"banger/internal/doctor/system"
	"banger/internal/paths"
	"banger/internal/recipe"
	"banger/internal/sshconf"
	"banger/internal/usage"
)

func (a *app) doctor() *cobra.Command {
	var fix bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "say what this host can do, and what it lacks",
		Long: `doctor checks what VMs need of this host and of your account, and says for each
thing that is not as it should be what to type. It exits with 125 if anything
makes VMs impossible. With --fix it does what needs no root and cannot harm.`,
		Args: usage.Args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			rows, err := a.examine(cmd.Context())
			if err == nil && fix && doctor.Mend(cmd.Context(), rows, doctor.Self(a.Self, a.Stderr), a.note) {
				rows, err = a.examine(cmd.Context())
			}
			if err == nil {
				err = a.print(rows, func(w io.Writer) { answer.Table(w, "STATUS CHECK DETAIL", doctor.Table(rows)) })
			}
			if err == nil && doctor.Failed(rows) {
				err = &guestExit{exitOnly(exitBanger)}
			}
			return err
		},
	}
	c.Flags().BoolVar(&fix, "fix", false, "make the fixes that need no root")
	return c
}

func (a *app) examine(ctx context.Context) ([]doctor.Row, error) {
	s, err := a.subject()
	if err != nil {
		return nil, err
	}
	return system.Examine(ctx, a.host(ctx, s), s), nil
}

// subject gathers what is checked; a configuration that cannot be read is one
// of the findings, not the end.
func (a *app) subject() (doctor.Subject, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		home = ""
	}
	s := doctor.Subject{DefaultKernel: recipe.DefaultKernel}
	if a.layout, err = paths.For(a.Getenv, os.Getuid(), home); err != nil {
		return s, err
	}
	s.Layout = a.layout
	s.Config, s.ConfigErr = config.Load(a.layout.Config, home)
	a.config, a.loaded = s.Config, true
	s.DefaultImage = a.defaultImage()
	sizes, err := s.Config.Resolve(config.Sizes{}, config.ThisHost())
	if err != nil && s.ConfigErr == nil {
		s.ConfigErr = err
	}
	s.Sizes = sizes
	s.SSHInclude = sshconf.Included(home, filepath.Join(a.layout.Config, "ssh_config"))
	return s, nil
}

// host is the real one. The daemon is asked once.
func (a *app) host(ctx context.Context, s doctor.Subject) doctor.Host {
	ask := sync.OnceValues(func() (doctor.Daemon, error) { return a.askDaemon(ctx) })
	h := doctor.ThisHost()
	h.Recipes = func() error {
		r, err := recipe.Image(recipe.DefaultImage)
		if err != nil {
			return err
		}
		_, err = recipe.Check(r, recipe.Options{Mirror: s.Config.Mirror, CacheDir: s.Layout.Cache})
		return err
	}
	h.Daemon = func(context.Context) (doctor.Daemon, error) { return ask() }
	return h
}

func (a *app) askDaemon(ctx context.Context) (out doctor.Daemon, err error) {
	if err := a.load(); err != nil {
		return out, err
	}
	d, err := a.existing(ctx)
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
