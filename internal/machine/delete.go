package machine

import (
	"context"
	"fmt"

	"banger/internal/api"
	"banger/internal/crash"
	"banger/internal/store"
)

// Delete ends a VM and removes all that there is of it, from any state, also a
// half-made one. What it returns is the VM as it was.
func (x *Index) Delete(ctx context.Context, ref string) (api.Machine, error) {
	v, err := x.find(ref)
	if err != nil {
		return api.Machine{}, err
	}
	was := v.machine()
	err = v.ask(ctx, ending, func(context.Context) error { return v.remove(context.WithoutCancel(ctx)) })
	if api.CodeOf(err) == api.NotFound {
		return was, nil // somebody else was faster
	}
	return was, err
}

// delete is Delete for a caller whose own ctx may have ended; that somebody
// else was faster is no error.
func (v *vm) delete(ctx context.Context) error {
	clean := context.WithoutCancel(ctx)
	err := v.ask(clean, ending, func(context.Context) error { return v.remove(clean) })
	if api.CodeOf(err) == api.NotFound || closing(err) {
		return nil
	}
	return err
}

// remove is Delete in the owner's goroutine; ctx must not end. Each step may
// have been done before, and the row goes last.
func (v *vm) remove(ctx context.Context) error {
	if v.row.State == "" {
		// Before the row there is nothing; a host key under this name may be
		// that of the VM which has it.
		v.deleted = true
		v.x.forget(v)
		return nil
	}
	// On a full disk the row cannot be marked, and this is what makes room:
	// then a crash in the middle leaves a VM without a disk, which is said.
	if err := v.save(ctx, api.Deleting, nil); err != nil && !store.IsFull(err) {
		return err
	}
	crash.Point("delete.row")
	if err := v.x.cfg.Host.Release(ctx, v.id); err != nil {
		return fmt.Errorf("deleting VM %q: %w", v.row.Name, err)
	}
	crash.Point("delete.released")
	v.unfollow()
	v.publish()
	// The files first: on a full disk, forgetting needs the room that they make.
	if err := v.removeDir(); err != nil {
		return err
	}
	crash.Point("delete.files")
	if err := v.x.cfg.ForgetHost(v.row.Name, v.id); err != nil {
		return fmt.Errorf("deleting VM %q: %w", v.row.Name, err)
	}
	crash.Point("delete.forgotten")
	if err := v.x.table.Drop(ctx, v.id); err != nil {
		return fmt.Errorf("deleting VM %q: %w", v.row.Name, err)
	}
	crash.Point("delete.done")
	v.deleted = true
	v.x.forget(v)
	return nil
}
