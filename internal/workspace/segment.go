package workspace

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/git"
)

const (
	// readers is how many files are read at once. The kernel's page cache
	// answers most reads; more than the cores of a small machine do not help.
	readers = 4
	// ahead is how many segments may wait for the writer; with segmentBytes
	// it bounds the memory to about 16 MiB.
	ahead = 12
	// segmentBytes and segmentFiles end a segment.
	segmentBytes = 1 << 20
	segmentFiles = 128
	// streamed is the size from which a file is not held in memory.
	streamed = 512 << 10
	// grown is the most that is held of a file which has grown since then.
	grown = 16 << 20
	// attempts is how often a small file is read until it holds still.
	attempts = 3
)

// noEntry marks an item that has no line in the index to compare with.
const noEntry = -1

// An item is one file to be packed.
type item struct {
	path  string
	entry int    // its line in the listing, or noEntry
	mode  uint32 // git's mode, if the one on disk does not count
	size  int64  // when it was planned; only decides how it is read
}

// A segment is a part of the tar: finished bytes, then perhaps a large file
// that the writer copies itself.
type segment struct {
	items []item
	done  chan struct{} // closed when the rest is valid
	buf   bytes.Buffer
	big   *os.File
	stat  unix.Stat_t // of big
	err   error
}

// segments cuts items into segments; a large file has one of its own.
func segments(items []item) []*segment {
	var out []*segment
	var bytes int64
	start := 0
	flush := func(end int) {
		if end > start {
			out = append(out, &segment{items: items[start:end], done: make(chan struct{})})
		}
		start, bytes = end, 0
	}
	for i := range items {
		if items[i].size >= streamed {
			flush(i)
			flush(i + 1)
			continue
		}
		bytes += items[i].size
		if bytes >= segmentBytes || i+1-start >= segmentFiles {
			flush(i + 1)
		}
	}
	flush(len(items))
	return out
}

// A packer turns items into segments of a tar.
type packer struct {
	plan    *Plan
	entries []git.Entry // a copy of the listing's: learns each file's Stat
}

// run packs all items and writes them in order. Readers work ahead of w.
func (k *packer) run(ctx context.Context, w io.Writer, items []item) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	all := segments(items)
	todo := make(chan *segment)
	room := make(chan struct{}, ahead)
	var wg sync.WaitGroup
	defer func() {
		cancel()
		wg.Wait()
		for _, s := range all {
			if s.big != nil {
				err = errors.Join(err, s.big.Close())
			}
		}
	}()
	wg.Go(func() {
		defer close(todo)
		for _, s := range all {
			select {
			case room <- struct{}{}:
			case <-ctx.Done():
				return
			}
			select {
			case todo <- s:
			case <-ctx.Done():
				return
			}
		}
	})
	for range readers {
		wg.Go(func() { k.read(todo) })
	}
	for i, s := range all {
		select {
		case <-s.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if s.err != nil {
			return s.err
		}
		if err := s.write(w); err != nil {
			return err
		}
		all[i] = &segment{} // its memory is free again
		<-room
	}
	return nil
}

// read fills segments until there are no more.
func (k *packer) read(todo <-chan *segment) {
	w, err := openWalker(k.plan.Root)
	if err == nil {
		defer w.close()
	}
	for s := range todo {
		if s.err = err; err == nil {
			s.err = k.fill(w, s)
		}
		close(s.done)
	}
}

func (k *packer) fill(w *walker, s *segment) error {
	size := 4096
	for i := range s.items {
		size += int(min(s.items[i].size, streamed)) + 2048
	}
	s.buf.Grow(size)
	t := tar.NewWriter(&s.buf)
	for i := range s.items {
		if err := k.add(w, s, t, &s.items[i]); err != nil {
			return err
		}
	}
	if s.big != nil {
		return nil // its content is still to come
	}
	return t.Flush()
}

// add appends one file as it is now.
func (k *packer) add(w *walker, s *segment, t *tar.Writer, it *item) error {
	st, err := w.stat(it.path)
	switch {
	case absent(err):
		return changedError(it.path, err)
	case err != nil:
		return fileError(it.path, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return k.addLink(w, t, it, st)
	case unix.S_IFREG:
		return k.addFile(w, s, t, it)
	}
	return changedError(it.path, unix.ENOENT) // a directory took its place
}

func (k *packer) addLink(w *walker, t *tar.Writer, it *item, st *unix.Stat_t) error {
	target, err := w.readlink(it.path)
	if err != nil {
		return changedError(it.path, err)
	}
	if int64(len(target)) != st.Size {
		return changedError(it.path, nil)
	}
	h := header(it.path, git.ModeSymlink, st)
	h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, target, 0
	k.learn(it, st, []byte(target))
	return t.WriteHeader(h)
}

func (k *packer) addFile(w *walker, s *segment, t *tar.Writer, it *item) error {
	fd, err := w.open(it.path)
	if err != nil {
		if absent(err) {
			return changedError(it.path, err)
		}
		return fileError(it.path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.Join(changedError(it.path, err), unix.Close(fd))
	}
	// Only the last file of a segment can be left to the writer. Any other
	// that has grown this large since it was planned is held in memory.
	if it.size >= streamed && st.Size >= streamed {
		s.big, s.stat = os.NewFile(uintptr(fd), it.path), st
		k.learn(it, &st, nil)
		return t.WriteHeader(header(it.path, gitMode(&st, it.mode), &st))
	}
	defer unix.Close(fd)
	if st.Size > grown {
		return changedError(it.path, errMoving)
	}
	content, err := w.readStill(fd, &st)
	if err != nil {
		return changedError(it.path, err)
	}
	k.learn(it, &st, content)
	if err := t.WriteHeader(header(it.path, gitMode(&st, it.mode), &st)); err != nil {
		return fileError(it.path, err)
	}
	if _, err := t.Write(content); err != nil {
		return fileError(it.path, err)
	}
	return nil
}

var errMoving = errors.New("size or time changed")

// readStill reads a whole file; st describes it and is brought up to date. A
// file that changes meanwhile is read again. The content is valid until the
// next call.
func (w *walker) readStill(fd int, st *unix.Stat_t) ([]byte, error) {
	for range attempts {
		before := *st
		if before.Size > grown {
			break
		}
		if int64(cap(w.buf)) <= before.Size {
			w.buf = make([]byte, before.Size+segmentBytes/4)
		}
		// One byte more than expected tells a file that has grown.
		n, err := ignoringEINTR(func() (int, error) { return unix.Pread(fd, w.buf[:before.Size+1], 0) })
		if err != nil {
			return nil, err
		}
		if err := unix.Fstat(fd, st); err != nil {
			return nil, err
		}
		if int64(n) == st.Size && before.Size == st.Size && before.Mtim == st.Mtim {
			return w.buf[:n], nil
		}
	}
	return nil, errMoving
}

// learn writes down what the guest's index may believe about a file. The
// host's index vouches for it, or its content is the index's own; that is
// only said of content that no line ending or $Id$ rule would change.
func (k *packer) learn(it *item, st *unix.Stat_t, content []byte) {
	if it.entry == noEntry {
		return
	}
	e := &k.entries[it.entry]
	clean := k.plan.listing.Trusts(e, st)
	if link := st.Mode&unix.S_IFMT == unix.S_IFLNK; !clean && content != nil && !e.IntentToAdd &&
		link == (e.Mode == git.ModeSymlink) &&
		(link || bytes.IndexByte(content, '\r') < 0 && !bytes.Contains(content, []byte("$Id"))) {
		clean = git.BlobID(k.plan.repo.Format, content) == e.ID
	}
	e.Stat = git.Stat{}
	if low := uint32(st.Size); clean && (low != 0 || st.Size == 0) {
		e.Stat = git.Stat{Mtime: uint32(st.Mtim.Sec), MtimeNsec: uint32(st.Mtim.Nsec), Size: low}
	}
}

// header describes a file or link; the owner is root, as all in the guest's
// copy, and the permission bits are those of a fresh checkout.
func header(path string, mode uint32, st *unix.Stat_t) *tar.Header {
	perm := int64(0o644)
	switch mode {
	case git.ModeExecutable:
		perm = 0o755
	case git.ModeSymlink:
		perm = 0o777
	}
	return &tar.Header{
		Typeflag: tar.TypeReg, Name: path, Mode: perm, Size: st.Size,
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
	}
}

// write sends the segment on.
func (s *segment) write(w io.Writer) error {
	if _, err := w.Write(s.buf.Bytes()); err != nil || s.big == nil {
		return err
	}
	path := s.items[0].path
	n, err := io.CopyN(w, s.big, s.stat.Size)
	if errors.Is(err, io.EOF) {
		return changedError(path, errMoving)
	}
	if err != nil {
		return err
	}
	var now unix.Stat_t
	if err := unix.Fstat(int(s.big.Fd()), &now); err != nil || now.Size != s.stat.Size || now.Mtim != s.stat.Mtim {
		return changedError(path, errors.Join(err, errMoving))
	}
	var pad [512]byte
	if rest := n % 512; rest != 0 {
		_, err = w.Write(pad[rest:])
	}
	return errors.Join(err, s.closeBig())
}

func (s *segment) closeBig() error {
	err := s.big.Close()
	s.big = nil
	return err
}
