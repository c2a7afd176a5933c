package dns_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"banger/internal/dns"
	"banger/internal/testneed"
)

// BenchmarkBesideDnsmasq asks for a hundred names, from four clients with 32
// questions under way each, in turn us and dnsmasq with the same names, and
// prints the ratio of questions per second.
func BenchmarkBesideDnsmasq(b *testing.B) {
	hosts, hostsFile := map[string]netip.Addr{}, ""
	for i := range 100 {
		a := netip.AddrFrom4([4]byte{172, 16, 0, byte(i + 2)})
		hosts[fmt.Sprintf("vm%02d", i)] = a
		hostsFile += fmt.Sprintf("%v vm%02d.vm\n", a, i)
	}
	s, err := dns.Listen(b.Context(), dns.Config{Lookup: func(h string) (netip.Addr, bool) { a, ok := hosts[h]; return a, ok }})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	defer stop()
	go func() { _ = s.Serve(ctx) }() // ends with the benchmark
	theirs := dnsmasq(b, ctx, hostsFile)
	var ours, other time.Duration
	for b.Loop() {
		ours += load(b, s.Addr().String())
		other += load(b, theirs)
	}
	b.ReportMetric(float64(b.N*questions)/ours.Seconds(), "ours-q/s")
	b.ReportMetric(float64(b.N*questions)/other.Seconds(), "dnsmasq-q/s")
	b.ReportMetric(other.Seconds()/ours.Seconds(), "ratio")
}

// dnsmasq starts one on a loopback port, answering from a hosts file only.
func dnsmasq(b *testing.B, ctx context.Context, hosts string) string {
	b.Helper()
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	addr := l.LocalAddr().(*net.UDPAddr).AddrPort()
	l.Close()
	cmd := exec.CommandContext(ctx, testneed.Tool(b, "dnsmasq"), "--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null",
		"--addn-hosts=/dev/stdin", "--listen-address=127.0.0.1", "--bind-interfaces", fmt.Sprintf("--port=%d", addr.Port()), "--user=root")
	cmd.Stdin = strings.NewReader(hosts)
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = cmd.Wait() })
	for try := (&mdns.Client{Timeout: time.Second}); ; {
		if r, _, err := try.Exchange(new(mdns.Msg).SetQuestion("vm00.vm.", mdns.TypeA), addr.String()); err == nil && len(r.Answer) == 1 {
			return addr.String()
		}
		if ctx.Err() != nil {
			b.Fatal("dnsmasq does not answer")
		}
	}
}

const (
	questions = 80000
	clients   = 4
	underWay  = 32 // so that a socket buffer holds all
)

// load asks all questions and returns how long it took.
func load(b *testing.B, at string) time.Duration {
	b.Helper()
	var packets [][]byte
	for i := range 100 {
		p, err := new(mdns.Msg).SetQuestion(fmt.Sprintf("vm%02d.vm.", i), mdns.TypeA).Pack()
		if err != nil {
			b.Fatal(err)
		}
		packets = append(packets, p)
	}
	began := time.Now()
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			c, err := net.Dial("udp", at)
			if err != nil {
				b.Error(err)
				return
			}
			defer c.Close()
			buf := make([]byte, 512)
			sent, got := 0, 0
			for got < questions/clients {
				for ; sent < questions/clients && sent-got < underWay; sent++ {
					if _, err := c.Write(packets[sent%100]); err != nil {
						b.Error(err)
						return
					}
				}
				_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
				if _, err := c.Read(buf); err != nil {
					b.Errorf("after %d answers: %v", got, err)
					return
				}
				got++
			}
		})
	}
	all.Wait()
	return time.Since(began)
}
