package cli

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/spf13/cobra"

	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/usage"
)

// An outcome is what became of one of several VMs, images or kernels.
type outcome struct {
	Ref     string       `json:"ref"`
	Machine *api.Machine `json:"machine,omitempty"`
	Image   *api.Image   `json:"image,omitempty"`
	Kernel  *api.Kernel  `json:"kernel,omitempty"`
	Error   *api.Error   `json:"error,omitempty"`
}

func (o outcome) name() string {
	switch {
	case o.Machine != nil:
		return o.Machine.Name
	case o.Image != nil:
		return o.Image.Name
	case o.Kernel != nil:
		return o.Kernel.Name
	}
	return o.Ref
}

// A deed is the word for what was done; m is nil for what is no VM, and where
// it was not done.
type deed func(m *api.Machine) string

func did(word string) deed { return func(*api.Machine) string { return word } }

// each does one thing to several VMs at once: references are resolved and
// deduplicated first, good ones go on when others are not found, and the
// outcomes are told in the order they were given.
func (a *app) each(ctx context.Context, d *client.Client, refs []string, done deed, do func(context.Context, api.Machine) (api.Machine, error)) error {
	outcomes := make([]outcome, 0, len(refs))
	targets := make([]*api.Machine, 0, len(refs))
	seen := map[string]bool{}
	for _, ref := range refs {
		m, err := d.Machine(ctx, ref)
		switch {
		case err != nil && !seen[ref]:
			outcomes, targets = append(outcomes, outcome{Ref: ref, Error: api.AsError(err)}), append(targets, nil)
		case err == nil && !seen[m.ID]:
			outcomes, targets = append(outcomes, outcome{Ref: ref}), append(targets, &m)
			seen[m.ID] = true
		}
		seen[ref] = true
	}
	var wg sync.WaitGroup
	for i, m := range targets {
		if m == nil {
			continue
		}
		wg.Go(func() {
			got, err := do(ctx, *m)
			if err != nil {
				outcomes[i].Error = api.AsError(err)
				return
			}
			outcomes[i].Machine = &got
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return tell(a, outcomes, done)
}

// tell prints outcomes. The error is that of the only one, or a count.
func tell(a *app, outcomes []outcome, done deed) error {
	var failed []*api.Error
	for _, o := range outcomes {
		if o.Error != nil {
			failed = append(failed, o.Error)
		}
	}
	if len(outcomes) == 1 && len(failed) == 1 && !a.json {
		return failed[0]
	}
	err := a.print(outcomes, func(w io.Writer) {
		for _, o := range outcomes {
			if o.Error == nil {
				fmt.Fprintf(w, "%s %s\n", o.name(), done(o.Machine))
			} else {
				a.report(o.Error)
			}
		}
	})
	switch {
	case err != nil || len(failed) == 0:
		return err
	case a.json:
		return &guestExit{exitOnly(exitBanger)}
	}
	return &api.Error{Code: failed[0].Code, Msg: fmt.Sprintf("%d of %d were not %s", len(failed), len(outcomes), done(nil))}
}

// refCommand is a command that does one thing to one or more VMs.
func (a *app) refCommand(use, short string, done deed, do func(context.Context, *client.Client, api.Machine) (api.Machine, error)) *cobra.Command {
	return &cobra.Command{
		Use:               use + " NAME...",
		Short:             short,
		Args:              usage.Args(1, -1, "one or more VMs"),
		ValidArgsFunction: a.complete(machineNames, -1),
		RunE: a.withDaemon(func(ctx context.Context, d *client.Client, given []string) error {
			return a.each(ctx, d, given, done, func(ctx context.Context, m api.Machine) (api.Machine, error) { return do(ctx, d, m) })
		}),
	}
}
