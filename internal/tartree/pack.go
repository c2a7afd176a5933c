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
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// PackOptions say how a tree is packed.
type PackOptions struct {
	// Name is what the top entry is called; the path's base name if empty.
	Name string
	// Follow packs what path leads to if path itself is a symbolic link.
	Follow bool
}

// maxProblems is how many files that could not be packed are told one by one.
const maxProblems = 10

// pseudo are the file systems of the kernel's own tables. A tree that has one
// mounted somewhere is packed without it.
var pseudo = []int64{
	unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEVPTS_SUPER_MAGIC,
	unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.PSTOREFS_MAGIC, unix.BPF_FS_MAGIC,
}

// Pack writes path, and what is below it, as one tar to w, with its end. Links
// stay links, hard links too, sockets and mounted kernel file systems are left
// out and named in Stats. The tar is well-formed even if a file cannot be read
// or changes while it is read: such a file is left out, cut or filled with
// zeros, the rest follows, and the error at the end says so.
func Pack(ctx context.Context, w io.Writer, path string, o PackOptions) (Stats, error) {
	path = filepath.Clean(path)
	name := o.Name
	if name == "" {
		name = NameOf(path)
	}
	if o.Follow {
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			return Stats{}, fmt.Errorf("packing %s: %w", quote(path), pathCause(err))
		}
		path = real
	}
	bw := bufio.NewWriterSize(w, 64<<10)
	p := &packer{tw: tar.NewWriter(bw), seen: map[inode]string{}, buf: make([]byte, 256<<10)}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return Stats{}, fmt.Errorf("packing %s: %w", quote(path), err)
	}
	dir, err := openat(unix.AT_FDCWD, filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return Stats{}, fmt.Errorf("packing %s: %w", quote(path), err)
	}
	defer unix.Close(dir)
	p.dev = st.Dev
	if err := p.entry(ctx, dir, filepath.Base(path), name); err != nil {
		return p.stats, err
	}
	if err := p.tw.Close(); err != nil {
		return p.stats, fmt.Errorf("writing tar: %w", err)
	}
	if err := bw.Flush(); err != nil {
		return p.stats, fmt.Errorf("writing tar: %w", err)
	}
	if p.more > 0 {
		p.problems = append(p.problems, fmt.Errorf("and %d more", p.more))
	}
	return p.stats, errors.Join(p.problems...)
}

type inode struct{ dev, ino uint64 }

type packer struct {
	tw       *tar.Writer
	stats    Stats
	seen     map[inode]string // first name of files that have several
	dev      uint64           // of the directory being packed
	buf      []byte
	problems []error
	more     int // problems beyond those kept
}

// problem notes that a file is not in the tar as it should be.
func (p *packer) problem(name string, err error) {
	if len(p.problems) < maxProblems {
		p.problems = append(p.problems, fmt.Errorf("packing %s: %w", quote(name), err))
		return
	}
	p.more++
}

// entry packs one name of an open directory. Its error is that of the writer
// or of ctx; everything else is a problem.
func (p *packer) entry(ctx context.Context, dir int, base, name string) error {
	if ctx.Err() != nil {
		return fmt.Errorf("packing: %w", context.Cause(ctx))
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if !errors.Is(err, unix.ENOENT) { // it was removed since it was listed
			p.problem(name, err)
		}
		return nil
	}
	h := header(&st, name)
	id := inode{st.Dev, st.Ino}
	if first, ok := p.seen[id]; ok && h.Typeflag != tar.TypeDir {
		h.Typeflag, h.Linkname = tar.TypeLink, first
		return p.write(h)
	}
	if st.Nlink > 1 && h.Typeflag != tar.TypeDir {
		defer func(before int64) {
			if p.stats.Files > before { // else it is left out, and no link to it helps
				p.seen[id] = name
			}
		}(p.stats.Files)
	}
	switch h.Typeflag {
	case 0:
		p.stats.skip(name)
		return nil
	case tar.TypeReg:
		return p.file(ctx, dir, base, h)
	case tar.TypeDir:
		return p.dir(ctx, dir, base, h)
	case tar.TypeSymlink:
		b := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(dir, base, b)
		if err != nil {
			p.problem(name, err)
			return nil
		}
		h.Linkname = string(b[:n])
	}
	return p.write(h)
}

// header describes a file; its type is 0 if a tar cannot hold it.
func header(st *unix.Stat_t, name string) *tar.Header {
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec), Format: tar.FormatPAX,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		h.Name = strings.TrimSuffix(name, "/") + "/"
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
	}
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	return h
}

func (p *packer) write(h *tar.Header) error {
	p.stats.Files++
	if err := p.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("writing tar: %w", err)
	}
	return nil
}

func (p *packer) dir(ctx context.Context, parent int, base string, h *tar.Header) error {
	name := strings.TrimSuffix(h.Name, "/")
	fd, err := openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		p.problem(name, err)
		return nil
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		p.problem(name, err)
		return nil
	}
	if st.Dev != p.dev && isPseudo(fd) {
		p.stats.skip(name)
		return nil
	}
	if strings.Count(name, "/") >= maxDepth {
		p.problem(name, fmt.Errorf("more than %d directories deep: %w", maxDepth, ErrLimit))
		return nil
	}
	if err := p.write(h); err != nil {
		return err
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		p.problem(name, pathCause(err))
	}
	slices.Sort(names)
	outer := p.dev
	p.dev = st.Dev
	defer func() { p.dev = outer }()
	for _, n := range names {
		if err := p.entry(ctx, fd, n, name+"/"+n); err != nil {
			return err
		}
	}
	return nil
}

func isPseudo(fd int) bool {
	var fs unix.Statfs_t
	return unix.Fstatfs(fd, &fs) == nil && slices.Contains(pseudo, int64(fs.Type))
}

func (p *packer) file(ctx context.Context, dir int, base string, h *tar.Header) error {
	// O_NONBLOCK: should it have become a fifo, opening must not wait.
	fd, err := openat(dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		p.problem(h.Name, err)
		return nil
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		p.problem(h.Name, errors.Join(errors.New("it was replaced while it was packed"), err))
		return nil
	}
	h.Size = st.Size
	if h.Size == 0 {
		return p.unsized(fd, h)
	}
	if err := p.write(h); err != nil {
		return err
	}
	p.stats.Bytes += h.Size
	for left := h.Size; left > 0; {
		if ctx.Err() != nil {
			return fmt.Errorf("packing: %w", context.Cause(ctx))
		}
		n, err := read(fd, p.buf[:min(int64(len(p.buf)), left)])
		if n == 0 || err != nil {
			if err == nil {
				err = errors.New("it became shorter while it was read")
			}
			p.problem(h.Name, err)
			return p.zeros(left)
		}
		if _, err := p.tw.Write(p.buf[:n]); err != nil {
			return fmt.Errorf("writing tar: %w", err)
		}
		left -= int64(n)
	}
	if n, _ := read(fd, p.buf[:1]); n > 0 {
		p.problem(h.Name, errors.New("it became longer while it was read"))
	}
	return nil
}

// unsized packs a file that says it is empty: the files of /proc say so too
// and have contents.
func (p *packer) unsized(fd int, h *tar.Header) error {
	var b []byte
	for {
		n, err := read(fd, p.buf)
		if err != nil {
			p.problem(h.Name, err)
			break
		}
		if n == 0 {
			break
		}
		if b = append(b, p.buf[:n]...); len(b) > 16<<20 {
			p.problem(h.Name, errors.New("it became longer while it was read"))
			break
		}
	}
	h.Size = int64(len(b))
	p.stats.Bytes += h.Size
	if err := p.write(h); err != nil {
		return err
	}
	if _, err := p.tw.Write(b); err != nil {
		return fmt.Errorf("writing tar: %w", err)
	}
	return nil
}

// zeros fills up a file that became shorter than its header says.
func (p *packer) zeros(n int64) error {
	clear(p.buf)
	for n > 0 {
		m, err := p.tw.Write(p.buf[:min(int64(len(p.buf)), n)])
		if err != nil {
			return fmt.Errorf("writing tar: %w", err)
		}
		n -= int64(m)
	}
	return nil
}
