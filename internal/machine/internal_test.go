package machine

import (
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
		if s != api.Deleting && !legal(s, api.Deleting) {
			t.Errorf("a VM that is %s cannot be deleted", s)
		}
		if s != api.Deleting && !reaches(s, api.Stopped) {
			t.Errorf("a VM that is %s can never be stopped", s)
		}
		if legal(api.Deleting, s) && s != api.Deleting {
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
		if got := legal(tt.from, tt.to); got != tt.want {
			t.Errorf("legal(%q, %q) = %v, want %v", tt.from, tt.to, got, tt.want)
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
	a, err := newIdentity()
	if err != nil {
		t.Fatal(err)
	}
	b, err := newIdentity()
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
	introduce(&s1, row{Name: "web", Identity: a, UserKey: "k"}, now)
	introduce(&s2, row{Name: "web", Identity: a}, now)
	if string(s1.Identity.Seed) == string(s2.Identity.Seed) || len(s1.Identity.Seed) < 32 {
		t.Error("two boots got the same seed, or a short one")
	}
	if s1.Identity.Hostname != "web" || len(s1.Identity.AuthorizedKeys) != 1 || len(s2.Identity.AuthorizedKeys) != 0 {
		t.Errorf("identities %+v, %+v", s1.Identity, s2.Identity)
	}
}

func TestSound(t *testing.T) {
	good := row{ID: "0123456789ab", Name: "web", State: api.Stopped}
	if !sound(good, good.ID) {
		t.Fatal("a good row is not sound")
	}
	for name, spoil := range map[string]func(r *row){
		"id":    func(r *row) { r.ID = "../../../etc" },
		"other": func(r *row) { r.ID = "ffffffffffff" },
		"name":  func(r *row) { r.Name = "a\nb" },
		"state": func(r *row) { r.State = "dancing" },
		"none":  func(r *row) { r.State = "" },
	} {
		r := good
		spoil(&r)
		if sound(r, good.ID) {
			t.Errorf("a row with a spoiled %s is sound", name)
		}
	}
}

func TestLimits(t *testing.T) {
	for _, tt := range []struct {
		driver string
		l      Limits
		want   time.Duration
	}{
		{"qemu-kvm", Limits{}, agentKVM},
		{"firecracker", Limits{}, agentKVM},
		{"qemu-tcg", Limits{}, agentTCG},
		{"", Limits{}, agentTCG},
		{"qemu-kvm", Limits{Agent: time.Second}, time.Second},
	} {
		if got := tt.l.forDriver(tt.driver).crowded(1).Agent; got != tt.want {
			t.Errorf("%q %v: agent limit %v, want %v", tt.driver, tt.l, got, tt.want)
		}
	}
	if got := (Limits{Agent: time.Second}).crowded(10_000).Agent; got != crowdMost*time.Second {
		t.Errorf("in a crowd the limit is %v, want %v", got, crowdMost*time.Second)
	}
}
