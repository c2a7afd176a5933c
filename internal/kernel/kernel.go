// Package kernel keeps the kernels that VMs boot.
//
// A kernel is an uncompressed vmlinux, its configuration, its modules as a
// read-only ext4 file system that any image can mount, and the few modules that
// the initramfs needs, as files. All of it comes out of one tar, which is read
// once. Which VMs use a kernel, and with which image, is for others to know.
package kernel

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"banger/internal/api"
	"banger/internal/bzimage"
	"banger/internal/ext4"
	"banger/internal/initramfs"
	"banger/internal/names"
	"banger/internal/shelf"
	"banger/internal/store"
)

// The files in a kernel's directory; modules for the initramfs are NAME.ko.
const (
	vmlinuxName = "vmlinux"
	configName  = "config"
	modulesName = "modules.ext4"
)

// minFree is how much room there must be before a tar is read: Debian's cloud
// kernel takes 150 MiB.
const minFree = 64 << 20

// Config configures [Open]. All of it is required.
type Config struct {
	Store *store.Store
	Dir   string // of its own
	// Users names the VMs that use the kernel with this id, as of tx.
	Users func(ctx context.Context, tx *sql.Tx, id string) ([]string, error)
	// Rebuild says that the state file is new: see [shelf.Config].
	Rebuild bool
}

// Migrations are the steps of the table kernels, numbered from first.
func Migrations(first int) []store.Migration {
	return []store.Migration{{Number: first, Noun: "kernel", SQL: shelf.Schema("kernels")}}
}

// A Store holds the kernels. Its methods may be called by many goroutines.
type Store struct{ shelf *shelf.Shelf[api.Kernel] }

// Open makes the store ready and removes what a crash left half-made.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	s, err := shelf.Open[api.Kernel](ctx, shelf.Config{
		Dir: cfg.Dir, Noun: "kernel", Table: "kernels", Tx: cfg.Store.Tx, Users: cfg.Users, Rebuild: cfg.Rebuild,
	})
	if err != nil {
		return nil, fmt.Errorf("opening the kernel store: %w", err)
	}
	return &Store{shelf: s}, nil
}

// An Import says what to make of a tar.
type Import struct {
	Name   string
	Source string // "catalog:debian-6.1"
	// Replace lets Name move on from another kernel, which is kept while VMs
	// use it. Else a name that is taken is refused.
	Replace bool
	Need    int64 // bytes that it will take, if that is known
	// Progress, if not nil, is called now and then with the number of bytes of
	// the tar that have been read.
	Progress func(done int64)
}

// Import makes a kernel of the tar in r, which is read to its end: it holds
// boot/vmlinuz-REL, boot/config-REL and lib/modules/REL with depmod's indexes,
// for one release REL; anything else in it is passed over. Until the end has
// come without an error nothing can be seen of the kernel, and when Import
// returns an error nothing is left of it. A read from r that blocks is not
// interrupted by ctx: its owner must end it.
func (s *Store) Import(ctx context.Context, imp Import, r io.Reader) (_ api.Kernel, err error) {
	if err := names.CheckImage(imp.Name); err != nil {
		return api.Kernel{}, err
	}
	if !imp.Replace {
		if err := s.shelf.Vacant(ctx, nil, imp.Name); err != nil {
			return api.Kernel{}, err
		}
	}
	if err := s.shelf.Room(max(imp.Need, minFree)); err != nil {
		return api.Kernel{}, err
	}
	stage, err := s.shelf.Stage()
	if err != nil {
		return api.Kernel{}, err
	}
	defer func() { err = errors.Join(err, stage.Discard()) }()
	k, err := s.write(ctx, stage, imp, r)
	if err != nil {
		return api.Kernel{}, fmt.Errorf("making kernel %s: %w", imp.Name, s.shelf.Explain(err, imp.Need))
	}
	if err := s.shelf.Put(ctx, stage, shelf.Entry[api.Kernel]{Name: k.Name, ID: k.ID, Body: k}, imp.Replace); err != nil {
		return api.Kernel{}, fmt.Errorf("storing kernel %s: %w", imp.Name, err)
	}
	return k, nil
}

// write unpacks the tar into the stage and says what it was.
func (s *Store) write(ctx context.Context, stage *shelf.Stage, imp Import, r io.Reader) (k api.Kernel, err error) {
	sum := sha256.New()
	in := &counted{r: io.TeeReader(s.shelf.Guard(r, minFree), sum), told: imp.Progress}
	f, err := stage.Create(modulesName)
	if err != nil {
		return k, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	p, err := unpack(ctx, in, f)
	if ctx.Err() != nil {
		return k, context.Cause(ctx)
	}
	if err != nil {
		return k, err
	}
	if err := p.check(); err != nil {
		return k, err
	}
	vmlinux, err := bzimage.Extract(p.vmlinuz)
	if err != nil {
		return k, &api.Error{Code: api.Unsupported, Msg: "this kernel cannot be used", Err: err}
	}
	files := map[string][]byte{vmlinuxName: vmlinux, configName: p.config}
	for name, data := range p.kept {
		files[name+".ko"] = data
	}
	for name, data := range files {
		if err := write(stage, name, data); err != nil {
			return k, err
		}
	}
	if err := f.Sync(); err != nil {
		return k, fmt.Errorf("syncing %s: %w", modulesName, err)
	}
	return api.Kernel{
		Name: imp.Name, ID: hex.EncodeToString(sum.Sum(nil)), Release: p.release, Source: imp.Source,
		Bytes: int64(len(vmlinux)) + p.modules.Bytes, Created: time.Now().UTC().Truncate(time.Second),
	}, nil
}

// write makes a file of the stage and syncs it.
func write(stage *shelf.Stage, name string, data []byte) (err error) {
	f, err := stage.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

// counted tells now and then how much has been read.
type counted struct {
	r    io.Reader
	told func(int64)
	n    int64
	last int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.told != nil && c.n-c.last >= 1<<20 {
		c.last = c.n
		c.told(c.n)
	}
	return n, err
}

// List returns the kernels by name, without their users.
func (s *Store) List(ctx context.Context) ([]api.Kernel, error) {
	es, err := s.shelf.List(ctx)
	if err != nil {
		return nil, err
	}
	out := []api.Kernel{}
	for _, e := range es {
		out = append(out, of(e))
	}
	return out, nil
}

// Find returns the kernel that ref, a name, an id or the beginning of one,
// means.
func (s *Store) Find(ctx context.Context, ref string) (api.Kernel, error) {
	e, err := s.shelf.Find(ctx, ref)
	if err != nil {
		return api.Kernel{}, err
	}
	return of(e), nil
}

// of is a kernel under the name that it has now.
func of(e shelf.Entry[api.Kernel]) api.Kernel {
	k := e.Body
	k.Name, k.ID = e.Name, e.ID
	return k
}

// Claim is a Conflict error if the kernel with this id is gone or has lost its
// name. It is called in the transaction that writes a VM's row.
func (s *Store) Claim(ctx context.Context, tx *sql.Tx, id string) error {
	return s.shelf.Claim(ctx, tx, id)
}

// Delete removes the kernel that ref means; it is refused while VMs use it.
func (s *Store) Delete(ctx context.Context, ref string) (api.Kernel, error) {
	e, err := s.shelf.Delete(ctx, ref)
	return of(e), err
}

// Files are a kernel's, open for reading.
type Files struct {
	Vmlinux *os.File
	Modules *os.File // an ext4 file system, whose root is lib/modules/REL
	Config  string   // what it was built with
}

// Close closes the files.
func (f *Files) Close() error { return errors.Join(f.Vmlinux.Close(), f.Modules.Close()) }

// OpenFiles opens the kernel with this id, whatever its name is by now. The
// caller closes it.
func (s *Store) OpenFiles(id string) (*Files, error) {
	if !s.shelf.Has(id) {
		return nil, gone(id)
	}
	v, err := os.Open(s.shelf.Path(id, vmlinuxName))
	if err != nil {
		return nil, fmt.Errorf("opening kernel: %w", err)
	}
	m, err := os.Open(s.shelf.Path(id, modulesName))
	if err != nil {
		v.Close()
		return nil, fmt.Errorf("opening kernel's modules: %w", err)
	}
	c, err := os.ReadFile(s.shelf.Path(id, configName))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reading kernel's configuration: %w", err), v.Close(), m.Close())
	}
	return &Files{Vmlinux: v, Modules: m, Config: string(c)}, nil
}

func gone(id string) error {
	return &api.Error{Code: api.NotFound, Msg: fmt.Sprintf("the kernel %.12s that this VM was made with is gone", id)}
}

// Modules reads what of the kernel with this id goes into an initramfs, in
// load order.
func (s *Store) Modules(id string) ([]initramfs.Module, error) {
	if !s.shelf.Has(id) {
		return nil, gone(id)
	}
	var out []initramfs.Module
	for _, name := range initramfs.ModuleNames() {
		data, err := os.ReadFile(s.shelf.Path(id, name+".ko"))
		if errors.Is(err, os.ErrNotExist) {
			data, err = s.late(id, name)
		}
		if errors.Is(err, os.ErrNotExist) {
			continue // built in
		}
		if err != nil {
			return nil, fmt.Errorf("reading kernel module: %w", err)
		}
		out = append(out, initramfs.Module{Name: name, Data: data})
	}
	return out, nil
}

// lateModules are those that were not kept beside the modules' file system by the
// first versions of this package, with their directories in it.
var lateModules = map[string]string{
	"vsock":                             "kernel/net/vmw_vsock",
	"vmw_vsock_virtio_transport_common": "kernel/net/vmw_vsock",
	"vmw_vsock_virtio_transport":        "kernel/net/vmw_vsock",
	"failover":                          "kernel/net/core",
	"net_failover":                      "kernel/drivers/net",
	"dim":                               "kernel/lib/dim",
	"virtio_net":                        "kernel/drivers/net",
}

// late reads a module of a kernel that was stored without it.
func (s *Store) late(id, name string) ([]byte, error) {
	dir, ok := lateModules[name]
	if !ok {
		return nil, os.ErrNotExist
	}
	f, err := os.Open(s.shelf.Path(id, modulesName))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fsys, err := ext4.Open(f)
	if err != nil {
		return nil, err
	}
	r, err := fsys.Open(dir + "/" + name + ".ko")
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// Room is a NoSpace error, which names the directory, if fewer than need bytes
// are free.
func (s *Store) Room(need int64) error { return s.shelf.Room(need) }

// Sweep removes kernels that have lost their name and their last VM.
func (s *Store) Sweep(ctx context.Context) error { return s.shelf.Sweep(ctx) }

// Staging lists the directories of kernels that are being made.
func (s *Store) Staging() ([]string, error) { return s.shelf.Staged() }

// Leaks says in sentences what nothing explains.
func (s *Store) Leaks(ctx context.Context) ([]string, error) { return s.shelf.Leaks(ctx) }
