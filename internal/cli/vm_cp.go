package cli

import (
	"io"

	"github.com/spf13/cobra"

	"banger/internal/agentapi"
	"banger/internal/answer"
	"banger/internal/session"
	"banger/internal/usage"
)

func (a *app) vmCp() *cobra.Command {
	return &cobra.Command{
		Use:   "cp SOURCE TARGET",
		Short: "copy files and directories between the host and a VM",
		Long: `cp copies as cp -r does; one side is in a VM, as NAME:PATH, where a relative
path, or one after ~/, begins at /root. "-" is a tar on stdin or stdout.

  banger vm cp ./conf web:/etc/app        as /etc/app, or into it if it exists
  banger vm cp web:/var/log ./            a directory out of the guest
  tar c src | banger vm cp - web:/srv     a tar stream, unpacked below /srv
  banger vm cp web:/etc - | tar t         a tar stream out`,
		Args:              usage.Args(2, 2, "a source and a target"),
		ValidArgsFunction: a.completeCopy,
		RunE: func(cmd *cobra.Command, given []string) error {
			from, to := session.ParsePlace(given[0]), session.ParsePlace(given[1])
			switch {
			case from.VM == "" && to.VM == "":
				return usage.Error("banger vm cp "+given[0]+" NAME:"+given[1], "neither %q nor %q is in a VM, as NAME:PATH", given[0], given[1])
			case from.VM != "" && to.VM != "":
				return usage.Error("banger vm cp "+given[0]+" - | banger vm cp - "+given[1], "%q and %q are both in VMs: one side must be on the host", given[0], given[1])
			}
			m, err := a.running(cmd.Context(), from.VM+to.VM)
			if err != nil {
				return err
			}
			var done agentapi.Done
			if to.VM != "" {
				done, err = a.session(m).CopyIn(cmd.Context(), from.Path, to)
			} else {
				done, err = a.session(m).CopyOut(cmd.Context(), from, to.Path)
			}
			for _, name := range done.Skipped {
				a.note("banger: %s is neither a file nor a directory and was left out", answer.Line(name, 200))
			}
			if err != nil || to.Path == "-" { // stdout is the tar's
				return err
			}
			return a.print(done, func(io.Writer) {
				if session.IsTerminal(a.Stderr) {
					a.dim("copied %s, %s", answer.Count(int(done.Files), "file"), answer.Bytes(done.Bytes))
				}
			})
		},
	}
}
