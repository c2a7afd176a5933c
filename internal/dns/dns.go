// Package dns answers for one zone, by default .vm, and for the addresses of
// one prefix: names of VMs that run, as a function of the caller's tells them.
//
// It keeps no names and follows none: whatever else it is asked it refuses. It
// is for this host only, so it listens on a loopback address.
package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Config configures a [Server]. Only Lookup is required.
type Config struct {
	Zone    string                               // "vm" if empty
	Listen  netip.AddrPort                       // 127.0.0.1 and any port if zero
	TTL     time.Duration                        // none if zero: VMs come and go
	Lookup  func(host string) (netip.Addr, bool) // host is in lower case; must not block
	Prefix  netip.Prefix                         // addresses that Reverse is asked for; none if zero
	Reverse func(addr netip.Addr) (host string, ok bool)
}

// A Server has its sockets; [Server.Serve] makes it answer.
type Server struct {
	c   Config
	udp net.PacketConn
	tcp net.Listener
}

// tcpClients is how many TCP connections may be open at a time; more are
// closed at once, so that nobody uses up the daemon's descriptors.
const tcpClients = 64

// maxMessage is what fits into a packet anywhere; our answers are far smaller.
const maxMessage = 1232

// Listen binds the UDP and the TCP socket to one port.
func Listen(ctx context.Context, c Config) (*Server, error) {
	c.Zone = strings.ToLower(dns.Fqdn(strings.Trim(c.Zone, ".")))
	if c.Zone == "." {
		c.Zone = "vm."
	}
	if !c.Listen.IsValid() {
		c.Listen = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)
	}
	if !c.Listen.Addr().IsLoopback() {
		return nil, fmt.Errorf("listening on %v: it is not a loopback address", c.Listen)
	}
	var lc net.ListenConfig
	for try := 0; ; try++ {
		udp, err := lc.ListenPacket(ctx, "udp", c.Listen.String())
		if err != nil {
			return nil, fmt.Errorf("binding the DNS server: %w", err)
		}
		tcp, err := lc.Listen(ctx, "tcp", udp.LocalAddr().String())
		if err == nil {
			return &Server{c: c, udp: udp, tcp: &limited{Listener: tcp, free: make(chan struct{}, tcpClients)}}, nil
		}
		// The port that the kernel chose for UDP may be taken for TCP.
		if udp.Close(); c.Listen.Port() != 0 || try == 9 {
			return nil, fmt.Errorf("binding the DNS server: %w", err)
		}
	}
}

// Addr is where the server listens.
func (s *Server) Addr() netip.AddrPort { return s.udp.LocalAddr().(*net.UDPAddr).AddrPort() }

// Serve answers until ctx ends, and then closes the sockets.
func (s *Server) Serve(ctx context.Context) error {
	udp := &dns.Server{PacketConn: s.udp, UDPSize: maxMessage, Handler: s}
	tcp := &dns.Server{Listener: s.tcp, Handler: s, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second}
	ended := make(chan error, 2)
	go func() { ended <- udp.ActivateAndServe() }()
	go func() { ended <- tcp.ActivateAndServe() }()
	var first error
	left := 2
	select {
	case <-ctx.Done():
	case first = <-ended:
		left--
	}
	// Shutdown ends what is being read; it refuses a server that has not begun,
	// which closing its socket ends.
	_, _ = udp.Shutdown(), tcp.Shutdown()
	errs := []error{first, s.udp.Close(), s.tcp.Close()}
	for range left {
		errs = append(errs, <-ended)
	}
	if ctx.Err() != nil {
		return nil // asked for; what closing said is of no interest
	}
	return errors.Join(errs...)
}

// ServeDNS answers one message. The library has refused replies, and what says
// that it has other than one question.
func (s *Server) ServeDNS(w dns.ResponseWriter, r *dns.Msg) {
	if len(r.Question) != 1 { // a header that promises one, and nothing after it
		_ = w.WriteMsg(new(dns.Msg).SetRcodeFormatError(r))
		return
	}
	a := new(dns.Msg).SetReply(r)
	a.Compress = true
	if opt := r.IsEdns0(); opt != nil {
		a.SetEdns0(maxMessage, false)
		if opt.Version() != 0 {
			a.Rcode = dns.RcodeBadVers
		}
	}
	if a.Rcode == dns.RcodeSuccess {
		s.answer(a, r)
	}
	_ = w.WriteMsg(a) // a client that has gone needs no answer
}

func (s *Server) answer(a, r *dns.Msg) {
	q := r.Question[0]
	name := strings.ToLower(q.Name)
	addr, isReverse := reverse(name)
	switch host, inZone := strings.CutSuffix(name, "."+s.c.Zone); {
	case r.Opcode != dns.OpcodeQuery || q.Qclass != dns.ClassINET:
		a.Rcode = dns.RcodeRefused
	case name == s.c.Zone:
		s.records(a, q, map[uint16]dns.RR{
			dns.TypeSOA: s.soa(q.Name),
			dns.TypeNS:  &dns.NS{Hdr: s.header(q.Name, dns.TypeNS), Ns: "localhost."},
		})
	case inZone:
		found, ok := s.c.Lookup(host)
		if !ok || !found.Is4() {
			a.Rcode = dns.RcodeNameError
		}
		s.records(a, q, map[uint16]dns.RR{
			dns.TypeA: &dns.A{Hdr: s.header(q.Name, dns.TypeA), A: found.AsSlice()},
		})
	case isReverse && s.c.Prefix.Contains(addr):
		found, ok := s.c.Reverse(addr)
		if !ok {
			a.Rcode = dns.RcodeNameError
		}
		s.records(a, q, map[uint16]dns.RR{
			dns.TypePTR: &dns.PTR{Hdr: s.header(q.Name, dns.TypePTR), Ptr: found + "." + s.c.Zone},
		})
	default:
		a.Rcode = dns.RcodeRefused
	}
}

// records puts what a name has of the type asked for into the answer, or else,
// if it has none or does not exist, what says how long that may be remembered.
func (s *Server) records(a *dns.Msg, q dns.Question, has map[uint16]dns.RR) {
	a.Authoritative = true
	if rr, ok := has[q.Qtype]; ok && a.Rcode == dns.RcodeSuccess {
		a.Answer = []dns.RR{rr}
		return
	}
	a.Ns = []dns.RR{s.soa(s.c.Zone)}
}

func (s *Server) header(name string, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: uint32(s.c.TTL / time.Second)}
}

func (s *Server) soa(name string) *dns.SOA {
	return &dns.SOA{Hdr: s.header(name, dns.TypeSOA), Ns: "localhost.", Mbox: "root.localhost.",
		Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: uint32(s.c.TTL / time.Second)}
}

// reverse reads a name such as 2.0.16.172.in-addr.arpa.
func reverse(name string) (netip.Addr, bool) {
	digits, ok := strings.CutSuffix(name, ".in-addr.arpa.")
	parts := strings.Split(digits, ".")
	if !ok || len(parts) != 4 {
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
	return addr, err == nil
}

// limited accepts so many connections at a time.
type limited struct {
	net.Listener
	free chan struct{}
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.free <- struct{}{}:
			return &counted{Conn: c, l: l}, nil
		default:
			c.Close()
		}
	}
}

type counted struct {
	net.Conn
	l *limited
}

// Close is called once by the library.
func (c *counted) Close() error {
	<-c.l.free
	return c.Conn.Close()
}
