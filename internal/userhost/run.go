package userhost

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
	farewellLimit = 5 * time.Second // for a companion to write down why its VMM ended
	answerLimit   = 5 * time.Second // for a companion that is there to answer
	takeOverLimit = 30 * time.Second
	replacements  = 3 // companions in a row that may be lost before the VM is given up
	soon          = time.Minute
)

// run is a VMM that we watch. It sees to it that there is a companion.
type run struct {
	h       *Host
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

// hold begins to watch a VMM. If it has ended already, the run is done.
func (h *Host) hold(ctx context.Context, dir string, rec host.Record) (host.Run, error) {
	r := &run{h: h, dir: dir, record: rec, done: make(chan struct{}), watched: make(chan struct{})}
	p, err := procid.Open(rec.VMM)
	if errors.Is(err, procid.ErrDead) {
		r.exit = h.exitOf(ctx, dir, rec)
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
	h.mu.Lock()
	old := h.runs[rec.ID]
	h.runs[rec.ID] = r
	h.mu.Unlock()
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
		case !r.process.ID().Alive():
			r.finish(r.h.exitOf(ctx, r.dir, r.Record()))
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
		r.h.log.Warn("a companion is lost, starting another", "id", r.Record().ID, "dead", r.Record().Companion)
		var rec host.Record
		if rec, err = r.h.takeOver(ctx, r.dir, r.Record()); err == nil {
			r.mu.Lock()
			r.record = rec
			r.mu.Unlock()
		}
	}
}

// giveUp ends a VMM whose companions keep dying: nobody could speak to it.
func (r *run) giveUp(ctx context.Context, err error) {
	r.h.log.Error("giving the VM up: its companions keep dying", "id", r.Record().ID, "err", err)
	_ = r.process.Signal(syscall.SIGKILL) // dead is as good
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
	r.h.mu.Lock()
	defer r.h.mu.Unlock()
	if r.h.runs[r.record.ID] == r {
		delete(r.h.runs, r.record.ID)
	}
}

// exitOf says why a dead VMM ended: as its companion wrote, or what can be
// concluded.
func (h *Host) exitOf(ctx context.Context, dir string, rec host.Record) host.Exit {
	var now host.Record
	if err := companionapi.Load(dir, companionapi.RecordName, &now); err == nil {
		rec.Companion = now.Companion
	}
	if p, err := procid.Open(rec.Companion); err == nil { // it may be about to write
		ctx, cancel := context.WithTimeout(ctx, farewellLimit)
		_ = p.Wait(ctx)
		cancel()
		_ = p.Close()
	}
	var e host.Exit
	if err := companionapi.Load(dir, companionapi.ExitName, &e); err == nil {
		return e
	}
	if boot, err := procid.BootID(); err == nil && rec.VMM.BootID != "" && rec.VMM.BootID != boot {
		return host.Exit{Reason: "the host was restarted"}
	}
	return host.Exit{Reason: vmm.Label(rec.Driver) + " ended while nobody watched it"}
}

// takeOver starts a companion for a VMM that has none.
func (h *Host) takeOver(ctx context.Context, dir string, rec host.Record) (host.Record, error) {
	var c companionapi.Config
	if err := companionapi.Load(dir, companionapi.ConfigName, &c); err != nil {
		return rec, err
	}
	c.Adopt = &rec
	ctx, cancel := context.WithTimeout(ctx, takeOverLimit)
	defer cancel()
	s, err := h.start(ctx, c, nil)
	if err != nil {
		return rec, err
	}
	return s.Record, nil
}

// Adopt implements host.Host.
func (h *Host) Adopt(ctx context.Context, saved host.Record) (host.Run, error) {
	dir, err := h.dir(saved.ID)
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
	if !rec.VMM.Alive() {
		return nil, &host.Gone{Exit: h.exitOf(ctx, dir, rec)}
	}
	if !h.answers(ctx, dir, rec) {
		if rec, err = h.replace(ctx, dir, rec); err != nil {
			return nil, err
		}
	}
	return h.hold(ctx, dir, rec)
}

// replace puts a companion in the place of one that is dead or hangs. One that
// is just being started, by our own watch or by a process that died over it,
// holds the socket without being on record: it goes first. A VMM that cannot be
// taken over is ended while it is known who it is: its directory may be gone,
// and Release finds nothing without.
func (h *Host) replace(ctx context.Context, dir string, rec host.Record) (host.Record, error) {
	h.mu.Lock()
	r := h.runs[rec.ID]
	delete(h.runs, rec.ID)
	h.mu.Unlock()
	if r != nil {
		r.let()
	}
	err := errors.Join(kill(ctx, rec.Companion), h.killCompanions(ctx, dir))
	now := rec
	if err == nil {
		now, err = h.takeOver(ctx, dir, rec)
	}
	switch {
	case err == nil:
		return now, nil
	case ctx.Err() != nil:
		return rec, context.Cause(ctx)
	case !rec.VMM.Alive():
		return rec, &host.Gone{Exit: h.exitOf(ctx, dir, rec)}
	}
	return rec, errors.Join(fmt.Errorf("taking over VM %s: %w", rec.ID, err), kill(ctx, rec.VMM))
}

// answers reports whether the recorded companion is there and speaks our
// language: one of an older version still does, or is replaced.
func (h *Host) answers(ctx context.Context, dir string, rec host.Record) bool {
	if !rec.Companion.Alive() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	_, err := companionapi.New(filepath.Join(dir, companionapi.SocketName)).Status(ctx)
	if err != nil {
		h.log.Warn("a companion does not answer, replacing it", "id", rec.ID, "err", err)
	}
	return err == nil
}

// kill ends a process and waits for its end. One that is dead already is fine.
func kill(ctx context.Context, id procid.ID) error {
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
