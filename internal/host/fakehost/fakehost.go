// Package fakehost is a [host.Host] without machines, for tests of what stands
// above: a "VMM" is a file in a directory, so it survives the process that
// launched it, and its companion answers in memory.
//
// It keeps the rules of a host rather than recording calls: a launch of what
// is held already fails, a release works from any half-state, and what was
// launched stays held until it is released. Guests call home at once unless
// [Host.Behave] says otherwise.
package fakehost

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/host"
	"banger/internal/procid"
)

// Files in the directory of a VM that is held.
const (
	aliveName = "alive" // exists while the VMM runs; holds the host.Record
	exitName  = companionapi.ExitName
	leaseName = "lease" // exists once a lease was taken
	netName   = "net"   // the host.Net of a VM that has one
)

// A Host holds VMs as subdirectories of Dir. A second Host on the same Dir
// can adopt them, as after a restart of the daemon.
type Host struct {
	Dir string
	// Behave says how the n-th launch (from 1) of a VM goes; may be nil.
	Behave func(id string, n int) Behaviour
	// Adopted says how the guests go on that are adopted.
	Adopted Behaviour

	mu       sync.Mutex
	runs     map[string]*Run
	launches map[string]int
	natErr   error
}

// A Behaviour is how one launch goes. In the zero one everything works.
type Behaviour struct {
	LaunchErr error         // Launch fails and leaves nothing
	Console   string        // what the guest prints
	Delay     time.Duration // until the agent calls home
	Silent    bool          // it never does
	Upto      api.Stage     // the last stage that is reached; boot if empty
	Ends      *host.Exit    // the VMM ends by itself before anything
	StopHangs bool          // an orderly stop ends only by its timeout
}

// New returns a host on dir, which must exist.
func New(dir string) *Host {
	return &Host{Dir: dir, runs: map[string]*Run{}, launches: map[string]int{}}
}

// Launch implements [host.Host].
func (h *Host) Launch(ctx context.Context, s host.Spec) (host.Run, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	h.mu.Lock()
	h.launches[s.ID]++
	n := h.launches[s.ID]
	h.mu.Unlock()
	b := Behaviour{}
	if h.Behave != nil {
		b = h.Behave(s.ID, n)
	}
	if b.LaunchErr != nil {
		return nil, b.LaunchErr
	}
	if err := os.Mkdir(h.dir(s.ID), 0o700); err != nil {
		return nil, fmt.Errorf("launching what is held already: %w", err)
	}
	if b.Console != "" {
		if err := os.WriteFile(s.ConsolePath, []byte(b.Console), 0o600); err != nil {
			return nil, err
		}
	}
	r := h.newRun(host.Record{
		ID: s.ID, Driver: "fake",
		VMM:       procid.ID{PID: 1000 + n, Start: 1, BootID: "fake"},
		Companion: procid.ID{PID: 2000 + n, Start: 1, BootID: "fake"},
	})
	record, err := json.Marshal(r.record)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(h.dir(s.ID), aliveName), record, 0o600); err != nil {
		return nil, err
	}
	r.hangs = b.StopHangs
	if s.Net != nil {
		if err := h.setNet(s.ID, *s.Net); err != nil {
			return nil, err
		}
	}
	h.play(r, b)
	return r, nil
}

// SetNAT implements [host.Host].
func (h *Host) SetNAT(_ context.Context, id string, nat bool) error {
	h.mu.Lock()
	err := h.natErr
	h.mu.Unlock()
	n := h.Net(id)
	if n == nil {
		return cmp.Or(err, error(&api.Error{Code: api.Unsupported, Msg: "this VM has no network"}))
	}
	n.NAT = nat
	return errors.Join(err, h.setNet(id, *n))
}

// FailNAT makes SetNAT fail with err, or succeed again. As of a host that dies
// before it answers, what was asked for is done all the same.
func (h *Host) FailNAT(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.natErr = err
}

// Net is what a VM was launched with, or SetNAT has made of it; nil if it has no
// network.
func (h *Host) Net(id string) *host.Net {
	b, err := os.ReadFile(filepath.Join(h.dir(id), netName))
	if err != nil {
		return nil
	}
	n := &host.Net{}
	if err := json.Unmarshal(b, n); err != nil {
		return nil
	}
	return n
}

func (h *Host) setNet(id string, n host.Net) error {
	b, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(h.dir(id), netName), b, 0o600)
}

// play makes the guest do what b says.
func (h *Host) play(r *Run, b Behaviour) {
	if b.Ends != nil {
		h.End(r.record.ID, *b.Ends)
		return
	}
	if b.Silent {
		return
	}
	last := b.Upto
	if last == api.StageNone {
		last = api.StageBoot
	}
	call := func() {
		for _, s := range []api.Stage{api.StageAgent, api.StageSockets, api.StageBoot} {
			if last.Reached(s) {
				r.happen(companionapi.Event{Type: companionapi.EventStage, Stage: s})
			}
		}
	}
	if b.Delay == 0 {
		call()
		return
	}
	time.AfterFunc(b.Delay, call)
}

// Adopt implements [host.Host].
func (h *Host) Adopt(_ context.Context, rec host.Record) (host.Run, error) {
	if _, err := os.Stat(filepath.Join(h.dir(rec.ID), aliveName)); err != nil {
		var exit host.Exit
		b, err := os.ReadFile(filepath.Join(h.dir(rec.ID), exitName))
		if err == nil && json.Unmarshal(b, &exit) == nil {
			return nil, &host.Gone{Exit: exit}
		}
		return nil, host.ErrGone
	}
	h.mu.Lock()
	old := h.runs[rec.ID]
	h.mu.Unlock()
	if old != nil {
		old.loseCompanion()
	}
	r := h.newRun(rec)
	h.play(r, h.Adopted)
	return r, nil
}

// Release implements [host.Host].
func (h *Host) Release(ctx context.Context, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h.End(id, host.Exit{Reason: "it was released", Asked: true})
	h.mu.Lock()
	delete(h.runs, id)
	h.mu.Unlock()
	return os.RemoveAll(h.dir(id))
}

// Census implements [host.Host].
func (h *Host) Census(context.Context) ([]host.Held, error) {
	entries, err := os.ReadDir(h.Dir)
	if err != nil {
		return nil, err
	}
	var held []host.Held
	for _, e := range entries {
		one := host.Held{ID: e.Name(), Dir: h.dir(e.Name())}
		if _, err := os.Stat(filepath.Join(one.Dir, aliveName)); err == nil {
			one.VMM, one.Companion = 1, 2
		}
		held = append(held, one)
	}
	return held, nil
}

// Launches is how often a VM has been launched.
func (h *Host) Launches(id string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.launches[id]
}

// End ends the VMM of id, if it runs, as if by itself.
func (h *Host) End(id string, exit host.Exit) {
	b, err := json.Marshal(exit)
	if err == nil {
		err = os.WriteFile(filepath.Join(h.dir(id), exitName), b, 0o600)
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = os.Remove(filepath.Join(h.dir(id), aliveName))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		panic(err) // a test's directory has gone
	}
	if r := h.run(id); r != nil {
		r.finish(exit)
	}
}

// TakeLease holds the lease of id; end gives it up, which ends the VMM.
func (h *Host) TakeLease(id string) (end func(), err error) {
	if err := os.WriteFile(filepath.Join(h.dir(id), leaseName), nil, 0o600); err != nil {
		return nil, err
	}
	return func() { h.End(id, host.Exit{Reason: "its lease ended", Asked: true}) }, nil
}

// KillCompanion ends the companion of id; its VMM goes on.
func (h *Host) KillCompanion(id string) {
	if r := h.run(id); r != nil {
		r.loseCompanion()
	}
}

// CallHome makes the silent guest of id call home after all.
func (h *Host) CallHome(id string) {
	if r := h.run(id); r != nil {
		h.play(r, Behaviour{})
	}
}

func (h *Host) dir(id string) string { return filepath.Join(h.Dir, id) }

func (h *Host) run(id string) *Run {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.runs[id]
}

func (h *Host) newRun(rec host.Record) *Run {
	r := &Run{
		record: rec, socket: filepath.Join(h.dir(rec.ID), companionapi.SocketName),
		done: make(chan struct{}), lost: make(chan struct{}), more: make(chan struct{}),
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.runs[rec.ID] = r
	return r
}

// A Run is a pretended VMM with its companion.
type Run struct {
	record host.Record
	socket string
	done   chan struct{}
	lost   chan struct{} // closed when the companion has gone
	hangs  bool

	mu     sync.Mutex
	events []companionapi.Event
	more   chan struct{} // closed when events grows
	exit   host.Exit
}

// Record implements [host.Run].
func (r *Run) Record() host.Record { return r.record }

// Companion implements [host.Run].
func (r *Run) Companion() string { return r.socket }

// Done implements [host.Run].
func (r *Run) Done() <-chan struct{} { return r.done }

// Exit implements [host.Run].
func (r *Run) Exit() host.Exit {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.exit
}

// happen tells an event to all who listen, and to those who will.
func (r *Run) happen(e companionapi.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.At = time.Now()
	r.events = append(r.events, e)
	close(r.more)
	r.more = make(chan struct{})
}

// finish ends the VMM: a second time does nothing.
func (r *Run) finish(exit host.Exit) {
	r.mu.Lock()
	select {
	case <-r.done:
		r.mu.Unlock()
		return
	default:
	}
	r.exit = exit
	close(r.done)
	r.mu.Unlock()
	r.happen(companionapi.Event{Type: companionapi.EventExit, Exit: &exit})
}

func (r *Run) loseCompanion() {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.lost:
	default:
		close(r.lost)
	}
}

// A Client speaks to the companion of a [Run], as companionapi.Client does to
// a real one.
type Client struct {
	h  *Host
	id string
}

// Companion returns a client for a socket that [Run.Companion] named.
func (h *Host) Companion(socket string) Client {
	return Client{h: h, id: filepath.Base(filepath.Dir(socket))}
}

// companion is the run, if its companion is there.
func (c Client) companion() (*Run, error) {
	r := c.h.run(c.id)
	if r == nil {
		return nil, &api.Error{Code: api.GuestLost, Msg: "no companion of " + c.id}
	}
	select {
	case <-r.lost:
		return nil, &api.Error{Code: api.GuestLost, Msg: "the companion of " + c.id + " is gone"}
	default:
		return r, nil
	}
}

// Status is as for companionapi.Client.
func (c Client) Status(context.Context) (companionapi.Status, error) {
	r, err := c.companion()
	if err != nil {
		return companionapi.Status{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := companionapi.Status{ID: c.id, Record: r.record}
	for _, e := range r.events {
		if e.Type == companionapi.EventStage {
			s.Stage = e.Stage
		}
	}
	_, err = os.Stat(filepath.Join(c.h.dir(c.id), leaseName))
	s.LeaseTaken, s.LeaseHeld = err == nil, err == nil
	return s, nil
}

// Events is as for companionapi.Client.
func (c Client) Events(ctx context.Context, f func(companionapi.Event)) error {
	r, err := c.companion()
	if err != nil {
		return err
	}
	for told := 0; ; {
		r.mu.Lock()
		news, more := r.events[told:], r.more
		r.mu.Unlock()
		told += len(news)
		for _, e := range news {
			f(e)
			if e.Type == companionapi.EventExit {
				return nil
			}
		}
		select {
		case <-more:
		case <-r.lost:
			return &api.Error{Code: api.GuestLost, Msg: "the companion of " + c.id + " is gone"}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Stop is as for companionapi.Client.
func (c Client) Stop(ctx context.Context, timeout time.Duration) (killed bool, err error) {
	r, err := c.companion()
	if err != nil {
		return false, err
	}
	if r.hangs {
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		select {
		case <-timer.C:
			killed = true
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	c.h.End(c.id, host.Exit{Reason: "it was stopped", Asked: true, Clean: !killed})
	return killed, nil
}

// Kill is as for companionapi.Client. USR1 and USR2 do not end this VMM.
func (c Client) Kill(_ context.Context, sig syscall.Signal) error {
	if _, err := c.companion(); err != nil {
		return err
	}
	if sig != syscall.SIGUSR1 && sig != syscall.SIGUSR2 {
		c.h.End(c.id, host.Exit{Reason: "it was killed by " + sig.String(), Asked: true})
	}
	return nil
}
