package cli

import (
	"context"
	"fmt"
	"strings"

	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/recipe"
	"banger/internal/size"
)

// ensure makes sure that the store has the image and the default kernel, and
// pulls what is missing. It returns the image's name.
func (a *app) ensure(ctx context.Context, d *client.Client, image string) (string, error) {
	if image == "" {
		image = a.defaultImage()
	}
	// What cannot be mended by waiting is said before a pull makes one wait.
	if p := d.Greeting().Problem; p != nil {
		return "", p
	}
	_, err := d.Image(ctx, image)
	absent := err != nil && api.CodeOf(err) == api.NotFound
	if err != nil && !absent {
		return "", err
	}
	if absent {
		if _, err := recipe.Image(image); err != nil {
			return "", err
		}
	}
	if _, err := d.Kernel(ctx, recipe.DefaultKernel); err != nil {
		if api.CodeOf(err) != api.NotFound {
			return "", err
		}
		if _, err := a.pullKernel(ctx, recipe.DefaultKernel, false); err != nil {
			return "", fmt.Errorf("pulling kernel %s: %w", recipe.DefaultKernel, err)
		}
	}
	if absent {
		if _, err := a.pullImage(ctx, image, false); err != nil {
			return "", fmt.Errorf("pulling image %s: %w", image, err)
		}
	}
	return image, nil
}

// specLine says up front what the VM gets.
func (a *app) specLine(s api.Spec, h api.Hello) {
	if a.json {
		return
	}
	parts := []string{
		fmt.Sprintf("%d vCPU", s.VCPUs), mib(s.MemoryMiB) + " memory",
		size.Bytes(s.DiskBytes).String() + " disk", "network: none", h.Driver,
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
