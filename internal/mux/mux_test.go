package mux_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/internal/mux"
)

// awkward is data full of escapes and of what looks like signals.
var awkward = bytes.Repeat([]byte("\xf1\x00\xf1\x01"+"0123456789abcdef0123456789abcdef"+"\xf1\x02\xf1\xf1\xf1abc\xf1"), 300)

func TestEchoOfAwkwardData(t *testing.T) {
	w := newWire(t)
	wait := w.serve(echo)
	s, _ := w.dial(deadline(t, 20*time.Second))
	roundTrip(t, s, awkward)
	_ = s.Close()
	w.end()
	wait()
}

// roundTrip sends b to an echo and wants it back, by half-close.
func roundTrip(t testing.TB, s *mux.Session, b []byte) {
	t.Helper()
	st, err := s.Open(t.Context())
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = st.Close() }()
	go func() {
		if _, err := st.Write(b); err != nil {
			t.Errorf("Write: %v", err)
		}
		if err := st.CloseWrite(); err != nil {
			t.Errorf("CloseWrite: %v", err)
		}
	}()
	got, err := io.ReadAll(st)
	if err != nil || !bytes.Equal(got, b) {
		t.Errorf("echo: %d bytes, %v; want the same %d bytes", len(got), err, len(b))
	}
}

func TestParallelStreams(t *testing.T) {
	w := newWire(t)
	wait := w.serve(echo)
	s, _ := w.dial(deadline(t, time.Minute))
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() { roundTrip(t, s, bytes.Repeat([]byte{byte(i), 0xf1}, 50_000+i)) })
	}
	wg.Wait()
	_ = s.Close()
	w.end()
	wait()
}

func TestGuestThatOpensItsPortLater(t *testing.T) {
	w := newWire(t)
	ctx := deadline(t, 20*time.Second)
	dialled := make(chan error, 1)
	conn := w.connect()
	go func() {
		s, err := mux.Dial(ctx, conn)
		if err == nil {
			err = s.Close()
		}
		dialled <- err
	}()
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	select {
	case err := <-dialled:
		t.Fatalf("Dial before there is a guest = %v, want it to wait", err)
	case <-short.Done():
	}
	wait := w.serve(echo)
	if err := <-dialled; err != nil {
		t.Errorf("Dial = %v", err)
	}
	w.end()
	wait()
}

// An agent that reads the hello and dies: the next one, on the same port, must
// be found without another event.
func TestAgentThatDiesWithTheHello(t *testing.T) {
	w := newWire(t)
	ctx := deadline(t, 20*time.Second)
	type result struct {
		s   *mux.Session
		err error
	}
	dialled := make(chan result, 1)
	conn := w.connect()
	go func() {
		s, err := mux.Dial(ctx, conn)
		dialled <- result{s, err}
	}()
	if _, err := io.ReadFull(w.guest, make([]byte, 20)); err != nil { // part of the hello
		t.Fatal(err)
	}
	wait := w.serve(echo)
	r := <-dialled
	if r.err != nil {
		t.Fatal(r.err)
	}
	roundTrip(t, r.s, awkward)
	_ = r.s.Close()
	w.end()
	wait()
}

func TestRestartedAgentEndsTheSession(t *testing.T) {
	w := newWire(t)
	accepted := make(chan *mux.Session, 2)
	listen := func() {
		s, err := mux.NewListener(w.guest).Accept()
		if err == nil {
			accepted <- s
		}
	}
	go listen()
	s, _ := w.dial(deadline(t, 20*time.Second))
	old := <-accepted
	st, err := s.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := old.Accept(); err != nil {
		t.Fatal(err)
	}
	_ = old.Close() // as good as dead: it writes nothing
	if err := w.guest.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	go listen()
	<-s.Done()
	if _, err := st.Read(make([]byte, 1)); !errors.Is(err, mux.ErrEnded) {
		t.Errorf("Read in the old session = %v, want ErrEnded", err)
	}
	_ = s.Close()
	s, _ = w.dial(deadline(t, 20*time.Second))
	_ = s.Close()
	_ = (<-accepted).Close()
	w.end()
}

func TestDialGivesUpWithItsContext(t *testing.T) {
	w := newWire(t)
	defer w.end()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := mux.Dial(ctx, w.connect()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Dial = %v, want DeadlineExceeded", err)
	}
}

func TestHalfClose(t *testing.T) {
	w := newWire(t)
	wait := w.serve(func(st *mux.Stream) {
		b, err := io.ReadAll(st) // until the host has half-closed
		_, _ = fmt.Fprintf(st, "%d %v", len(b), err)
		_ = st.Close()
	})
	s, _ := w.dial(deadline(t, 20*time.Second))
	st, err := s.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = st.Write(make([]byte, 100_000))
	_ = st.CloseWrite()
	got, err := io.ReadAll(st)
	if string(got) != "100000 <nil>" || err != nil {
		t.Errorf("the answer after a half-close = %q, %v; want %q", got, err, "100000 <nil>")
	}
	_ = st.Close()
	_ = s.Close()
	w.end()
	wait()
}

// A stream whose other end never stops sending must not send for ever after
// Close, nor take memory, nor keep other streams from working.
func TestCloseEndsASenderWithoutEnd(t *testing.T) {
	w := newWire(t)
	ended := make(chan error, 1)
	wait := w.serve(func(st *mux.Stream) {
		var head [1]byte
		if _, _ = io.ReadFull(st, head[:]); head[0] == 'e' {
			echo(st)
			return
		}
		for {
			if _, err := st.Write(awkward); err != nil {
				ended <- err
				_ = st.Close()
				return
			}
		}
	})
	s, _ := w.dial(deadline(t, 20*time.Second))
	st, err := s.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = st.Write([]byte("s"))
	reading := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, st)
		reading <- err
	}()
	_ = st.Close()
	if err := <-reading; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read of a closed stream = %v, want net.ErrClosed", err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write to a closed stream = %v, want net.ErrClosed", err)
	}
	st, err = s.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = st.Write([]byte("eok"))
	b := make([]byte, 2)
	if _, err := io.ReadFull(st, b); err != nil || string(b) != "ok" {
		t.Errorf("another stream = %q, %v; want ok", b, err)
	}
	_ = st.Close()
	_ = s.Close()
	w.end()
	wait()
}

func TestCloseDeliversWhatWasWritten(t *testing.T) {
	w := newWire(t)
	got := make(chan int64, 1)
	wait := w.serve(func(st *mux.Stream) {
		n, _ := io.Copy(io.Discard, st)
		got <- n
		_ = st.Close()
	})
	s, _ := w.dial(deadline(t, 20*time.Second))
	st, err := s.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = st.Write(make([]byte, 3<<20))
	_ = st.Close()
	if n := <-got; n != 3<<20 {
		t.Errorf("received %d bytes, want %d", n, 3<<20)
	}
	_ = s.Close()
	w.end()
	wait()
}

// TestTorture cuts the connection at random moments of full traffic both ways
// and comes back at once: nothing may hang, and no byte may be wrong.
func TestTorture(t *testing.T) {
	rounds := 60
	if testing.Short() {
		rounds = 20
	}
	before := goroutines()
	w := newWire(t)
	wait := w.serve(func(st *mux.Stream) {
		defer func() { _ = st.Close() }()
		var head [1]byte
		if _, err := io.ReadFull(st, head[:]); err != nil {
			return
		}
		switch head[0] {
		case 'e':
			echo(st)
		case 'd':
			_, _ = io.Copy(io.Discard, st)
		case 's':
			for {
				if _, err := st.Write(awkward); err != nil {
					return
				}
			}
		}
	})
	for range rounds {
		s, conn := w.dial(deadline(t, 20*time.Second))
		open := func(kind string) *mux.Stream {
			st, err := s.Open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := st.Write([]byte(kind)); err != nil {
				t.Fatal(err)
			}
			return st
		}
		var wg sync.WaitGroup
		st := open("s")
		wg.Go(func() { _, _ = io.Copy(io.Discard, st) })
		st2 := open("d")
		wg.Go(func() {
			for {
				if _, err := st2.Write(awkward); err != nil {
					return
				}
			}
		})
		e := open("e")
		n := 1 + rand.IntN(5)
		for range n {
			if _, err := e.Write(awkward); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(awkward))
			if _, err := io.ReadFull(e, got); err != nil || !bytes.Equal(got, awkward) {
				t.Fatalf("echo differs (%v)", err)
			}
		}
		_ = conn.Close()
		wg.Wait()
		_ = s.Close()
	}
	w.end()
	wait()
	noLeak(t, before)
}

func goroutines() int {
	b := make([]byte, 1<<20)
	return strings.Count(string(b[:runtime.Stack(b, true)]), "internal/mux.")
}

// noLeak waits until no more goroutines run our code than before.
func noLeak(t *testing.T, before int) {
	t.Helper()
	end := deadline(t, 10*time.Second)
	for goroutines() > before {
		if end.Err() != nil {
			b := make([]byte, 1<<20)
			t.Fatalf("goroutines left:\n%s", b[:runtime.Stack(b, true)])
		}
		runtime.Gosched()
	}
}

func BenchmarkThroughput(b *testing.B) {
	w := newWire(b)
	wait := w.serve(echo)
	s, _ := w.dial(deadline(b, time.Minute))
	data := make([]byte, 1<<20)
	b.SetBytes(int64(2 * len(data)))
	for b.Loop() {
		roundTrip(b, s, data)
	}
	_ = s.Close()
	w.end()
	wait()
}
