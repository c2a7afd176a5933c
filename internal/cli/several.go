package cli

import (
	"context"
	"sync"

	"github.com/spf13/cobra"

	"banger/internal/answer"
	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/usage"
)

// each does one thing to several VMs at once: references are resolved and
// deduplicated first, good ones go on when others are not found, and the
// outcomes are told in the order they were given.
func (a *app) each(ctx context.Context, d *client.Client, refs []string, done answer.Deed, do func(context.Context, api.Machine) (api.Machine, error)) error {
	outcomes := make([]answer.Outcome, 0, len(refs))
	targets := make([]*api.Machine, 0, len(refs))
	seen := map[string]bool{}
	for _, ref := range refs {
		m, err := d.Machine(ctx, ref)
		switch {
		case err != nil && !seen[ref]:
			outcomes, targets = append(outcomes, answer.Outcome{Ref: ref, Error: api.AsError(err)}), append(targets, nil)
		case err == nil && !seen[m.ID]:
			outcomes, targets = append(outcomes, answer.Outcome{Ref: ref}), append(targets, &m)
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
	return a.printer().Tell(outcomes, done)
}

// refCommand is a command that does one thing to one or more VMs.
func (a *app) refCommand(use, short string, done answer.Deed, do func(context.Context, *client.Client, api.Machine) (api.Machine, error)) *cobra.Command {
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
