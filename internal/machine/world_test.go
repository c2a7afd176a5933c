package machine_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"banger/internal/api"
	"banger/internal/host"
	"banger/internal/host/fakehost"
	"banger/internal/machine"
	"banger/internal/store"
)

// A world is a daemon's worth of VMs on a fake host, in a directory that a
// second world can open again.
type world struct {
	dir  string
	host *fakehost.Host
	x    *machine.Index
	st   *store.Store

	mu    sync.Mutex
	known map[string]string // what KnownHost was told: id to name

	stop func() // ends Run and closes the store
}

// images has one image and is made of nothing.
type images struct{ gone bool }

func (i images) Resolve(_ context.Context, name string) (machine.Origin, error) {
	if name == "none" {
		return machine.Origin{}, &api.Error{Code: api.NotFound, Msg: `no image "none"`, Hint: "see banger image list"}
	}
	return machine.Origin{Image: "debian", ImageID: "d1", Kernel: "k", KernelID: "k1"}, nil
}

func (i images) Claim(ctx context.Context, tx *sql.Tx, o machine.Origin) error {
	if i.gone {
		return &api.Error{Code: api.NotFound, Msg: "the image was deleted"}
	}
	_, err := machine.Users(ctx, tx, o.ImageID)
	return err
}

func (i images) Open(context.Context, machine.Origin) (*machine.Boot, error) {
	var files [3]*os.File
	for n := range files {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return nil, err
		}
		files[n] = f
	}
	return &machine.Boot{
		Kernel: files[0], Initramfs: files[1],
		Disks: []host.Disk{{File: files[2], Serial: "base", ReadOnly: true}},
	}, nil
}

// enter opens the world in dir. limits may be zero.
func enter(ctx context.Context, dir string, limits machine.Limits) (*world, error) {
	return enterAs(ctx, dir, func(c *machine.Config) { c.Limits = limits })
}

// resolver is the name server of guests that may reach the internet.
var resolver = netip.MustParseAddr("192.0.2.53")

// enterAs opens the world in dir with another configuration than the usual.
func enterAs(ctx context.Context, dir string, change func(c *machine.Config)) (*world, error) {
	for _, d := range []string{"vms", "held"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	st, err := store.Open(ctx, store.Config{Path: filepath.Join(dir, "state.db"), Migrations: machine.Migrations(2)})
	if err != nil {
		return nil, err
	}
	w := &world{dir: dir, host: fakehost.New(filepath.Join(dir, "held")), st: st, known: map[string]string{}}
	cfg := machine.Config{
		Store: st, Host: w.host, Images: images{}, Dir: filepath.Join(dir, "vms"),
		Companion: func(socket string) machine.Companion { return w.host.Companion(socket) },
		KnownHost: func(name, id, key string) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.known[id] = name
			return nil
		},
		ForgetHost: func(name, id string) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.known[id] == name {
				delete(w.known, id)
			}
			return nil
		},
		Net:    &machine.Net{Prefix: netip.MustParsePrefix("10.213.0.0/16"), Resolvers: func() []netip.Addr { return []netip.Addr{resolver} }},
		BootID: "first",
	}
	change(&cfg)
	w.x, err = machine.Open(ctx, cfg)
	if err != nil {
		return nil, errors.Join(err, st.Close())
	}
	return w, nil
}

// run runs the world until stop.
func (w *world) run(ctx context.Context) {
	if err := w.st.Rebuilt(ctx); err != nil {
		panic(err) // the world's directory has gone
	}
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		_ = w.x.Run(ctx)
	}()
	w.stop = sync.OnceFunc(func() {
		cancel()
		<-over
		w.st.Close()
	})
}

// newWorld is a running world of a test's own. prepare may be nil.
func newWorld(t *testing.T, dir string, prepare func(w *world)) *world {
	t.Helper()
	return newLimitedWorld(t, dir, machine.Limits{}, prepare)
}

func newLimitedWorld(t *testing.T, dir string, limits machine.Limits, prepare func(w *world)) *world {
	t.Helper()
	return newWorldAs(t, dir, func(c *machine.Config) { c.Limits = limits }, prepare)
}

func newWorldAs(t *testing.T, dir string, change func(c *machine.Config), prepare func(w *world)) *world {
	t.Helper()
	w, err := enterAs(t.Context(), dir, change)
	if err != nil {
		t.Fatalf("entering: %v", err)
	}
	if prepare != nil {
		prepare(w)
	}
	w.run(context.WithoutCancel(t.Context()))
	t.Cleanup(w.stop)
	<-w.x.Ready()
	return w
}

// behave makes every launch go like b.
func behave(b fakehost.Behaviour) func(w *world) {
	return func(w *world) { w.host.Behave = func(string, int) fakehost.Behaviour { return b } }
}

func spec() api.Spec { return api.Spec{VCPUs: 1, MemoryMiB: 256, DiskBytes: 256 << 20} }

// create makes a VM and returns it as the result event tells it.
func (w *world) create(ctx context.Context, req api.CreateMachine) (api.Machine, []api.Event, error) {
	if req.Spec == (api.Spec{}) {
		req.Spec = spec()
	}
	var events []api.Event
	var got api.Machine
	err := w.x.Create(ctx, req, func(e api.Event) {
		events = append(events, e)
		if e.Type == api.EventResult {
			got = *e.Machine
		}
	})
	return got, events, err
}

func (w *world) mustCreate(t *testing.T, name string) api.Machine {
	t.Helper()
	m, _, err := w.create(t.Context(), api.CreateMachine{Name: name})
	if err != nil {
		t.Fatalf("Create(%q): %v", name, err)
	}
	return m
}

// state is a VM's state, or "" if there is none.
func (w *world) state(ref string) api.State {
	m, err := w.x.Get(ref)
	if err != nil {
		return ""
	}
	return m.State
}

// eventually waits until the VM is in the state.
func (w *world) eventually(t *testing.T, ref string, want api.State) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for w.state(ref) != want {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("VM %q is %q, want %q", ref, w.state(ref), want)
		}
	}
}

// clean checks that rows, files and held VMs agree, with no help.
func (w *world) clean(t *testing.T) {
	t.Helper()
	c, err := w.x.Census(t.Context())
	if err != nil || len(c.Leaks) > 0 {
		t.Errorf("census: %v, leaks %q", err, c.Leaks)
	}
	var rows, files []string
	for _, m := range w.x.List() {
		rows = append(rows, m.ID)
	}
	entries, err := os.ReadDir(filepath.Join(w.dir, "vms"))
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		files = append(files, e.Name())
	}
	slices.Sort(rows)
	if !slices.Equal(rows, files) {
		t.Errorf("rows %v, directories %v; want the same", rows, files)
	}
}

// knows is the names that have host keys.
func (w *world) knows() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Values(w.known))
}

func types(events []api.Event) (s []string) {
	for _, e := range events {
		one := string(e.Type)
		if detail := e.Phase + string(e.Stage); detail != "" {
			one += " " + detail
		}
		if e.Attempt > 0 {
			one += fmt.Sprint(" ", e.Attempt)
		}
		s = append(s, one)
	}
	return s
}
