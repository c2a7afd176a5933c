package mux_test

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/internal/mux"
)

// A wire behaves like a virtio-serial port: the guest's end stays, hosts come
// and go unseen, and what the guest wrote for one host reaches the next, with
// a piece missing where the connection was cut.
type wire struct {
	t     testing.TB
	guest net.Conn // the guest's port
	inner net.Conn // our end of it

	mu   sync.Mutex
	cond *sync.Cond
	host net.Conn      // our end of the host's connection
	gone chan struct{} // closed when nothing more comes from the host before
	over bool
}

func pair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn := func(fd int) net.Conn {
		f := os.NewFile(uintptr(fd), "pair")
		defer func() { _ = f.Close() }()
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	return conn(fds[0]), conn(fds[1])
}

func newWire(t testing.TB) *wire {
	w := &wire{t: t, gone: make(chan struct{})}
	close(w.gone)
	w.cond = sync.NewCond(&w.mu)
	w.guest, w.inner = pair(t)
	go w.toHost()
	return w
}

func (w *wire) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	w.cond.Broadcast()
	_ = w.guest.Close()
	_ = w.inner.Close()
	if w.host != nil {
		_ = w.host.Close()
	}
}

// connect returns a host's connection, in place of the one before.
func (w *wire) connect() net.Conn {
	ours, theirs := pair(w.t)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.host != nil {
		_ = w.host.Close()
	}
	w.host = ours
	w.cond.Broadcast()
	before, gone := w.gone, make(chan struct{})
	w.gone = gone
	go func() {
		defer close(gone)
		<-before
		_, _ = io.Copy(w.inner, ours)
	}()
	return theirs
}

func (w *wire) current() net.Conn {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.host == nil && !w.over {
		w.cond.Wait()
	}
	return w.host
}

func (w *wire) toHost() {
	b := make([]byte, 40_000)
	for {
		n, err := w.inner.Read(b)
		if err != nil {
			return
		}
		for p := b[:n]; len(p) > 0; {
			h := w.current()
			if h == nil {
				return
			}
			m, err := h.Write(p)
			p = p[m:]
			if err == nil {
				continue
			}
			p = p[rand.IntN(len(p)+1):] // lost with the connection
			w.mu.Lock()
			if w.host == h {
				w.host = nil
			}
			w.mu.Unlock()
		}
	}
}

// serve answers each stream of each session with handle, until the port ends.
func (w *wire) serve(handle func(*mux.Stream)) (wait func()) {
	var wg sync.WaitGroup
	wg.Go(func() {
		l := mux.NewListener(w.guest)
		for {
			s, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				for {
					st, err := s.Accept()
					if err != nil {
						return
					}
					wg.Go(func() { handle(st) })
				}
			})
		}
	})
	return wg.Wait
}

func (w *wire) dial(ctx context.Context) (*mux.Session, net.Conn) {
	w.t.Helper()
	conn := w.connect()
	s, err := mux.Dial(ctx, conn)
	if err != nil {
		w.t.Fatalf("Dial: %v", err)
	}
	return s, conn
}

func deadline(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func echo(st *mux.Stream) {
	defer func() { _ = st.Close() }()
	_, _ = io.Copy(st, st)
	_ = st.CloseWrite()
}
