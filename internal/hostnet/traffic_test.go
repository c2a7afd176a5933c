package hostnet_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/hostnet"
	"banger/internal/nettest"
)

// echo serves TCP and UDP on every address of the calling thread's namespace.
func echo(t *testing.T, port int) {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		t.Error(err)
		return
	}
	p, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
	if err != nil {
		t.Error(err)
		return
	}
	t.Cleanup(func() { l.Close(); p.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			go func() { _, _ = io.Copy(c, c) }() // ends with the test
		}
	}()
	go func() {
		for buf := make([]byte, 2048); ; {
			n, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = p.WriteTo(buf[:n], from) // the test sees what does not come back
		}
	}()
}

// patience is how long an answer may take; a drop is told from a slow machine
// by nothing else.
const (
	patience = 10 * time.Second
	briefly  = time.Second // where silence is what is expected
)

// try dials and exchanges one message. Its result is "ok", or why not.
func try(network string, to netip.Addr, port int) string {
	return tryFor(patience, network, to, port)
}

func tryFor(wait time.Duration, network string, to netip.Addr, port int) string {
	c, err := net.DialTimeout(network, netip.AddrPortFrom(to, uint16(port)).String(), wait)
	if err == nil {
		defer c.Close()
		err = exchange(c, wait)
	}
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES), errors.Is(err, unix.ECONNRESET):
		return "refused"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, unix.EAGAIN), err.(net.Error).Timeout():
		return "silence"
	}
	return err.Error()
}

func exchange(c net.Conn, wait time.Duration) error {
	_ = c.SetDeadline(time.Now().Add(wait))
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 5))
	return err
}

// TestReach is who reaches whom, over TCP and UDP, with and without NAT.
func TestReach(t *testing.T) {
	n := newNetwork(t)
	attach(t, n, idA, addrA, true)
	attach(t, n, idB, addrB, false)
	a, b := guest(t, idA, addrA), guest(t, idB, addrB)
	world := internet(t)
	for _, port := range []int{22, 53, 80} {
		echo(t, port)
		for _, s := range []*nettest.Space{a, b, world} {
			s.Do(func() { echo(t, port) })
		}
	}
	host := func(f func()) { f() }
	metadata := netip.MustParseAddr("169.254.169.254")
	for _, tt := range []struct {
		name string
		from func(func())
		to   netip.Addr
		port int
		want string
	}{
		{"host to A", host, addrA, 80, "ok"},
		{"host to B", host, addrB, 80, "ok"},
		{"A with NAT to the internet", a.Do, outside, 80, "ok"},
		{"A to a resolver on the host's network", a.Do, lan, 53, "ok"},
		{"A to the host's network", a.Do, lan, 80, "refused"},
		{"A to the cloud's metadata", a.Do, metadata, 80, "silence"},
		{"A to the cloud's resolver", a.Do, metadata, 53, "silence"},
		{"A to the bridge", a.Do, gateway, 22, "refused"},
		{"A to the bridge, DNS", a.Do, gateway, 53, "refused"},
		{"A to the host's outer address", a.Do, hostOut, 22, "refused"},
		{"A to the host's outer address, DNS", a.Do, hostOut, 53, "refused"},
		{"A to the host's link-local address", a.Do, netip.MustParseAddr("169.254.169.1"), 80, "refused"},
		{"A to B", a.Do, addrB, 80, "refused"},
		{"A to B, DNS", a.Do, addrB, 53, "refused"},
		{"B without NAT to the internet", b.Do, outside, 80, "refused"},
		{"B to a resolver", b.Do, lan, 53, "refused"},
		{"B to A", b.Do, addrA, 80, "refused"},
		{"B to the bridge", b.Do, gateway, 80, "refused"},
	} {
		for _, network := range []string{"tcp", "udp"} {
			tt.from(func() {
				wait := patience
				if tt.want == "silence" {
					wait = briefly
				}
				if got := tryFor(wait, network, tt.to, tt.port); got != tt.want {
					t.Errorf("%s, %s port %d: %s, want %s", tt.name, network, tt.port, got, tt.want)
				}
			})
		}
	}
	// From outside nobody reaches a guest, even with a route to it.
	world.Run("ip route add 172.16.0.0/24 via 203.0.113.1")
	world.Do(func() {
		if got := tryFor(briefly, "tcp", addrA, 80); got != "silence" {
			t.Errorf("the internet to A: %s, want silence", got)
		}
	})
}

// TestScan looks from a guest at every TCP port of the bridge's address, and at
// 4,096 and more of another address of the host's, while the host listens on
// some, on all addresses; and at IPv6.
func TestScan(t *testing.T) {
	n := newNetwork(t)
	attach(t, n, idA, addrA, true)
	a := guest(t, idA, addrA)
	internet(t)
	listening := []int{22, 53, 80, 443, 3000, 5355, 8080, 61000}
	for _, port := range listening {
		echo(t, port)
		if got := try("tcp", gateway, port); got != "ok" {
			t.Fatalf("the host to its own port %d: %s", port, got)
		}
	}
	for to, last := range map[netip.Addr]int{gateway: 65535, hostOut: 4096} {
		if open, refused := scan(a, to, last); len(open) != 0 || refused != last {
			t.Errorf("%v: open ports %v, %d refused; want none and %d", to, open, refused, last)
		}
		for _, port := range listening {
			for _, network := range []string{"tcp", "udp"} {
				a.Do(func() {
					if got := try(network, to, port); got != "refused" {
						t.Errorf("%v: %s port %d: %s, want refused", to, network, port, got)
					}
				})
			}
		}
	}
	if got := nettest.Run(t, "ip -6 -o addr show dev br-fc\nip -6 -o addr show dev "+hostnet.TAP(idA)); got != "" {
		t.Errorf("the bridge or the TAP has an IPv6 address:\n%s", got)
	}
	// Even if they had one: the guest's IPv6 frames end at its port.
	nettest.Run(t, "ip -6 addr add fe80::1/64 dev br-fc nodad")
	a.Run("ip -6 addr add fe80::2/64 dev eth0 nodad")
	a.Do(func() {
		for _, port := range listening {
			c, err := net.DialTimeout("tcp", fmt.Sprintf("[fe80::1%%eth0]:%d", port), briefly/2)
			if err == nil {
				c.Close()
				t.Errorf("port %d answers at the bridge's link-local address", port)
			}
		}
	})
}

// scan connects to the TCP ports up to last of an address, from many threads.
func scan(from *nettest.Space, to netip.Addr, last int) (open []int, refused int) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for w := range 16 {
		all.Go(func() {
			from.Do(func() {
				for port := 1 + w; port <= last; port += 16 {
					got := try("tcp", to, port)
					mu.Lock()
					if got == "refused" {
						refused++
					} else if got != "silence" {
						open = append(open, port)
					}
					mu.Unlock()
				}
			})
		})
	}
	all.Wait()
	slices.Sort(open)
	return open, refused
}

// TestPolicy opens connections, takes NAT away, and gives it back.
func TestPolicy(t *testing.T) {
	n := newNetwork(t)
	attach(t, n, idA, addrA, true)
	attach(t, n, idB, addrB, true)
	a, b := guest(t, idA, addrA), guest(t, idB, addrB)
	world := internet(t)
	world.Do(func() { echo(t, 80) })
	a.Do(func() { echo(t, 22) })
	outA, outB, in := dial(t, a.Do, outside, 80), dial(t, b.Do, outside, 80), dial(t, func(f func()) { f() }, addrA, 22)
	exchangeAll := func(when string, alive map[net.Conn]bool) {
		t.Helper()
		for c, want := range alive {
			if err := exchange(c, patience); (err == nil) != want {
				t.Errorf("%s: connection to %v: %v, want it alive: %v", when, c.RemoteAddr(), err, want)
			}
		}
	}
	exchangeAll("at first", map[net.Conn]bool{outA: true, outB: true, in: true})
	if err := n.Policy(t.Context(), idA, addrA, true); err != nil {
		t.Fatal(err)
	}
	exchangeAll("after no change", map[net.Conn]bool{outA: true, outB: true, in: true})
	if err := n.Policy(t.Context(), idA, addrA, false); err != nil {
		t.Fatal(err)
	}
	exchangeAll("after NAT was taken from A", map[net.Conn]bool{outA: false, outB: true, in: true})
	a.Do(func() {
		if got := try("tcp", outside, 80); got != "refused" {
			t.Errorf("A without NAT: %s, want refused", got)
		}
	})
	if err := n.Policy(t.Context(), idA, addrA, true); err != nil {
		t.Fatal(err)
	}
	again := dial(t, a.Do, outside, 80)
	if err := n.Detach(t.Context(), idB); err != nil {
		t.Fatal(err)
	}
	exchangeAll("after B was detached", map[net.Conn]bool{again: true, outB: false, in: true})
	if got := nettest.Run(t, "conntrack -L -f ipv4"); strings.Contains(got, addrB.String()) {
		t.Errorf("the kernel still knows connections of B:\n%s", got)
	}
}

func dial(t *testing.T, from func(func()), to netip.Addr, port int) (c net.Conn) {
	t.Helper()
	from(func() {
		var err error
		if c, err = net.DialTimeout("tcp", netip.AddrPortFrom(to, uint16(port)).String(), patience); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// TestBesideDocker has a FORWARD chain with the policy "drop", as Docker and
// ufw make it: only VMs with NAT need its leave, and nothing else gets it.
func TestBesideDocker(t *testing.T) {
	for name, docker := range map[string]bool{"ufw": false, "docker": true} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			world := internet(t)
			world.Do(func() { echo(t, 80) })
			nettest.Run(t, "iptables -P FORWARD DROP")
			t.Cleanup(func() {
				_ = exec.CommandContext(context.WithoutCancel(t.Context()), "nft", "delete table ip filter").Run()
			})
			if docker {
				nettest.Run(t, "iptables -N DOCKER-USER\niptables -A DOCKER-USER -j RETURN\niptables -A FORWARD -j DOCKER-USER")
			}
			before := nettest.Run(t, "iptables -S")
			attach(t, n, idA, addrA, false)
			if got := nettest.Run(t, "iptables -S"); got != before {
				t.Errorf("a VM without NAT changed the chains to\n%s", got)
			}
			a := guest(t, idA, addrA)
			for range 2 {
				if err := n.Policy(t.Context(), idA, addrA, true); err != nil {
					t.Fatal(err)
				}
			}
			reach := func(when, want string) {
				t.Helper()
				a.Do(func() {
					wait := patience
					if want == "silence" {
						wait = briefly
					}
					if got := tryFor(wait, "tcp", outside, 80); got != want {
						t.Errorf("%s: %s, want %s", when, got, want)
					}
				})
			}
			reach("with the accept rules", "ok")
			rules := nettest.Run(t, "iptables -S")
			if got := strings.Count(rules, "--comment banger -j ACCEPT"); got != 2 {
				t.Errorf("%d accept rules, want 2:\n%s", got, rules)
			}
			nettest.Run(t, "iptables -F "+map[bool]string{true: "DOCKER-USER", false: "FORWARD"}[docker])
			reach("after the chain was made anew", "silence")
			if _, err := n.Repair(t.Context()); err != nil {
				t.Fatal(err)
			}
			reach("after Repair", "ok")
			if err := n.Policy(t.Context(), idA, addrA, false); err != nil {
				t.Fatal(err)
			}
			reach("without NAT", "refused")
		})
	}
}
