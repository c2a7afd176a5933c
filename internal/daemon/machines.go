package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"banger/internal/api"
	"banger/internal/version"
)

// hello says who this daemon is.
func (d *Daemon) hello(c *call) error {
	l := d.cfg.Layout
	h := api.Hello{
		Version: version.Get().String(), Protocol: api.Protocol, PID: os.Getpid(),
		Socket: l.Socket, Log: l.Log, State: l.State, Started: d.started,
	}
	if d.cfg.Driver != nil {
		h.Driver, h.DriverWhy = d.cfg.Driver(c.r.Context())
	}
	if d.cfg.Check != nil {
		if err := d.cfg.Check(); err != nil {
			h.Problem = api.AsError(err)
		}
	}
	if d.zone != nil {
		n := d.zone.Status()
		h.Network = &n
	}
	for _, m := range d.index.List() {
		h.Machines++
		if m.State == api.Running {
			h.Running++
		}
	}
	return c.json(h, nil)
}

// shutdown ends the daemon. It answers when nobody can connect any more, so
// that the next command finds no daemon that is about to go.
func (d *Daemon) shutdown(c *call) error {
	if d.cfg.Layout.System {
		return &api.Error{Code: api.Unsupported, Msg: "systemd runs this daemon, and would not know why it ended", Hint: "sudo banger system restart"}
	}
	d.end.Do(func() { close(d.ending) })
	<-d.closed
	return c.empty()
}

// recallLimit is how long a look at VMs waits for a daemon that has just
// started to find again what runs: some milliseconds, or seconds for a
// companion that hangs.
const recallLimit = 10 * time.Second

// recall waits until the VMs that ran before this daemon have been found again:
// until then it could not say where their companions are.
func (d *Daemon) recall(ctx context.Context) {
	t := time.NewTimer(recallLimit)
	defer t.Stop()
	select {
	case <-d.index.Ready():
	case <-t.C:
	case <-ctx.Done():
	}
}

func (d *Daemon) listMachines(c *call) error {
	d.recall(c.r.Context())
	ms := d.index.List()
	if ms == nil {
		ms = []api.Machine{}
	}
	return c.json(ms, nil)
}

func (d *Daemon) showMachine(c *call) error {
	d.recall(c.r.Context())
	return c.json(d.index.Get(c.r.PathValue("ref")))
}

func (d *Daemon) createMachine(c *call) error {
	var req api.CreateMachine
	if err := c.decode(&req); err != nil {
		return err
	}
	ctx, s := c.stream()
	return d.index.Create(ctx, req, d.telling(s.emit))
}

func (d *Daemon) startMachine(c *call) error {
	var req api.StartMachine
	if err := c.decode(&req); err != nil {
		return err
	}
	ctx, s := c.stream()
	return d.index.Start(ctx, c.r.PathValue("ref"), req, d.telling(s.emit))
}

func (d *Daemon) restartMachine(c *call) error {
	var req api.StartMachine
	if err := c.decode(&req); err != nil {
		return err
	}
	ctx, s := c.stream()
	return d.index.Restart(ctx, c.r.PathValue("ref"), req, d.telling(s.emit))
}

func (d *Daemon) stopMachine(c *call) error {
	var req api.StopMachine
	if err := c.decode(&req); err != nil {
		return err
	}
	return c.json(d.index.Stop(c.r.Context(), c.r.PathValue("ref"), req))
}

func (d *Daemon) killMachine(c *call) error {
	var req api.KillMachine
	if err := c.decode(&req); err != nil {
		return err
	}
	return c.json(d.index.Kill(c.r.Context(), c.r.PathValue("ref"), req))
}

func (d *Daemon) setMachine(c *call) error {
	var req api.SetMachine
	if err := c.decode(&req); err != nil {
		return err
	}
	return c.json(d.index.Set(c.r.Context(), c.r.PathValue("ref"), req))
}

func (d *Daemon) deleteMachine(c *call) error {
	m, err := d.index.Delete(c.r.Context(), c.r.PathValue("ref"))
	if err != nil {
		return err
	}
	// It may have been the last to use an image that has lost its name. What
	// cannot be removed now is tried again by the timer, and is no failure of
	// this request.
	if err := d.sweep(c.r.Context()); err != nil {
		c.log.Warn("sweeping the stores", "err", err)
	}
	return c.json(m, nil)
}

// console sends what the last boot has printed, raw.
func (d *Daemon) console(c *call) error {
	paths, err := d.index.Console(c.r.PathValue("ref"))
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/octet-stream")
	for _, p := range paths {
		if err := send(c, p); err != nil {
			return err
		}
	}
	if !c.answered {
		return c.empty()
	}
	return nil
}

// send copies a file to w; one that is not there is empty.
func send(w io.Writer, path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the console: %w", err)
	}
	defer f.Close()
	// Without ReadFrom, which would send all of it under one deadline.
	if _, err := io.Copy(struct{ io.Writer }{w}, f); err != nil {
		return fmt.Errorf("sending the console: %w", err)
	}
	return nil
}

// census lists what is there and what nothing explains.
func (d *Daemon) census(c *call) error {
	s, err := d.index.Census(c.r.Context())
	if err != nil {
		return err
	}
	return c.json(d.withStores(c, s))
}

// reconcile makes one pass and says what there is then.
func (d *Daemon) reconcile(c *call) error {
	begun := time.Now()
	s, err := d.index.Reconcile(c.r.Context())
	if err == nil {
		err = d.sweep(c.r.Context())
	}
	if err != nil {
		return err
	}
	c.log.Info("reconciled", "leaks", len(s.Leaks), "took", time.Since(begun))
	return c.json(d.withStores(c, s))
}

// withStores adds what the stores know to a census of the VMs.
func (d *Daemon) withStores(c *call, s api.Census) (api.Census, error) {
	for _, store := range []interface {
		Staging() ([]string, error)
	}{d.images, d.kernels} {
		staged, err := store.Staging()
		if err != nil {
			return s, err
		}
		s.Staging = append(s.Staging, staged...)
	}
	im, err := d.images.Leaks(c.r.Context())
	if err != nil {
		return s, err
	}
	ks, err := d.kernels.Leaks(c.r.Context())
	if err != nil {
		return s, err
	}
	s.Leaks = append(append(s.Leaks, im...), ks...)
	// Half-made things that nobody is making: a pull that goes on explains them.
	if busy := len(d.pulls.images.book.Busy()) + len(d.pulls.kernels.book.Busy()); busy == 0 && d.imports.Load() == 0 {
		for _, p := range s.Staging {
			s.Leaks = append(s.Leaks, p+" is half-made, and nobody is making it")
		}
	}
	return s, nil
}
