package companionapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"banger/internal/api"
	"banger/internal/unixsock"
)

// MaxLine is the longest line of this protocol: neither side lets the other
// choose how much memory it takes.
const MaxLine = 1 << 20

// A Client speaks to the companion whose socket is at Path. Every call is a
// connection of its own, so a Client needs no closing and may be used by
// several goroutines. A companion that is not there gives an [*api.Error] with
// code guest_lost.
type Client struct{ Path string }

// New returns a client for the companion whose socket is at path.
func New(path string) Client { return Client{Path: path} }

// Status asks what the companion knows of its VM.
func (c Client) Status(ctx context.Context) (Status, error) {
	r, err := c.ask(ctx, Request{Op: OpStatus})
	if err != nil {
		return Status{}, err
	}
	if r.Status == nil {
		return Status{}, malformed("it holds no status")
	}
	return *r.Status, nil
}

// Stop asks the guest for a shutdown and returns when the VMM has ended, which
// it is made to after timeout (then killed is set).
func (c Client) Stop(ctx context.Context, timeout time.Duration) (killed bool, err error) {
	r, err := c.ask(ctx, Request{Op: OpStop, Timeout: timeout})
	return r.Killed, err
}

// Kill sends a signal to the VMM, KILL if 0. With KILL and TERM it returns when
// the VMM has ended.
func (c Client) Kill(ctx context.Context, sig syscall.Signal) error {
	_, err := c.ask(ctx, Request{Op: OpKill, Signal: int(sig)})
	return err
}

// ask is a request whose answer is the reply alone.
func (c Client) ask(ctx context.Context, q Request) (Reply, error) {
	s, r, err := c.open(ctx, q)
	if err != nil {
		return r, err
	}
	return r, s.Close()
}

// Events calls f for all that has happened and happens to the VM. It returns
// nil after the exit event, an error when the companion is lost, or ctx's.
func (c Client) Events(ctx context.Context, f func(Event)) error {
	s, _, err := c.open(ctx, Request{Op: OpEvents})
	if err != nil {
		return err
	}
	defer s.Close()
	defer s.closeWith(ctx)()
	for {
		line, err := readLine(s.r)
		if err != nil {
			return c.lost(ctx, err)
		}
		var e Event
		if err := json.Unmarshal(line, &e); err != nil {
			return malformed("an event cannot be read")
		}
		f(e)
		if e.Type == EventExit {
			return nil
		}
	}
}

// Stream opens one stream of the agent session, when the guest has reached the
// stage after. The caller closes it.
func (c Client) Stream(ctx context.Context, after api.Stage) (*Stream, error) {
	s, _, err := c.open(ctx, Request{Op: OpStream, After: after})
	return s, err
}

// Console returns the last tail bytes of the console (all there are if 0), and
// with follow all that come until the VM ends. The caller closes it. It is what
// the guest printed: not fit for a terminal.
func (c Client) Console(ctx context.Context, tail int64, follow bool) (io.ReadCloser, error) {
	s, _, err := c.open(ctx, Request{Op: OpConsole, Tail: tail, Follow: follow})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// A Lease keeps a VM alive that ends without one.
type Lease struct{ s *Stream }

// Lease takes the VM's lease.
func (c Client) Lease(ctx context.Context) (*Lease, error) {
	s, _, err := c.open(ctx, Request{Op: OpLease})
	if err != nil {
		return nil, err
	}
	return &Lease{s: s}, nil
}

// Keep lets the VM live on when the lease is closed.
func (l *Lease) Keep() error {
	if _, err := l.s.Write([]byte{KeepByte}); err != nil {
		return fmt.Errorf("keeping the VM: %w", err)
	}
	// The companion confirms, so that a close right after cannot overtake it.
	if _, err := readLine(l.s.r); err != nil {
		return fmt.Errorf("keeping the VM: %w", err)
	}
	return nil
}

// Lost is closed when the companion has gone or has ended the VM. It may be
// called once, and not together with Keep.
func (l *Lease) Lost() <-chan struct{} {
	lost := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, l.s.r) // any end will do
		close(lost)
	}()
	return lost
}

// Close gives the lease back, which ends the VM unless it is kept.
func (l *Lease) Close() error { return l.s.Close() }

// A Stream is a connection to the guest, or what is left of one to the
// companion after its reply.
type Stream struct {
	conn *net.UnixConn
	r    *bufio.Reader
}

// Read reads what the other end sent.
func (s *Stream) Read(p []byte) (int, error) { return s.r.Read(p) }

// WriteTo copies all that comes to w.
func (s *Stream) WriteTo(w io.Writer) (int64, error) { return s.r.WriteTo(w) }

// Write sends p.
func (s *Stream) Write(p []byte) (int, error) { return s.conn.Write(p) }

// CloseWrite tells the other end that nothing more comes.
func (s *Stream) CloseWrite() error { return s.conn.CloseWrite() }

// SetDeadline bounds reads and writes.
func (s *Stream) SetDeadline(t time.Time) error { return s.conn.SetDeadline(t) }

// Close ends the stream. It returns nil if it was closed before.
func (s *Stream) Close() error {
	if err := s.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// closeWith closes the connection when ctx ends, until the function that it
// returns is called.
func (s *Stream) closeWith(ctx context.Context) (stop func()) {
	var once sync.Once
	cancel := context.AfterFunc(ctx, func() { s.conn.Close() })
	return func() { once.Do(func() { cancel() }) }
}

// open sends q and reads the reply. The reply's error is returned as such.
func (c Client) open(ctx context.Context, q Request) (*Stream, Reply, error) {
	conn, err := unixsock.Dial(ctx, c.Path)
	if err != nil {
		return nil, Reply{}, c.lost(ctx, err)
	}
	s := &Stream{conn: conn, r: bufio.NewReaderSize(conn, 64<<10)}
	release := s.closeWith(ctx)
	defer release()
	r, err := s.handshake(q)
	if err == nil && ctx.Err() != nil { // closed behind our back
		err = ctx.Err()
	}
	if err != nil {
		s.Close()
		if _, ok := errors.AsType[*api.Error](err); ok {
			return nil, r, err
		}
		return nil, r, c.lost(ctx, err)
	}
	return s, r, nil
}

func (s *Stream) handshake(q Request) (Reply, error) {
	q.Version = Version
	line, err := json.Marshal(q)
	if err != nil {
		return Reply{}, err
	}
	if _, err := s.conn.Write(append(line, '\n')); err != nil {
		return Reply{}, err
	}
	if line, err = readLine(s.r); err != nil {
		return Reply{}, err
	}
	var r Reply
	if err := json.Unmarshal(line, &r); err != nil {
		return Reply{}, malformed("it cannot be read")
	}
	if r.Error != nil {
		return r, r.Error
	}
	return r, nil
}

// lost says what the end of a connection means: ctx's own error, or a lost VM.
func (c Client) lost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, os.ErrPermission) {
		return &api.Error{Code: api.Denied, Msg: "talking to the VM's companion", Err: err}
	}
	return &api.Error{Code: api.GuestLost, Msg: "the VM's companion is gone", Hint: "banger vm list", Err: err}
}

func malformed(what string) error {
	return &api.Error{Code: api.VersionSkew, Msg: "the companion's answer is not understood: " + what}
}

// readLine reads one line, without its end.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > MaxLine {
			return nil, fmt.Errorf("reading a line: it is longer than %d bytes", MaxLine)
		}
		line = append(line, part...)
		if err == nil {
			return bytes.TrimSuffix(line, []byte{'\n'}), nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
	}
}

// ReadRequest is the companion's side: it reads the first line of a connection.
func ReadRequest(r *bufio.Reader) (Request, error) {
	line, err := readLine(r)
	if err != nil {
		return Request{}, err
	}
	var q Request
	if err := json.Unmarshal(line, &q); err != nil {
		return Request{}, &api.Error{Code: api.Invalid, Msg: "the request is not JSON"}
	}
	if q.Version != Version {
		return Request{}, &api.Error{Code: api.VersionSkew,
			Msg: fmt.Sprintf("this companion speaks version %d of its protocol, not %d", Version, q.Version)}
	}
	return q, nil
}
