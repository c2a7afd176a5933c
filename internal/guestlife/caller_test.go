package guestlife

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/mux"
)

// exchange makes a caller and gives the host's end of each of its calls. While
// busy is not nil it refuses them.
func exchange(t *testing.T, busy func() bool) (*caller, <-chan net.Conn) {
	t.Helper()
	calls := make(chan net.Conn, 16)
	c := newCaller(func() (*os.File, error) {
		if busy != nil && busy() {
			return nil, unix.ECONNRESET
		}
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		f := os.NewFile(uintptr(fds[1]), "host")
		defer f.Close()
		host, err := net.FileConn(f)
		if err != nil {
			return nil, err
		}
		calls <- host
		return os.NewFile(uintptr(fds[0]), "guest"), nil
	})
	return c, calls
}

// A session that broke is followed by another, on another call.
func TestCallerCallsAgain(t *testing.T) {
	refusals := 3
	c, calls := exchange(t, func() bool { refusals--; return refusals >= 0 })
	accepted := make(chan *mux.Session)
	go func() {
		for l := mux.NewListener(c); ; {
			s, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- s
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for range 5 {
		conn := <-calls
		s, err := mux.Dial(ctx, conn)
		if err != nil {
			t.Fatal(err)
		}
		guest := <-accepted
		st, err := s.Open(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		theirs, err := guest.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(theirs, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		conn.Close() // the host dies, with bytes on their way
	}
}

// A deadline ends reads and writes that wait, with a host and without.
func TestCallerKeepsToItsDeadline(t *testing.T) {
	for name, nobody := range map[string]bool{"a silent host": false, "nobody": true} {
		c, _ := exchange(t, func() bool { return nobody })
		ended := make(chan error, 1)
		go func() {
			_, err := c.Read(make([]byte, 1))
			ended <- err
		}()
		if err := c.SetDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: Read() = %v, want the deadline", name, err)
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: Write() = %v, want the deadline", name, err)
		}
		if err := c.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		if nobody {
			continue
		}
		if _, err := c.Write([]byte("x")); err != nil {
			t.Errorf("%s: Write() without a deadline = %v", name, err)
		}
	}
}
