package mux

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// A Port is the guest's end of a channel. Read and Write wait while no host is
// there, and no coming or going of a host is an error. Deadlines in the past end
// a Read or Write that waits; the zero time takes them away.
type Port interface {
	io.ReadWriter
	SetDeadline(time.Time) error
}

// A Listener accepts the sessions of a port, one after the other. It owns no
// goroutine; Accept must be called from one.
type Listener struct {
	port Port
	u    *unstuffer
	cur  *Session
	told bool // the host knows that there is no session
	next bool // a hello has come and has not been answered
}

// NewListener listens on port, which it does not close.
func NewListener(port Port) *Listener { return &Listener{port: port, u: &unstuffer{r: port}} }

// Accept waits until the current session has ended and the host has begun the
// next: a hello does both. An error means that the port is of no use any more.
func (l *Listener) Accept() (*Session, error) {
	if l.cur != nil {
		<-l.cur.Done()
		_ = l.cur.Close() // waits until its reader and writer have ended
		l.cur = nil
		if err := l.port.SetDeadline(time.Time{}); err != nil {
			return nil, fmt.Errorf("waiting for a session: %w", err)
		}
	}
	if !l.next && !l.told {
		if _, err := l.port.Write([]byte{escape, codeAbsent}); err != nil {
			return nil, fmt.Errorf("waiting for a session: %w", err)
		}
	}
	for !l.next {
		if err := l.u.skip(); errors.Is(err, errHello) {
			l.next = true
		} else if !errors.Is(err, errAbsent) { // that is no word of a host
			return nil, fmt.Errorf("waiting for a session: %w", err)
		}
	}
	nonce := string(l.u.nonce)
	l.next, l.told = false, false
	if _, err := l.port.Write(helloBytes(nonce)); err != nil {
		return nil, fmt.Errorf("answering a hello: %w", err)
	}
	s, err := newSession(false, &current{l, nonce}, l.port, func() error {
		return l.port.SetDeadline(time.Unix(1, 0))
	})
	l.cur = s
	return s, err
}

// current reads the data of one session and ends at the next one's hello.
type current struct {
	l     *Listener
	nonce string
}

func (c *current) Read(b []byte) (int, error) {
	for {
		n, err := c.l.u.Read(b)
		switch {
		case errors.Is(err, errAbsent):
			continue
		case errors.Is(err, errHello) && string(c.l.u.nonce) == c.nonce:
			continue // repeated before the host had our answer
		case errors.Is(err, errHello):
			c.l.next = true // read by Accept once this reader has ended
		}
		return n, err
	}
}
