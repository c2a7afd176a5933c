package daemon

import (
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"banger/internal/atomicfile"
	"banger/internal/host"
	"banger/internal/initramfs"
	"banger/internal/machine"
	"banger/internal/recipe"
	"banger/internal/vmm"
)

// resolver is the images and kernels as VMs see them; it introduces the stores
// to package machine.
type resolver struct {
	d      *Daemon
	bootfs bootfs
}

// Resolve finds an image by name, or the default one, and its kernel.
func (r *resolver) Resolve(ctx context.Context, name string) (machine.Origin, error) {
	im, err := r.d.images.Find(ctx, cmp.Or(name, r.d.cfg.User.DefaultImageName, recipe.DefaultImage))
	if err != nil {
		return machine.Origin{}, err
	}
	// Any kernel goes with any image, and so far there is one.
	k, err := r.d.kernels.Find(ctx, recipe.DefaultKernel)
	if err != nil {
		return machine.Origin{}, err
	}
	return machine.Origin{Image: im.Name, ImageID: im.ID, Kernel: k.Name, KernelID: k.ID}, nil
}

// Claim fails if what Resolve found has been deleted or replaced since.
func (r *resolver) Claim(ctx context.Context, tx *sql.Tx, o machine.Origin) error {
	if err := r.d.images.Claim(ctx, tx, o.ImageID); err != nil {
		return err
	}
	return r.d.kernels.Claim(ctx, tx, o.KernelID)
}

// Open opens what a VM boots from.
func (r *resolver) Open(_ context.Context, o machine.Origin) (_ *machine.Boot, err error) {
	k, err := r.d.kernels.OpenFiles(o.KernelID)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.Close())
		}
	}()
	modules, err := r.d.kernels.Modules(o.KernelID)
	if err != nil {
		return nil, err
	}
	fs, err := r.bootfs.open(o.KernelID, modules)
	if err != nil {
		return nil, err
	}
	base, err := r.d.images.OpenFile(o.ImageID)
	if err != nil {
		return nil, errors.Join(err, fs.Close())
	}
	return &machine.Boot{Kernel: k.Vmlinux, KernelConfig: k.Config, Initramfs: fs, Serial: vmm.SerialVM, Disks: []host.Disk{
		{File: base, Serial: vmm.SerialBase, ReadOnly: true},
		{File: k.Modules, Serial: vmm.SerialModules, ReadOnly: true},
	}}, nil
}

// bootfs is the cache of initramfs archives, one for each kernel and build of
// the agent.
type bootfs struct {
	dir   string
	agent string // path of the program

	mu   sync.Mutex // guards what follows
	seen fs.FileInfo
	sum  [sha256.Size]byte // of the agent as seen
}

// unusedFor is after how long an archive that no VM has booted is removed.
const unusedFor = 30 * 24 * time.Hour

// open opens the archive for a kernel, which is made if it is not there.
func (b *bootfs) open(kernelID string, modules []initramfs.Module) (*os.File, error) {
	sum, err := b.agentSum()
	if err != nil {
		return nil, err
	}
	form := []byte("2") // of the archive, and which modules it holds
	for _, m := range modules {
		form = fmt.Appendf(form, " %s", m.Name)
	}
	key := sha256.Sum256(fmt.Appendf(form, " %s %x", kernelID, sum))
	path := filepath.Join(b.dir, "initramfs-"+hex.EncodeToString(key[:16])+".cpio")
	if f, err := os.Open(path); !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			return nil, fmt.Errorf("opening the initramfs: %w", err)
		}
		now := time.Now()
		// The time of the last use; a cache that cannot be touched works too.
		_ = os.Chtimes(path, now, now)
		return f, nil
	}
	agent, err := os.ReadFile(b.agent)
	if err != nil {
		return nil, fmt.Errorf("reading the agent: %w", err)
	}
	if sha256.Sum256(agent) != sum {
		return nil, fmt.Errorf("reading the agent: %s changes while it is read", b.agent)
	}
	var archive strings.Builder
	if err := initramfs.Build(&archive, initramfs.In{Agent: agent, Modules: modules}); err != nil {
		return nil, err
	}
	if err := b.tidy(); err != nil {
		return nil, err
	}
	if err := atomicfile.Write(path, []byte(archive.String()), 0o600); err != nil {
		return nil, fmt.Errorf("keeping the initramfs: %w", err)
	}
	return os.Open(path)
}

// agentSum is the digest of the agent, which is read again when it changes.
func (b *bootfs) agentSum() ([sha256.Size]byte, error) {
	st, err := os.Stat(b.agent)
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("looking for the agent: %w", err)
	}
	b.mu.Lock()
	same := b.seen != nil && os.SameFile(b.seen, st) && b.seen.Size() == st.Size() && b.seen.ModTime().Equal(st.ModTime())
	sum := b.sum
	b.mu.Unlock()
	if same {
		return sum, nil
	}
	f, err := os.Open(b.agent)
	if err != nil {
		return sum, fmt.Errorf("reading the agent: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sum, fmt.Errorf("reading the agent: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seen, b.sum = st, [sha256.Size]byte(h.Sum(nil))
	return b.sum, nil
}

// tidy removes archives that nobody has booted for long, and what a crash left
// half-written.
func (b *bootfs) tidy() error {
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		return fmt.Errorf("looking at the cache: %w", err)
	}
	for _, e := range entries {
		st, err := e.Info()
		old := unusedFor
		if strings.HasPrefix(e.Name(), atomicfile.TempPrefix) {
			old = time.Hour
		}
		if err != nil || time.Since(st.ModTime()) < old {
			continue
		}
		if err := os.Remove(filepath.Join(b.dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("tidying the cache: %w", err)
		}
	}
	return nil
}
