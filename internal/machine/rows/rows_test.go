package rows

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"banger/internal/api"
	"banger/internal/host"
)

func TestTransitions(t *testing.T) {
	all := []api.State{api.Stopped, api.Starting, api.Running, api.Stopping, api.Failed, api.Deleting}
	for _, s := range all {
		if _, ok := transitions()[s]; !ok {
			t.Errorf("state %q is not in the table", s)
		}
		if s != api.Deleting && !Legal(s, api.Deleting) {
			t.Errorf("a VM that is %s cannot be deleted", s)
		}
		if s != api.Deleting && !reaches(s, api.Stopped) {
			t.Errorf("a VM that is %s can never be stopped", s)
		}
		if Legal(api.Deleting, s) && s != api.Deleting {
			t.Errorf("a VM that is being deleted may become %s", s)
		}
	}
	for _, tt := range []struct {
		from, to api.State
		want     bool
	}{
		{"", api.Starting, true},
		{"", api.Running, false},
		{api.Stopped, api.Running, false},
		{api.Stopped, api.Stopping, false},
		{api.Stopping, api.Running, false},
		{api.Failed, api.Starting, true},
		{api.Running, api.Failed, false},
	} {
		if got := Legal(tt.from, tt.to); got != tt.want {
			t.Errorf("Legal(%q, %q) = %v, want %v", tt.from, tt.to, got, tt.want)
		}
	}
}

func reaches(from, to api.State) bool {
	seen := map[api.State]bool{from: true}
	for queue := []api.State{from}; len(queue) > 0; queue = queue[1:] {
		for _, next := range transitions()[queue[0]] {
			if !seen[next] && next != api.Deleting {
				seen[next] = true
				queue = append(queue, next)
			}
		}
	}
	return seen[to]
}

func TestIdentity(t *testing.T) {
	a, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	if a.MachineID == b.MachineID || len(a.MachineID) != 32 || strings.Trim(a.MachineID, "0123456789abcdef") != "" {
		t.Errorf("machine ids %q, %q; want 32 hex digits, different", a.MachineID, b.MachineID)
	}
	signer, err := ssh.ParsePrivateKey([]byte(a.HostKey))
	if err != nil {
		t.Fatalf("the host key cannot be read: %v", err)
	}
	if got := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))); got != a.HostKeyPub {
		t.Errorf("public key %q does not belong to the private one (%q)", a.HostKeyPub, got)
	}
	now := time.Now()
	var s1, s2 host.Spec
	Row{Name: "web", Identity: a, UserKey: "k"}.Introduce(&s1, nil, now)
	Row{Name: "web", Identity: a}.Introduce(&s2, nil, now)
	if string(s1.Identity.Seed) == string(s2.Identity.Seed) || len(s1.Identity.Seed) < 32 {
		t.Error("two boots got the same seed, or a short one")
	}
	if s1.Identity.Hostname != "web" || len(s1.Identity.AuthorizedKeys) != 1 || len(s2.Identity.AuthorizedKeys) != 0 {
		t.Errorf("identities %+v, %+v", s1.Identity, s2.Identity)
	}
}

// A guest is told its address and gateway, and name servers if it has NAT.
func TestIntroduceToTheNetwork(t *testing.T) {
	addr, dns := netip.MustParseAddr("172.16.0.9"), netip.MustParseAddr("192.0.2.53")
	net := &Net{Prefix: netip.MustParsePrefix("172.16.0.7/24"), Resolvers: func() []netip.Addr { return []netip.Addr{dns} }}
	for _, tt := range []struct {
		name string
		r    Row
		n    *Net
		want string // gateway and name servers
	}{
		{"user mode", Row{}, nil, ""},
		{"a row of user mode", Row{}, net, ""},
		{"kept in", Row{Address: addr}, net, "172.16.0.1 []"},
		{"let out", Row{Address: addr, NAT: true}, net, "172.16.0.1 [192.0.2.53]"},
		{"let out, no resolvers", Row{Address: addr, NAT: true}, &Net{Prefix: net.Prefix}, "172.16.0.1 []"},
	} {
		var s host.Spec
		tt.r.Introduce(&s, tt.n, time.Now())
		got := ""
		if n := s.Identity.Net; n != nil {
			got = fmt.Sprint(n.Gateway, " ", n.DNS)
			if n.Addr != tt.r.Address || *s.Net != (host.Net{Addr: tt.r.Address, NAT: tt.r.NAT}) {
				t.Errorf("%s: address %v, spec %+v", tt.name, n.Addr, s.Net)
			}
		}
		if got != tt.want || (s.Net == nil) != (tt.want == "") {
			t.Errorf("%s: the guest is told %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestSound(t *testing.T) {
	good := Row{ID: "0123456789ab", Name: "web", State: api.Stopped}
	if !sound(good, good.ID) {
		t.Fatal("a good row is not sound")
	}
	for name, spoil := range map[string]func(r *Row){
		"id":    func(r *Row) { r.ID = "../../../etc" },
		"other": func(r *Row) { r.ID = "ffffffffffff" },
		"name":  func(r *Row) { r.Name = "a\nb" },
		"state": func(r *Row) { r.State = "dancing" },
		"none":  func(r *Row) { r.State = "" },
	} {
		r := good
		spoil(&r)
		if sound(r, good.ID) {
			t.Errorf("a row with a spoiled %s is sound", name)
		}
	}
}
