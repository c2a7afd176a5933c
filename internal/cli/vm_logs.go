package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/companionapi"
	"banger/internal/usage"
)

func (a *app) vmLogs() *cobra.Command {
	var follow, raw bool
	var lines int
	c := &cobra.Command{
		Use:   "logs NAME",
		Short: "what a VM's console has printed since its last start",
		Long: `logs prints the serial console of a VM, running or not. Control characters are
made visible, since a guest may print what a terminal would obey; --raw prints
the bytes as they are.`,
		Args:              usage.Args(1, 1, "a VM"),
		ValidArgsFunction: a.complete(machineNames, 1),
		RunE: a.withDaemon(func(ctx context.Context, d *client.Client, given []string) error {
			switch {
			case lines < 0:
				return usage.Error("banger vm logs -n 20 "+given[0], "--lines: %d is not a number of lines", lines)
			case follow && a.json:
				return usage.Error("banger --json vm logs "+given[0], "--follow has no end, and so no JSON")
			case lines > 0 && follow:
				return usage.Error("banger vm logs -f "+given[0], "--follow prints all there is and goes on: it does not go with --lines")
			}
			m, err := d.Machine(ctx, given[0])
			if err != nil {
				return err
			}
			var console io.ReadCloser
			if follow && m.Companion != "" {
				console, err = companionapi.New(m.Companion).Console(ctx, 0, true)
			} else {
				console, err = d.Console(ctx, m.ID)
			}
			if err != nil {
				return err
			}
			defer console.Close()
			defer context.AfterFunc(ctx, func() { console.Close() })()
			n, err := a.printer().Console(m.Name, console, lines, raw)
			switch {
			case ctx.Err() != nil:
				return nil // Ctrl-C is how following ends
			case err == nil && n == 0 && !a.json:
				a.note("banger: the console of VM %q is empty", m.Name)
			}
			return err
		}),
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the VM ends")
	c.Flags().BoolVar(&raw, "raw", false, "do not make control characters visible")
	c.Flags().IntVarP(&lines, "lines", "n", 0, "only the last lines (default: all that is kept, up to 16 MiB)")
	return c
}
