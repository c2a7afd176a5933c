package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"banger/internal/session"
	"banger/internal/usage"
)

func (a *app) vmForward() *cobra.Command {
	return &cobra.Command{
		Use:   "forward NAME [ADDRESS:]PORT:PORT...",
		Short: "make ports of a VM reachable on the host while this command runs",
		Long: `forward listens on the host, on 127.0.0.1 unless an address is given, and
carries connections to a port of the guest, until Ctrl-C or the VM's end.
PORT:PORT is host first; host port 0 takes a free one, and the line that is
printed says which.

  banger vm forward web 8080:80
  banger vm forward web 127.0.0.2:5432:5432 0:9090`,
		Args:              usage.Args(2, -1, "a VM and at least one port pair"),
		ValidArgsFunction: a.complete(runningNames, 1),
		RunE: func(cmd *cobra.Command, given []string) error {
			ctx := cmd.Context()
			var forwards []session.Forward
			for _, text := range given[1:] {
				f, err := session.ParseForward(text)
				if err != nil {
					return err
				}
				forwards = append(forwards, f)
			}
			m, err := a.running(ctx, given[0])
			if err != nil {
				return err
			}
			return a.session(m).Forward(ctx, forwards, func(open []session.Forward) error {
				return a.print(open, func(w io.Writer) {
					for _, f := range open {
						fmt.Fprintf(w, "%s -> %s port %d\n", f.Listen, m.Name, f.Port)
					}
				})
			})
		},
	}
}
