package zone_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"banger/internal/api"
	"banger/internal/zone"
)

var web = netip.MustParseAddr("172.16.0.2")

// A world is a host with one VM, a link and a helper, of which a test changes
// what it likes.
type world struct {
	mu      sync.Mutex
	link    int
	running bool
	mended  []string
	err     error // of both calls
	routes  chan uint16
}

func (w *world) Resolver(_ context.Context, port uint16) error {
	w.mu.Lock()
	err := w.err
	w.mu.Unlock()
	if err == nil {
		w.routes <- port
	}
	return err
}

func (w *world) Mend(context.Context) ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	mended := w.mended
	w.mended = nil
	return mended, w.err
}

func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) config(at netip.AddrPort) zone.Config {
	is := func(f func() bool) func() bool {
		return func() bool { w.mu.Lock(); defer w.mu.Unlock(); return f() }
	}
	return zone.Config{
		Prefix: netip.MustParsePrefix("172.16.0.0/24"), Listen: at, Helper: w, Log: slog.New(slog.DiscardHandler),
		Lookup:  func(name string) (netip.Addr, bool) { return web, name == "web" },
		Reverse: func(a netip.Addr) (string, bool) { return "web", a == web },
		Running: is(func() bool { return w.running }),
		Link:    func() int { w.mu.Lock(); defer w.mu.Unlock(); return w.link },
	}
}

// start runs a keeper until stop.
func start(t *testing.T, c zone.Config) (k *zone.Keeper, stop func()) {
	t.Helper()
	k = zone.New(c)
	k.Open(t.Context())
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() { defer close(over); k.Run(ctx) }()
	stop = func() { cancel(); <-over }
	t.Cleanup(stop)
	return k, stop
}

// freePort is one that nobody has, or had when it was looked for.
func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.LocalAddr().(*net.UDPAddr).AddrPort()
}

// answer is what web.vm is at a server: an address, a code or nothing.
func answer(t *testing.T, at string) string {
	t.Helper()
	c := mdns.Client{Timeout: 10 * time.Second}
	r, _, err := c.ExchangeContext(t.Context(), new(mdns.Msg).SetQuestion("web.vm.", mdns.TypeA), at)
	if err != nil {
		return err.Error()
	}
	if len(r.Answer) == 0 {
		return mdns.RcodeToString[r.Rcode]
	}
	return r.Answer[0].(*mdns.A).A.String()
}

func (w *world) route(t *testing.T, when string, want uint16) {
	t.Helper()
	select {
	case got := <-w.routes:
		if got != want {
			t.Errorf("%s: names are routed to port %d, want %d", when, got, want)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("%s: names are not routed", when)
	}
}

// The zone is routed when there is a link, again when it is another, and not any
// more at the end; nothing else costs a call.
func TestRouteFollowsTheLink(t *testing.T) {
	w := &world{routes: make(chan uint16, 1)}
	k, stop := start(t, w.config(freePort(t)))
	s := k.Status()
	at := netip.MustParseAddrPort(s.DNS)
	if s.Problem != nil || s.Zone != "vm" || answer(t, s.DNS) != web.String() {
		t.Errorf("Status() = %+v, and web.vm is %q there", s, answer(t, s.DNS))
	}
	w.change(func() { w.link = 7 })
	k.Look()
	w.route(t, "with a link", at.Port())
	w.change(func() { w.link = 8 })
	k.Look()
	w.route(t, "with another link", at.Port())
	w.change(func() { w.running, w.mended = true, []string{"bridge br-fc"} })
	k.Look()
	w.route(t, "after mending", at.Port())
	if n := k.Status(); !slices.Equal(n.Mended, []string{"bridge br-fc"}) || n.MendedAt.IsZero() {
		t.Errorf("Status() = %+v, want what was mended", n)
	}
	for range 100 { // nothing has changed: a route would be waited for by the next
		k.Look()
	}
	stop()
	w.route(t, "at the end", 0)
	if got := answer(t, s.DNS); !strings.Contains(got, "refused") {
		t.Errorf("after the end web.vm is %q", got)
	}
}

// Without a link there is nothing to take back.
func TestNothingIsRoutedWithoutALink(t *testing.T) {
	w := &world{routes: make(chan uint16, 1)}
	_, stop := start(t, w.config(freePort(t)))
	stop()
	if len(w.routes) != 0 {
		t.Errorf("names were routed to port %d", <-w.routes)
	}
}

// A port that is taken is said, and had when it is free.
func TestPortIsTaken(t *testing.T) {
	taken, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := taken.LocalAddr().(*net.UDPAddr).AddrPort()
	w := &world{routes: make(chan uint16, 1), link: 7}
	k, _ := start(t, w.config(at))
	s := k.Status()
	if s.Problem == nil || s.DNS != "" || !strings.Contains(s.Problem.Msg, "in use") || !strings.Contains(s.Problem.Hint, "ss -lntup") {
		t.Errorf("Status() = %+v, want the port's being taken", s)
	}
	if len(w.routes) != 0 {
		t.Error("names are routed to a port that is another's")
	}
	taken.Close()
	k.Look()
	w.route(t, "with a free port", at.Port())
	if got := answer(t, at.String()); got != web.String() {
		t.Errorf("web.vm is %q", got)
	}
}

// A helper that fails is a problem for as long as it does.
func TestHelperFails(t *testing.T) {
	w := &world{routes: make(chan uint16, 1), link: 7, err: errors.New("no systemd-resolved")}
	k, _ := start(t, w.config(freePort(t)))
	if p := k.Status().Problem; p == nil || p.Code != api.Missing || !strings.Contains(p.Msg, "no systemd-resolved") || !strings.Contains(p.Hint, "dnsmasq: server=/vm/127.0.0.1#") {
		t.Errorf("Problem = %+v, want what to do without systemd-resolved", p)
	}
	w.change(func() { w.err = nil })
	k.Look()
	w.route(t, "when the helper works", netip.MustParseAddrPort(k.Status().DNS).Port())
}

// Without the helper VMs' names are answered for all the same.
func TestHelperIsGone(t *testing.T) {
	w := &world{routes: make(chan uint16, 1), running: true, err: errors.New("no helper")}
	k, _ := start(t, w.config(freePort(t)))
	s := k.Status()
	if s.Problem == nil || s.Problem.Code != api.Internal || !strings.Contains(s.Problem.Msg, "no helper") {
		t.Errorf("Problem = %+v, want the helper's silence", s.Problem)
	}
	if got := answer(t, s.DNS); got != web.String() {
		t.Errorf("web.vm is %q", got)
	}
}
