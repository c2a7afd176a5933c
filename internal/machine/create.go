package machine

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"time"

	"banger/internal/api"
	"banger/internal/crash"
	"banger/internal/disk"
	"banger/internal/machine/rows"
	"banger/internal/names"
)

// leaseTimeout is how long a companion has to say whether a lease is held.
const leaseTimeout = 5 * time.Second

// Create makes a VM and, unless NoStart is set, boots it. emit gets phase,
// machine, started, stage and notice events and, last, the result; an error is
// returned, not emitted. If ctx ends before the result, nothing is left of the
// VM. With Ephemeral, Create returns only when ctx has ended (the client has
// closed the stream, which it does after the result, when it holds a lease) or
// the VM has: without a lease at that time the VM is deleted.
//
// A VM whose guest does not call home, or does not reach the stage in time, is
// kept, ephemeral or not, for a look at its console.
func (x *Index) Create(ctx context.Context, req api.CreateMachine, emit func(api.Event)) error {
	want, err := x.checkCreate(req)
	if err != nil {
		return err
	}
	t := &teller{emit: emit}
	t.phase("resolve")
	origin, err := x.cfg.Images.Resolve(ctx, req.Image)
	if err != nil {
		return err
	}
	v, err := x.reserve(req, origin)
	if err != nil {
		return err
	}
	select {
	case x.spawn <- v:
	case <-x.closed:
		x.forget(v)
		return errClosing
	case <-ctx.Done():
		x.forget(v)
		return interrupted(ctx, "creating VM "+v.row.Name)
	}
	working, over := v.untilUnleased(ctx, req.Ephemeral)
	defer over()
	err = v.ask(working, patient, func(life context.Context) error { return v.create(working, life, req, t) })
	if err != nil {
		if v.look().row.State == "" {
			// The operation was never begun: nothing exists but the goroutine.
			return errors.Join(err, v.discard(ctx))
		}
		return err
	}
	if !req.NoStart {
		if err := v.awaitStage(working, want, t); err != nil {
			return errors.Join(err, v.afterFailedWait(working))
		}
	}
	t.machine(api.EventResult, v)
	if req.Ephemeral {
		return v.holdUntilLeased(ctx)
	}
	return nil
}

// checkCreate refuses what is wrong with a request before anything exists.
func (x *Index) checkCreate(req api.CreateMachine) (want api.Stage, err error) {
	if req.Name != "" {
		if err := names.CheckVM(req.Name); err != nil {
			return "", err
		}
	}
	if err := req.Spec.Check(); err != nil {
		return "", err
	}
	if req.NoStart && req.Ephemeral {
		return "", &api.Error{Code: api.Invalid, Msg: "a VM that is not started has no lease to end with: --no-start and --rm exclude each other"}
	}
	if req.NAT && x.cfg.Net == nil {
		return "", api.NoNetwork("--nat")
	}
	return stageOf(req.Wait)
}

// reserve takes an id, the name and an address, in memory: of a hundred clients
// with one name the first wins, and the others learn it before anything is written.
// Until its row is written the VM is not listed and no reference finds it.
func (x *Index) reserve(req api.CreateMachine, origin Origin) (*vm, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	name := req.Name
	for n := 0; name == "" || req.Name == "" && x.byName[name] != nil; n++ {
		name = names.Random()
		if n >= 100 {
			name += "-" + names.NewID()[:names.MinPrefix]
		}
	}
	if x.byName[name] != nil {
		return nil, rows.Taken(name)
	}
	id := names.NewID()
	address, err := x.table.Lease(id)
	if err != nil {
		return nil, err
	}
	v := x.newVM(row{
		ID: id, Name: name, Address: address, NAT: req.NAT,
		Ephemeral: req.Ephemeral, Origin: origin, Spec: req.Spec,
		Workspace: req.Workspace, UserKey: req.AuthorizedKey, Created: time.Now(),
	})
	x.byID[v.id], x.byName[name] = v, v
	return v, nil
}

// forget takes v out of the index, when nothing is left that uses its address.
func (x *Index) forget(v *vm) {
	x.table.Unlease(v.id)
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.byID, v.id)
	for name, holder := range x.byName {
		if holder == v {
			delete(x.byName, name)
		}
	}
}

// discard ends the goroutine of a VM that never had a row.
func (v *vm) discard(ctx context.Context) error {
	err := v.ask(context.WithoutCancel(ctx), ending, func(context.Context) error {
		if v.row.State == "" {
			v.deleted = true
			v.x.forget(v)
		}
		return nil
	})
	if api.CodeOf(err) == api.NotFound || closing(err) {
		return nil
	}
	return err
}

// create is Create in the owner's goroutine.
func (v *vm) create(ctx, life context.Context, req api.CreateMachine, t *teller) error {
	err := v.make(ctx, life, t)
	if err == nil && req.NoStart {
		return v.save(context.WithoutCancel(ctx), api.Stopped, nil)
	}
	if err == nil {
		err = v.boot(ctx, life, t)
	}
	if err == nil || v.row.State == api.Failed || closing(err) {
		return err
	}
	return errors.Join(err, v.remove(context.WithoutCancel(ctx)))
}

// make writes the row and then makes everything that a VM has while stopped.
func (v *vm) make(ctx, life context.Context, t *teller) error {
	ctx, over := v.haltable(ctx, life, stopping)
	defer over()
	err := v.writeRow(ctx, t)
	if err == nil {
		err = v.furnish(ctx, t)
	}
	if err != nil && ctx.Err() != nil {
		// Whatever step it was that noticed, the cause is the better word.
		return interrupted(ctx, fmt.Sprintf("creating VM %q", v.row.Name))
	}
	return err
}

// writeRow writes the row, after everything that can fail cheaply.
func (v *vm) writeRow(ctx context.Context, t *teller) error {
	if err := disk.CheckRoom(v.x.cfg.Dir, disk.Room); err != nil {
		return err
	}
	t.phase("row")
	r := v.row
	r.State = api.Starting
	err := v.x.cfg.Store.Tx(ctx, func(tx *sql.Tx) error {
		if err := v.x.cfg.Images.Claim(ctx, tx, r.Origin); err != nil {
			return err
		}
		return rows.Insert(ctx, tx, r)
	})
	if err != nil {
		return fmt.Errorf("creating VM %q: %w", r.Name, err)
	}
	v.row = r
	v.publish()
	t.machine(api.EventMachine, v)
	crash.Point("create.row")
	return nil
}

// furnish makes directory, disk and identity of a VM that has a row. The
// identity comes last but one: a row with it is complete.
func (v *vm) furnish(ctx context.Context, t *teller) error {
	r := v.row
	t.phase("disk")
	if err := os.Mkdir(v.dir(), 0o700); err != nil {
		return fmt.Errorf("making directory of VM %q: %w", r.Name, err)
	}
	crash.Point("create.directory")
	if err := disk.Create(ctx, v.path(rows.DiskName), r.Spec.DiskBytes); err != nil {
		return err
	}
	crash.Point("create.disk")
	made, err := rows.NewIdentity()
	if err != nil {
		return err
	}
	if err := v.x.cfg.KnownHost(r.Name, r.ID, made.HostKeyPub); err != nil {
		return fmt.Errorf("writing host key of VM %q: %w", r.Name, err)
	}
	crash.Point("create.known")
	err = v.save(context.WithoutCancel(ctx), api.Starting, func(r *row) { r.Identity, r.Made = made, true })
	if err != nil {
		return err
	}
	crash.Point("create.made")
	if err := v.copyRow(); err != nil {
		return err
	}
	crash.Point("create.copied")
	return nil
}

// untilUnleased derives a context that ends with ctx, but not while the
// companion of an ephemeral VM has a leaseholder: then the VM's life hangs on
// the lease and no longer on the request.
func (v *vm) untilUnleased(ctx context.Context, ephemeral bool) (context.Context, func()) {
	if !ephemeral {
		return ctx, func() {}
	}
	working, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	undo := context.AfterFunc(ctx, func() {
		if !v.leased(working) {
			cancel(context.Cause(ctx))
		}
	})
	return working, func() {
		undo()
		cancel(nil)
	}
}

// leased asks the companion whether a lease is held, or was: then its end ends
// the VM.
func (v *vm) leased(ctx context.Context) bool {
	socket := v.look().companion
	if socket == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaseTimeout)
	defer cancel()
	s, err := v.x.cfg.Companion(socket).Status(ctx)
	return err == nil && s.LeaseTaken
}

// holdUntilLeased waits for the end of the request that made an ephemeral VM
// and deletes the VM if no lease has been taken by then.
func (v *vm) holdUntilLeased(ctx context.Context) error {
	select {
	case <-ctx.Done():
	case <-v.gone:
		return nil
	}
	if v.leased(ctx) {
		return nil
	}
	return v.delete(ctx)
}

// afterFailedWait decides what becomes of a new VM that did not reach the
// stage: deleted if the request has ended, else kept to be looked at.
func (v *vm) afterFailedWait(ctx context.Context) error {
	if ctx.Err() != nil {
		return v.delete(ctx)
	}
	err := v.ask(ctx, patient, func(life context.Context) error {
		if !v.row.Ephemeral {
			return nil
		}
		return v.save(context.WithoutCancel(life), v.row.State, func(r *row) { r.Ephemeral = false })
	})
	if api.CodeOf(err) == api.NotFound || closing(err) {
		return nil
	}
	return err
}
