package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/recipe"
)

// completionLimit bounds how long a shell waits for names.
const completionLimit = time.Second

// names asks for what can be completed; with the daemon down, d is nil.
type namesFunc func(ctx context.Context, d *client.Client) []string

// complete offers live names for at most max arguments, -1 for any number. It
// never starts a daemon, never falls back to file names and never says an
// error: a shell's completion must not.
func (a *app) complete(live namesFunc, max int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
		if max >= 0 && len(given) >= max {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionLimit)
		defer cancel()
		var d *client.Client
		if a.load() == nil {
			if c, err := client.Connect(ctx, client.Options{Layout: a.layout}); err == nil {
				d = c
				defer d.Close()
			}
		}
		used := map[string]bool{}
		for _, g := range given {
			used[g] = true
		}
		var out []string
		for _, n := range live(ctx, d) {
			if !used[n] {
				out = append(out, n)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

func directoriesOnly(_ *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(given) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveFilterDirs
}

func machineNames(ctx context.Context, d *client.Client) []string {
	return machinesThat(ctx, d, func(api.Machine) bool { return true })
}

func runningNames(ctx context.Context, d *client.Client) []string {
	return machinesThat(ctx, d, func(m api.Machine) bool { return m.State == api.Running })
}

func machinesThat(ctx context.Context, d *client.Client, ok func(api.Machine) bool) []string {
	if d == nil {
		return nil
	}
	ms, err := d.Machines(ctx)
	if err != nil {
		return nil
	}
	var out []string
	for _, m := range ms {
		if ok(m) {
			out = append(out, m.Name)
		}
	}
	return out
}

// imageFlag offers what --image takes: images that are here, and those that
// would be pulled.
func (a *app) imageFlag(ctx context.Context, d *client.Client) []string {
	out := a.images().names(ctx, d)
	for _, r := range recipe.Images() {
		if !slices.Contains(out, r.Name) {
			out = append(out, r.Name)
		}
	}
	return out
}

// completeImport offers files as the second argument: a tar.
func completeImport(_ *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(given) == 1 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completeCopy offers the sides of a copy: VMs, as NAME:, and files.
func (a *app) completeCopy(cmd *cobra.Command, given []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(given) >= 2 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, _ := a.complete(runningNames, -1)(cmd, nil, typed)
	var out []string
	for _, n := range all {
		if strings.HasPrefix(n, typed) {
			out = append(out, n+":")
		}
	}
	return out, cobra.ShellCompDirectiveNoSpace // with none, the shell offers files
}
