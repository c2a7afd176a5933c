package agent

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"banger/internal/agentapi"
	"banger/internal/tartree"
)

// putBuffer is how far reading a tar from the host may be ahead of writing its
// files: it keeps both processors of a small guest busy.
const putBuffer = 4 << 20

// put unpacks a tar.
func (s *Server) put(ctx context.Context, conn *agentapi.Conn, p agentapi.Put) error {
	dir := s.at(p.Dir)
	if err := ok(conn, struct{}{}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	buf := newRing(putBuffer)
	var wg sync.WaitGroup
	var stats tartree.Stats
	var err error
	wg.Go(func() {
		defer buf.closeRead()
		if stats, err = s.unpack(ctx, dir, buf, p); err != nil {
			// The client is told at once, not when it has sent everything.
			_ = conn.WriteJSON(agentapi.KindError, wireError(err))
		}
	})
	rerr := receive(conn, buf)
	if rerr != nil {
		cancel(errGone)
	}
	wg.Wait()
	if err != nil || rerr != nil {
		return errGone // has been told, or cannot be
	}
	if p.Sync {
		if err := syncDir(dir); err != nil {
			return err
		}
	}
	done := agentapi.Done{Files: stats.Files, Bytes: stats.Bytes, Skipped: stats.Skipped}
	if conn.WriteJSON(agentapi.KindDone, done) != nil {
		return errGone
	}
	return nil
}

// unpack takes a tar from buf, and the padding behind its end.
func (s *Server) unpack(ctx context.Context, dir string, buf *ring, p agentapi.Put) (stats tartree.Stats, err error) {
	defer s.recovered(&err)
	stats, err = tartree.Unpack(ctx, dir, buf, tartree.Options{As: p.As, Owner: p.Owner})
	if err == nil {
		_, err = io.Copy(io.Discard, buf)
	}
	return stats, err
}

// receive moves data frames into buf until the empty one; once nobody reads
// buf any more it goes on to the end of the stream, so that a client which is
// still sending gets to read why.
func receive(conn *agentapi.Conn, buf *ring) error {
	for {
		k, b, err := conn.Read()
		if err == nil && k != agentapi.KindData {
			err = agentapi.ErrFrame
		}
		if err != nil {
			buf.closeWrite(io.ErrUnexpectedEOF)
			return err
		}
		if len(b) == 0 {
			buf.closeWrite(io.EOF)
			return nil
		}
		buf.write(b)
	}
}

// syncDir flushes the file system that has dir.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("flushing the file system: %w", err)
	}
	return nil
}

// get packs a file or directory.
func (s *Server) get(ctx context.Context, conn *agentapi.Conn, g agentapi.Get) error {
	path := s.at(g.Path)
	stat := os.Lstat
	if g.Follow {
		stat = os.Stat
	}
	if _, err := stat(path); err != nil {
		if os.IsNotExist(err) {
			return refuse(agentapi.CodeNotFound, "no file or directory %q in the guest", path)
		}
		return err
	}
	if err := ok(conn, struct{}{}); err != nil {
		return err
	}
	w := bufio.NewWriterSize(frames{conn}, agentapi.Chunk)
	stats, err := tartree.Pack(ctx, w, path, tartree.PackOptions{Follow: g.Follow})
	if ferr := w.Flush(); ferr != nil {
		return errGone
	}
	if err != nil {
		return err
	}
	done := agentapi.Done{Files: stats.Files, Bytes: stats.Bytes, Skipped: stats.Skipped}
	if conn.WriteJSON(agentapi.KindDone, done) != nil || conn.Write(agentapi.KindData, nil) != nil {
		return errGone
	}
	return nil
}

// frames writes bytes as data frames.
type frames struct{ conn *agentapi.Conn }

func (f frames) Write(b []byte) (int, error) {
	for n := 0; n < len(b); {
		k := min(len(b)-n, agentapi.Chunk)
		if err := f.conn.Write(agentapi.KindData, b[n:n+k]); err != nil {
			return n, err
		}
		n += k
	}
	return len(b), nil
}

// A ring is a pipe with a buffer: one writer, one reader.
type ring struct {
	mu     sync.Mutex // guards the rest
	moved  sync.Cond
	buf    []byte
	off, n int   // the bytes held begin at off
	end    error // what the reader gets after the last byte
	closed bool  // nobody reads
}

func newRing(size int) *ring {
	r := &ring{buf: make([]byte, size)}
	r.moved.L = &r.mu
	return r
}

// write waits until b is in the buffer, or until nobody reads.
func (r *ring) write(b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(b) > 0 && !r.closed {
		if r.n == len(r.buf) {
			r.moved.Wait()
			continue
		}
		at := (r.off + r.n) % len(r.buf)
		k := copy(r.buf[at:min(len(r.buf), at+len(r.buf)-r.n)], b)
		b = b[k:]
		r.n += k
		r.moved.Broadcast()
	}
}

// Read waits for bytes.
func (r *ring) Read(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.n == 0 && r.end == nil {
		r.moved.Wait()
	}
	if r.n == 0 {
		return 0, r.end
	}
	k := copy(b, r.buf[r.off:min(len(r.buf), r.off+r.n)])
	r.off = (r.off + k) % len(r.buf)
	r.n -= k
	r.moved.Broadcast()
	return k, nil
}

func (r *ring) closeWrite(end error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.end = end
	r.moved.Broadcast()
}

func (r *ring) closeRead() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.moved.Broadcast()
}
