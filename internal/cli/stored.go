package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/answer"
	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/progress"
	"banger/internal/recipe"
	"banger/internal/usage"
)

// A stored noun is what the commands on images and on kernels have in common.
type stored[T any] struct {
	noun    string // "image"
	one     string // "an image"
	list    func(*client.Client, context.Context) ([]T, error)
	get     func(*client.Client, context.Context, string) (T, error)
	remove  func(*client.Client, context.Context, string) (T, error)
	outcome func(T) answer.Outcome
	catalog func() []recipe.Recipe
	pull    func(context.Context, *client.Client, string, bool) (T, error)
	initial string             // what `pull` without a name pulls
	line    func(T) string     // after a pull
	header  string             // of the table
	row     func(T) []string   // of the table
	show    func(io.Writer, T) // all there is to know
}

// add adds the commands, but for what the nouns do not share.
func (s stored[T]) add(a *app, c *cobra.Command, removeUse, removeAlias string) {
	c.AddCommand(s.pullCmd(a), s.listCmd(a), s.showCmd(a), s.removeCmd(a, removeUse, removeAlias))
}

func (s stored[T]) names(ctx context.Context, d *client.Client) []string {
	if d == nil {
		return nil
	}
	all, err := s.list(d, ctx)
	if err != nil {
		return nil
	}
	var out []string
	for _, v := range all {
		out = append(out, s.outcome(v).Name())
	}
	return out
}

func (s stored[T]) pullCmd(a *app) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "pull [NAME]",
		Short: "get " + s.one + " of the catalog, " + s.initial + " if none is named",
		Long: `pull builds ` + s.one + ` of the catalog on this host, from the host's own
Debian package sources or the "mirror" in the configuration. It can be
interrupted and repeated; several pulls of one name share the work.

  banger ` + s.noun + ` pull                    unless it is here
  banger ` + s.noun + ` pull --force            a fresh one; VMs keep the one they have`,
		Args: usage.Args(0, 1, "at most one name"),
		ValidArgsFunction: a.complete(func(context.Context, *client.Client) []string {
			var out []string
			for _, r := range s.catalog() {
				out = append(out, r.Name)
			}
			return out
		}, 1),
		RunE: a.withDaemon(func(ctx context.Context, d *client.Client, given []string) error {
			name := append(given, s.initial)[0]
			if v, err := s.get(d, ctx, name); err == nil && !force {
				return a.print(v, func(w io.Writer) {
					fmt.Fprintf(w, "%s is here already; a fresh one: banger %s pull --force\n", s.line(v), s.noun)
				})
			}
			began := time.Now()
			v, err := s.pull(ctx, d, name, force)
			if err != nil {
				return fmt.Errorf("pulling %s %s: %w", s.noun, name, err)
			}
			return a.print(v, func(w io.Writer) { fmt.Fprintf(w, "%s, after %s\n", s.line(v), progress.Short(time.Since(began))) })
		}),
	}
	c.Flags().BoolVar(&force, "force", false, "make it anew although it is there")
	return c
}

func (s stored[T]) listCmd(a *app) *cobra.Command {
	var available bool
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "list " + s.noun + "s of the store, or of the catalog",
		Args:    usage.Args(0, 0, "no arguments"),
		RunE: a.withDaemon(func(ctx context.Context, d *client.Client, _ []string) error {
			all, err := s.list(d, ctx)
			if err != nil {
				return fmt.Errorf("listing %ss: %w", s.noun, err)
			}
			if available {
				return s.printAvailable(a, all)
			}
			if all == nil {
				all = []T{} // an empty list, not null, in JSON
			}
			return a.print(all, func(w io.Writer) {
				var rows [][]string
				for _, v := range all {
					rows = append(rows, s.row(v))
				}
				if len(rows) == 0 {
					a.note("no %ss yet: get one with: banger %s pull", s.noun, s.noun)
					return
				}
				answer.Table(w, s.header, rows)
			})
		}),
	}
	c.Flags().BoolVar(&available, "available", false, "what the catalog offers")
	return c
}

func (s stored[T]) printAvailable(a *app, all []T) error {
	pulled := map[string]bool{}
	for _, v := range all {
		pulled[s.outcome(v).Name()] = true
	}
	out := []api.Available{}
	for _, r := range s.catalog() {
		out = append(out, api.Available{Name: r.Name, Description: r.Description, Pulled: pulled[r.Name]})
	}
	return a.print(out, func(w io.Writer) {
		var rows [][]string
		for _, e := range out {
			state := "available"
			if e.Pulled {
				state = "pulled"
			}
			rows = append(rows, []string{e.Name, state, e.Description})
		}
		answer.Table(w, "NAME STATE DESCRIPTION", rows)
	})
}

func (s stored[T]) showCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME",
		Short:             "show what is known of " + s.one,
		Args:              usage.Args(1, 1, s.one),
		ValidArgsFunction: a.complete(s.names, 1),
		RunE: a.withDaemon(func(ctx context.Context, d *client.Client, given []string) error {
			v, err := s.get(d, ctx, given[0])
			if err != nil {
				return err
			}
			return a.print(v, func(w io.Writer) { s.show(w, v) })
		}),
	}
}

func (s stored[T]) removeCmd(a *app, use, alias string) *cobra.Command {
	return &cobra.Command{
		Use:               use + " NAME...",
		Aliases:           []string{alias},
		Short:             "delete " + s.noun + "s that no VM uses",
		Args:              usage.Args(1, -1, "one or more "+s.noun+"s"),
		ValidArgsFunction: a.complete(s.names, -1),
		RunE: a.withDaemon(func(ctx context.Context, d *client.Client, given []string) error {
			outcomes, seen := []answer.Outcome{}, map[string]bool{}
			for _, name := range given {
				if seen[name] {
					continue
				}
				seen[name] = true
				v, err := s.remove(d, ctx, name)
				o := answer.Outcome{}
				if err == nil {
					o = s.outcome(v)
				} else {
					o.Error = api.AsError(err)
				}
				o.Ref = name
				outcomes = append(outcomes, o)
			}
			return a.printer().Tell(outcomes, answer.Did("deleted"))
		}),
	}
}
