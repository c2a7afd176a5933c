package cli

import (
	"cmp"
	"fmt"

	"github.com/spf13/cobra"

	"banger/internal/answer"
	"banger/internal/api"
	"banger/internal/config"
	"banger/internal/recipe"
	"banger/internal/size"
)

// helpWithDefaults makes a command's help tell the values that it would use
// now, and where they come from.
func (a *app) helpWithDefaults(c *cobra.Command) {
	c.SetHelpFunc(func(cmd *cobra.Command, given []string) {
		if a.load() == nil {
			if r, err := a.config.Resolve(config.Sizes{}, config.ThisHost()); err == nil {
				for _, d := range []struct {
					flag  string
					value any
					from  api.Source
				}{
					{"vcpu", r.Spec.VCPUs, r.VCPUs}, {"memory", answer.MiB(r.Spec.MemoryMiB), r.Memory},
					{"disk-size", size.Bytes(r.Spec.DiskBytes), r.Disk},
				} {
					f := cmd.Flags().Lookup(d.flag)
					f.Usage += fmt.Sprintf(" (default %v, %s)", d.value, told(d.from))
				}
			}
			cmd.Flags().Lookup("image").Usage += " (default " + a.defaultImage() + ")"
		}
		cmd.Parent().HelpFunc()(cmd, given)
	})
}

// told says where a value came from.
func told(s api.Source) string {
	switch s {
	case api.FromConfig:
		return "from the configuration"
	case api.FromHost:
		return "from this host's size"
	}
	return "built in"
}

// defaultImage is the image of a VM that names none.
func (a *app) defaultImage() string { return cmp.Or(a.config.DefaultImageName, recipe.DefaultImage) }
