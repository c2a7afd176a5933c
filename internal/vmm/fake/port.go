package fake

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"banger/internal/vmm"
)

// port is a device that a host may connect to, one at a time: as QEMU's
// sockets are. Coming and going of a host is no error to who uses it.
type port struct {
	next     func() (net.Conn, error)       // waits for a host
	bound    func(deadline time.Time) error // ends that wait
	greeting string                         // what each host is told first

	accept sync.Mutex // held while waiting for a host

	mu       sync.Mutex
	conn     net.Conn
	deadline time.Time
}

func newPort(f vmm.File) (*port, error) {
	file := os.NewFile(uintptr(f.FD), "port")
	defer file.Close()
	l, err := net.FileListener(file)
	if err != nil {
		return nil, err
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false)
	return &port{next: u.Accept, bound: u.SetDeadline}, nil
}

// servePort is a port with a socket of its own.
func servePort(path string) (*port, error) {
	u, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return &port{next: u.Accept, bound: u.SetDeadline}, nil
}

// callPort is a port that calls the host whenever there is none.
func callPort(path string) *port {
	p := &port{bound: func(time.Time) error { return nil }}
	p.next = func() (net.Conn, error) {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			if c, err := net.Dial("unix", path); err == nil {
				return c, nil
			}
			<-tick.C
			p.mu.Lock()
			over := !p.deadline.IsZero()
			p.mu.Unlock()
			if over {
				return nil, os.ErrDeadlineExceeded
			}
		}
	}
	return p
}

// host returns the connection, waiting for one.
func (p *port) host() (net.Conn, error) {
	p.accept.Lock()
	defer p.accept.Unlock()
	p.mu.Lock()
	c := p.conn
	p.mu.Unlock()
	if c != nil {
		return c, nil
	}
	c, err := p.next()
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conn = c
	_, _ = io.WriteString(c, p.greeting) // an error comes again
	return c, c.SetDeadline(p.deadline)
}

// drop forgets a connection that broke.
func (p *port) drop(c net.Conn) {
	c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == c {
		p.conn = nil
	}
}

// Read waits for bytes of whatever host there is.
func (p *port) Read(b []byte) (int, error) { return p.each(b, io.Reader.Read) }

// Write waits for a host. What one had not read when it left is lost.
func (p *port) Write(b []byte) (int, error) {
	return p.each(b, func(r io.Reader, b []byte) (int, error) { return r.(net.Conn).Write(b) })
}

func (p *port) each(b []byte, do func(io.Reader, []byte) (int, error)) (int, error) {
	for {
		c, err := p.host()
		if err != nil {
			return 0, err
		}
		n, err := do(c, b)
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		p.drop(c)
	}
}

// SetDeadline ends reads and writes that wait.
func (p *port) SetDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deadline = t
	err := p.bound(t)
	if p.conn != nil {
		err = errors.Join(err, p.conn.SetDeadline(t))
	}
	return err
}
