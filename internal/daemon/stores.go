package daemon

import (
	"context"

	"banger/internal/api"
)

func (d *Daemon) withUsers(im api.Image) api.Image {
	im.Machines = d.index.Users(im.ID)
	return im
}

func (d *Daemon) findImage(ctx context.Context, ref string) (api.Image, error) {
	im, err := d.images.Find(ctx, ref)
	return d.withUsers(im), err
}

func (d *Daemon) findKernel(ctx context.Context, ref string) (api.Kernel, error) {
	k, err := d.kernels.Find(ctx, ref)
	k.Machines = d.index.Users(k.ID)
	return k, err
}

func (d *Daemon) listImages(c *call) error {
	is, err := d.images.List(c.r.Context())
	for i := range is {
		is[i] = d.withUsers(is[i])
	}
	return c.json(is, err)
}

func (d *Daemon) showImage(c *call) error {
	return c.json(d.findImage(c.r.Context(), c.r.PathValue("ref")))
}

func (d *Daemon) deleteImage(c *call) error {
	im, err := d.images.Delete(c.r.Context(), c.r.PathValue("ref"))
	return c.json(im, err)
}

func (d *Daemon) listKernels(c *call) error {
	ks, err := d.kernels.List(c.r.Context())
	for i := range ks {
		ks[i].Machines = d.index.Users(ks[i].ID)
	}
	return c.json(ks, err)
}

func (d *Daemon) showKernel(c *call) error {
	return c.json(d.findKernel(c.r.Context(), c.r.PathValue("ref")))
}

func (d *Daemon) deleteKernel(c *call) error {
	k, err := d.kernels.Delete(c.r.Context(), c.r.PathValue("ref"))
	return c.json(k, err)
}
