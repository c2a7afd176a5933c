// Package machine is the VMs: it creates, boots, adopts, stops and deletes
// them, and it alone changes their state.
//
// One goroutine owns each VM and runs its operations one by one; readers get a
// copied snapshot, so a list never waits for a boot, and a stop during a start
// cancels the start instead of queueing behind it. A VM's row is written
// before any resource of it exists and removed after the last is gone, so a
// crash leaves a row too many, never a process or a file that nothing
// explains: see [Index.Reconcile].
//
// It refuses to know how a VMM is started ([host.Host] does that), what is in
// an image ([Images]), and how a guest is spoken to ([Companion]).
package machine

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/host"
	"banger/internal/machine/rows"
	"banger/internal/names"
	"banger/internal/store"
)

// Images finds what VMs boot from.
type Images interface {
	// Resolve finds an image by name ("" is the default one) and the kernel
	// that goes with it: not_found if the store lacks either.
	Resolve(ctx context.Context, image string) (Origin, error)
	// Claim is called in the transaction that writes a VM's row, and fails if
	// o has been deleted since Resolve. Deleting an image asks [Users] in a
	// transaction of its own, so one of the two sees the other.
	Claim(ctx context.Context, tx *sql.Tx, o Origin) error
	// Open opens what a VM of origin o boots from.
	Open(ctx context.Context, o Origin) (*Boot, error)
}

// An Origin is what a VM was made from; it stays when names move on.
type Origin = rows.Origin

// row is what is kept of a VM.
type row = rows.Row

// Net is the network that VMs have their addresses of.
type Net = rows.Net

// Migrations are the steps of the table of VMs, the second with the number
// address.
func Migrations(address int) []store.Migration { return rows.Migrations(address) }

// Users returns the names of the VMs that were made from the image or kernel
// with this id, as of the transaction tx.
func Users(ctx context.Context, tx *sql.Tx, id string) ([]string, error) {
	return rows.Users(ctx, tx, id)
}

// A Boot is what a VM boots from, open for reading.
type Boot struct {
	Kernel    *os.File
	Initramfs *os.File
	// KernelConfig is what the kernel was built with, if that is known.
	KernelConfig string
	Disks        []host.Disk // read-only; the VM's own disk is added to them
	Serial       string      // of the VM's own disk
}

// Close closes the files.
func (b *Boot) Close() error {
	err := errors.Join(b.Kernel.Close(), b.Initramfs.Close())
	for _, d := range b.Disks {
		err = errors.Join(err, d.File.Close())
	}
	return err
}

// A Companion speaks to the companion of a running VM; [companionapi.Client]
// is one.
type Companion interface {
	// Status asks what the companion knows.
	Status(ctx context.Context) (companionapi.Status, error)
	// Events calls f for everything that has happened and happens to the VM,
	// and returns after the exit event (nil), when the connection is lost, or
	// when ctx ends.
	Events(ctx context.Context, f func(companionapi.Event)) error
	// Stop asks for an orderly shutdown and returns when the VMM has ended;
	// killed says that it took force, after timeout.
	Stop(ctx context.Context, timeout time.Duration) (killed bool, err error)
	// Kill sends a signal to the VMM; with KILL or TERM it returns when the VMM
	// has ended.
	Kill(ctx context.Context, sig syscall.Signal) error
}

// Config configures an [Index]. Store, Host, Images and Dir are required.
type Config struct {
	Store  *store.Store // opened with [Migrations] among others
	Host   host.Host
	Images Images
	Dir    string // holds one directory per VM, named by its id; must exist

	// Net is what VMs are on; they have no network if nil.
	Net *Net
	// BootID names the time since the host's start. A VM with autostart that has
	// not seen it is started; none is if empty.
	BootID string

	// Companion returns a client for a companion's socket; companionapi.New
	// if nil.
	Companion func(socket string) Companion

	// KnownHost is called with a new VM's public host key ("ssh-ed25519 AAAA...")
	// before it boots for the first time, and after it was renamed; it must be
	// idempotent. ForgetHost is its inverse. Nothing is called if nil.
	KnownHost  func(name, id, hostKey string) error
	ForgetHost func(name, id string) error

	Limits Limits       // what is zero follows from the VMM's driver
	Log    *slog.Logger // discarded if nil
}

func (c Config) withDefaults() Config {
	if c.Companion == nil {
		c.Companion = func(socket string) Companion { return companionapi.New(socket) }
	}
	if c.KnownHost == nil {
		c.KnownHost = func(string, string, string) error { return nil }
	}
	if c.ForgetHost == nil {
		c.ForgetHost = func(string, string) error { return nil }
	}
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	c.Limits.Stop = cmp.Or(c.Limits.Stop, 30*time.Second)
	c.Limits.Reconcile = cmp.Or(c.Limits.Reconcile, time.Minute)
	return c
}

// An Index is all VMs of one daemon. Its methods may be called from several
// goroutines; operations wait until [Index.Run] has begun.
type Index struct {
	cfg   Config
	table rows.Table

	spawn    chan *vm      // new VMs, for Run to give a goroutine each
	ready    chan struct{} // closed when Run has adopted and reconciled
	closed   chan struct{} // closed when Run ends
	watchers sync.WaitGroup
	sweep    chan struct{} // holds a token while one reconciles
	turns    host.Turns    // of boots

	mu     sync.Mutex // guards what follows; never kept across I/O
	byID   map[string]*vm
	byName map[string]*vm
}

// Open reads the rows; if the state file is new, it rebuilds them from the
// copies in the VMs' directories. Nothing runs until [Index.Run] does.
func Open(ctx context.Context, cfg Config) (*Index, error) {
	x := &Index{
		cfg:    cfg.withDefaults(),
		spawn:  make(chan *vm),
		ready:  make(chan struct{}),
		closed: make(chan struct{}),
		sweep:  make(chan struct{}, 1),
		byID:   map[string]*vm{},
		byName: map[string]*vm{},
	}
	x.table = rows.NewTable(x.cfg.Store, x.cfg.Dir, x.cfg.Net, x.cfg.Log)
	all, err := x.table.Load(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		v := x.newVM(r)
		v.adoptFirst = true
		x.byID[r.ID], x.byName[r.Name] = v, v
	}
	return x, nil
}

// Run adopts the VMs that run, in parallel, makes one pass of the reconciler,
// and then serves operations until ctx ends, which is not an error. VMs go on
// without it.
func (x *Index) Run(ctx context.Context) error {
	var loops sync.WaitGroup
	defer x.watchers.Wait()
	defer loops.Wait()
	defer close(x.closed)

	var adopted sync.WaitGroup
	for _, v := range x.all() {
		adopted.Add(1)
		loops.Go(func() { v.loop(ctx, adopted.Done) })
	}
	first := make(chan struct{})
	loops.Go(func() {
		adopted.Wait()
		x.pass(ctx)
		close(first)
	})
	tick := time.NewTicker(x.cfg.Limits.Reconcile)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case v := <-x.spawn:
			loops.Go(func() { v.loop(ctx, func() {}) })
		case <-first:
			close(x.ready)
			first = nil
		case <-tick.C:
			loops.Go(func() { x.pass(ctx) })
		}
	}
}

// pass reconciles and logs what it cannot.
func (x *Index) pass(ctx context.Context) {
	if _, err := x.Reconcile(ctx); err != nil && ctx.Err() == nil {
		x.cfg.Log.Error("reconciling", "err", err)
	}
}

// Ready is closed when Run has adopted what there was and reconciled once.
// Operations may be asked for before: they queue.
func (x *Index) Ready() <-chan struct{} { return x.ready }

// all returns the VMs that have rows, oldest first.
func (x *Index) all() []*vm {
	x.mu.Lock()
	vms := make([]*vm, 0, len(x.byID))
	for _, v := range x.byID {
		vms = append(vms, v)
	}
	x.mu.Unlock()
	vms = slices.DeleteFunc(vms, func(v *vm) bool { return v.look().row.State == "" })
	slices.SortFunc(vms, func(a, b *vm) int {
		ra, rb := a.look().row, b.look().row
		return cmp.Or(ra.Created.Compare(rb.Created), strings.Compare(ra.ID, rb.ID))
	})
	return vms
}

// List returns all VMs, oldest first, without waiting for any.
func (x *Index) List() []api.Machine {
	list := []api.Machine{}
	for _, v := range x.all() {
		list = append(list, v.machine())
	}
	return list
}

// Get returns the VM that ref names: a name, an id or a prefix of one.
func (x *Index) Get(ref string) (api.Machine, error) {
	v, err := x.find(ref)
	if err != nil {
		return api.Machine{}, err
	}
	return v.machine(), nil
}

// Users returns the names of the VMs that were made from the image or kernel
// with this id, as [Users] does, from memory: for lists.
func (x *Index) Users(id string) []string {
	var users []string
	for _, v := range x.all() {
		if o := v.look().row.Origin; id != "" && (o.ImageID == id || o.KernelID == id) {
			users = append(users, v.look().row.Name)
		}
	}
	slices.Sort(users)
	return users
}

// Console returns the files that hold the console of the last boot, oldest
// first. None need exist.
func (x *Index) Console(ref string) ([]string, error) {
	v, err := x.find(ref)
	if err != nil {
		return nil, err
	}
	return []string{v.path(rows.ConsoleName) + ".1", v.path(rows.ConsoleName)}, nil
}

// find resolves a reference. A name wins over an id, and both over a prefix.
func (x *Index) find(ref string) (*vm, error) {
	var found []*vm
	for _, v := range x.all() {
		switch r := v.look().row; {
		case r.Name == ref:
			return v, nil
		case r.ID == ref || names.IsPrefix(ref) && strings.HasPrefix(r.ID, ref):
			found = append(found, v)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, noSuchVM(ref)
	}
	var candidates []string
	for _, v := range found {
		r := v.look().row
		candidates = append(candidates, fmt.Sprintf("%s (%s)", r.ID, r.Name))
	}
	return nil, &api.Error{
		Code: api.Ambiguous,
		Msg:  fmt.Sprintf("%q matches several VMs: %s", ref, strings.Join(candidates, ", ")),
		Hint: "use the name or more digits of the id",
	}
}

func noSuchVM(ref string) error {
	if len(ref) > 80 {
		ref = strings.ToValidUTF8(ref[:80], "") + "..."
	}
	return &api.Error{Code: api.NotFound, Msg: fmt.Sprintf("no VM %q", ref), Hint: "list them with: banger ps"}
}
