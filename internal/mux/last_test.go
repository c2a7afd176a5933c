package mux_test

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"banger/internal/mux"
)

// lagging is a connection whose reader gets nothing more, once it lags, until it
// may go on: as on a busy host.
type lagging struct {
	net.Conn
	lags  atomic.Bool
	going chan struct{}
}

func (c *lagging) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.lags.Load() {
		<-c.going
	}
	return n, err
}

// lastWords serves one stream of one session: it waits for a request, answers,
// and dies.
func lastWords(guest net.Conn, words string) error {
	s, err := mux.NewListener(guest).Accept()
	if err != nil {
		return err
	}
	st, err := s.Accept()
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(st, make([]byte, len("stop"))); err != nil {
		return err
	}
	if _, err := io.WriteString(st, words); err != nil {
		return err
	}
	return guest.Close()
}

// What a guest said before it died is heard, although something was written to
// it after its death.
func TestLastWords(t *testing.T) {
	const words = "the disk is clean"
	ours, guest := pair(t)
	ctx := deadline(t, 20*time.Second)
	dead := make(chan error, 1)
	go func() { dead <- lastWords(guest, words) }()
	conn := &lagging{Conn: ours, going: make(chan struct{})}
	s, err := mux.Dial(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	st, err := s.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	conn.lags.Store(true)
	if _, err := io.WriteString(st, "stop"); err != nil {
		t.Fatal(err)
	}
	if err := <-dead; err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(st, "stop") // to nobody
	close(conn.going)
	got := make([]byte, len(words))
	if n, err := io.ReadFull(st, got); err != nil || string(got) != words {
		t.Errorf("the guest's last words are %q, %v; want %q", got[:n], err, words)
	}
	select {
	case <-s.Done():
	case <-ctx.Done():
		t.Error("the session goes on without a guest")
	}
}
