package mux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"
)

// ErrEnded is the error of whatever is used after its session ended.
var ErrEnded = errors.New("the session has ended")

// window is how many bytes a stream may have under way. It bounds the memory
// that a stream nobody reads takes.
const window = 1 << 20

// maxStreams is how many streams one end may have opened that are not over: in
// use, or closed here and not yet by the other end, which a hostile one never
// does. Each takes up to its window of memory.
const maxStreams = 512

// errStreams is the error of a stream too many.
var errStreams = fmt.Errorf("%d streams are open, or are closed here and not by the other end", maxStreams)

// A Session is a conversation of two ends in streams. Its methods may be called
// from several goroutines.
type Session struct {
	host  bool // we are
	y     *yamux.Session
	out   *framer
	slots chan struct{} // one for each stream that was opened here and is not over

	mu   sync.Mutex
	ends map[uint32]*ending // of the streams that are not over
}

// ending is how far a stream has come to its end.
type ending struct {
	fin, reset bool   // said by the other end
	closed     func() // called when the other end has ended too; nil as long as the stream is in use here
	dropped    int    // bytes that came after that
	told       bool   // that nobody reads them
}

func muxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false // an idle guest stays idle, a paused one stays connected
	c.MaxStreamWindowSize = window
	c.ConnectionWriteTimeout = 24 * time.Hour // a guest may be paused over lunch
	c.StreamOpenTimeout = 0                   // the same, and it would end the session
	c.StreamCloseTimeout = 0                  // it would cut streams that are half-closed for long
	c.LogOutput = io.Discard
	return c
}

// channel is what yamux reads and writes.
type channel struct {
	io.Reader
	io.Writer
	close func() error
}

func (c channel) Close() error { return c.close() }

// newSession begins a session on a channel whose hello is over, as the host or
// as the guest; end ends reads and writes of the channel.
func newSession(host bool, r io.Reader, w io.Writer, end func() error) (*Session, error) {
	s := &Session{host: host, slots: make(chan struct{}, maxStreams), ends: map[uint32]*ending{}}
	s.out = &framer{w: w, opened: s.begin}
	side := yamux.Server
	if host {
		side = yamux.Client
	}
	y, err := side(channel{&scanner{r: r, seen: s.look}, s.out, end}, muxConfig())
	if err != nil {
		return nil, fmt.Errorf("beginning a session: %w", err)
	}
	s.y = y
	return s, nil
}

// look sees each frame before yamux does, and says whether its body is to be
// dropped. What yamux would answer for anybody, however often and with a
// goroutine for each, is no part of our protocol: pings, and streams that a
// guest opens.
func (s *Session) look(h header) (drop bool, err error) {
	id := h.stream()
	switch {
	case h.kind() != typeData && h.kind() != typeWindow:
		return false, fmt.Errorf("%w: of type %d", errFrame, h.kind())
	case h.has(flagSYN) && s.host:
		return false, fmt.Errorf("%w: the guest opens stream %d", errFrame, id)
	case h.has(flagSYN):
		s.begin(id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.ends[id]
	if e == nil { // it is over, or there never was such a stream
		return false, nil
	}
	// Answers are not written here, in the reader, which must not wait for a
	// writer; there is one of each for a stream.
	e.fin = e.fin || h.has(flagFIN)
	if h.has(flagRST) && !e.reset {
		e.reset = true
		// The end that resets a stream forgets it when it sees its end.
		go func() { _ = s.out.put(windowFrame(flagFIN, id)) }()
	}
	if e.closed == nil {
		return false, nil
	}
	if h.kind() == typeData {
		e.dropped += int(h.length())
	}
	if e.dropped > patience && !e.told {
		e.told = true
		go func() { _ = s.out.put(windowFrame(flagRST, id)) }()
	}
	s.settle(id, e)
	return true, nil
}

// closing is called when a stream is closed here; over when the other end has
// ended it too, at once if it has already.
func (s *Session) closing(stream uint32, over func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.ends[stream]; e != nil {
		e.closed = over
		s.settle(stream, e)
		return
	}
	over()
}

// settle forgets a stream that both ends have ended. The caller holds mu.
func (s *Session) settle(stream uint32, e *ending) {
	if e.closed != nil && (e.fin || e.reset) {
		delete(s.ends, stream)
		e.closed()
	}
}

// begin is called with the first frame of a stream, whoever opens it.
func (s *Session) begin(stream uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ends[stream] == nil {
		s.ends[stream] = &ending{}
	}
}

// finished reports whether the other end has ended a stream.
func (s *Session) finished(stream uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.ends[stream]
	return e != nil && e.fin
}

// Dial begins a session as the host, on a connection to the channel, which the
// session owns from then on; on an error it is closed. The guest may answer much
// later, while it boots: ctx bounds the wait, and nothing after it.
func Dial(ctx context.Context, conn net.Conn) (_ *Session, err error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		stop()
		if err != nil {
			_ = conn.Close()
		}
		if ctx.Err() != nil && err != nil {
			err = fmt.Errorf("waiting for the guest's answer: %w", ctx.Err())
		}
	}()
	nonce := newNonce()
	u := &unstuffer{r: conn}
	for answered := false; !answered; {
		// Bytes wait in the channel until the guest opens it. Where they went to
		// an agent that has ended since, the next one says so, and is told again.
		if _, err := conn.Write(helloBytes(nonce)); err != nil {
			return nil, fmt.Errorf("saying hello to the guest: %w", err)
		}
		sig := u.skip()
		for errors.Is(sig, errHello) && string(u.nonce) != nonce { // an answer to somebody before
			sig = u.skip()
		}
		switch {
		case errors.Is(sig, errHello):
			answered = true
		case !errors.Is(sig, errAbsent):
			return nil, fmt.Errorf("waiting for the guest's answer: %w", sig)
		}
	}
	if !stop() {
		return nil, ctx.Err()
	}
	return newSession(true, u, lastWords{conn}, conn.Close)
}

// lastWords takes what is written to an end that has gone as written. Its reader
// ends the session, once it has read all that the other end had said: an error of
// a writer would end it before.
type lastWords struct{ net.Conn }

func (c lastWords) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return len(b), nil
	}
	return n, err
}

// Open opens a stream. It fails at once where too many are not over.
func (s *Session) Open(ctx context.Context) (*Stream, error) {
	select {
	case <-s.Done():
		return nil, fmt.Errorf("opening a stream: %w", ErrEnded)
	default:
	}
	select {
	case s.slots <- struct{}{}:
	default:
		return nil, fmt.Errorf("opening a stream: %w", errStreams)
	}
	type result struct {
		st  *Stream
		err error
	}
	c := make(chan result, 1)
	go func() {
		y, err := s.y.OpenStream()
		if err != nil {
			<-s.slots
		}
		c <- result{&Stream{y: y, s: s, ours: true}, err}
	}()
	select {
	case r := <-c:
		if r.err != nil {
			return nil, fmt.Errorf("opening a stream: %w", ended(r.err))
		}
		return r.st, nil
	case <-ctx.Done():
		go func() {
			if r := <-c; r.err == nil {
				_ = r.st.Close()
			}
		}()
		return nil, fmt.Errorf("opening a stream: %w", ctx.Err())
	}
}

// Accept waits for the other end to open a stream. It must be called again soon:
// streams that nobody accepts are refused after 256.
func (s *Session) Accept() (*Stream, error) {
	st, err := s.y.AcceptStream()
	if err != nil {
		return nil, fmt.Errorf("accepting a stream: %w", ended(err))
	}
	return &Stream{y: st, s: s}, nil
}

// Close ends the session and all its streams. It waits until nothing of it
// reads or writes the channel.
func (s *Session) Close() error { return s.y.Close() }

// Done is closed when the session has ended, for whatever reason.
func (s *Session) Done() <-chan struct{} { return s.y.CloseChan() }

// ended makes the many ways in which yamux says that it is over one.
func ended(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	if errors.Is(err, yamux.ErrConnectionReset) {
		return net.ErrClosed // the other end has closed the stream for good
	}
	return fmt.Errorf("%w (%v)", ErrEnded, err)
}
