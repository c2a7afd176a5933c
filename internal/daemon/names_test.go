package daemon_test

import (
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"banger/internal/api"
	"banger/internal/client"
)

// named is a world whose VMs have a network and names.
func named(t *testing.T) (w world, at string) {
	t.Helper()
	l, err := net.ListenPacket("udp", "127.0.0.1:0") // a port that is free then
	if err != nil {
		t.Fatal(err)
	}
	at = l.LocalAddr().String()
	l.Close()
	w = newWorld(t)
	w.env = append(w.env, networkEnv+"="+at)
	return w, at
}

// question asks for a name, or by PTR for an address, and returns the answer or
// its code.
func question(t *testing.T, at, name string) string {
	t.Helper()
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
	if a, err := netip.ParseAddr(name); err == nil {
		reverse, err := dns.ReverseAddr(a.String())
		if err != nil {
			t.Fatal(err)
		}
		q.SetQuestion(reverse, dns.TypePTR)
	}
	c := dns.Client{Timeout: 10 * time.Second}
	r, _, err := c.ExchangeContext(t.Context(), q, at)
	if err != nil {
		t.Fatalf("asking for %s: %v", name, err)
	}
	for _, rr := range r.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			return rr.A.String()
		case *dns.PTR:
			return rr.Ptr
		}
	}
	return dns.RcodeToString[r.Rcode]
}

// routed is where the helper was told to route names last.
func (w world) routed(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(w.layout.State + ".routes")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A name is answered for while its VM runs, also by the next daemon at once.
func TestNamesOfVMs(t *testing.T) {
	w, at := named(t)
	defer w.end(t)
	c := w.connect(t)
	if n := c.Greeting().Network; n == nil || n.DNS != at || n.Zone != "vm" || n.Prefix.String() != "172.16.0.0/24" || n.Problem != nil {
		t.Fatalf("the daemon says of names %+v, want them answered for at %s", n, at)
	}
	_, port, err := net.SplitHostPort(at)
	if err != nil || w.routed(t) != port {
		t.Errorf("names are routed to %q (%v), want %s", w.routed(t), err, port)
	}
	stock(t, c)
	req := create("web")
	req.NAT = true
	m, err := c.CreateMachine(t.Context(), req, nil)
	if err != nil {
		t.Fatal(err)
	}
	if m.Address.String() != "172.16.0.2" || !m.NAT || m.Network != api.NetworkInternet {
		t.Errorf("the VM is %+v, want an address and the internet", m)
	}
	names := func(when, forward, reverse string) {
		t.Helper()
		if got := question(t, at, "web.vm"); got != forward {
			t.Errorf("%s: web.vm is %s, want %s", when, got, forward)
		}
		if got := question(t, at, "172.16.0.2"); got != reverse {
			t.Errorf("%s: 172.16.0.2 is %s, want %s", when, got, reverse)
		}
	}
	names("while it runs", "172.16.0.2", "web.vm.")
	for range 2 {
		if err := syscall.Kill(c.Greeting().PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w.waitUnlocked(t)
		c = w.connect(t)
		names("after kill -9 of the daemon", "172.16.0.2", "web.vm.")
	}
	name := "www"
	if _, err := c.SetMachine(t.Context(), "web", api.SetMachine{Name: &name}); err != nil {
		t.Fatal(err)
	}
	names("with another name", "NXDOMAIN", "www.vm.")
	if _, err := c.StopMachine(t.Context(), "www", api.StopMachine{}); err != nil {
		t.Fatal(err)
	}
	names("while it is stopped", "NXDOMAIN", "NXDOMAIN")
	if got := question(t, at, "www.vm"); got != "NXDOMAIN" {
		t.Errorf("www.vm is %s while it is stopped", got)
	}
	if _, err := c.StartMachine(t.Context(), "www", api.StartMachine{}, nil); err != nil {
		t.Fatal(err)
	}
	if got := question(t, at, "www.vm"); got != "172.16.0.2" {
		t.Errorf("www.vm is %s after a start", got)
	}
	if _, err := c.DeleteMachine(t.Context(), "www"); err != nil {
		t.Fatal(err)
	}
	names("after its end", "NXDOMAIN", "NXDOMAIN")
	clean(t, c)
	w.end(t)
	if got := w.routed(t); got != "0" {
		t.Errorf("after the daemon's end names are routed to %q, want nowhere", got)
	}
}

// A port that is another's costs the names, and nothing else.
func TestPortOfNamesIsTaken(t *testing.T) {
	w, at := named(t)
	taken, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	defer w.end(t)
	c := w.connect(t)
	n := c.Greeting().Network
	if n == nil || n.Problem == nil || n.Problem.Hint == "" || n.DNS != "" {
		t.Errorf("the daemon says of names %+v, want that the port is taken", n)
	}
	stock(t, c)
	if _, err := c.CreateMachine(t.Context(), create("web"), nil); err != nil {
		t.Errorf("a VM without names: %v", err)
	}
}

// In user mode a VM has no network, and nothing is made of one that wants it.
func TestUserModeHasNoNetwork(t *testing.T) {
	w := newWorld(t)
	defer w.end(t)
	c := w.connect(t)
	if n := c.Greeting().Network; n != nil {
		t.Errorf("in user mode the daemon says of names %+v", n)
	}
	stock(t, c)
	req := create("web")
	req.NAT = true
	if _, err := c.CreateMachine(t.Context(), req, nil); api.CodeOf(err) != api.Unsupported {
		t.Errorf("CreateMachine() with NAT = %v, want unsupported", err)
	}
	clean(t, c)
}

// What systemd runs is not ended by a request.
func TestShutdownInSystemMode(t *testing.T) {
	w := newWorld(t)
	w.env = append(w.env, systemEnv+"=1")
	c := w.connect(t)
	pid := c.Greeting().PID
	if err := c.Shutdown(t.Context()); api.CodeOf(err) != api.Unsupported || api.AsError(err).Hint != "sudo banger system restart" {
		t.Errorf("Shutdown() = %v, want it refused", err)
	}
	again, err := client.Connect(t.Context(), client.Options{Layout: w.layout})
	if err != nil || again.Greeting().PID != pid {
		t.Fatalf("Connect() after it = %v", err)
	}
	again.Close()
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	w.waitUnlocked(t)
}
