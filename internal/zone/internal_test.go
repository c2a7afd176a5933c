package zone

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"banger/internal/dns"
)

// deaf is a helper on a host without systemd-resolved.
type deaf struct{ asked []uint16 }

func (d *deaf) Resolver(_ context.Context, port uint16) error {
	d.asked = append(d.asked, port)
	return errors.New("no systemd-resolved")
}

func (d *deaf) Mend(context.Context) ([]string, error) { return nil, nil }

// What fails for good is tried ever more seldom, at once when somebody asks or
// the link is another, and is taken back in the end: half of it may be done.
func TestRouteThatFails(t *testing.T) {
	server, err := dns.Listen(t.Context(), dns.Config{Lookup: nil})
	if err != nil {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	defer func() { _ = server.Serve(ended) }() // closes it
	synctest.Test(t, func(t *testing.T) {
		d, link := &deaf{}, 7
		k := New(Config{Helper: d, Link: func() int { return link }, Log: slog.New(slog.DiscardHandler)})
		k.server = server
		tries := func(when string, want int) {
			t.Helper()
			if len(d.asked) != want {
				t.Errorf("%s: %d tries, want %d", when, len(d.asked), want)
			}
			d.asked = nil
		}
		for begun := time.Now(); time.Since(begun) < time.Hour; <-time.After(every) {
			if k.route(t.Context(), false) == nil {
				t.Fatal("route() = nil, want the failure, also between two tries")
			}
		}
		tries("in an hour", 12)
		_ = k.route(t.Context(), true)
		tries("when asked", 1)
		link = 8
		_ = k.route(t.Context(), false)
		tries("with another link", 1)
		<-time.After(every)
		_ = k.route(t.Context(), false)
		tries("soon after", 1)
		k.withdraw(t.Context())
		if len(d.asked) != 1 || d.asked[0] != 0 {
			t.Errorf("in the end the helper was asked for %v, want a withdrawal", d.asked)
		}
		link = 0
		if err := k.route(t.Context(), true); err != nil {
			t.Errorf("route() without a link = %v", err)
		}
	})
}
