// Package daemon is the owner daemon: the only writer of banger's state, and
// the place where VMs, images and kernels are introduced to each other.
//
// It serves the owner API (see package api) on a unix socket, to its own uid
// and root. It holds no stream of a guest: the companions do, so it may be
// killed and started again at any time, and VMs go on. It stays up when it has
// nothing to do, since an idle one costs some 15 MiB and no CPU, and ends only
// when told to. It refuses to know how a VMM is started: that is the Host's.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"banger/internal/api"
	"banger/internal/bootfs"
	"banger/internal/claim"
	"banger/internal/config"
	"banger/internal/crash"
	"banger/internal/host"
	"banger/internal/image"
	"banger/internal/kernel"
	"banger/internal/machine"
	"banger/internal/paths"
	"banger/internal/sshconf"
	"banger/internal/store"
	"banger/internal/unixsock"
	"banger/internal/zone"
)

// Numbers of the migrations, over all nouns: a step that was released keeps its
// number, so a new one gets the next, whatever its noun.
const (
	imageMigration   = 2 // 1 is the machines'
	kernelMigration  = 3
	addressMigration = 4 // the machines' second
)

// Config configures [Run]. Layout, Host and Agent are required.
type Config struct {
	Layout paths.Layout
	User   config.Config // what the user has configured
	Host   host.Host
	// Driver names the VMM that will be used, and says why it is not KVM, if it
	// is not.
	Driver func(ctx context.Context) (name, why string)
	// Check says why no VM can be started, if none can; never asked if nil.
	Check func() error
	// Net is what VMs are on, and Names who is told of them by name: without
	// either, as in user mode, they have no network. What Names leaves open of
	// Prefix, Lookup, Reverse, Running and Log is filled in.
	Net    *machine.Net
	Names  *zone.Config
	BootID string         // see [machine.Config]
	Agent  string         // path of the program that goes into the initramfs
	Limits machine.Limits // see [machine.Config]
	// Companion returns a client for a companion's socket; see [machine.Config].
	Companion func(socket string) machine.Companion
	Log       *slog.Logger // discarded if nil
	// Ready is called when the socket accepts connections.
	Ready func()
}

// sweepEvery is how often what nothing uses any more is looked for, and how
// often VMs are compared with their rows.
const sweepEvery = 5 * time.Minute

// lookEvery is how often the daemon makes sure that it can be found. One that
// cannot, after a logout that took the runtime directory away for example, holds
// the state that the next one waits for: see lockWait.
const lookEvery = 3 * time.Second

// Times of an orderly end. Requests that only wait are told to end after the
// first, connections are cut after the second; what a boot has made is
// released in between.
const (
	graceRequests = time.Second
	graceRelease  = 15 * time.Second
)

// errEnding is what requests are told that an ending daemon does not finish.
var errEnding = &api.Error{Code: api.Interrupted, Msg: "the daemon is ending", Hint: "try again: the next command starts a new one"}

// A Daemon is what the handlers work with. It is made by [Run].
type Daemon struct {
	cfg     Config
	log     *slog.Logger
	started time.Time
	db      *store.Store
	index   *machine.Index
	images  *image.Store
	kernels *kernel.Store
	zone    *zone.Keeper // nil without a network
	pulls   struct {
		images  pullable[api.Image]
		kernels pullable[api.Kernel]
	}
	imports atomic.Int64  // under way
	ending  chan struct{} // closed by a request to shut down
	closed  chan struct{} // closed when nobody can connect any more
	end     sync.Once
}

// Run is the daemon. It returns when ctx ends or a client asks it to; VMs go
// on. A second daemon for the same state is a Conflict error.
func Run(ctx context.Context, cfg Config) (err error) {
	d := &Daemon{cfg: cfg, log: cfg.Log, started: time.Now().UTC(), ending: make(chan struct{}), closed: make(chan struct{})}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if err := cfg.Layout.Make(); err != nil {
		return err
	}
	unlock, err := lockState(ctx, cfg.Layout)
	if err != nil {
		return err
	}
	defer unlock()
	if err := d.open(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.db.Close()) }()
	l, err := unixsock.Listen(cfg.Layout.Socket)
	if errors.Is(err, unixsock.ErrInUse) {
		return errTaken(cfg.Layout)
	}
	if err != nil {
		return fmt.Errorf("listening for clients: %w", err)
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if d.zone != nil {
		d.zone.Open(ctx)
	}
	d.log.Info("daemon is ready", "pid", os.Getpid(), "socket", cfg.Layout.Socket, "state", cfg.Layout.State)
	if cfg.Ready != nil {
		cfg.Ready()
	}
	crash.Point("daemon.ready")
	return d.serve(ctx, l)
}

// open opens the state and everything that lives in it. Rows of VMs are read
// first: what they use must not be swept.
func (d *Daemon) open(ctx context.Context) (err error) {
	l := d.cfg.Layout
	migrations := machine.Migrations(addressMigration)
	migrations = append(migrations, image.Migrations(imageMigration)...)
	migrations = append(migrations, kernel.Migrations(kernelMigration)...)
	d.db, err = store.Open(ctx, store.Config{Path: l.DB, Migrations: migrations, Log: d.log})
	if err != nil {
		return fmt.Errorf("opening the state: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.db.Close())
		}
	}()
	known := sshconf.KnownHosts{Path: l.KnownHosts}
	d.index, err = machine.Open(ctx, machine.Config{
		Store: d.db, Host: d.cfg.Host, Images: &resolver{d: d, bootfs: &bootfs.Cache{Dir: l.Initramfs, Agent: d.cfg.Agent}},
		Dir:        l.VMs,
		Net:        d.cfg.Net,
		BootID:     d.cfg.BootID,
		KnownHost:  func(name, _, key string) error { return known.Put(name, key) },
		ForgetHost: func(name, _ string) error { return known.Remove(name) },
		Companion:  d.cfg.Companion, Limits: d.cfg.Limits, Log: d.log,
	})
	if err != nil {
		return fmt.Errorf("opening the VMs: %w", err)
	}
	d.zone = d.keeper()
	d.images, err = image.Open(ctx, image.Config{Store: d.db, Dir: l.Images, Users: machine.Users, Rebuild: d.db.Fresh()})
	if err != nil {
		return err
	}
	d.kernels, err = kernel.Open(ctx, kernel.Config{Store: d.db, Dir: l.Kernels, Users: machine.Users, Rebuild: d.db.Fresh()})
	if err != nil {
		return err
	}
	if d.db.Fresh() {
		if err := d.db.Rebuilt(ctx); err != nil {
			return err
		}
	}
	d.pulls.images = d.pullImages(&claim.Book[api.Image]{})
	d.pulls.kernels = d.pullKernels(&claim.Book[api.Kernel]{})
	return nil
}

// keeper has VMs found by their names, straight from the index.
func (d *Daemon) keeper() *zone.Keeper {
	if d.cfg.Names == nil || d.cfg.Net == nil {
		return nil
	}
	c := *d.cfg.Names
	c.Prefix, c.Log = d.cfg.Net.Prefix, d.log
	c.Lookup, c.Reverse, c.Running = d.index.Address, d.index.NameOf, d.index.AnyRuns
	return zone.New(c)
}

// look has the keeper look around soon, since something of VMs may have changed.
func (d *Daemon) look() {
	if d.zone != nil {
		d.zone.Look()
	}
}

// telling is emit, and a look as soon as there is a VMM: the first makes the link
// that names are routed by.
func (d *Daemon) telling(emit func(api.Event)) func(api.Event) {
	return func(e api.Event) {
		if e.Type == api.EventStarted {
			d.look()
		}
		emit(e)
	}
}

// serve answers requests until ctx ends or a request ends the daemon.
func (d *Daemon) serve(ctx context.Context, l *unixsock.Listener) error {
	// Requests live in this context, the VMs' goroutines in the other, which
	// ends last: a boot that is called off is released by them.
	requests, endRequests := context.WithCancelCause(context.WithoutCancel(ctx))
	defer endRequests(nil)
	vms, endVMs := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	failed := make(chan error, 2)
	wg.Go(func() {
		if err := d.index.Run(vms); err != nil && vms.Err() == nil {
			failed <- fmt.Errorf("running the VMs: %w", err)
		}
	})
	wg.Go(func() { d.lookAround(vms) })
	if d.zone != nil {
		wg.Go(func() { d.zone.Run(vms) })
	}
	srv := d.server(requests)
	wg.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			failed <- fmt.Errorf("accepting clients: %w", err)
		}
	})
	var err error
	select {
	case <-ctx.Done():
		d.log.Info("daemon ends", "why", context.Cause(ctx))
	case <-d.ending:
		d.log.Info("daemon ends", "why", "a client asked for it")
	case err = <-failed:
		d.log.Error("daemon ends", "why", err)
	}
	// From here on a client that dials finds nobody, and starts another daemon,
	// which waits for the lock.
	err = errors.Join(err, l.Close())
	close(d.closed)
	clean := context.WithoutCancel(ctx)
	if shut(clean, srv, graceRequests) != nil {
		endRequests(errEnding)
		if shut(clean, srv, graceRelease) != nil {
			d.log.Warn("cutting connections that do not end")
			err = errors.Join(err, srv.Close())
		}
	}
	endVMs()
	wg.Wait()
	return err
}

// shut waits for the requests under way, for at most d.
func shut(ctx context.Context, srv *http.Server, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return srv.Shutdown(ctx)
}

// server is the HTTP server, whose requests live in ctx.
func (d *Daemon) server(ctx context.Context) *http.Server {
	return &http.Server{
		Handler:           d.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       withPeer,
		ErrorLog:          slog.NewLogLogger(d.log.Handler(), slog.LevelWarn),
	}
}

// lookAround removes, now and then, images and kernels that have lost their
// name and their last VM, and ends a daemon that nobody can find any more.
func (d *Daemon) lookAround(ctx context.Context) {
	sweep, look := time.NewTicker(sweepEvery), time.NewTicker(lookEvery)
	defer sweep.Stop()
	defer look.Stop()
	for {
		select {
		case <-sweep.C:
			if err := d.sweep(ctx); err != nil && ctx.Err() == nil {
				d.log.Warn("sweeping the stores", "err", err)
			}
		case <-look.C:
			if gone := d.gone(); gone != "" {
				d.log.Error("nobody can find this daemon any more: it ends, and the next command starts another", "gone", gone)
				d.end.Do(func() { close(d.ending) })
			}
		case <-ctx.Done():
			return
		}
	}
}

// gone is the file without which no client finds this daemon, if it has been
// removed: somebody deleted the directories, or a cleaner of /tmp did.
func (d *Daemon) gone() string {
	for _, p := range []string{d.cfg.Layout.Lock, d.cfg.Layout.Socket} {
		if _, err := os.Lstat(p); errors.Is(err, fs.ErrNotExist) {
			return p
		}
	}
	return ""
}

func (d *Daemon) sweep(ctx context.Context) error {
	return errors.Join(d.images.Sweep(ctx), d.kernels.Sweep(ctx))
}
