package tartree

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Options say how a tar is unpacked. The zero Options give everything to the
// user who unpacks, keep modes and times, and leave out devices and fifos.
type Options struct {
	// As renames the tar's single top entry, like the second argument of cp:
	// if it names an existing directory, the entry goes into that.
	As string
	// Owner keeps numeric owners, extended attributes, devices and fifos.
	Owner bool
	// Top, if not empty, is the only name that a top entry may have: what was
	// asked for, so that nobody sends a .bashrc instead. See [NameOf].
	Top string
	// Foreign unpacks what somebody hostile may have made: set-user-id,
	// set-group-id and sticky bits are dropped, and with Owner devices too, and
	// the umask is kept to.
	Foreign bool
	// MaxBytes bounds the sum of the sizes of regular files, holes included;
	// 0 is no bound.
	MaxBytes int64
	// MaxEntries bounds the number of entries; 0 is no bound.
	MaxEntries int64
}

// holeMin is the size of files from which blocks of zeros become holes.
const holeMin = 1 << 20

// holeBlock is the granularity of the search for holes.
const holeBlock = 64 << 10

// Unpack writes the entries of a tar below dir, which is made if it is missing.
// Existing directories are kept with their modes; an existing file or link is
// replaced; a file in the place of a directory, or the reverse, is an error. It
// reads r to the end of the tar and not beyond its last blocks. On an error the
// entries before it stay; no half-written file does. The end of ctx is seen
// between reads: who wants to end one that blocks ends r.
func Unpack(ctx context.Context, dir string, r io.Reader, o Options) (Stats, error) {
	if o.As != "" {
		if o.As == "." || o.As == ".." || strings.Contains(o.As, "/") {
			return Stats{}, fmt.Errorf("%s is not a file name: %w", quote(o.As), ErrUnsafe)
		}
		if fi, err := os.Stat(filepath.Join(dir, o.As)); err == nil && fi.IsDir() {
			dir, o.As = filepath.Join(dir, o.As), ""
		}
	}
	top, made, err := openTop(dir)
	if err != nil {
		return Stats{}, err
	}
	defer unix.Close(top)
	u := &unpacker{Options: o, dirs: newChain(top), targets: newChain(top), topMade: made, top: o.Top, umask: umask(), made: newTree()}
	defer u.dirs.cut(0)
	defer u.targets.cut(0)

	tr := tar.NewReader(bufio.NewReaderSize(r, 256<<10))
	stopped := func() error { return context.Cause(ctx) }
	for {
		if err := stopped(); err != nil {
			return u.stats, fmt.Errorf("unpacking: %w", err)
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return u.stats, fmt.Errorf("reading tar: %w", err)
		}
		if err := u.entry(h, &content{tr, stopped}); err != nil {
			return u.stats, fmt.Errorf("unpacking %s: %w", quote(h.Name), err)
		}
	}
	return u.stats, u.finish()
}

// NameOf is what [Pack] calls the top entry of path.
func NameOf(path string) string {
	switch name := filepath.Base(filepath.Clean(path)); name {
	case "/", ".", "..":
		return "rootfs"
	default:
		return name
	}
}

// content is that of one entry. A tar of a kilobyte may claim exabytes of holes,
// which come without a read of the tar.
type content struct {
	io.Reader
	stopped func() error
}

func (c *content) Read(b []byte) (int, error) {
	if err := c.stopped(); err != nil {
		return 0, err
	}
	return c.Reader.Read(b)
}

type unpacker struct {
	Options
	stats   Stats
	dirs    *chain // of the entries
	targets *chain // of the targets of hard links
	topMade bool
	top     string // the only top entry; "" as long as any will do
	umask   uint32
	buf     []byte
	made    *tree // of the directories made here
}

// entry makes one entry of the tar.
func (u *unpacker) entry(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	u.stats.Files++
	if u.MaxEntries > 0 && u.stats.Files > u.MaxEntries {
		return fmt.Errorf("more than %d entries: %w", u.MaxEntries, ErrLimit)
	}
	path, err := u.path(h.Name)
	if err != nil {
		return err
	}
	if len(path) == 0 {
		return u.topEntry(h)
	}
	dir, err := u.dirs.to(path[:len(path)-1], u.makeParent)
	if err != nil {
		return err
	}
	name := path[len(path)-1]
	switch h.Typeflag {
	case tar.TypeReg, '\x00', tar.TypeCont, tar.TypeGNUSparse: // '\x00': files of old tars
		return u.file(dir, name, h, r)
	case tar.TypeDir:
		return u.dir(dir, path, h)
	case tar.TypeSymlink:
		return u.symlink(dir, name, h)
	case tar.TypeLink:
		return u.link(dir, path, h)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return u.special(dir, name, h)
	}
	return fmt.Errorf("entry of unknown type %q", h.Typeflag)
}

// path is where an entry goes, As applied.
func (u *unpacker) path(name string) ([]string, error) {
	path, err := split(name)
	if err != nil || u.As == "" && u.top == "" {
		return path, err
	}
	if u.top == "" && len(path) > 0 {
		u.top = path[0]
	}
	switch {
	case u.Top != "" && (len(path) == 0 || path[0] != u.Top):
		return nil, fmt.Errorf("it is not below %s, which was asked for: %w", quote(u.Top), ErrUnsafe)
	case len(path) == 0:
		return nil, fmt.Errorf("an entry without a name cannot become %s", quote(u.As))
	case path[0] != u.top:
		return nil, fmt.Errorf("the tar has more than one top entry, only one can become %s", quote(u.As))
	}
	if u.As != "" {
		path[0] = u.As
	}
	return path, nil
}

// topEntry is an entry for the directory itself, such as "./".
func (u *unpacker) topEntry(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return fmt.Errorf("an entry without a name: %w", ErrUnsafe)
	}
	if u.topMade {
		u.keep(nil, h)
	}
	return nil
}

// makeParent makes a directory that has no entry, or none yet.
func (u *unpacker) makeParent(parent int, path []string) error {
	if err := unix.Mkdirat(parent, path[len(path)-1], 0o755); err != nil {
		return err
	}
	u.keep(path, nil)
	return nil
}

// keep remembers a directory that was made here, and what it shall be like; h is
// nil as long as it has no entry of its own.
func (u *unpacker) keep(path []string, h *tar.Header) {
	if h != nil { // no more than is needed: there may be millions
		k := &tar.Header{Mode: h.Mode, ModTime: h.ModTime}
		if u.Owner {
			k.Uid, k.Gid, k.PAXRecords = h.Uid, h.Gid, h.PAXRecords
		}
		h = k
	}
	n := u.made.add(path)
	n.made, n.h = true, h
}

func (u *unpacker) dir(parent int, path []string, h *tar.Header) error {
	name := path[len(path)-1]
	err := unix.Mkdirat(parent, name, u.mode(h)&0o777|0o700)
	if errors.Is(err, unix.EEXIST) {
		if u.made.has(path) {
			u.keep(path, h)
			return nil
		}
		fd, err := openDir(parent, name)
		if err != nil {
			return walkError(parent, path, err)
		}
		return unix.Close(fd)
	}
	if err == nil {
		u.keep(path, h)
	}
	return err
}

// mode is the mode that an entry gets.
func (u *unpacker) mode(h *tar.Header) uint32 {
	if u.Foreign {
		return uint32(h.Mode) & 0o777 &^ u.umask
	}
	return uint32(h.Mode) & 0o7777
}

// replace calls mk, and again after removing what is in its way, unless that
// is a directory.
func replace(dir int, name string, mk func() error) error {
	err := mk()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := unix.Unlinkat(dir, name, 0); err != nil {
		if errors.Is(err, unix.EISDIR) {
			return fmt.Errorf("a directory of that name is in the way: %w", err)
		}
		return fmt.Errorf("replacing it: %w", err)
	}
	return mk()
}

// file makes a regular file. The usual one costs open, write, futimens, close.
func (u *unpacker) file(dir int, name string, h *tar.Header, r io.Reader) (err error) {
	if u.MaxBytes > 0 && h.Size > u.MaxBytes-u.stats.Bytes {
		return fmt.Errorf("more than %d bytes: %w", u.MaxBytes, ErrLimit)
	}
	u.stats.Bytes += h.Size
	mode, fd := u.mode(h), -1
	first := mode & 0o777
	if u.Owner {
		first = 0o600 // not readable by others before it is theirs
	}
	err = replace(dir, name, func() (err error) {
		fd, err = openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, first)
		return err
	})
	if err != nil {
		return err
	}
	defer func() {
		if cerr := unix.Close(fd); err == nil {
			err = cerr
		}
		if err != nil {
			_ = unix.Unlinkat(dir, name, 0) // no half of a file under the whole one's name
		}
	}()
	if err := u.copy(fd, r, h.Size); err != nil {
		return err
	}
	if u.Owner {
		if err := u.own(fd, h); err != nil {
			return err
		}
	}
	if u.Owner || mode&(0o7000|u.umask) != 0 {
		if err := unix.Fchmod(fd, mode); err != nil {
			return fmt.Errorf("setting its mode: %w", err)
		}
	}
	if err := futimens(fd, clamp(h.ModTime)); err != nil {
		return fmt.Errorf("setting its time: %w", err)
	}
	return nil
}

// copy fills a new file with size bytes of r.
func (u *unpacker) copy(fd int, r io.Reader, size int64) error {
	if size == 0 {
		return nil
	}
	if u.buf == nil {
		u.buf = make([]byte, 256<<10)
	}
	hole := false
	for off := int64(0); off < size; {
		b := u.buf[:min(int64(len(u.buf)), size-off)]
		if _, err := io.ReadFull(r, b); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("reading tar: %w", err)
		}
		if size < holeMin {
			if err := pwrite(fd, b, off); err != nil {
				return err
			}
			off += int64(len(b))
			continue
		}
		for len(b) > 0 {
			part := b[:min(len(b), holeBlock)]
			if hole = isZero(part); !hole {
				if err := pwrite(fd, part, off); err != nil {
					return err
				}
			}
			b, off = b[len(part):], off+int64(len(part))
		}
	}
	if hole {
		return unix.Ftruncate(fd, size)
	}
	return nil
}

// own gives an open file its numeric owner and its extended attributes, those
// that the file system takes.
func (u *unpacker) own(fd int, h *tar.Header) error {
	if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
		return fmt.Errorf("setting its owner: %w", err)
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok || u.Foreign {
			continue
		}
		err := unix.Fsetxattr(fd, name, []byte(value), 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("setting attribute %s: %w", quote(name), err)
		}
	}
	return nil
}

func (u *unpacker) symlink(dir int, name string, h *tar.Header) error {
	err := replace(dir, name, func() error { return unix.Symlinkat(h.Linkname, dir, name) })
	if err != nil {
		return err
	}
	return u.nameAttrs(dir, name, h)
}

// nameAttrs sets owner and time of what has no descriptor.
func (u *unpacker) nameAttrs(dir int, name string, h *tar.Header) error {
	if u.Owner {
		if err := unix.Fchownat(dir, name, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("setting its owner: %w", err)
		}
	}
	if err := lutimes(dir, name, clamp(h.ModTime)); err != nil {
		return fmt.Errorf("setting its time: %w", err)
	}
	return nil
}

// link makes a hard link to an earlier entry. Its target is walked like every
// other name, and a link is never followed at its end.
func (u *unpacker) link(dir int, path []string, h *tar.Header) error {
	target, err := u.path(h.Linkname)
	if err != nil {
		return fmt.Errorf("hard link to %s: %w", quote(h.Linkname), err)
	}
	if len(target) == 0 {
		return fmt.Errorf("hard link to %s: %w", quote(h.Linkname), ErrUnsafe)
	}
	from, err := u.targets.to(target[:len(target)-1], nil)
	if err != nil {
		return fmt.Errorf("hard link to %s: %w", quote(h.Linkname), err)
	}
	name, old := path[len(path)-1], target[len(target)-1]
	var was, is unix.Stat_t
	if err := unix.Fstatat(from, old, &was, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("hard link to %s: %w", quote(h.Linkname), err)
	}
	if unix.Fstatat(dir, name, &is, unix.AT_SYMLINK_NOFOLLOW) == nil && is.Ino == was.Ino && is.Dev == was.Dev {
		return nil // it is that link already; replacing it could remove the last one
	}
	err = replace(dir, name, func() error { return unix.Linkat(from, old, dir, name, 0) })
	if err != nil {
		return fmt.Errorf("hard link to %s: %w", quote(h.Linkname), err)
	}
	return nil
}

func (u *unpacker) special(dir int, name string, h *tar.Header) error {
	kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
	if !u.Owner || u.Foreign {
		u.stats.skip(h.Name)
		return nil
	}
	dev := unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	err := replace(dir, name, func() error { return unix.Mknodat(dir, name, kind|0o600, int(dev)) })
	if err != nil {
		return err
	}
	if err := u.nameAttrs(dir, name, h); err != nil {
		return err
	}
	// fchmodat cannot be told not to follow, but what it meets was made here
	// in a directory of ours a moment ago.
	if err := unix.Fchmodat(dir, name, u.mode(h), 0); err != nil {
		return fmt.Errorf("setting its mode: %w", err)
	}
	return nil
}

// finish gives the directories that were made here their modes and times, the
// deepest first, since a mode may shut the way to those below.
func (u *unpacker) finish() error {
	for i := len(u.made.nodes) - 1; i >= 0; i-- {
		if h := u.made.nodes[i].h; h != nil {
			path := u.made.path(i)
			if err := u.finishDir(path, h); err != nil {
				return fmt.Errorf("unpacking %s: %w", quote(strings.Join(path, "/")), err)
			}
		}
	}
	return nil
}

func (u *unpacker) finishDir(path []string, h *tar.Header) error {
	at, err := u.dirs.to(path[:max(len(path)-1, 0)], nil)
	if err != nil {
		return err
	}
	name := "."
	if len(path) > 0 {
		name = path[len(path)-1]
	}
	fd, err := openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if u.Owner {
		if err := u.own(fd, h); err != nil {
			return err
		}
	}
	if err := unix.Fchmod(fd, u.mode(h)); err != nil {
		return fmt.Errorf("setting its mode: %w", err)
	}
	return futimens(fd, clamp(h.ModTime))
}

// clamp keeps a time within what file systems hold, so that a wild header does
// not become an error.
func clamp(t time.Time) time.Time {
	if t.Unix() < -1<<31 || t.Unix() > 1<<34 {
		return time.Unix(0, 0)
	}
	return t
}
