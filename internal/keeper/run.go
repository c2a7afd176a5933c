package keeper

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/host"
	"banger/internal/procid"
	"banger/internal/vmm"
)

const (
	farewellLimit = 5 * time.Second // for a companion to end after its VMM
	answerLimit   = 5 * time.Second // for a companion that is there to answer
	takeOverLimit = 30 * time.Second
	replacements  = 3 // companions in a row that may be lost before the VM is given up
	soon          = time.Minute
	dying         = 2 * time.Second // for a VMM that nobody can speak to to be gone
)

// run is a VMM that we watch. It sees to it that there is a companion.
type run struct {
	k       *Keeper
	dir     string
	process *procid.Process
	done    chan struct{}

	leave   func() // ends the watch; Done stays as it is
	watched chan struct{}

	mu     sync.Mutex
	record host.Record
	exit   host.Exit
}

func (r *run) Record() host.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.record
}

func (r *run) Companion() string     { return filepath.Join(r.dir, companionapi.SocketName) }
func (r *run) Done() <-chan struct{} { return r.done }

func (r *run) Exit() host.Exit {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.exit
}

// Hold begins to watch a VMM that has a companion. If it has ended already, the
// run is done.
func (k *Keeper) Hold(ctx context.Context, rec host.Record) (host.Run, error) {
	dir, err := k.Dir(rec.ID)
	if err != nil {
		return nil, err
	}
	r := &run{k: k, dir: dir, record: rec, done: make(chan struct{}), watched: make(chan struct{})}
	p, err := k.cfg.VMMs.Open(ctx, rec)
	if errors.Is(err, procid.ErrDead) {
		r.exit = k.exitOf(ctx, dir, rec)
		close(r.done)
		close(r.watched)
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	r.process = p
	watching, leave := context.WithCancel(context.WithoutCancel(ctx))
	r.leave = leave
	k.mu.Lock()
	old := k.runs[rec.ID]
	k.runs[rec.ID] = r
	k.mu.Unlock()
	if old != nil {
		old.let()
	}
	go r.watch(watching)
	return r, nil
}

// let ends the watch of a run and waits until it has ended.
func (r *run) let() {
	r.leave()
	<-r.watched
	_ = r.process.Close() // of a pidfd: cannot go wrong
}

// watch waits for the VMM's end. A companion that dies before is replaced.
func (r *run) watch(ctx context.Context) {
	defer close(r.watched)
	lost, last := 0, time.Now()
	var err error
	for {
		r.await(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case r.process.Ended():
			r.finish(r.k.exitOf(ctx, r.dir, r.Record()))
			return
		}
		if time.Since(last) > soon {
			lost = 0
		}
		lost, last = lost+1, time.Now()
		if lost > replacements {
			r.giveUp(ctx, err)
			return
		}
		r.k.log.Warn("a companion is lost, starting another", "id", r.Record().ID, "dead", r.Record().Companion)
		var rec host.Record
		rec, err = r.k.takeOver(ctx, r.dir, r.Record())
		if err != nil {
			ends(ctx, r.process)
			continue
		}
		r.mu.Lock()
		r.record = rec
		r.mu.Unlock()
		r.k.log.Info("another companion has taken over", "id", rec.ID, "pid", rec.Companion.PID)
	}
}

// ends gives a VMM that a new companion cannot reach a moment to end: mostly it
// was killed together with the old one, and answers nobody while the kernel takes
// back its memory.
func ends(ctx context.Context, vmm *procid.Process) {
	ctx, cancel := context.WithTimeout(ctx, dying)
	defer cancel()
	_ = vmm.Wait(ctx) // whoever comes next sees what came of it
}

// giveUp ends a VMM whose companions keep dying: nobody could speak to it.
func (r *run) giveUp(ctx context.Context, err error) {
	r.k.log.Error("giving the VM up: its companions keep dying", "id", r.Record().ID, "err", err)
	if err := r.k.cfg.VMMs.End(ctx, r.Record()); err != nil {
		r.k.log.Error("ending a VMM", "id", r.Record().ID, "err", err)
	}
	if r.process.Wait(ctx) == nil {
		r.finish(host.Exit{Reason: "its companions kept dying"})
	}
}

// await returns when VMM or companion have ended, or ctx has.
func (r *run) await(ctx context.Context) {
	var gone <-chan struct{} // never, if the companion cannot be looked at
	companion, err := procid.Open(r.Record().Companion)
	if errors.Is(err, procid.ErrDead) {
		return
	}
	if err == nil {
		defer companion.Close()
		gone = companion.Done()
	}
	select {
	case <-r.process.Done():
	case <-gone:
	case <-ctx.Done():
	}
}

func (r *run) finish(e host.Exit) {
	r.mu.Lock()
	r.exit = e
	r.mu.Unlock()
	close(r.done)
	r.k.mu.Lock()
	defer r.k.mu.Unlock()
	if r.k.runs[r.record.ID] == r {
		delete(r.k.runs, r.record.ID)
	}
}

// exitOf says why a dead VMM ended: as its companion wrote, or what can be
// concluded.
func (k *Keeper) exitOf(ctx context.Context, dir string, rec host.Record) host.Exit {
	var now host.Record
	if err := companionapi.Load(dir, companionapi.RecordName, &now); err == nil {
		rec.Companion = now.Companion
	}
	farewell(ctx, rec.Companion) // it may be about to write
	var e host.Exit
	if err := companionapi.Load(dir, companionapi.ExitName, &e); err == nil {
		return e
	}
	if boot, err := procid.BootID(); err == nil && rec.VMM.BootID != "" && rec.VMM.BootID != boot {
		return host.Exit{Reason: "the host was restarted"}
	}
	if why := k.cfg.VMMs.Why(ctx, rec); why != "" {
		return host.Exit{Reason: why}
	}
	return host.Exit{Reason: vmm.Label(rec.Driver) + " ended while nobody watched it"}
}

// farewell waits for a companion whose VMM has ended: it says why, sends its
// clients what they have not read, and ends by itself.
func farewell(ctx context.Context, companion procid.ID) {
	p, err := procid.Open(companion)
	if err != nil {
		return
	}
	defer p.Close()
	ctx, cancel := context.WithTimeout(ctx, farewellLimit)
	defer cancel()
	_ = p.Wait(ctx) // one that hangs is not waited for
}

// takeOver starts a companion for a VMM that has none.
func (k *Keeper) takeOver(ctx context.Context, dir string, rec host.Record) (host.Record, error) {
	var c companionapi.Config
	if err := companionapi.Load(dir, companionapi.ConfigName, &c); err != nil {
		return rec, err
	}
	c.Adopt = &rec
	ctx, cancel := context.WithTimeout(ctx, takeOverLimit)
	defer cancel()
	ends, err := k.cfg.VMMs.Ends(ctx, rec)
	if err != nil {
		return rec, err
	}
	defer closeAll(ends)
	s, err := k.Start(ctx, c, ends)
	if err != nil {
		return rec, err
	}
	return s.Record, nil
}

// Adopt finds a VM again: see host.Host.
func (k *Keeper) Adopt(ctx context.Context, saved host.Record) (host.Run, error) {
	dir, err := k.Dir(saved.ID)
	if err != nil {
		return nil, err
	}
	rec := saved
	// The directory knows more: of a launch that nobody could save, and of
	// companions that came later.
	var now host.Record
	if err := companionapi.Load(dir, companionapi.RecordName, &now); err == nil && now.ID == saved.ID && (now.VMM.PID != 0 || saved.VMM.PID == 0) {
		rec = now
	}
	switch p, err := k.cfg.VMMs.Open(ctx, rec); {
	case errors.Is(err, procid.ErrDead):
		return nil, &host.Gone{Exit: k.exitOf(ctx, dir, rec)}
	case err != nil:
		return nil, err
	default:
		_ = p.Close() // of a pidfd: cannot go wrong
	}
	if !k.answers(ctx, dir, rec) {
		if rec, err = k.replace(ctx, dir, rec); err != nil {
			return nil, err
		}
	}
	return k.Hold(ctx, rec)
}

// replace puts a companion in the place of one that is dead or hangs. One that
// is just being started, by our own watch or by a process that died over it,
// holds the socket without being on record: it goes first. A VMM that cannot be
// taken over is ended while it is known who it is: its directory may be gone,
// and Release finds nothing without.
func (k *Keeper) replace(ctx context.Context, dir string, rec host.Record) (host.Record, error) {
	k.mu.Lock()
	r := k.runs[rec.ID]
	delete(k.runs, rec.ID)
	k.mu.Unlock()
	if r != nil {
		r.let()
	}
	err := errors.Join(Kill(ctx, rec.Companion), k.killCompanions(ctx, dir))
	now := rec
	if err == nil {
		if now, err = k.takeOver(ctx, dir, rec); err != nil {
			k.awaitEnd(ctx, rec)
		}
	}
	switch {
	case err == nil:
		return now, nil
	case ctx.Err() != nil:
		return rec, context.Cause(ctx)
	case k.dead(ctx, rec, err):
		return rec, &host.Gone{Exit: k.exitOf(ctx, dir, rec)}
	}
	return rec, errors.Join(fmt.Errorf("taking over VM %s: %w", rec.ID, err), k.cfg.VMMs.End(ctx, rec))
}

// awaitEnd is ends for a VMM that is only known by its record.
func (k *Keeper) awaitEnd(ctx context.Context, rec host.Record) {
	if p, err := k.cfg.VMMs.Open(ctx, rec); err == nil {
		ends(ctx, p)
		_ = p.Close() // of a pidfd: cannot go wrong
	}
}

// answers reports whether the recorded companion is there and speaks our
// language: one of an older version still does, or is replaced.
func (k *Keeper) answers(ctx context.Context, dir string, rec host.Record) bool {
	if !rec.Companion.Alive() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	_, err := companionapi.New(filepath.Join(dir, companionapi.SocketName)).Status(ctx)
	if err != nil {
		k.log.Warn("a companion does not answer, replacing it", "id", rec.ID, "err", err)
	}
	return err == nil
}

// dead reports whether a VMM has ended; why is what happened when it was spoken
// to, if it was.
func (k *Keeper) dead(ctx context.Context, rec host.Record, why error) bool {
	if errors.Is(why, procid.ErrDead) {
		return true
	}
	p, err := k.cfg.VMMs.Open(ctx, rec)
	if err == nil {
		_ = p.Close() // of a pidfd: cannot go wrong
	}
	return errors.Is(err, procid.ErrDead)
}

// Kill ends a process of ours and waits for its end. One that is dead already
// is fine.
func Kill(ctx context.Context, id procid.ID) error {
	p, err := procid.Open(id)
	if errors.Is(err, procid.ErrDead) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, procid.ErrDead) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, farewellLimit)
	defer cancel()
	if err := p.Wait(ctx); err != nil {
		return &api.Error{Code: api.Timeout, Msg: fmt.Sprintf("ending process %d: it was killed and is still there", id.PID), Err: err}
	}
	return nil
}
