package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// cgroups makes a cgroup for each command, so that all it has started can be
// ended if its client is lost. It limits nothing. A command that ends by itself
// leaves its background processes, and their cgroup, alone: a daemon that was
// started on purpose lives on.
type cgroups struct {
	dir string
	n   atomic.Uint64

	mu   sync.Mutex // guards left
	left []string   // directories that had processes when their command ended
}

// A cgroup is one command's. A nil *cgroup does nothing.
type cgroup struct {
	all *cgroups
	dir string
	fd  *os.File
}

// make returns a new cgroup, or nil where there is no cgroup v2.
func (c *cgroups) make() *cgroup {
	var st unix.Statfs_t
	if unix.Statfs(filepath.Dir(c.dir), &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil
	}
	c.sweep()
	if err := os.Mkdir(c.dir, 0o755); err != nil && !os.IsExist(err) {
		return nil
	}
	dir := filepath.Join(c.dir, fmt.Sprintf("%d-%d", os.Getpid(), c.n.Add(1)))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil
	}
	fd, err := os.Open(dir)
	if err != nil {
		_ = os.Remove(dir)
		return nil
	}
	return &cgroup{all: c, dir: dir, fd: fd}
}

// sweep removes the cgroups of commands whose last process has ended since.
func (c *cgroups) sweep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := c.left[:0]
	for _, dir := range c.left {
		if os.Remove(dir) != nil {
			kept = append(kept, dir)
		}
	}
	c.left = kept
}

// kill ends every process of the cgroup and reports whether it could.
func (g *cgroup) kill() bool {
	if g == nil {
		return false
	}
	return os.WriteFile(filepath.Join(g.dir, "cgroup.kill"), []byte("1"), 0) == nil
}

// close gives the cgroup up; it goes away now, or when it is empty.
func (g *cgroup) close() {
	if g == nil {
		return
	}
	_ = g.fd.Close()
	if os.Remove(g.dir) == nil {
		return
	}
	g.all.mu.Lock()
	defer g.all.mu.Unlock()
	g.all.left = append(g.all.left, g.dir)
}
