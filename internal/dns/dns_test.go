package dns_test

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"banger/internal/dns"
)

var web = netip.MustParseAddr("172.16.0.2")

// serve starts a server that knows one VM, and stops it at the end.
func serve(t testing.TB) netip.AddrPort {
	t.Helper()
	s, err := dns.Listen(t.Context(), dns.Config{
		Lookup:  func(host string) (netip.Addr, bool) { return web, host == "web" },
		Prefix:  netip.MustParsePrefix("172.16.0.0/24"),
		Reverse: func(a netip.Addr) (string, bool) { return "web", a == web },
	})
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
	return s.Addr()
}

func ask(t *testing.T, network string, at netip.AddrPort, m *mdns.Msg) *mdns.Msg {
	t.Helper()
	c := mdns.Client{Net: network, Timeout: 10 * time.Second}
	r, _, err := c.Exchange(m, at.String())
	if err != nil {
		t.Fatalf("asking for %v by %s: %v", m.Question, network, err)
	}
	return r
}

// brief is a reply in a line: code, flags, answers, authority.
func brief(r *mdns.Msg) string {
	words := []string{mdns.RcodeToString[r.Rcode]}
	if r.Authoritative {
		words = append(words, "aa")
	}
	if r.RecursionAvailable {
		words = append(words, "ra")
	}
	for _, rr := range r.Answer {
		words = append(words, strings.Join(strings.Fields(rr.String()), " "))
	}
	for _, rr := range r.Ns {
		words = append(words, "+"+mdns.TypeToString[rr.Header().Rrtype])
	}
	return strings.Join(words, " | ")
}

func TestAnswers(t *testing.T) {
	at := serve(t)
	for _, tt := range []struct {
		name string
		kind uint16
		want string
	}{
		{"web.vm.", mdns.TypeA, "NOERROR | aa | web.vm. 0 IN A 172.16.0.2"},
		{"WeB.vM.", mdns.TypeA, "NOERROR | aa | WeB.vM. 0 IN A 172.16.0.2"},
		{"web.vm.", mdns.TypeAAAA, "NOERROR | aa | +SOA"},
		{"web.vm.", mdns.TypeMX, "NOERROR | aa | +SOA"},
		{"web.vm.", mdns.TypeANY, "NOERROR | aa | +SOA"},
		{"nobody.vm.", mdns.TypeA, "NXDOMAIN | aa | +SOA"},
		{"nobody.vm.", mdns.TypeAAAA, "NXDOMAIN | aa | +SOA"},
		{"a.web.vm.", mdns.TypeA, "NXDOMAIN | aa | +SOA"},
		{`we\.b.vm.`, mdns.TypeA, "NXDOMAIN | aa | +SOA"},
		{"vm.", mdns.TypeSOA, "NOERROR | aa | vm. 0 IN SOA localhost. root.localhost. 1 3600 600 86400 0"},
		{"vm.", mdns.TypeNS, "NOERROR | aa | vm. 0 IN NS localhost."},
		{"vm.", mdns.TypeA, "NOERROR | aa | +SOA"},
		{"2.0.16.172.in-addr.arpa.", mdns.TypePTR, "NOERROR | aa | 2.0.16.172.in-addr.arpa. 0 IN PTR web.vm."},
		{"2.0.16.172.in-addr.arpa.", mdns.TypeA, "NOERROR | aa | +SOA"},
		{"3.0.16.172.in-addr.arpa.", mdns.TypePTR, "NXDOMAIN | aa | +SOA"},
		{"2.1.16.172.in-addr.arpa.", mdns.TypePTR, "REFUSED"},
		{"0.16.172.in-addr.arpa.", mdns.TypePTR, "REFUSED"},
		{"x.0.16.172.in-addr.arpa.", mdns.TypePTR, "REFUSED"},
		{".", mdns.TypeNS, "REFUSED"},
		{"com.", mdns.TypeNS, "REFUSED"},
		{"example.com.", mdns.TypeA, "REFUSED"},
		{"webvm.", mdns.TypeA, "REFUSED"},
		{"web.vm.example.com.", mdns.TypeA, "REFUSED"},
		{"vm.", mdns.TypeAXFR, "NOERROR | aa | +SOA"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			m := new(mdns.Msg).SetQuestion(tt.name, tt.kind)
			if tt.kind == mdns.TypeAXFR && network == "udp" {
				continue // a zone transfer is asked for by TCP
			}
			if got := brief(ask(t, network, at, m)); got != tt.want {
				t.Errorf("%s %s by %s: %s\nwant %s", tt.name, mdns.TypeToString[tt.kind], network, got, tt.want)
			}
		}
	}
}

func TestOddQuestions(t *testing.T) {
	at := serve(t)
	question := func(change func(*mdns.Msg)) *mdns.Msg {
		m := new(mdns.Msg).SetQuestion("web.vm.", mdns.TypeA)
		change(m)
		return m
	}
	for _, tt := range []struct {
		name string
		m    *mdns.Msg
		want string
	}{
		{"class CHAOS", question(func(m *mdns.Msg) { m.Question[0].Qclass = mdns.ClassCHAOS }), "REFUSED"},
		{"class ANY", question(func(m *mdns.Msg) { m.Question[0].Qclass = mdns.ClassANY }), "REFUSED"},
		{"notify", question(func(m *mdns.Msg) { m.Opcode = mdns.OpcodeNotify }), "REFUSED"},
		{"update", question(func(m *mdns.Msg) { m.Opcode = mdns.OpcodeUpdate }), "NOTIMP"},
		{"two questions", question(func(m *mdns.Msg) { m.Question = append(m.Question, m.Question[0]) }), "FORMERR"},
		// 16 is BADVERS here; the library has another name for the number.
		{"EDNS version 1", question(func(m *mdns.Msg) { m.SetEdns0(4096, false); m.IsEdns0().SetVersion(1) }), "BADSIG"},
		{"no recursion", question(func(m *mdns.Msg) { m.RecursionDesired = false }), "NOERROR | aa | web.vm. 0 IN A 172.16.0.2"},
	} {
		if got := brief(ask(t, "udp", at, tt.m)); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	r := ask(t, "udp", at, question(func(m *mdns.Msg) { m.SetEdns0(4096, true) }))
	if opt := r.IsEdns0(); opt == nil || opt.UDPSize() > 1232 {
		t.Errorf("EDNS in the answer is %v, want a size of at most 1232", opt)
	}
	if r := ask(t, "udp", at, question(func(*mdns.Msg) {})); r.IsEdns0() != nil {
		t.Error("EDNS in an answer to a question without")
	}
}

// largest is what an answer may have where twice the question is less: a SOA.
const largest = 128

// TestBadPackets sends what is no question. The server answers the next good
// one, and multiplies nothing.
func TestBadPackets(t *testing.T) {
	at := serve(t)
	good, err := new(mdns.Msg).SetQuestion("web.vm.", mdns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	bad := [][]byte{{}, {0}, good[:11], good[:12], good[:len(good)-1]}
	for n := range good {
		b := append([]byte(nil), good...)
		b[n] ^= 0xff
		bad = append(bad, b)
	}
	loop := append(append([]byte(nil), good[:12]...), 0xc0, 12, 0, 1, 0, 1) // a name that points at itself
	reply := append([]byte(nil), good...)
	reply[2] |= 0x80
	long := append(append([]byte(nil), good...), make([]byte, 60000)...)
	bad = append(bad, loop, reply, long)
	c, err := net.Dial("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, b := range bad {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		// The good question after it carries an id of its own.
		binary.BigEndian.PutUint16(good, 0x4242)
		if _, err := c.Write(good); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		for buf := make([]byte, 65536); ; {
			n, err := c.Read(buf)
			if err != nil {
				t.Fatalf("after % x: %v", b[:min(len(b), 40)], err)
			}
			if n > max(largest, 2*len(b)) {
				t.Errorf("% x: an answer of %d bytes to %d", b[:min(len(b), 40)], n, len(b))
			}
			if binary.BigEndian.Uint16(buf) == 0x4242 {
				break
			}
		}
	}
	// Over TCP: a length that lies, an endless message, silence.
	for _, b := range [][]byte{{0xff}, {0, 2, 1}, append([]byte{0xff, 0xff}, make([]byte, 65535)...)} {
		c, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(b); err != nil {
			t.Errorf("writing % x: %v", b[:min(len(b), 3)], err)
		}
		c.Close()
	}
	if got := ask(t, "tcp", at, new(mdns.Msg).SetQuestion("web.vm.", mdns.TypeA)); len(got.Answer) != 1 {
		t.Errorf("by TCP afterwards: %s", brief(got))
	}
}

// TestTCPClientsAreLimited holds all connections that may be open, and sees the
// next one closed, and one more answered when they have gone.
func TestTCPClientsAreLimited(t *testing.T) {
	at := serve(t)
	good, err := new(mdns.Msg).SetQuestion("web.vm.", mdns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	good = append(binary.BigEndian.AppendUint16(nil, uint16(len(good))), good...)
	answered := func() (net.Conn, bool) {
		c, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = c.Write(good) // an error shows when reading
		_, err = io.ReadFull(c, make([]byte, 2))
		return c, err == nil
	}
	var open []net.Conn
	for i := range 64 {
		c, ok := answered()
		if open = append(open, c); !ok {
			t.Fatalf("connection %d was not answered", i)
		}
	}
	c, ok := answered()
	if c.Close(); ok {
		t.Error("connection 65 was answered")
	}
	for _, c := range open {
		c.Close()
	}
	for ok := false; !ok && t.Context().Err() == nil; { // each try waits for the server to close it
		c, ok = answered()
		c.Close()
	}
}

func TestListen(t *testing.T) {
	lookup := func(string) (netip.Addr, bool) { return web, true }
	for _, addr := range []string{"0.0.0.0:0", "192.0.2.1:5300"} {
		if _, err := dns.Listen(t.Context(), dns.Config{Lookup: lookup, Listen: netip.MustParseAddrPort(addr)}); err == nil {
			t.Errorf("Listen on %s succeeded, want only loopback addresses", addr)
		}
	}
	s, err := dns.Listen(t.Context(), dns.Config{Lookup: lookup, Zone: ".Test.Internal.", TTL: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dns.Listen(t.Context(), dns.Config{Lookup: lookup, Listen: s.Addr()}); err == nil {
		t.Error("Listen on a port that is taken succeeded")
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	got := brief(ask(t, "udp", s.Addr(), new(mdns.Msg).SetQuestion("any.test.internal.", mdns.TypeA)))
	if want := "NOERROR | aa | any.test.internal. 2 IN A 172.16.0.2"; got != want {
		t.Errorf("another zone: %s, want %s", got, want)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("Serve: %v", err)
	}
	// At once again on the same port, as after a restart.
	again, err := dns.Listen(t.Context(), dns.Config{Lookup: lookup, Listen: s.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop = context.WithCancel(t.Context())
	stop()
	if err := again.Serve(ctx); err != nil {
		t.Errorf("Serve with an ended context: %v", err)
	}
}

func FuzzServe(f *testing.F) {
	at := serve(f)
	c, err := net.Dial("udp", at.String())
	if err != nil {
		f.Fatal(err)
	}
	good, err := new(mdns.Msg).SetQuestion("web.vm.", mdns.TypeA).Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(append(good[:12:12], 0xc0, 12, 0, 1, 0, 1))
	var mu sync.Mutex
	f.Fuzz(func(t *testing.T, b []byte) {
		mu.Lock()
		defer mu.Unlock()
		if len(b) > 65000 || len(b) > 1 && binary.BigEndian.Uint16(b) == 0x4242 {
			return
		}
		_, _ = c.Write(b)
		binary.BigEndian.PutUint16(good, 0x4242)
		_, _ = c.Write(good)
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		for buf := make([]byte, 65536); ; {
			n, err := c.Read(buf)
			if err != nil {
				t.Fatalf("no answer: %v", err)
			}
			if n > max(largest, 2*len(b)) {
				t.Fatalf("an answer of %d bytes to %d", n, len(b))
			}
			if binary.BigEndian.Uint16(buf) == 0x4242 {
				return
			}
		}
	})
}
