package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/disk"
	"banger/internal/host"
	"banger/internal/machine/rows"
)

// A vm is one VM and the goroutine that owns it.
type vm struct {
	x    *Index
	id   string
	ops  chan *op
	gone chan struct{} // closed when the goroutine has ended

	// What follows is the goroutine's own.
	adoptFirst bool
	row        row
	run        host.Run // nil without a VMM
	stage      api.Stage
	watch      watch
	unsettled  string // why the VMM ended, if that could not be saved
	deleted    bool   // read by others after gone

	mu       sync.Mutex // guards what follows
	pub      published
	changed  chan struct{} // closed when pub changes
	waiting  [urgencies]int
	halt     context.CancelCauseFunc // ends the operation under way; may be nil
	haltFrom urgency                 // by whom halt may be called
}

// published is what readers see: a copy.
type published struct {
	row       row
	stage     api.Stage
	companion string
	busy      bool   // an operation is under way
	version   uint64 // counts publications
}

// An op is one operation, run by the owner. life ends with the daemon; the
// context of whoever asked is in do, which decides what that means half-way.
type op struct {
	urgency urgency
	do      func(life context.Context) error
	done    chan error // buffered
}

// An urgency says which operations an op cuts short instead of waiting.
type urgency int

const (
	patient   urgency = iota // waits for its turn
	stopping                 // cuts a boot short
	ending                   // cuts a boot or an orderly shutdown short
	urgencies                // how many there are
)

// errClosing is the cause of contexts that end because the daemon does. What
// is under way then stays as it is for the next daemon.
var errClosing = &api.Error{Code: api.Interrupted, Msg: "the daemon is shutting down", Hint: "try again"}

func (x *Index) newVM(r row) *vm {
	return &vm{
		x: x, id: r.ID, row: r,
		ops:     make(chan *op),
		gone:    make(chan struct{}),
		changed: make(chan struct{}),
		pub:     published{row: r},
	}
}

// loop owns the VM until it is deleted or life ends. adopted is called when
// the VM has been found again, or not.
func (v *vm) loop(life context.Context, adopted func()) {
	defer close(v.gone)
	defer v.unfollow()
	then := func() {}
	if v.adoptFirst {
		v.busy(true)
		then = v.adopt(life)
	}
	adopted()
	then()
	v.busy(false)
	for !v.deleted {
		select {
		case <-life.Done():
			return
		case o := <-v.ops:
			v.begin(o)
			v.makeUp(life)
			err := v.errDeleted()
			if !v.deleted {
				err = o.do(life)
			}
			v.busy(false) // before the caller goes on and looks
			o.done <- err
		case <-v.ended():
			v.busy(true)
			v.onExit(life)
		case err := <-v.watch.lost:
			v.busy(true)
			v.onLost(life, err)
		case e := <-v.watch.events:
			v.note(life, e)
		}
		v.busy(false)
	}
}

// begin counts o as no longer waiting.
func (v *vm) begin(o *op) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.waiting[o.urgency]--
	v.pub.busy = true
	v.pub.version++
}

// busy says whether the VM is at rest, for the census.
func (v *vm) busy(now bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.pub.busy = now
	v.pub.version++
}

// ask has the owner run do, and returns what it returns. do runs to its end
// even if the caller's ctx has ended; it is not begun if ctx ends first.
func (v *vm) ask(ctx context.Context, u urgency, do func(life context.Context) error) error {
	v.mu.Lock()
	v.waiting[u]++
	if v.halt != nil && u >= v.haltFrom {
		v.halt(haltedBy(u, v.pub.row.Name))
	}
	v.mu.Unlock()
	o := &op{urgency: u, do: do, done: make(chan error, 1)}
	var err error
	select {
	case v.ops <- o:
		return <-o.done
	case <-v.gone:
		err = errClosing
		if v.deleted {
			err = v.errDeleted()
		}
	case <-v.x.closed:
		err = errClosing
	case <-ctx.Done():
		err = interrupted(ctx, "waiting for VM "+v.look().row.Name)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.waiting[u]--
	return err
}

func (v *vm) errDeleted() error {
	return &api.Error{Code: api.NotFound, Msg: fmt.Sprintf("VM %q was deleted meanwhile", v.look().row.Name)}
}

func haltedBy(u urgency, name string) error {
	what := "stopped"
	if u == ending {
		what = "killed or deleted"
	}
	return &api.Error{Code: api.Interrupted, Msg: fmt.Sprintf("VM %q was %s meanwhile", name, what)}
}

// interrupted is the error for an operation that ended because ctx did.
func interrupted(ctx context.Context, doing string) error {
	cause := context.Cause(ctx)
	if e, ok := errors.AsType[*api.Error](cause); ok {
		return e
	}
	return &api.Error{Code: api.Interrupted, Msg: doing, Err: cause}
}

// haltable derives a context for the operation under way that ends with ctx,
// with the daemon, or when an operation at least as urgent as from is asked
// for. over must be called.
func (v *vm) haltable(ctx, life context.Context, from urgency) (_ context.Context, over func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	undo := context.AfterFunc(life, func() { cancel(errClosing) })
	v.mu.Lock()
	defer v.mu.Unlock()
	v.halt, v.haltFrom = cancel, from
	for u := from; u < urgencies; u++ {
		if v.waiting[u] > 0 {
			cancel(haltedBy(u, v.pub.row.Name))
		}
	}
	return ctx, func() {
		v.mu.Lock()
		v.halt = nil
		v.mu.Unlock()
		undo()
		cancel(nil)
	}
}

// closing reports whether err came from the end of the daemon.
func closing(err error) bool { return errors.Is(err, errClosing) }

// look returns the published snapshot.
func (v *vm) look() published {
	p, _ := v.lookAndWait()
	return p
}

// lookAndWait returns the snapshot and a channel that closes when it changes.
func (v *vm) lookAndWait() (published, <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.pub, v.changed
}

// publish shows readers what the owner knows.
func (v *vm) publish() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.pub.row, v.pub.stage, v.pub.companion = v.row, v.stage, ""
	if v.run != nil {
		v.pub.companion = v.run.Companion()
	}
	v.pub.version++
	close(v.changed)
	v.changed = make(chan struct{})
}

// save brings the VM to a state: first in the store, then for readers. change
// may be nil.
func (v *vm) save(ctx context.Context, to api.State, change func(r *row)) error {
	r := v.row
	if !rows.Legal(r.State, to) {
		return fmt.Errorf("saving VM %q: it cannot go from %q to %q", r.Name, r.State, to)
	}
	r.State = to
	if change != nil {
		change(&r)
	}
	if err := v.x.table.Update(ctx, r); err != nil {
		return fmt.Errorf("saving VM %q: %w", r.Name, err)
	}
	v.row = r
	v.publish()
	return nil
}

// copyRow writes the row's copy into the VM's directory.
func (v *vm) copyRow() error {
	return v.x.table.Copy(v.row)
}

// dir is the VM's directory, path a file in it.
func (v *vm) dir() string             { return filepath.Join(v.x.cfg.Dir, v.id) }
func (v *vm) path(name string) string { return filepath.Join(v.dir(), name) }

// machine is the VM as the API tells it.
func (v *vm) machine() api.Machine {
	p := v.look()
	r := p.row
	m := api.Machine{
		ID: r.ID, Name: r.Name, State: r.State, Reason: r.Reason, Stage: p.stage,
		Image: r.Origin.Image, ImageID: r.Origin.ImageID, Kernel: r.Origin.Kernel,
		Spec: r.Spec, Network: v.x.network(r), Address: r.Address, NAT: r.NAT, Autostart: r.Autostart,
		Ephemeral: r.Ephemeral, Workspace: r.Workspace,
		Created: r.Created, Started: r.Started,
		Companion: p.companion,
		DiskUsed:  int64(disk.Used(v.path(rows.DiskName))),
	}
	if p.companion != "" && r.Record != nil {
		m.Driver, m.VMMPID = r.Record.Driver, r.Record.VMM.PID
	}
	return m
}

// A watch follows a companion's events. The zero watch follows nothing.
type watch struct {
	events chan companionapi.Event
	lost   chan error // the connection ended without an exit event
	stop   context.CancelFunc
}

// follow takes run as the VM's and listens to its companion.
func (v *vm) follow(life context.Context, run host.Run) {
	v.unfollow()
	v.run = run
	ctx, cancel := context.WithCancel(life)
	w := watch{events: make(chan companionapi.Event), lost: make(chan error, 1), stop: cancel}
	v.watch = w
	companion := v.x.cfg.Companion(run.Companion())
	v.x.watchers.Go(func() {
		err := companion.Events(ctx, func(e companionapi.Event) {
			select {
			case w.events <- e:
			case <-ctx.Done():
			}
		})
		if err != nil && ctx.Err() == nil {
			w.lost <- err
		}
	})
}

// unfollow lets go of the run, which goes on.
func (v *vm) unfollow() {
	if v.watch.stop != nil {
		v.watch.stop()
	}
	v.watch, v.run = watch{}, nil
}

// ended is closed when the VMM has ended; nil, for ever open, without one.
func (v *vm) ended() <-chan struct{} {
	if v.run == nil {
		return nil
	}
	return v.run.Done()
}

// note takes in what the companion tells. Stages only go forward: a companion
// that took over tells the old ones again.
func (v *vm) note(life context.Context, e companionapi.Event) {
	switch {
	case e.Type == companionapi.EventProblem:
		v.x.cfg.Log.Warn("guest has a problem", "vm", v.row.Name, "text", e.Text)
	case e.Type == companionapi.EventStage && e.Stage.Reached(v.stage):
		v.stage = e.Stage
		if v.row.State == api.Failed && v.stage.Reached(api.StageAgent) {
			// It called home after all.
			if err := v.save(context.WithoutCancel(life), api.Running, func(r *row) { r.Reason, r.Started = "", time.Now() }); err != nil {
				v.x.cfg.Log.Error("guest called home late", "vm", v.row.Name, "err", err)
			}
		}
		v.publish()
	}
}

// removeDir removes the VM's directory with all there is in it.
func (v *vm) removeDir() error {
	if err := os.RemoveAll(v.dir()); err != nil {
		return fmt.Errorf("removing directory of VM %q: %w", v.row.Name, err)
	}
	return nil
}
