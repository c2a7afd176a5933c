package ext4

import (
	"archive/tar"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

// Options changes what [Write] makes. The zero value is good for anything up
// to a terabyte.
type Options struct {
	// Label is the volume's name, at most 16 bytes.
	Label string
	// UUID is the volume's UUID. Zero means one derived from the tree's
	// metadata, so that the same tar still gives the same bytes.
	UUID [16]byte
	// MaxBytes limits the image's size, and the sum of the files' sizes as
	// well: a tar may claim terabytes of holes in a kilobyte. Zero means 1 TiB;
	// the most is 15 TiB.
	MaxBytes int64
	// Writable, if not zero, makes an image of so many bytes that may be written
	// to, for machines that are thrown away: it has free blocks, an inode for each
	// 16 KiB, no journal, and not the mark that forbids writing.
	Writable int64
	// MaxInodes limits the number of files, directories and so on. Zero means
	// 4 million: each takes about 600 bytes of memory.
	MaxInodes int
	// MaxNames limits the bytes of all names, targets of links and attributes,
	// and 160 for each: what a tar of hard links fills the memory with. Zero
	// means 1 GiB.
	MaxNames int64
	// Filter sees every entry before it is used, may change it, and says
	// whether to keep it. Names are as the tar has them.
	Filter func(*tar.Header) bool
	// Progress is called now and then with the number of bytes of the tar read
	// so far, from the goroutine that called Write.
	Progress func(bytes int64)
}

// Info is what [Write] made.
type Info struct {
	// Bytes is the size of the image file, and Used what of it is in use: the
	// rest is holes.
	Bytes, Used int64
	// Inodes counts the files, directories and so on, the root among them.
	Inodes int
	// SkippedXattrs counts extended attributes outside of the namespaces that
	// ext4 knows (user, trusted, security, access control lists).
	SkippedXattrs int
}

const (
	defaultMaxBytes  = 1 << 40
	mostBytes        = 15 << 40
	defaultMaxInodes = 4 << 20
	defaultMaxNames  = 1 << 30
	perName          = 160
)

func (o *Options) setDefaults() error {
	o.MaxBytes = min(cmp.Or(max(o.MaxBytes, 0), defaultMaxBytes), mostBytes)
	o.MaxInodes = cmp.Or(max(o.MaxInodes, 0), defaultMaxInodes)
	o.MaxNames = cmp.Or(max(o.MaxNames, 0), defaultMaxNames)
	if len(o.Label) > 16 {
		return fmt.Errorf("label %q: the limit is 16 bytes", o.Label)
	}
	return nil
}

// Write reads a tar from r to its end, once, and makes of it an ext4 image in f,
// a regular file, whose content is replaced. The image is read-only unless o says
// otherwise. The tree's metadata is kept in memory.
//
// Entries come out as root's "tar -x" would leave them: a later entry replaces
// an earlier one of the same name, a repeated directory keeps its children,
// missing parents are made (root, mode 755, time 0), symlinks in the way are
// followed inside of the tree. Names are taken relative to the root; ".." is
// refused. Blocks of zeros become holes. The image has no lost+found unless
// the tar has one.
//
// The same tar gives the same bytes. After an error the content of f is
// undefined. Write does not sync f. ErrTooLarge and ErrTruncated can be in
// the error; a read from r is not interrupted by ctx, only followed by a look
// at it.
func Write(ctx context.Context, r io.Reader, f *os.File, o Options) (Info, error) {
	if err := o.setDefaults(); err != nil {
		return Info{}, err
	}
	if err := f.Truncate(0); err != nil {
		return Info{}, fmt.Errorf("emptying the image: %w", err)
	}
	limit := uint64(o.MaxBytes) / blockSize
	first := 1 + tableBlocks(limit)
	w := &writer{
		tree:  newTree(),
		out:   newOutput(f, first, limit),
		first: first,
		o:     o,
		chunk: make([]byte, outputBuffer),
	}
	w.in = &tarInput{stopped: ctx.Err, r: r, progress: o.Progress}
	if err := w.stream(); err != nil {
		return Info{}, err
	}
	if err := w.finish(); err != nil {
		return Info{}, fmt.Errorf("writing the image: %w", err)
	}
	return w.info, nil
}

// tableBlocks is how many blocks the group descriptors of so many blocks take.
func tableBlocks(blocks uint64) uint32 {
	groups := (blocks + blocksPerGroup - 1) / blocksPerGroup
	return uint32((groups*descSize + blockSize - 1) / blockSize)
}

// writer is one call of Write.
type writer struct {
	*tree
	in      *tarInput
	out     *output
	o       Options
	first   uint32 // block after the room for group descriptors
	chunk   []byte
	payload int64 // sum of the files' sizes
	names   int64 // see Options.MaxNames
	info    Info
}

// tarInput counts what is read and stops when the context ends.
type tarInput struct {
	stopped  func() error
	r        io.Reader
	progress func(int64)
	n, told  int64
	ended    bool
}

func (in *tarInput) Read(p []byte) (int, error) {
	if err := in.stopped(); err != nil {
		return 0, err
	}
	n, err := in.r.Read(p)
	in.n += int64(n)
	// A reader may say EOF together with the last bytes, which are the marker.
	in.ended = in.ended || n == 0 && err == io.EOF
	if in.progress != nil && (in.n-in.told >= 1<<20 || err == io.EOF && in.n > in.told) {
		in.told = in.n
		in.progress(in.n)
	}
	return n, err
}

// stream takes every entry of the tar.
func (w *writer) stream() error {
	tr := tar.NewReader(w.in)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("reading the tar at byte %d: %w", w.in.n, err)
		}
		if err := w.in.stopped(); err != nil {
			return err
		}
		if w.o.Filter != nil && !w.o.Filter(hdr) {
			continue
		}
		if err := w.entry(hdr, tr); err != nil {
			return fmt.Errorf("adding %q: %w", clip(hdr.Name), err)
		}
	}
	if w.in.ended {
		return ErrTruncated
	}
	// What writes the tar must be able to end: padding may follow.
	if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{w.in}, w.chunk); err != nil {
		return fmt.Errorf("reading the tar at byte %d: %w", w.in.n, err)
	}
	return nil
}

// clip shortens a name for an error.
func clip(name string) string {
	if len(name) > maxName {
		return name[:maxName] + "..."
	}
	return name
}

// entry adds one entry of the tar to the tree, and its content to the image.
func (w *writer) entry(hdr *tar.Header, content io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	parts, err := splitPath(hdr.Name)
	if err != nil {
		return err
	}
	w.names += perName + int64(len(hdr.Name)+len(hdr.Linkname))
	for key, value := range hdr.PAXRecords {
		w.names += int64(len(key) + len(value))
	}
	if w.names > w.o.MaxNames {
		return fmt.Errorf("names, links and attributes of more than %d bytes: %w", w.o.MaxNames, ErrTooLarge)
	}
	if hdr.Typeflag == tar.TypeLink {
		target, err := splitPath(hdr.Linkname)
		if err != nil {
			return fmt.Errorf("hard link to %q: %w", clip(hdr.Linkname), err)
		}
		return w.link(parts, target)
	}
	n, err := newNode(hdr)
	if err != nil {
		return err
	}
	var skipped int
	if n.xattrs, skipped, err = tarXattrs(hdr); err != nil {
		return err
	}
	w.info.SkippedXattrs += skipped
	if n.mode&modeType == modeFile {
		if err := w.content(n, hdr.Size, content); err != nil {
			return err
		}
	}
	if err := w.add(parts, n); err != nil {
		return err
	}
	if len(w.all) > w.o.MaxInodes {
		return fmt.Errorf("more than %d files: %w", w.o.MaxInodes, ErrTooLarge)
	}
	return nil
}

// newNode is a node with the metadata of an entry.
func newNode(hdr *tar.Header) (*node, error) {
	const maxID = 1<<32 - 2 // the last number means "nobody's"
	if hdr.Uid < 0 || hdr.Uid > maxID || hdr.Gid < 0 || hdr.Gid > maxID {
		return nil, fmt.Errorf("owner %d:%d: ids go from 0 to %d", hdr.Uid, hdr.Gid, maxID)
	}
	n := &node{uid: uint32(hdr.Uid), gid: uint32(hdr.Gid), mtime: newTimestamp(hdr.ModTime)}
	n.mode = uint16(hdr.Mode & modePerm)
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		if hdr.Mode&modeType == modeSocket && hdr.Size == 0 {
			n.mode |= modeSocket
			break
		}
		n.mode |= modeFile
	case tar.TypeDir:
		n.mode |= modeDir
		n.children = map[string]*node{}
	case tar.TypeSymlink:
		n.mode |= modeLink
		n.target = hdr.Linkname
		n.size = int64(len(n.target))
		if n.target == "" || len(n.target) > maxTarget || strings.Contains(n.target, "\x00") {
			return nil, fmt.Errorf("symlink to %d bytes: a target has 1 to %d, no NUL among them", len(n.target), maxTarget)
		}
	case tar.TypeFifo:
		n.mode |= modeFifo
	case tar.TypeChar, tar.TypeBlock:
		n.mode |= modeChar
		if hdr.Typeflag == tar.TypeBlock {
			n.mode = n.mode&modePerm | modeBlock
		}
		if uint64(hdr.Devmajor) >= 1<<12 || uint64(hdr.Devminor) >= 1<<20 {
			return nil, fmt.Errorf("device %d:%d: the limits are %d:%d", hdr.Devmajor, hdr.Devminor, 1<<12-1, 1<<20-1)
		}
		n.major, n.minor = uint32(hdr.Devmajor), uint32(hdr.Devminor)
	default:
		return nil, fmt.Errorf("entry of the unknown type %q", hdr.Typeflag)
	}
	return n, nil
}

// paxXattr begins the keys of PAX records with extended attributes. GNU tar
// escapes two characters in what follows.
const paxXattr = "SCHILY.xattr."

// tarXattrs returns an entry's extended attributes and how many were skipped.
func tarXattrs(hdr *tar.Header) (attrs []xattr, skipped int, err error) {
	unescape := strings.NewReplacer("%3D", "=", "%25", "%")
	seen := map[string]bool{} // two escapes can mean the same name
	for _, key := range slices.Sorted(maps.Keys(hdr.PAXRecords)) {
		name, ok := strings.CutPrefix(key, paxXattr)
		name = unescape.Replace(name)
		if !ok || seen[name] {
			continue
		}
		seen[name] = true
		x, ok, err := newXattr(name, []byte(hdr.PAXRecords[key]))
		if err != nil {
			return nil, 0, err
		}
		if !ok {
			skipped++
			continue
		}
		attrs = append(attrs, x)
	}
	return attrs, skipped, nil
}

// minHole is the shortest run of zero blocks, inside of a file, that becomes
// a hole: shorter ones would only make more extents.
const minHole = 8

// content copies a file's bytes to the image and notes where they are.
func (w *writer) content(n *node, size int64, r io.Reader) error {
	if size > w.o.MaxBytes-w.payload {
		return fmt.Errorf("content of more than %d bytes: %w", w.o.MaxBytes, ErrTooLarge)
	}
	w.payload += size
	n.size = size
	var at, zeroRun uint32 // the next block of the file, zero blocks before it
	for left := size; left > 0; {
		k := int(min(left, int64(len(w.chunk))))
		if _, err := io.ReadFull(r, w.chunk[:k]); err != nil {
			return fmt.Errorf("reading the tar: %w", err)
		}
		left -= int64(k)
		p := w.chunk[:(k+blockSize-1)&^(blockSize-1)]
		clear(p[k:])
		for len(p) > 0 {
			length, empty := span(p)
			if empty {
				zeroRun += uint32(length / blockSize)
			} else if err := w.data(n, at, zeroRun, p[:length]); err != nil {
				return err
			} else {
				zeroRun = 0
			}
			at += uint32(length / blockSize)
			p = p[length:]
		}
	}
	return nil
}

// span returns the length of the stretch of blocks at the start of p that are
// all zeros, or all not.
func span(p []byte) (length int, empty bool) {
	empty = isZero(p[:blockSize])
	for length = blockSize; length < len(p) && isZero(p[length:length+blockSize]) == empty; {
		length += blockSize
	}
	return length, empty
}

// data writes blocks of a file, p, at its block at; zeroRun blocks before them
// are zero and not yet accounted for.
func (w *writer) data(n *node, at, zeroRun uint32, p []byte) error {
	if 0 < zeroRun && zeroRun < minHole {
		phys, err := w.out.append(zeros[:zeroRun*blockSize])
		if err != nil {
			return err
		}
		n.runs = appendRun(n.runs, run{at - zeroRun, phys, zeroRun})
	}
	phys, err := w.out.append(p)
	if err != nil {
		return err
	}
	n.runs = appendRun(n.runs, run{at, phys, uint32(len(p) / blockSize)})
	return nil
}
