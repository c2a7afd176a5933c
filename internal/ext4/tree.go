package ext4

import (
	"errors"
	"fmt"
	"strings"
)

// node is a file of any type while its image is being written. The same node
// under several names is a hard link.
type node struct {
	mode         uint16
	uid, gid     uint32
	mtime        timestamp
	size         int64
	names        int // directory entries that lead here
	ino          uint32
	major, minor uint32
	target       string
	runs         []run
	xattrs       []xattr
	children     map[string]*node
	parent       *node
}

func (n *node) isDir() bool { return n.mode&modeType == modeDir }

// links is the link count that belongs into the inode.
func (n *node) links() int {
	if !n.isDir() {
		return n.names
	}
	links := 2
	for _, c := range n.children {
		if c.isDir() {
			links++
		}
	}
	if links >= maxLinks {
		return 1 // dir_nlink: too many to count
	}
	return links
}

// tree is the directory tree that a tar describes so far.
type tree struct {
	root *node
	all  []*node // in order of creation, removed ones too
}

func newTree() *tree {
	root := newDir(nil)
	root.names = 1
	root.parent = root
	return &tree{root: root, all: []*node{root}}
}

// newDir is a directory as it is when no entry describes it.
func newDir(parent *node) *node {
	return &node{mode: modeDir | 0o755, children: map[string]*node{}, parent: parent}
}

// splitPath returns the components of an entry's name relative to the root.
func splitPath(name string) ([]string, error) {
	if len(name) > maxPath {
		return nil, fmt.Errorf("path of %d bytes: the limit is %d", len(name), maxPath)
	}
	if strings.Contains(name, "\x00") {
		return nil, errors.New("name contains a NUL byte")
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
		case part == "..":
			return nil, errors.New("name contains \"..\"")
		case len(part) > maxName:
			return nil, fmt.Errorf("name of %d bytes: the limit is %d", len(part), maxName)
		default:
			parts = append(parts, part)
		}
	}
	return parts, nil
}

// step is a component still to walk; strict ones come from a symlink's target
// and are not made when missing.
type step struct {
	name   string
	strict bool
}

// maxHops is how many symlinks one walk may follow, as in the kernel.
const maxHops = 40

// dir walks to a directory and makes missing ones if create is set. Symlinks
// on the way are followed as after a chroot: nothing leads out of the tree.
func (t *tree) dir(parts []string, create bool) (*node, error) {
	todo := make([]step, 0, len(parts))
	for i := len(parts) - 1; i >= 0; i-- {
		todo = append(todo, step{name: parts[i]})
	}
	at, hops := t.root, 0
	for len(todo) > 0 {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		next := at.children[s.name]
		switch {
		case s.name == "..":
			at = at.parent
		case s.name == "." || s.name == "":
		case next == nil && (s.strict || !create):
			return nil, fmt.Errorf("directory %q does not exist", s.name)
		case next == nil:
			next = newDir(at)
			t.all = append(t.all, next)
			t.put(at, s.name, next)
			at = next
		case next.isDir():
			at = next
		case next.mode&modeType == modeLink:
			if hops++; hops > maxHops {
				return nil, fmt.Errorf("more than %d symlinks in the path", maxHops)
			}
			if strings.HasPrefix(next.target, "/") {
				at = t.root
			}
			hop := strings.Split(next.target, "/")
			for i := len(hop) - 1; i >= 0; i-- {
				todo = append(todo, step{hop[i], true})
			}
		default:
			return nil, fmt.Errorf("%q is not a directory", s.name)
		}
	}
	return at, nil
}

// add gives a new node its name, made of parts. What had the name before goes,
// but a directory that comes again keeps its children.
func (t *tree) add(parts []string, n *node) error {
	if len(parts) == 0 {
		if !n.isDir() {
			return errors.New("the root must be a directory")
		}
		t.root.describe(n)
		return nil
	}
	dir, err := t.dir(parts[:len(parts)-1], true)
	if err != nil {
		return err
	}
	name := parts[len(parts)-1]
	if old := dir.children[name]; old != nil && old.isDir() && n.isDir() {
		old.describe(n)
		return nil
	}
	n.parent = dir
	t.all = append(t.all, n)
	t.put(dir, name, n)
	return nil
}

// link gives the node at target a further name.
func (t *tree) link(parts, target []string) error {
	if len(parts) == 0 || len(target) == 0 {
		return errors.New("hard link with the root")
	}
	last := len(target) - 1
	dir, err := t.dir(target[:last], false)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", strings.Join(target, "/"), err)
	}
	n := dir.children[target[last]]
	switch {
	case n == nil:
		return fmt.Errorf("hard link to %q, which does not exist", strings.Join(target, "/"))
	case n.isDir():
		return fmt.Errorf("hard link to %q, which is a directory", strings.Join(target, "/"))
	case n.names >= maxLinks:
		return fmt.Errorf("hard link to %q, which has %d names: %w", strings.Join(target, "/"), n.names, ErrTooLarge)
	}
	if dir, err = t.dir(parts[:len(parts)-1], true); err != nil {
		return err
	}
	t.put(dir, parts[len(parts)-1], n)
	return nil
}

// put makes name lead to n, counting n's new name before anything goes: n may
// be inside of what is replaced.
func (t *tree) put(dir *node, name string, n *node) {
	n.names++
	if old := dir.children[name]; old != nil {
		drop(old)
	}
	dir.children[name] = n
}

// drop takes one name from n, and all names below it if it was a directory.
func drop(n *node) {
	n.names--
	for _, c := range n.children {
		drop(c)
	}
	n.children = nil
}

// describe takes over the metadata of an entry for the same directory.
func (n *node) describe(entry *node) {
	n.mode, n.uid, n.gid, n.mtime, n.xattrs = entry.mode, entry.uid, entry.gid, entry.mtime, entry.xattrs
}
