package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"banger/internal/answer"
	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/config"
	"banger/internal/size"
	"banger/internal/usage"
)

// sizeFlags are --vcpu, --memory and --disk-size.
type sizeFlags struct {
	vcpu         int
	memory, disk string
}

func (f *sizeFlags) add(c *cobra.Command) {
	c.Flags().IntVar(&f.vcpu, "vcpu", 0, "number of virtual CPUs")
	c.Flags().StringVar(&f.memory, "memory", "", "memory, such as 2G; a bare number means MiB")
	c.Flags().StringVar(&f.disk, "disk-size", "", "size of the VM disk, such as 16G; it takes space only as it fills")
}

// parse returns what the user said; it refuses explicit values of zero or
// less, which could not be told from "not said" later.
func (f *sizeFlags) parse(c *cobra.Command) (vcpus int, memory, disk size.Bytes, err error) {
	if c.Flags().Changed("vcpu") && f.vcpu < 1 {
		return 0, 0, 0, usage.Error("for example: --vcpu 2", "--vcpu: %d is not a number of CPUs", f.vcpu)
	}
	for _, s := range []struct {
		name, text, example string
		to                  *size.Bytes
	}{{"memory", f.memory, "2G", &memory}, {"disk-size", f.disk, "16G", &disk}} {
		if !c.Flags().Changed(s.name) {
			continue
		}
		if *s.to, err = size.Parse(s.text); err != nil {
			return 0, 0, 0, usage.Error("for example: --"+s.name+" "+s.example, "--%s: %v", s.name, err)
		}
	}
	return f.vcpu, memory, disk, nil
}

func (a *app) vmSet() *cobra.Command {
	var sizes sizeFlags
	var name string
	var nat, autostart bool
	c := &cobra.Command{
		Use:   "set NAME",
		Short: "change the name, size or network of a VM",
		Long: `set changes a VM. Sizes need it stopped, and take effect at the next start; a
disk only grows, and the guest's file system with it. --nat takes effect at
once, and what a VM that loses it has open ends. --autostart starts the VM
whenever this host was started.

  banger vm stop web && banger vm set web --memory 4G && banger vm start web
  banger vm set web --nat=false`,
		Args:              usage.Args(1, 1, "a VM"),
		ValidArgsFunction: a.complete(machineNames, 1),
		RunE: func(cmd *cobra.Command, given []string) error {
			vcpus, memory, disk, err := sizes.parse(cmd)
			if err != nil {
				return err
			}
			var req api.SetMachine
			changed := cmd.Flags().Changed
			req.Name, req.VCPUs = said(changed("name"), &name), said(changed("vcpu"), &vcpus)
			if err := config.ThisHost().Holds(memory); err != nil {
				return err
			}
			if changed("memory") {
				m := int64(memory / size.MiB)
				req.MemoryMiB = &m
			}
			if changed("disk-size") {
				b := int64(disk)
				req.DiskBytes = &b
			}
			req.NAT, req.Autostart = said(changed("nat"), &nat), said(changed("autostart"), &autostart)
			if req == (api.SetMachine{}) {
				return usage.Error("banger vm set "+given[0]+" --memory 4G", "vm set needs something to set: --name, --vcpu, --memory, --disk-size, --nat or --autostart")
			}
			return a.withDaemon(func(ctx context.Context, d *client.Client, _ []string) error {
				was, err := d.Machine(ctx, given[0])
				if err != nil {
					return err
				}
				m, err := d.SetMachine(ctx, was.ID, req)
				if err != nil {
					return err
				}
				if m.NAT && !was.NAT && m.State == api.Running {
					a.note("banger: it may reach the internet now; it is told of name servers at its next start: banger vm restart %s", m.Name)
				}
				return a.print(m, func(w io.Writer) { answer.Machine(w, m) })
			})(cmd, given)
		},
	}
	sizes.add(c)
	c.Flags().StringVar(&name, "name", "", "new name")
	c.Flags().BoolVar(&nat, "nat", false, "let the VM reach the internet (in system mode)")
	c.Flags().BoolVar(&autostart, "autostart", false, "start the VM after a start of this host")
	return c
}

// said is what a flag says, nil if it was not given.
func said[T any](given bool, value *T) *T {
	if !given {
		return nil
	}
	return value
}
