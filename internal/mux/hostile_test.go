package mux_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"banger/internal/mux"
)

// A liar is a guest that answers the hello and then writes frames of its own.
type liar struct {
	t    testing.TB
	conn net.Conn
	host *mux.Session
}

const (
	data, update, ping, goAway = 0, 1, 2, 3 // types of frames
	syn, ack, fin, rst         = 1, 2, 4, 8 // flags
)

func newLiar(t testing.TB) *liar {
	t.Helper()
	g := &liar{t: t}
	var theirs net.Conn
	g.conn, theirs = pair(t)
	t.Cleanup(func() { _ = g.conn.Close() })
	answered := make(chan error, 1)
	go func() {
		hello := make([]byte, 34)
		_, err := io.ReadFull(g.conn, hello)
		if err == nil {
			_, err = g.conn.Write(hello)
		}
		answered <- err
	}()
	var err error
	if g.host, err = mux.Dial(deadline(t, 20*time.Second), theirs); err != nil {
		t.Fatalf("Dial: %v", err)
	}
	t.Cleanup(func() { _ = g.host.Close() })
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	return g
}

// drain reads and forgets what the host sends.
func (g *liar) drain() *liar {
	go func() { _, _ = io.Copy(io.Discard, g.conn) }()
	return g
}

// frame is one frame as it travels.
func frame(kind byte, flags uint16, stream, length uint32) []byte {
	b := []byte{0, kind}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	b = binary.BigEndian.AppendUint32(b, length)
	return bytes.ReplaceAll(b, []byte{0xf1}, []byte{0xf1, 0})
}

// send writes frames until the host has had enough, and says whether it had.
func (g *liar) send(n int, next func(i int) []byte) error {
	var b []byte
	for i := range n {
		b = append(b, next(i)...)
		if len(b) > 64<<10 || i == n-1 {
			if _, err := g.conn.Write(b); err != nil {
				return err
			}
			b = b[:0]
		}
	}
	return nil
}

func (g *liar) open() *mux.Stream {
	g.t.Helper()
	st, err := g.host.Open(deadline(g.t, 10*time.Second))
	if err != nil {
		g.t.Fatalf("Open: %v", err)
	}
	return st
}

// wantEnd waits for the end of the session.
func (g *liar) wantEnd(what string) {
	g.t.Helper()
	select {
	case <-g.host.Done():
	case <-deadline(g.t, 10*time.Second).Done():
		g.t.Errorf("the session goes on after %s", what)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// bounded runs f and fails if what it leaves behind takes more than 8 MiB.
func bounded(t *testing.T, f func()) {
	t.Helper()
	before := heap()
	f()
	if after := heap(); after > before+8<<20 {
		t.Errorf("%d KiB more are in use, want at most 8 MiB", (after-before)>>10)
	}
}

func TestEndsOfStreamsThatDoNotExist(t *testing.T) {
	g := newLiar(t).drain()
	bounded(t, func() {
		for _, flag := range []uint16{fin, rst, fin | rst} {
			if err := g.send(150_000, func(i int) []byte { return frame(update, flag, uint32(1000+2*i), 0) }); err != nil {
				t.Fatal(err)
			}
		}
		// What follows has been read when this has arrived.
		st := g.open()
		if err := g.send(1, func(int) []byte { return append(frame(update, ack, 1, 0), append(frame(data, 0, 1, 1), 'x')...) }); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(st, make([]byte, 1)); err != nil {
			t.Errorf("Read after it: %v", err)
		}
	})
}

// A guest that reads nothing lets every answer wait: there must be few.
func TestResetsWithoutEnd(t *testing.T) {
	g := newLiar(t)
	g.open()
	before := runtime.NumGoroutine()
	if err := g.send(50_000, func(int) []byte { return frame(update, rst, 1, 0) }); err != nil {
		t.Fatal(err)
	}
	st := g.open()
	if err := g.send(1, func(int) []byte { return append(frame(update, ack, 3, 0), append(frame(data, 0, 3, 1), 'x')...) }); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(st, make([]byte, 1)); err != nil {
		t.Errorf("Read after it: %v", err)
	}
	if n := runtime.NumGoroutine() - before; n > 20 {
		t.Errorf("%d more goroutines after 50,000 resets", n)
	}
}

func TestFramesThatEndTheSession(t *testing.T) {
	for what, b := range map[string][]byte{
		"a ping":                    frame(ping, syn, 0, 7),
		"an answer to no ping":      frame(ping, ack, 0, 7),
		"a farewell":                frame(goAway, 0, 0, 0),
		"a stream of the guest's":   frame(update, syn, 2, 0),
		"a body without end":        frame(data, 0, 1, 1<<31),
		"a body larger than it may": append(frame(data, 0, 1, 1<<20+1), make([]byte, 1<<20+1)...),
		"an unknown type":           frame(9, 0, 0, 0),
		"another version":           append([]byte{7}, frame(update, 0, 1, 0)[1:]...),
	} {
		t.Run(what, func(t *testing.T) {
			g := newLiar(t).drain()
			g.open()
			_ = g.send(1, func(int) []byte { return b })
			g.wantEnd(what)
		})
	}
}

// A body that does not come must not hold who waits for it.
func TestCloseEndsAReadOfHalfAFrame(t *testing.T) {
	g := newLiar(t).drain()
	st := g.open()
	if err := g.send(1, func(int) []byte { return append(frame(data, ack, 1, 1000), "half"...) }); err != nil {
		t.Fatal(err)
	}
	<-deadline(t, 50*time.Millisecond).Done() // the host has taken it up
	got := make(chan error, 1)
	go func() {
		_, err := st.Read(make([]byte, 10))
		got <- err
	}()
	<-deadline(t, 50*time.Millisecond).Done() // and somebody waits for the rest
	_ = st.Close()
	select {
	case err := <-got:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("Read = %v, want net.ErrClosed", err)
		}
	case <-deadline(t, 10*time.Second).Done():
		t.Error("Read hangs although the stream was closed")
	}
}

// A guest that never ends its streams, and sends on them what it may.
func TestStreamsThatTheGuestDoesNotEnd(t *testing.T) {
	g := newLiar(t).drain()
	body := make([]byte, 200<<10)
	bounded(t, func() {
		refused := false
		for i := range 600 {
			st, err := g.host.Open(deadline(t, 10*time.Second))
			if err != nil {
				refused = true
				break
			}
			if _, err := g.conn.Write(append(frame(data, ack, uint32(2*i+1), uint32(len(body))), body...)); err != nil {
				t.Fatal(err)
			}
			_ = st.Close()
		}
		if !refused {
			t.Error("600 streams could be opened that the guest does not end")
		}
	})
	// Where it ends one, there is room for one.
	if err := g.send(1, func(int) []byte { return frame(update, fin, 1, 0) }); err != nil {
		t.Fatal(err)
	}
	end := deadline(t, 10*time.Second)
	for {
		st, err := g.host.Open(end)
		if err == nil {
			_ = st.Close()
			return
		}
		if end.Err() != nil {
			t.Fatalf("Open after one has ended: %v", err)
		}
		runtime.Gosched()
	}
}

func FuzzSession(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(append(frame(data, ack, 1, 3), "abc"...))
	f.Add(frame(update, fin|rst, 1, 1<<31))
	f.Add([]byte("\xf1\x02\xf1\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		g := newLiar(t).drain()
		st := g.open()
		_, _ = g.conn.Write(b)
		_ = g.conn.(*net.UnixConn).CloseWrite()
		_, _ = io.Copy(io.Discard, st)
		g.wantEnd("the end of the channel")
		_ = st.Close()
	})
}
