package agentapi

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// A Kind says what a frame carries.
type Kind byte

// The kinds. Each stream begins with one [Request] from the host; what may
// follow is said at the operations.
const (
	KindRequest Kind = 'R' // host to guest: JSON Request
	KindOK      Kind = 'K' // guest to host: JSON reply of the operation
	KindError   Kind = 'E' // guest to host: JSON Error; the operation is over

	KindStdin  Kind = 'i' // host to guest: bytes; an empty frame is the end of stdin
	KindStdout Kind = 'o' // guest to host: bytes
	KindStderr Kind = 'e' // guest to host: bytes
	KindWindow Kind = 'a' // guest to host: 4 bytes, big-endian: so much stdin has been consumed
	KindResize Kind = 'w' // host to guest: JSON Winsize
	KindSignal Kind = 's' // host to guest: JSON Signal
	KindExit   Kind = 'x' // guest to host: JSON Exit; the last frame

	KindData Kind = 'd' // bytes of a tar; an empty frame is its end
	KindDone Kind = 'D' // guest to host: JSON Done; a put is complete
	KindNews Kind = 'n' // guest to host: JSON Event of a watch
)

// MaxFrame is the longest payload of a frame. A longer one ends the stream:
// neither side lets the other choose how much memory it takes.
const MaxFrame = 1 << 20

// Chunk is the payload size that writers of bytes use: large enough for
// throughput, small enough to keep other streams alive.
const Chunk = 64 << 10

// StdinWindow is how many bytes of stdin the host may have under way that no
// KindWindow frame has acknowledged. The guest holds that much, so a command
// that reads no stdin keeps neither signals nor the end of the stream from
// being seen.
const StdinWindow = 512 << 10

// ErrFrame is the error of a stream that does not keep to the framing.
var ErrFrame = errors.New("malformed frame")

// A Conn reads and writes frames on a stream. Reads and writes may go on at
// the same time; writes may come from several goroutines.
type Conn struct {
	rw  io.ReadWriter
	buf []byte // payload of the last frame read

	mu  sync.Mutex // guards writes
	hdr [5]byte
}

// NewConn frames rw, which it does not close.
func NewConn(rw io.ReadWriter) *Conn { return &Conn{rw: rw} }

// Write sends one frame. The payload is sent as it is, not kept.
func (c *Conn) Write(k Kind, payload []byte) error {
	if len(payload) > MaxFrame {
		return fmt.Errorf("writing a frame of %d bytes: %w", len(payload), ErrFrame)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(payload) <= 512 { // one write, so one segment of the channel
		b := make([]byte, 5, 5+len(payload))
		b[0] = byte(k)
		binary.BigEndian.PutUint32(b[1:], uint32(len(payload)))
		_, err := c.rw.Write(append(b, payload...))
		return err
	}
	c.hdr[0] = byte(k)
	binary.BigEndian.PutUint32(c.hdr[1:], uint32(len(payload)))
	if _, err := c.rw.Write(c.hdr[:]); err != nil {
		return err
	}
	_, err := c.rw.Write(payload)
	return err
}

// WriteJSON sends v as the payload of one frame.
func (c *Conn) WriteJSON(k Kind, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding a %q frame: %w", k, err)
	}
	return c.Write(k, b)
}

// Read returns the next frame. The payload is valid until the next Read.
// io.EOF means that the stream ended between frames.
func (c *Conn) Read() (Kind, []byte, error) {
	var hdr [5]byte
	if _, err := io.ReadFull(c.rw, hdr[:1]); err != nil {
		return 0, nil, err
	}
	if _, err := io.ReadFull(c.rw, hdr[1:]); err != nil {
		return 0, nil, noEOF(err)
	}
	n := binary.BigEndian.Uint32(hdr[1:])
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("reading a frame of %d bytes: %w", n, ErrFrame)
	}
	if int(n) > cap(c.buf) {
		c.buf = make([]byte, max(int(n), Chunk))
	}
	b := c.buf[:n]
	if _, err := io.ReadFull(c.rw, b); err != nil {
		return 0, nil, noEOF(err)
	}
	return Kind(hdr[0]), b, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Decode parses the payload of a JSON frame.
func Decode(payload []byte, v any) error {
	if err := json.Unmarshal(payload, v); err != nil {
		return fmt.Errorf("decoding a frame: %v: %w", err, ErrFrame)
	}
	return nil
}
