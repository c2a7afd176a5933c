package cli

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"banger/internal/answer"
	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/progress"
	"banger/internal/recipe"
	"banger/internal/size"
)

// lacking is what the store lacks of what a VM needs.
type lacking struct {
	image             string // its name, there or not
	noImage, noKernel bool
}

// lacks looks for an image and the default kernel, and refuses an image that
// cannot be had either. What cannot be mended by waiting is said before a pull
// makes one wait.
func (a *app) lacks(ctx context.Context, d *client.Client, image string) (l lacking, err error) {
	l.image = cmp.Or(image, a.defaultImage())
	if p := d.Greeting().Problem; p != nil {
		return l, p
	}
	_, err = d.Image(ctx, l.image)
	if l.noImage = api.CodeOf(err) == api.NotFound; l.noImage {
		_, err = recipe.Image(l.image)
	}
	if err != nil {
		return l, err
	}
	_, err = d.Kernel(ctx, recipe.DefaultKernel)
	if l.noKernel = api.CodeOf(err) == api.NotFound; l.noKernel {
		err = nil
	}
	return l, err
}

// fetch pulls what is lacking.
func (a *app) fetch(ctx context.Context, d *client.Client, l lacking) error {
	began := time.Now()
	here := func(what string) {
		if !a.json {
			a.dim("%s is here, after %s", what, progress.Short(time.Since(began)))
		}
		began = time.Now()
	}
	if l.noImage && !a.json {
		a.note("banger: %s is built here first, in about two minutes; later runs take seconds", l.image)
	}
	if l.noKernel {
		if _, err := a.pullKernel(ctx, d, recipe.DefaultKernel, false); err != nil {
			return fmt.Errorf("pulling kernel %s: %w", recipe.DefaultKernel, err)
		}
		here("kernel " + recipe.DefaultKernel)
	}
	if l.noImage {
		if _, err := a.pullImage(ctx, d, l.image, false); err != nil {
			return fmt.Errorf("pulling image %s: %w", l.image, err)
		}
		here("image " + l.image)
	}
	return nil
}

// specLine says up front what the VM gets.
func (a *app) specLine(s api.Spec, h api.Hello, nat bool) {
	if a.json {
		return
	}
	network := api.NetworkNone
	switch {
	case nat:
		network = api.NetworkInternet
	case h.Network != nil:
		network = api.NetworkHost + " (internet with --nat)"
	}
	parts := []string{
		fmt.Sprintf("%d vCPU", s.VCPUs), answer.MiB(s.MemoryMiB) + " memory",
		size.Bytes(s.DiskBytes).String() + " disk", "network: " + network, h.Driver,
	}
	a.note("spec: %s", strings.Join(parts, " | "))
	switch line := "VMs run in software emulation, which is slower: " + h.DriverWhy; {
	case h.DriverWhy == "":
	case len(line) > 80:
		a.dim("VMs run in software emulation, which is slower; why: banger doctor")
	default:
		a.dim("%s", line)
	}
}

// nat is whether the VM may reach the internet: as the flag says, else as the
// configuration does, which means nothing where VMs have no network.
func (r *run) nat(h api.Hello) (bool, error) {
	switch asked := r.cmd.Flags().Changed("nat"); {
	case asked && r.flags.nat && h.Network == nil:
		return false, api.NoNetwork("--nat")
	case asked:
		return r.flags.nat, nil
	}
	return r.config.NAT && h.Network != nil, nil
}

// nameFree refuses the name of a VM that exists.
func (r *run) nameFree(ctx context.Context) error {
	if r.flags.name == "" {
		return nil
	}
	m, err := r.daemon.Machine(ctx, r.flags.name)
	if err != nil || m.Name != r.flags.name { // not found, or the id of another begins like that
		return nil
	}
	hint := "banger vm start " + m.Name + ", then: banger vm ssh " + m.Name
	if m.State == api.Running {
		hint = "banger vm ssh " + m.Name
	}
	return &api.Error{Code: api.Exists, Msg: fmt.Sprintf("VM %q exists already, and is %s", m.Name, m.State), Hint: hint + "; or choose another --name"}
}
