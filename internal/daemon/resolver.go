package daemon

import (
	"cmp"
	"context"
	"database/sql"
	"errors"

	"banger/internal/bootfs"
	"banger/internal/host"
	"banger/internal/machine"
	"banger/internal/recipe"
	"banger/internal/vmm"
)

// resolver is the images and kernels as VMs see them; it introduces the stores
// to package machine.
type resolver struct {
	d      *Daemon
	bootfs *bootfs.Cache
}

// Resolve finds an image by name, or the default one, and its kernel.
func (r *resolver) Resolve(ctx context.Context, name string) (machine.Origin, error) {
	im, err := r.d.images.Find(ctx, cmp.Or(name, r.d.cfg.User.DefaultImageName, recipe.DefaultImage))
	if err != nil {
		return machine.Origin{}, err
	}
	// Any kernel goes with any image, and so far there is one.
	k, err := r.d.kernels.Find(ctx, recipe.DefaultKernel)
	if err != nil {
		return machine.Origin{}, err
	}
	return machine.Origin{Image: im.Name, ImageID: im.ID, Kernel: k.Name, KernelID: k.ID}, nil
}

// Claim fails if what Resolve found has been deleted or replaced since.
func (r *resolver) Claim(ctx context.Context, tx *sql.Tx, o machine.Origin) error {
	if err := r.d.images.Claim(ctx, tx, o.ImageID); err != nil {
		return err
	}
	return r.d.kernels.Claim(ctx, tx, o.KernelID)
}

// Open opens what a VM boots from.
func (r *resolver) Open(_ context.Context, o machine.Origin) (_ *machine.Boot, err error) {
	k, err := r.d.kernels.OpenFiles(o.KernelID)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.Close())
		}
	}()
	modules, err := r.d.kernels.Modules(o.KernelID)
	if err != nil {
		return nil, err
	}
	fs, err := r.bootfs.Open(o.KernelID, modules)
	if err != nil {
		return nil, err
	}
	base, err := r.d.images.OpenFile(o.ImageID)
	if err != nil {
		return nil, errors.Join(err, fs.Close())
	}
	return &machine.Boot{Kernel: k.Vmlinux, KernelConfig: k.Config, Initramfs: fs, Serial: vmm.SerialVM, Disks: []host.Disk{
		{File: base, Serial: vmm.SerialBase, ReadOnly: true},
		{File: k.Modules, Serial: vmm.SerialModules, ReadOnly: true},
	}}, nil
}
