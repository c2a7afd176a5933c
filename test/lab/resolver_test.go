//go:build lab

package lab

import (
	"context"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"banger/internal/dns"
	"banger/internal/hostnet"
	"banger/internal/hostnet/remove"
	"banger/internal/resolved"
	"banger/internal/testneed"
)

// TestResolver routes the zone to a server of ours by systemd-resolved, while no
// VM is there, and looks after what may happen to it.
func TestResolver(t *testing.T) {
	testneed.Lab(t)
	n, err := hostnet.Open("br-fc", netip.MustParsePrefix("172.16.0.0/24"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := remove.Network(context.WithoutCancel(t.Context()), n); err != nil {
			t.Errorf("removing the network: %v", err)
		}
	})
	port, asked := serveNames(t)
	r := resolved.Resolver{Bridge: "br-fc", Zone: "vm"}
	if err := r.Route(t.Context(), 0); err != nil {
		t.Errorf("taking back what is not there: %v", err)
	}
	if err := r.Route(t.Context(), port); err == nil {
		t.Error("Route without a bridge succeeded")
	}
	route := func() {
		t.Helper()
		if _, err := n.Repair(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := r.Route(t.Context(), port); err != nil {
			t.Fatal(err)
		}
	}
	route()
	if s, err := n.State(); err != nil || !s.Carrier {
		t.Errorf("State() = %+v, %v; want carrier by the dummy port", s, err)
	}
	names := func(when, want string) {
		t.Helper()
		if got := lookup(t, "web.vm"); got != want {
			t.Errorf("%s: web.vm is %q, want %q\n%s", when, got, want, run(t, "resolvectl", "status", "--no-pager"))
		}
	}
	names("at first", "172.16.0.2")
	if got := lookup(t, "nobody.vm"); got != "" {
		t.Errorf("nobody.vm is %q, want nothing", got)
	}
	lookup(t, "www.example.com")
	if others := asked(); len(others) != 0 {
		t.Errorf("names outside the zone were asked for: %v", others)
	}
	if got := run(t, "resolvectl", "status", "br-fc", "--no-pager"); !strings.Contains(got, "-DefaultRoute") ||
		!strings.Contains(got, "-LLMNR") || !strings.Contains(got, "-mDNS") {
		t.Errorf("the link is not silent otherwise:\n%s", got)
	}
	run(t, "systemctl", "restart", "systemd-resolved")
	names("after a restart of systemd-resolved", "172.16.0.2")
	run(t, "ip", "link", "del", "br-fc")
	names("without the bridge", "")
	route()
	names("with a new bridge", "172.16.0.2")
	for range 2 {
		if err := r.Route(t.Context(), 0); err != nil {
			t.Errorf("Route to port 0: %v", err)
		}
	}
	names("taken back", "")
}

// lookup asks systemd-resolved as programs do, by its stub; empty if there is
// no such name.
func lookup(t *testing.T, name string) string {
	t.Helper()
	out, _ := exec.CommandContext(t.Context(), "dig", "+short", "+time=5", "+tries=1", "@127.0.0.53", name).Output()
	if strings.HasPrefix(string(out), ";;") {
		return "" // no answer at all, as where there is no other server
	}
	return strings.TrimSpace(string(out))
}

// serveNames runs a server that knows web.vm; asked lists other zones' names
// that it was asked for.
func serveNames(t *testing.T) (port uint16, asked func() []string) {
	t.Helper()
	var mu sync.Mutex
	var names []string
	s, err := dns.Listen(t.Context(), dns.Config{Lookup: func(host string) (netip.Addr, bool) {
		mu.Lock()
		defer mu.Unlock()
		if host != "web" && host != "nobody" {
			names = append(names, host)
		}
		return netip.MustParseAddr("172.16.0.2"), host == "web"
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s.Addr().Port(), func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(names)
	}
}
