package lease_test

import (
	"fmt"
	"net/netip"
	"testing"

	"banger/internal/api"
	"banger/internal/lease"
)

func TestTake(t *testing.T) {
	pool := lease.New(netip.MustParsePrefix("10.0.0.5/29"))
	for _, tt := range []struct{ op, id, want string }{
		{"take", "web", "10.0.0.2"},
		{"take", "db", "10.0.0.3"},
		{"take", "web", "10.0.0.2"}, // the same VM keeps its address
		{"drop", "web", ""},
		{"drop", "web", ""},
		{"drop", "nobody", ""},
		{"take", "x", "10.0.0.4"}, // not the one that has just become free
		{"take", "y", "10.0.0.5"},
		{"take", "z", "10.0.0.6"},
		{"take", "web", "10.0.0.2"}, // .7 is the broadcast address
		{"take", "one too many", "all 5 guest addresses of 10.0.0.0/29 are held by VMs"},
		{"drop", "y", ""},
		{"take", "one too many", "10.0.0.5"},
	} {
		if tt.op == "drop" {
			pool.Drop(tt.id)
			continue
		}
		a, err := pool.Take(tt.id)
		got := a.String()
		if err != nil {
			got = err.Error()
			if api.CodeOf(err) != api.NoSpace {
				t.Errorf("Take(%q): code %q, want %q", tt.id, api.CodeOf(err), api.NoSpace)
			}
		}
		if got != tt.want {
			t.Errorf("Take(%q) = %s, want %s", tt.id, got, tt.want)
		}
	}
}

func TestKeep(t *testing.T) {
	pool := lease.New(netip.MustParsePrefix("172.16.0.0/24"))
	for _, tt := range []struct {
		id, addr string
		want     api.Code
	}{
		{"a", "172.16.0.9", ""},
		{"a", "172.16.0.9", ""},
		{"b", "172.16.0.9", api.Conflict},
		{"a", "172.16.0.2", ""},
		{"b", "172.16.0.9", ""},
		{"c", "172.16.0.0", api.Conflict},
		{"c", "172.16.0.1", api.Conflict},
		{"c", "172.16.0.255", api.Conflict},
		{"c", "10.0.0.2", api.Conflict},
		{"c", "::1", api.Conflict},
	} {
		got := api.Code("")
		if err := pool.Keep(tt.id, netip.MustParseAddr(tt.addr)); err != nil {
			got = api.CodeOf(err)
		}
		if got != tt.want {
			t.Errorf("Keep(%s, %s): code %q, want %q", tt.id, tt.addr, got, tt.want)
		}
	}
	if err := pool.Keep("c", netip.Addr{}); api.CodeOf(err) != api.Conflict {
		t.Errorf("Keep without an address = %v, want a conflict", err)
	}
	if a, err := pool.Take("new"); err != nil || a.String() != "172.16.0.3" {
		t.Errorf("Take = %v, %v; want 172.16.0.3", a, err)
	}
}

// TestFull takes each of the 253 addresses of a /24 once.
func TestFull(t *testing.T) {
	pool := lease.New(netip.MustParsePrefix("172.16.0.0/24"))
	seen := map[netip.Addr]bool{}
	for i := range 253 {
		a, err := pool.Take(fmt.Sprint(i))
		if err != nil || seen[a] {
			t.Fatalf("Take number %d = %v, %v", i, a, err)
		}
		seen[a] = true
	}
	if a, err := pool.Take("one more"); api.CodeOf(err) != api.NoSpace {
		t.Errorf("Take number 254 = %v, %v", a, err)
	}
	if a, err := lease.New(netip.MustParsePrefix("10.0.0.0/31")).Take("a"); err == nil {
		t.Errorf("Take from a /31 = %v, want none", a)
	}
}

func TestChoose(t *testing.T) {
	want := netip.MustParsePrefix("172.16.0.0/24")
	for _, tt := range []struct {
		routes []string
		want   string
	}{
		{nil, "172.16.0.0/24"},
		{[]string{"192.168.1.0/24", "127.0.0.0/8"}, "172.16.0.0/24"},
		{[]string{"172.16.0.128/25", "172.16.1.4/32"}, "172.16.2.0/24"},
		{[]string{"172.16.0.0/12"}, "10.213.0.0/24"},
		{[]string{"172.16.0.0/12", "10.0.0.0/8"}, "invalid Prefix"},
	} {
		var routes []netip.Prefix
		for _, r := range tt.routes {
			routes = append(routes, netip.MustParsePrefix(r))
		}
		got, ok := lease.Choose(want, routes)
		if got.String() != tt.want || ok != got.IsValid() {
			t.Errorf("Choose beside %v = %v, %v; want %s", tt.routes, got, ok, tt.want)
		}
	}
}
