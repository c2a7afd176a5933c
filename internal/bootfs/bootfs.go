// Package bootfs keeps the initramfs archives that VMs boot from, one for each
// kernel and build of the agent, and makes them when they are asked for.
//
// What is in one is package initramfs's; who boots from it is not its business.
package bootfs

import (
	"crypto/sha256"
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
	"banger/internal/initramfs"
)

// A Cache is a directory of archives, which must exist.
type Cache struct {
	Dir   string
	Agent string // path of the program

	mu   sync.Mutex // guards what follows
	seen fs.FileInfo
	sum  [sha256.Size]byte // of the agent as seen
}

// unusedFor is after how long an archive that no VM has booted is removed.
const unusedFor = 30 * 24 * time.Hour

// Open opens the archive for a kernel, which is made if it is not there.
func (b *Cache) Open(kernelID string, modules []initramfs.Module) (*os.File, error) {
	sum, err := b.agentSum()
	if err != nil {
		return nil, err
	}
	form := []byte("2") // of the archive, and which modules it holds
	for _, m := range modules {
		form = fmt.Appendf(form, " %s", m.Name)
	}
	key := sha256.Sum256(fmt.Appendf(form, " %s %x", kernelID, sum))
	path := filepath.Join(b.Dir, "initramfs-"+hex.EncodeToString(key[:16])+".cpio")
	if f, err := os.Open(path); !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			return nil, fmt.Errorf("opening the initramfs: %w", err)
		}
		now := time.Now()
		// The time of the last use; a cache that cannot be touched works too.
		_ = os.Chtimes(path, now, now)
		return f, nil
	}
	agent, err := os.ReadFile(b.Agent)
	if err != nil {
		return nil, fmt.Errorf("reading the agent: %w", err)
	}
	if sha256.Sum256(agent) != sum {
		return nil, fmt.Errorf("reading the agent: %s changes while it is read", b.Agent)
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
func (b *Cache) agentSum() ([sha256.Size]byte, error) {
	st, err := os.Stat(b.Agent)
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
	f, err := os.Open(b.Agent)
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
func (b *Cache) tidy() error {
	entries, err := os.ReadDir(b.Dir)
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
		if err := os.Remove(filepath.Join(b.Dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("tidying the cache: %w", err)
		}
	}
	return nil
}
