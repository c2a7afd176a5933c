package rows

import (
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"banger/internal/api"
	"banger/internal/host"
	"banger/internal/store"
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

// A state file from before there were addresses is brought forward, and its VM
// has none until it is leased one.
func TestStateFromBeforeAddresses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	open := func(steps []store.Migration) *store.Store {
		t.Helper()
		s, err := store.Open(t.Context(), store.Config{Path: path, Migrations: steps})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	old := open(Migrations(2)[:1])
	err := errors.Join(old.Rebuilt(t.Context()), old.Tx(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.ExecContext(t.Context(), `INSERT INTO machines VALUES ("0123456789ab", "web", "i", "k", '{"id":"0123456789ab","name":"web","state":"stopped"}')`)
		return err
	}), old.Close())
	if err != nil {
		t.Fatal(err)
	}
	s := open(Migrations(2))
	defer s.Close()
	table := NewTable(s, t.TempDir(), &Net{Prefix: netip.MustParsePrefix("10.0.0.0/29")}, slog.New(slog.DiscardHandler))
	all, err := table.Load(t.Context())
	if err != nil || len(all) != 1 || all[0].Address.IsValid() {
		t.Fatalf("Load() = %+v, %v; want the VM without an address", all, err)
	}
	r := all[0]
	if r.Address, err = table.Lease(r.ID); err != nil || r.Address.String() != "10.0.0.2" {
		t.Fatalf("Lease() = %v, %v", r.Address, err)
	}
	if err := table.Update(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	// The store has the last word about two rows with one address.
	other := Row{ID: "ba9876543210", Name: "db", State: api.Starting, Address: r.Address}
	err = s.Tx(t.Context(), func(tx *sql.Tx) error { return Insert(t.Context(), tx, other) })
	if api.CodeOf(err) != api.Conflict || !strings.Contains(err.Error(), "10.0.0.2") {
		t.Errorf("Insert() of a second row with the address = %v, want a conflict", err)
	}
	other.Address, other.Name = netip.Addr{}, "web"
	err = s.Tx(t.Context(), func(tx *sql.Tx) error { return Insert(t.Context(), tx, other) })
	if api.CodeOf(err) != api.Exists {
		t.Errorf("Insert() of a second row with the name = %v, want that it exists", err)
	}
}
