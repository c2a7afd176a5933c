// Package console keeps what a guest prints, bounded whatever that is.
//
// A [Log] is a file and its predecessor. It knows bytes, not lines: what a
// guest prints is made fit for people by whoever shows it.
package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// Limit is how many bytes a file holds before it becomes the predecessor.
const Limit = 8 << 20

// OldSuffix is added to the name of the predecessor.
const OldSuffix = ".1"

// A Log is a console that is being written. Its methods may be called from
// several goroutines.
type Log struct {
	path  string
	limit int64

	mu   sync.Mutex
	now  *os.File
	old  *os.File // nil if there is none
	base int64    // bytes printed before the first of now
	size int64    // bytes in now
	prev int64    // bytes in old
	err  error    // the last one of the disk
	more chan struct{}
	done bool
}

// Config says what to open.
type Config struct {
	Path  string
	Limit int64 // Limit if 0
	// Append goes on with a log that is there; else it is begun anew.
	Append bool
}

// Open opens the log for writing, mode 0600.
func Open(c Config) (*Log, error) {
	l := &Log{path: c.Path, limit: c.Limit, more: make(chan struct{})}
	if l.limit == 0 {
		l.limit = Limit
	}
	flags := os.O_RDWR | os.O_CREATE
	if !c.Append {
		flags |= os.O_TRUNC
		if err := os.Remove(c.Path + OldSuffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("beginning console: %w", err)
		}
	}
	f, err := os.OpenFile(c.Path, flags, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening console: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("opening console: %w", err)
	}
	l.now, l.size = f, st.Size()
	if old, err := os.Open(c.Path + OldSuffix); err == nil {
		if st, err := old.Stat(); err == nil {
			l.old, l.prev = old, st.Size()
		}
	}
	l.base = l.prev
	return l, nil
}

// Write keeps p. It never fails: where the disk takes no more, what does not
// fit is lost, and Close says so. The guest must not be able to stop its reader.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for rest := p; len(rest) > 0 && !l.done; {
		if l.size >= l.limit {
			l.rotate()
		}
		part := rest[:min(int64(len(rest)), max(l.limit-l.size, 1))]
		n, err := l.now.WriteAt(part, l.size)
		l.size += int64(n)
		if err != nil {
			l.err = err
			break
		}
		rest = rest[n:]
	}
	close(l.more)
	l.more = make(chan struct{})
	return len(p), nil
}

// rotate makes the file the predecessor and begins another. If that cannot be,
// it begins the same one again.
func (l *Log) rotate() {
	l.base += l.size
	f, err := l.next()
	if err != nil {
		l.err = err
		l.base, l.prev, l.size = l.base-l.size, 0, 0
		if err := l.now.Truncate(0); err != nil {
			l.err = err
		}
		return
	}
	if l.old != nil {
		l.old.Close()
	}
	l.old, l.prev = l.now, l.size
	l.now, l.size = f, 0
}

func (l *Log) next() (*os.File, error) {
	if err := os.Rename(l.path, l.path+OldSuffix); err != nil {
		return nil, err
	}
	return os.OpenFile(l.path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
}

// Close ends the log, and every reader when it has read the rest.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.done {
		l.done = true
		close(l.more)
		l.more = make(chan struct{})
	}
	if l.err != nil {
		return fmt.Errorf("keeping console: %w", l.err)
	}
	return nil
}

// Tail returns at most the last n bytes.
func (l *Log) Tail(n int64) []byte {
	r := l.Reader(n, false)
	b := make([]byte, 0, n)
	for int64(len(b)) < n {
		m, _, err := r.some(b[len(b):n])
		b = b[:len(b)+m]
		if err != nil {
			break
		}
	}
	return b
}

// A Reader reads a log that is still written. A reader that is so slow that
// what it wants is overwritten goes on with the oldest that there is.
type Reader struct {
	l      *Log
	at     int64
	follow bool
}

// Reader begins tail bytes before the end, or at the oldest if tail is 0. With
// follow it waits for more until the log is closed.
func (l *Log) Reader(tail int64, follow bool) *Reader {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &Reader{l: l, follow: follow}
	if tail > 0 {
		r.at = l.base + l.size - tail
	}
	return r
}

// Next reads some bytes; io.EOF ends them.
func (r *Reader) Next(ctx context.Context, p []byte) (int, error) {
	for {
		n, more, err := r.some(p)
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
		select {
		case <-more:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

func (r *Reader) some(p []byte) (int, <-chan struct{}, error) {
	l := r.l
	l.mu.Lock()
	defer l.mu.Unlock()
	r.at = max(r.at, l.base-l.prev)
	var n int
	var err error
	switch {
	case r.at < l.base && l.old != nil:
		n, err = l.old.ReadAt(p[:min(int64(len(p)), l.base-r.at)], l.prev-(l.base-r.at))
	case r.at < l.base+l.size:
		n, err = l.now.ReadAt(p[:min(int64(len(p)), l.base+l.size-r.at)], r.at-l.base)
	case !r.follow || l.done:
		return 0, nil, io.EOF
	default:
		return 0, l.more, nil
	}
	r.at += int64(n)
	if n > 0 {
		err = nil
	} else if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return n, nil, err
}
