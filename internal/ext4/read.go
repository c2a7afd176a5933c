package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"
)

// FS reads an ext4 file system. It keeps no state between calls and may be
// used by several goroutines at once. It trusts nothing that it reads: damage
// comes back as ErrCorrupt.
type FS struct {
	r      io.ReaderAt
	sb     superblock
	bs     int64
	blocks uint64
	desc   int64 // bytes of a group descriptor
	groups uint32
}

// Entry is one name in a file system with the inode it leads to.
type Entry struct {
	// Ino is the inode number: entries with the same are hard links.
	Ino uint32
	// Mode has type and permissions, as in stat(2).
	Mode     uint16
	UID, GID uint32
	Links    int
	// Size is a file's length, a symlink's, or a directory's on disk.
	Size                int64
	Atime, Ctime, Mtime time.Time
	// Major and Minor name the device of a device node.
	Major, Minor uint32
	// Target is where a symlink leads.
	Target string
	// Xattrs are the extended attributes as system calls show them.
	Xattrs map[string][]byte
}

// Open reads the superblock of the file system in r. If r knows its size (as
// *os.File, *bytes.Reader and *io.SectionReader do), nothing may lie beyond.
func Open(r io.ReaderAt) (*FS, error) {
	p := make([]byte, superSize)
	if err := readFull(r, p, superOffset); err != nil {
		return nil, fmt.Errorf("reading the superblock: %w", err)
	}
	f := &FS{r: r}
	if _, err := binary.Decode(p, binary.LittleEndian, &f.sb); err != nil {
		return nil, fmt.Errorf("reading the superblock: %w", err)
	}
	if err := f.check(); err != nil {
		return nil, fmt.Errorf("reading the superblock: %w", err)
	}
	if size, ok := sizeOf(r); ok && uint64(size) < f.blocks*uint64(f.bs) {
		return nil, fmt.Errorf("file system of %d blocks in %d bytes: %w", f.blocks, size, ErrCorrupt)
	}
	return f, nil
}

// check looks at the superblock's numbers, which everything else relies on.
func (f *FS) check() error {
	sb := &f.sb
	const known = incompatFiletype | incompatRecover | incompatExtents | incompat64bit | incompatFlexBG | incompatCsumSeed | incompatLargeDir
	switch {
	case sb.Magic != superMagic:
		return fmt.Errorf("magic number %#x: %w", sb.Magic, ErrCorrupt)
	case sb.Revision == 0 || sb.Incompat&^known != 0:
		return fmt.Errorf("revision %d, incompatible features %#x: %w", sb.Revision, sb.Incompat, ErrUnsupported)
	case sb.LogBlockSize > 6 || sb.InodesPerGroup == 0 || sb.BlocksPerGroup == 0:
		return fmt.Errorf("geometry: %w", ErrCorrupt)
	}
	f.bs = 1024 << sb.LogBlockSize
	f.blocks = sb.blocks()
	f.desc = descSize
	if sb.Incompat&incompat64bit != 0 {
		f.desc = int64(sb.DescSize)
	}
	size := int64(sb.InodeSize)
	groups := (f.blocks - uint64(sb.FirstDataBlock) + uint64(sb.BlocksPerGroup) - 1) / uint64(sb.BlocksPerGroup)
	switch {
	case uint64(sb.FirstDataBlock) >= f.blocks || f.blocks > 1<<47 || groups > 1<<32-1:
		return fmt.Errorf("%d blocks: %w", f.blocks, ErrCorrupt)
	case size < 128 || size > f.bs || size&(size-1) != 0:
		return fmt.Errorf("inodes of %d bytes: %w", size, ErrCorrupt)
	case f.desc < descSize || f.desc > f.bs || f.desc&(f.desc-1) != 0:
		return fmt.Errorf("group descriptors of %d bytes: %w", f.desc, ErrCorrupt)
	case uint64(sb.InodesCount) != groups*uint64(sb.InodesPerGroup):
		return fmt.Errorf("%d inodes in %d groups of %d: %w", sb.InodesCount, groups, sb.InodesPerGroup, ErrCorrupt)
	}
	f.groups = uint32(groups)
	return nil
}

// sizeOf returns the size of r if r tells.
func sizeOf(r io.ReaderAt) (int64, bool) {
	switch r := r.(type) {
	case interface{ Size() int64 }:
		return r.Size(), true
	case interface{ Stat() (fs.FileInfo, error) }:
		if fi, err := r.Stat(); err == nil && fi.Mode().IsRegular() {
			return fi.Size(), true
		}
	}
	return 0, false
}

// readFull reads exactly p; an end in between is damage.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == io.EOF {
		return fmt.Errorf("image ends before byte %d: %w", off+int64(len(p)), ErrCorrupt)
	}
	return err
}

// block reads one block.
func (f *FS) block(n uint64) ([]byte, error) {
	if n == 0 || n >= f.blocks {
		return nil, fmt.Errorf("block %d of %d: %w", n, f.blocks, ErrCorrupt)
	}
	p := make([]byte, f.bs)
	return p, readFull(f.r, p, int64(n)*f.bs)
}

// inode reads the bytes of an inode.
func (f *FS) inode(ino uint32) ([]byte, error) {
	if ino == 0 || ino > f.sb.InodesCount {
		return nil, fmt.Errorf("inode %d of %d: %w", ino, f.sb.InodesCount, ErrCorrupt)
	}
	group, index := (ino-1)/f.sb.InodesPerGroup, (ino-1)%f.sb.InodesPerGroup
	desc := make([]byte, f.desc)
	table := (int64(f.sb.FirstDataBlock) + 1) * f.bs
	if err := readFull(f.r, desc, table+int64(group)*f.desc); err != nil {
		return nil, fmt.Errorf("reading group descriptor %d: %w", group, err)
	}
	at := uint64(binary.LittleEndian.Uint32(desc[descInodeTable:]))
	if f.desc >= 64 {
		at |= uint64(binary.LittleEndian.Uint32(desc[descTableHi:])) << 32
	}
	if at >= f.blocks {
		return nil, fmt.Errorf("inode table at block %d of %d: %w", at, f.blocks, ErrCorrupt)
	}
	p := make([]byte, f.sb.InodeSize)
	if err := readFull(f.r, p, int64(at)*f.bs+int64(index)*int64(f.sb.InodeSize)); err != nil {
		return nil, fmt.Errorf("reading inode %d: %w", ino, err)
	}
	return p, nil
}

// entry decodes an inode.
func (f *FS) entry(ino uint32) (Entry, []byte, error) {
	p, err := f.inode(ino)
	if err != nil {
		return Entry{}, nil, err
	}
	le := binary.LittleEndian
	e := Entry{
		Ino:   ino,
		Mode:  le.Uint16(p[inodeMode:]),
		UID:   uint32(le.Uint16(p[inodeUID:])) | uint32(le.Uint16(p[inodeUIDHi:]))<<16,
		GID:   uint32(le.Uint16(p[inodeGID:])) | uint32(le.Uint16(p[inodeGIDHi:]))<<16,
		Links: int(le.Uint16(p[inodeLinks:])),
		Size:  int64(le.Uint32(p[inodeSizeLo:])) | int64(le.Uint32(p[inodeSizeHi:]))<<32,
	}
	if e.Links == 0 || e.Size < 0 {
		return e, nil, fmt.Errorf("inode %d, in use with %d links and %d bytes: %w", ino, e.Links, e.Size, ErrCorrupt)
	}
	var extra [inodeCrtime - inodeCtimeX]byte // the times' second halves
	if len(p) > inodeExtra+2 && int(le.Uint16(p[inodeExtra:])) >= inodeCrtime-inodeExtra {
		copy(extra[:], p[inodeCtimeX:])
	}
	e.Ctime = decodeTime(le.Uint32(p[inodeCtime:]), le.Uint32(extra[0:]))
	e.Mtime = decodeTime(le.Uint32(p[inodeMtime:]), le.Uint32(extra[4:]))
	e.Atime = decodeTime(le.Uint32(p[inodeAtime:]), le.Uint32(extra[8:]))
	if e.Xattrs, err = f.xattrs(p); err != nil {
		return e, nil, fmt.Errorf("inode %d: %w", ino, err)
	}
	switch e.Mode & modeType {
	case modeChar, modeBlock:
		e.Major, e.Minor = decodeDevice(p[inodeBlock:])
	case modeLink:
		if e.Target, err = f.target(&e, p); err != nil {
			return e, nil, fmt.Errorf("symlink of inode %d: %w", ino, err)
		}
	case modeFile, modeDir, modeFifo, modeSocket:
	default:
		return e, nil, fmt.Errorf("inode %d with mode %#o: %w", ino, e.Mode, ErrCorrupt)
	}
	return e, p, nil
}

// xattrs reads the attributes in an inode and in the block it names.
func (f *FS) xattrs(p []byte) (map[string][]byte, error) {
	le := binary.LittleEndian
	found := map[string][]byte{}
	if len(p) > inodeExtra+4 {
		at := inodeExtra + int(le.Uint16(p[inodeExtra:]))
		if at+xattrInodeStart <= len(p) && le.Uint32(p[at:]) == xattrMagic {
			if err := parseXattrs(p, at+xattrInodeStart, at+xattrInodeStart, found); err != nil {
				return nil, err
			}
		}
	}
	at := uint64(le.Uint32(p[inodeACL:])) | uint64(le.Uint16(p[inodeACLHi:]))<<32
	if at == 0 {
		return found, nil
	}
	block, err := f.block(at)
	if err != nil {
		return nil, err
	}
	if le.Uint32(block) != xattrMagic {
		return nil, fmt.Errorf("extended attributes in block %d: %w", at, ErrCorrupt)
	}
	return found, parseXattrs(block, xattrBlockStart, 0, found)
}

// target reads a symlink.
func (f *FS) target(e *Entry, p []byte) (string, error) {
	var target []byte
	switch {
	case e.Size <= fastTarget && binary.LittleEndian.Uint32(p[inodeFlags:])&(flagExtents|flagInline) == 0:
		target = p[inodeBlock : inodeBlock+e.Size]
	case e.Size >= f.bs:
		return "", fmt.Errorf("target of %d bytes: %w", e.Size, ErrCorrupt)
	default:
		data, err := f.data(e, p)
		if err != nil {
			return "", err
		}
		target = make([]byte, e.Size)
		if err := readFull(data, target, 0); err != nil {
			return "", err
		}
	}
	if slices.Contains(target, 0) || len(target) == 0 {
		return "", fmt.Errorf("target %q: %w", target, ErrCorrupt)
	}
	return string(target), nil
}

// Walk calls visit for the root, named ".", and then for everything below it,
// a directory before its content, names in order. It stops at the first error,
// its own or visit's.
func (f *FS) Walk(visit func(path string, e Entry) error) error {
	w := walk{fs: f, visit: visit, seen: map[uint32]bool{}, budget: f.blocks}
	return w.dir(".", rootIno)
}

// walk is one call of Walk. No directory may come twice, and all together may
// not have more blocks than the file system.
type walk struct {
	fs     *FS
	visit  func(string, Entry) error
	seen   map[uint32]bool
	budget uint64
}

func (w *walk) dir(path string, ino uint32) error {
	if w.seen[ino] {
		return fmt.Errorf("directory %q is in two places: %w", path, ErrCorrupt)
	}
	w.seen[ino] = true
	e, p, err := w.fs.entry(ino)
	if err != nil {
		return fmt.Errorf("reading %q: %w", path, err)
	}
	if e.Mode&modeType != modeDir {
		return fmt.Errorf("%q is not a directory: %w", path, ErrCorrupt)
	}
	if err := w.visit(path, e); err != nil {
		return err
	}
	names, used, err := w.fs.names(&e, p, w.budget)
	if err != nil {
		return fmt.Errorf("reading %q: %w", path, err)
	}
	w.budget -= used
	for _, name := range slices.Sorted(maps.Keys(names)) {
		below := strings.TrimPrefix(path+"/"+name, "./")
		if len(below) > 1<<20 {
			return fmt.Errorf("path of %d bytes: %w", len(below), ErrCorrupt)
		}
		if names[name].ftype == typeDir {
			if err := w.dir(below, names[name].ino); err != nil {
				return err
			}
			continue
		}
		child, _, err := w.fs.entry(names[name].ino)
		if err != nil {
			return fmt.Errorf("reading %q: %w", below, err)
		}
		if direntType(child.Mode) != names[name].ftype {
			return fmt.Errorf("%q has two types: %w", below, ErrCorrupt)
		}
		if err := w.visit(below, child); err != nil {
			return err
		}
	}
	return nil
}

// names reads a directory of at most budget blocks and says how many it had.
func (f *FS) names(e *Entry, p []byte, budget uint64) (map[string]dirent, uint64, error) {
	data, err := f.data(e, p)
	if err != nil {
		return nil, 0, err
	}
	names := map[string]dirent{}
	var used uint64
	for _, m := range data.extents {
		if used += m.count; used > budget || m.unwritten {
			return nil, 0, fmt.Errorf("directory of %d blocks: %w", used, ErrCorrupt)
		}
		for i := range m.count {
			if int64(m.at+i) >= (e.Size+f.bs-1)/f.bs {
				break
			}
			block, err := f.block(m.phys + i)
			if err != nil {
				return nil, 0, err
			}
			err = parseDir(block, func(d dirent) error {
				if _, twice := names[d.name]; twice {
					return fmt.Errorf("name %q comes twice: %w", d.name, ErrCorrupt)
				}
				names[d.name] = d
				return nil
			})
			if err != nil {
				return nil, 0, err
			}
		}
	}
	return names, used, nil
}

// Open returns a regular file's content. The path is as Walk gives it, or
// absolute; symlinks are not followed. An error for a missing file is
// fs.ErrNotExist.
func (f *FS) Open(path string) (*io.SectionReader, error) {
	data, err := f.lookup(path)
	if err != nil {
		return nil, fmt.Errorf("opening %q: %w", clip(path), err)
	}
	return io.NewSectionReader(data, 0, data.size), nil
}

// lookup walks to a regular file.
func (f *FS) lookup(path string) (*contents, error) {
	parts, err := splitPath(path)
	if err != nil {
		return nil, err
	}
	ino := uint32(rootIno)
	for _, part := range parts {
		e, p, err := f.entry(ino)
		if err != nil {
			return nil, err
		}
		var names map[string]dirent
		if e.Mode&modeType == modeDir {
			if names, _, err = f.names(&e, p, f.blocks); err != nil {
				return nil, err
			}
		}
		if ino = names[part].ino; ino == 0 {
			return nil, fs.ErrNotExist
		}
	}
	e, p, err := f.entry(ino)
	if err != nil {
		return nil, err
	}
	if e.Mode&modeType != modeFile {
		return nil, errors.New("not a regular file")
	}
	return f.data(&e, p)
}

// contents reads the data of one inode.
type contents struct {
	fs      *FS
	size    int64
	extents []mapping
}

// data returns what reads an inode's data.
func (f *FS) data(e *Entry, p []byte) (*contents, error) {
	if flags := binary.LittleEndian.Uint32(p[inodeFlags:]); flags&flagExtents == 0 || flags&flagInline != 0 {
		return nil, fmt.Errorf("data of inode %d without extents: %w", e.Ino, ErrUnsupported)
	}
	extents, err := f.extents(p[inodeBlock : inodeBlock+60])
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", e.Ino, err)
	}
	return &contents{f, e.Size, extents}, nil
}

// ReadAt implements io.ReaderAt. What no extent covers reads as zeros.
func (c *contents) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("reading at %d: %w", off, fs.ErrInvalid)
	}
	if off >= c.size {
		return 0, io.EOF
	}
	if int64(len(p)) > c.size-off {
		p, err = p[:c.size-off], io.EOF
	}
	for len(p) > 0 {
		k, readErr := c.piece(p, off)
		if readErr != nil {
			return n, readErr
		}
		n, off, p = n+k, off+int64(k), p[k:]
	}
	return n, err
}

// piece reads the start of p, as far as one extent or one hole goes.
func (c *contents) piece(p []byte, off int64) (int, error) {
	at := uint64(off / c.fs.bs)
	i, _ := slices.BinarySearchFunc(c.extents, at, func(m mapping, at uint64) int {
		if m.at+m.count <= at {
			return -1
		}
		return 1
	})
	if i == len(c.extents) {
		clear(p)
		return len(p), nil
	}
	m := c.extents[i]
	if at < m.at { // a hole before the extent
		n := int(min(int64(len(p)), int64(m.at)*c.fs.bs-off))
		clear(p[:n])
		return n, nil
	}
	n := int(min(int64(len(p)), int64(m.at+m.count)*c.fs.bs-off))
	if m.unwritten {
		clear(p[:n])
		return n, nil
	}
	return n, readFull(c.fs.r, p[:n], int64(m.phys)*c.fs.bs+off-int64(m.at)*c.fs.bs)
}
