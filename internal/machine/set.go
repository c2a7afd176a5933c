package machine

import (
	"context"
	"errors"
	"fmt"

	"banger/internal/api"
	"banger/internal/disk"
	"banger/internal/machine/rows"
	"banger/internal/names"
)

// Set changes name, sizes, network, autostart or workspace. Sizes need a stopped
// VM, and the disk only grows; a new name reaches the guest at its next boot, and
// so do name servers after NAT was given.
func (x *Index) Set(ctx context.Context, ref string, req api.SetMachine) (api.Machine, error) {
	v, err := x.find(ref)
	if err != nil {
		return api.Machine{}, err
	}
	if req.Name != nil {
		if err := names.CheckVM(*req.Name); err != nil {
			return api.Machine{}, err
		}
	}
	if req.NAT != nil && *req.NAT && x.cfg.Net == nil {
		return api.Machine{}, api.NoNetwork("--nat")
	}
	err = v.ask(ctx, patient, func(context.Context) error { return v.set(context.WithoutCancel(ctx), req) })
	return v.machine(), err
}

// set is Set in the owner's goroutine; ctx must not end.
func (v *vm) set(ctx context.Context, req api.SetMachine) (err error) {
	spec := v.row.Spec
	if req.VCPUs != nil {
		spec.VCPUs = *req.VCPUs
	}
	if req.MemoryMiB != nil {
		spec.MemoryMiB = *req.MemoryMiB
	}
	if req.DiskBytes != nil {
		spec.DiskBytes = *req.DiskBytes
	}
	if err := spec.Check(); err != nil {
		return err
	}
	if spec != v.row.Spec && v.row.State != api.Stopped {
		return &api.Error{
			Code: api.Conflict,
			Msg:  fmt.Sprintf("VM %q is %s: its size can be changed while it is stopped", v.row.Name, v.row.State),
			Hint: "stop it with: banger vm stop " + v.row.Name,
		}
	}
	if spec.DiskBytes != v.row.Spec.DiskBytes {
		if err := disk.Grow(v.path(rows.DiskName), spec.DiskBytes); err != nil {
			return err
		}
	}
	old := v.row.Name
	if req.Name != nil && *req.Name != old {
		if err := v.x.rename(v, *req.Name); err != nil {
			return err
		}
		defer func() { v.x.unname(v) }()
		if err := v.x.cfg.KnownHost(*req.Name, v.id, v.row.Identity.HostKeyPub); err != nil {
			return fmt.Errorf("renaming VM %q: %w", old, err)
		}
	}
	err = v.save(ctx, v.row.State, func(r *row) {
		r.Spec = spec
		if req.Workspace != nil {
			r.Workspace = req.Workspace
		}
		if req.Name != nil {
			r.Name = *req.Name
		}
		if req.Autostart != nil {
			r.Autostart, r.BootID = *req.Autostart, v.x.cfg.BootID
		}
	})
	if err != nil {
		return err
	}
	if v.row.Name != old {
		if err := v.x.cfg.ForgetHost(old, v.id); err != nil {
			return fmt.Errorf("renaming VM %q: %w", old, err)
		}
	}
	if req.NAT != nil && *req.NAT != v.row.NAT {
		err = v.setNAT(ctx, *req.NAT)
	}
	return errors.Join(err, v.copyRow()) // what was changed before stays
}

// rename takes a further name for v.
func (x *Index) rename(v *vm, name string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.byName[name] != nil {
		return rows.Taken(name)
	}
	x.byName[name] = v
	return nil
}

// unname gives up all names of v but the one in its row.
func (x *Index) unname(v *vm) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for name, holder := range x.byName {
		if holder == v && name != v.row.Name {
			delete(x.byName, name)
		}
	}
}
