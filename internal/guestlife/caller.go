package guestlife

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/vmm"
)

// A caller is a channel to the host that consists of calls to it, one after the
// other: over a vsock, whose connections end with whoever holds them at the host
// and when the guest is restored from a snapshot. It calls again when a call has
// broken, so that coming and going of a host is no error, as for a [port]. What
// was under way then is lost; the session above begins anew with the host's hello.
type caller struct {
	dial func() (*os.File, error)

	calling sync.Mutex // held while there is no call

	mu    sync.Mutex
	call  *os.File      // nil while there is none
	ended bool          // reads and writes shall not wait
	news  chan struct{} // closed when ended changes
}

// Pauses between calls that nobody answers: between two companions there is
// nobody for some milliseconds.
const (
	firstRedial = 5 * time.Millisecond
	lastRedial  = 250 * time.Millisecond
)

func newCaller(dial func() (*os.File, error)) *caller {
	return &caller{dial: dial, news: make(chan struct{})}
}

// dialVsock calls the host.
func dialVsock() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making a vsock: %w", err)
	}
	// It blocks for as long as the host's VMM needs to answer; the kernel has a
	// limit of two seconds.
	if err = unix.Connect(fd, &unix.SockaddrVM{CID: vmm.VsockHost, Port: vmm.VsockPort}); err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("calling the host: %w", err)
	}
	return os.NewFile(uintptr(fd), "vsock"), nil
}

// current returns the call, waiting until there is one, or reads and writes
// shall not wait.
func (c *caller) current() (*os.File, error) {
	c.calling.Lock()
	defer c.calling.Unlock()
	for pause := firstRedial; ; pause = min(2*pause, lastRedial) {
		c.mu.Lock()
		f, ended, news := c.call, c.ended, c.news
		c.mu.Unlock()
		switch {
		case ended:
			return nil, os.ErrDeadlineExceeded
		case f != nil:
			return f, nil
		}
		if f, err := c.dial(); err == nil {
			c.mu.Lock()
			c.call = f
			ended := c.ended
			c.mu.Unlock()
			if ended {
				_ = f.SetDeadline(time.Unix(1, 0)) // seen above
			}
			continue
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-news:
		}
		t.Stop()
	}
}

// drop ends a call that has broken.
func (c *caller) drop(f *os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.call == f {
		c.call = nil
		_ = f.Close()
	}
}

// Read waits until a host has sent something.
func (c *caller) Read(b []byte) (int, error) {
	return c.each(func(f *os.File) (int, error) { return f.Read(b) })
}

// Write waits for a host.
func (c *caller) Write(b []byte) (int, error) {
	return c.each(func(f *os.File) (int, error) { return f.Write(b) })
}

func (c *caller) each(do func(*os.File) (int, error)) (int, error) {
	for {
		f, err := c.current()
		if err != nil {
			return 0, err
		}
		n, err := do(f)
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		c.drop(f)
	}
}

// SetDeadline ends reads and writes that wait, or with the zero time lets them
// wait again: there are no others here.
func (c *caller) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = !t.IsZero()
	close(c.news)
	c.news = make(chan struct{})
	if c.call == nil {
		return nil
	}
	return c.call.SetDeadline(t)
}
