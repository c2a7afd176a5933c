package tartree

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// split cuts an entry's name into components. "." and empty components mean
// nothing; ".." and a leading slash are refused, not repaired: a tar that has
// them was not made for this.
func split(name string) ([]string, error) {
	if strings.HasPrefix(name, "/") {
		return nil, fmt.Errorf("an absolute name: %w", ErrUnsafe)
	}
	parts := make([]string, 0, 8)
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			return nil, fmt.Errorf("a name with \"..\": %w", ErrUnsafe)
		default:
			parts = append(parts, part)
		}
	}
	if len(parts) > maxDepth {
		return nil, fmt.Errorf("%d directories deep, more than %d: %w", len(parts), maxDepth, ErrLimit)
	}
	return parts, nil
}

// A chain holds the directories from the top to the one used last, open. The
// entries of a tar mostly follow each other in the same directory, so most
// entries need no walk at all.
type chain struct {
	fds   []int    // fds[0] is the top, which the chain does not close
	names []string // names[i] leads from fds[i] to fds[i+1]
}

func newChain(top int) *chain { return &chain{fds: []int{top}} }

// to returns a descriptor (O_PATH) of the directory dirs below the top, valid
// until the next call. Without missing, a directory that is not there is an
// error; else missing is called to make it, with its parent and its path.
func (c *chain) to(dirs []string, missing func(parent int, path []string) error) (int, error) {
	n := 0
	for n < len(dirs) && n < len(c.names) && dirs[n] == c.names[n] {
		n++
	}
	c.cut(n)
	for ; n < len(dirs); n++ {
		parent, name := c.fds[n], dirs[n]
		fd, err := openDir(parent, name)
		if errors.Is(err, unix.ENOENT) && missing != nil {
			if err = missing(parent, dirs[:n+1]); err == nil {
				fd, err = openDir(parent, name)
			}
		}
		if err != nil {
			return -1, walkError(parent, dirs[:n+1], err)
		}
		c.fds = append(c.fds, fd)
		c.names = append(c.names, name)
	}
	return c.fds[n], nil
}

// cut closes all but the first n directories below the top.
func (c *chain) cut(n int) {
	for _, fd := range c.fds[n+1:] {
		_ = unix.Close(fd)
	}
	c.fds = slices.Delete(c.fds, n+1, len(c.fds))
	c.names = slices.Delete(c.names, n, len(c.names))
}

func openDir(parent int, name string) (int, error) {
	return openat(parent, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// walkError says which directory of a path is in the way, and why.
func walkError(parent int, path []string, err error) error {
	at := quote(strings.Join(path, "/"))
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		var st unix.Stat_t
		if unix.Fstatat(parent, path[len(path)-1], &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return fmt.Errorf("%s is a symbolic link: %w", at, ErrUnsafe)
		}
		return fmt.Errorf("%s is %w", at, unix.ENOTDIR)
	}
	return fmt.Errorf("opening directory %s: %w", at, err)
}

// A tree is a set of directories, each after the one that it is in. It keeps of
// each its own name only: a path of 255 long names has 64 KiB, and who made the
// tar may give as many of them as the disk has room for directories.
type tree struct {
	nodes []node // the first is the top
	index map[step]int
}

// A node is one directory.
type node struct {
	step
	made bool        // by us
	h    *tar.Header // what it gets when nothing is written into it any more; may be nil
}

// A step leads from the directory with a number to one in it.
type step struct {
	parent int
	name   string
}

func newTree() *tree { return &tree{nodes: make([]node, 1), index: map[step]int{}} }

// add returns the directory at path, valid until the next call.
func (t *tree) add(path []string) *node {
	at := 0
	for _, name := range path {
		next, ok := t.index[step{at, name}]
		if !ok {
			next = len(t.nodes)
			s := step{at, strings.Clone(name)} // or the whole path would be kept
			t.nodes, t.index[s] = append(t.nodes, node{step: s}), next
		}
		at = next
	}
	return &t.nodes[at]
}

// has reports whether the directory at path was made by us.
func (t *tree) has(path []string) bool {
	at := 0
	for _, name := range path {
		next, ok := t.index[step{at, name}]
		if !ok {
			return false
		}
		at = next
	}
	return t.nodes[at].made
}

// path is that of the directory with a number.
func (t *tree) path(at int) []string {
	var path []string
	for ; at > 0; at = t.nodes[at].parent {
		path = append(path, t.nodes[at].name)
	}
	slices.Reverse(path)
	return path
}

// openTop opens the directory that a tar goes into, which is made if it is
// missing. It is the caller's word, so links in it are followed.
func openTop(dir string) (fd int, made bool, err error) {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		made = true
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return -1, false, fmt.Errorf("making directory %s: %w", quote(dir), pathCause(err))
		}
	}
	fd, err = openat(unix.AT_FDCWD, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, false, fmt.Errorf("opening directory %s: %w", quote(dir), err)
	}
	return fd, made, nil
}

// pathCause drops operation and path from an error whose message has them.
func pathCause(err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		return pe.Err
	}
	return err
}
