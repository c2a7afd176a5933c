package mux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
)

// The frame header of yamux, version 0 of its protocol: version, type, flags
// (2 bytes), stream (4), length (4), big-endian. Only data frames have a body.
const (
	headerLen  = 12
	typeData   = 0
	typeWindow = 1
	flagSYN    = 1
	flagFIN    = 4
	flagRST    = 8
)

// errFrame is why a session ends whose other end sends what it never may.
var errFrame = errors.New("a frame that has no place here")

// A header is that of one frame.
type header []byte

func (h header) kind() byte        { return h[1] }
func (h header) has(f uint16) bool { return binary.BigEndian.Uint16(h[2:])&f != 0 }
func (h header) stream() uint32    { return binary.BigEndian.Uint32(h[4:]) }
func (h header) length() uint32    { return binary.BigEndian.Uint32(h[8:]) }

// empty makes it that of a frame with the same flags, which says nothing else.
func (h header) empty() {
	h[1] = typeWindow
	clear(h[8:])
}

func windowFrame(flags uint16, stream uint32) []byte {
	b := make([]byte, headerLen)
	b[1] = typeWindow
	binary.BigEndian.PutUint16(b[2:], flags)
	binary.BigEndian.PutUint32(b[4:], stream)
	return b
}

// flushSize is how many stuffed bytes are collected before they are written:
// what Linux takes at once for a virtio-serial port.
const flushSize = 32 << 10

// A framer stuffs what yamux writes, joins each header with its body in one
// write, and lets whole frames be put between yamux's own.
type framer struct {
	w      io.Writer
	opened func(stream uint32) // called before a stream's first frame is written

	mu    sync.Mutex
	out   []byte // stuffed, not yet written
	left  uint32 // of the current body
	extra []byte // frames that wait for the end of the current one
}

// Write takes what yamux writes: a header, then its body if it has one.
func (f *framer) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	total := len(b)
	if f.left == 0 {
		if len(b) != headerLen {
			return 0, fmt.Errorf("framing: %d bytes where a header belongs", len(b))
		}
		if h := header(b); h.kind() == typeData {
			f.left = h.length()
		}
		if h := header(b); h.has(flagSYN) {
			f.opened(h.stream())
		}
		f.out = stuff(f.out, b)
		if f.left > 0 {
			return total, nil // its body comes next
		}
		return total, f.flush()
	}
	if uint32(len(b)) > f.left {
		return 0, fmt.Errorf("framing: a body of %d bytes, want at most %d", len(b), f.left)
	}
	f.left -= uint32(len(b))
	for len(b) > 0 {
		part := b[:min(len(b), max(1, flushSize-len(f.out)))]
		b = b[len(part):]
		f.out = stuff(f.out, part)
		if len(f.out) >= flushSize || len(b) == 0 {
			if err := f.flush(); err != nil {
				return 0, err
			}
		}
	}
	return total, nil
}

// put writes a whole frame, at once or behind the frame being written.
func (f *framer) put(frame []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.extra = append(f.extra, frame...)
	if f.left > 0 {
		return nil // written with the last of the body
	}
	return f.flush()
}

func (f *framer) flush() error {
	if f.left == 0 && len(f.extra) > 0 {
		f.out = stuff(f.out, f.extra)
		f.extra = nil
	}
	_, err := f.w.Write(f.out)
	f.out = f.out[:0]
	return err
}

// A scanner passes on what yamux reads, a whole frame at a time: yamux holds a
// stream's lock while it reads a body, and an end that sends half of one would
// hold whoever uses the stream. A frame that has no place here ends the session.
type scanner struct {
	r io.Reader
	// seen is called for each frame before yamux sees it. A frame to be dropped
	// keeps its flags and loses its body.
	seen func(h header) (drop bool, err error)

	frame []byte // the frame, its header first
	rest  []byte // what yamux has not read of it
}

func (s *scanner) Read(b []byte) (int, error) {
	if len(s.rest) == 0 {
		if err := s.next(); err != nil {
			return 0, err
		}
	}
	n := copy(b, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// next reads a frame and has it looked at.
func (s *scanner) next() error {
	s.frame = append(s.frame[:0], make([]byte, headerLen)...)
	if _, err := io.ReadFull(s.r, s.frame); err != nil {
		return err
	}
	h := header(s.frame)
	if h.kind() == typeData {
		if h.length() > window {
			return fmt.Errorf("%w: a body of %d bytes", errFrame, h.length())
		}
		s.frame = slices.Grow(s.frame, int(h.length()))[:headerLen+int(h.length())]
		if _, err := io.ReadFull(s.r, s.frame[headerLen:]); err != nil {
			return err
		}
	}
	h = header(s.frame[:headerLen])
	drop, err := s.seen(h)
	if drop && h.kind() == typeData {
		h.empty()
		s.frame = s.frame[:headerLen]
	}
	s.rest = s.frame
	return err
}
