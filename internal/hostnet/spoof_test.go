package hostnet_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/hostnet"
	"banger/internal/nettest"
	"banger/internal/rtnl"
)

const marker, fence = "spoofed-frame", "the-last-frame"

var (
	broadcast = rtnl.MAC{255, 255, 255, 255, 255, 255}
	macA      = hostnet.MAC(addrA)
	macB      = hostnet.MAC(addrB)
	macHost   = hostnet.MAC(gateway)
	macOther  = rtnl.MAC{0x02, 0xfc, 9, 9, 9, 9}
)

func ether(dst, src rtnl.MAC, kind uint16, payload ...[]byte) []byte {
	b := binary.BigEndian.AppendUint16(append(dst[:], src[:]...), kind)
	return append(b, rtnl.Join(payload...)...)
}

// udp is an IPv4 datagram with a text.
func udp(src, dst netip.Addr, port uint16, text string) []byte {
	n := 28 + len(text)
	b := []byte{0x45, 0, byte(n >> 8), byte(n), 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum+sum>>16))
	b = binary.BigEndian.AppendUint16(b, 68)
	b = binary.BigEndian.AppendUint16(b, port)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(text)))
	return append(append(b, 0, 0), text...)
}

// arp says that addr is at mac, and carries a text in its padding.
func arp(op byte, mac rtnl.MAC, addr, target netip.Addr, text string) []byte {
	b := append([]byte{0, 1, 8, 0, 6, 4, 0, op}, mac[:]...)
	b = append(append(b, addr.AsSlice()...), 0, 0, 0, 0, 0, 0)
	return append(append(b, target.AsSlice()...), text...)
}

// ra is an IPv6 router advertisement.
func ra(text string) []byte {
	body := append([]byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}, text...)
	b := append([]byte{0x60, 0, 0, 0, 0, byte(len(body)), unix.IPPROTO_ICMPV6, 255}, net.ParseIP("fe80::1")...)
	return append(append(b, net.ParseIP("ff02::1")...), body...)
}

// spoofs are the kinds of frames that the VM A must not be able to send.
func spoofs() map[string][]byte {
	tag := func(id byte) []byte { return []byte{0, id} }
	ip4 := func(b []byte) []byte { return append([]byte{8, 0}, b...) }
	good := udp(addrA, gateway, 9, marker)
	return map[string][]byte{
		"another guest's address":      ether(macHost, macA, 0x0800, udp(addrB, gateway, 9, marker)),
		"an address of the internet":   ether(macHost, macA, 0x0800, udp(netip.MustParseAddr("8.8.8.8"), gateway, 9, marker)),
		"the bridge's own address":     ether(macHost, macA, 0x0800, udp(gateway, addrA, 9, marker)),
		"another Ethernet address":     ether(macHost, macOther, 0x0800, good),
		"ARP for the gateway":          ether(broadcast, macA, 0x0806, arp(2, macA, gateway, addrB, marker)),
		"ARP for another guest":        ether(broadcast, macA, 0x0806, arp(1, macA, addrB, gateway, marker)),
		"ARP with another inner MAC":   ether(broadcast, macA, 0x0806, arp(2, macOther, addrA, gateway, marker)),
		"ARP probe without an address": ether(broadcast, macA, 0x0806, arp(1, macA, netip.MustParseAddr("0.0.0.0"), addrB, marker)),
		"IPv6 router advertisement":    ether(rtnl.MAC{0x33, 0x33, 0, 0, 0, 1}, macA, 0x86dd, ra(marker)),
		"VLAN tag":                     ether(macHost, macA, 0x8100, tag(7), ip4(good)),
		"priority tag, VLAN 0":         ether(macHost, macA, 0x8100, tag(0), ip4(good)),
		"two VLAN tags":                ether(macHost, macA, 0x88a8, tag(7), []byte{0x81, 0}, tag(8), ip4(good)),
		"DHCP":                         ether(broadcast, macA, 0x0800, udp(netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("255.255.255.255"), 67, marker)),
		"spanning tree":                ether(rtnl.MAC{1, 0x80, 0xc2, 0, 0, 0}, macA, 40, []byte{0x42, 0x42, 3}, []byte(marker)),
		"LLDP":                         ether(rtnl.MAC{1, 0x80, 0xc2, 0, 0, 0x0e}, macA, 0x88cc, []byte(marker)),
		"an unknown protocol":          ether(macHost, macA, 0x88b5, []byte(marker)),
	}
}

// sniff counts the frames with the marker that arrive at a link of the host,
// until the fence does.
func sniff(t *testing.T, link string) (counted func(send func(text string) error) int64) {
	t.Helper()
	l, err := net.InterfaceByName(link)
	if err != nil {
		t.Fatal(err)
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, all)
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Index}); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "packets")
	t.Cleanup(func() { f.Close() })
	return count(t, func(buf []byte) ([]byte, error) { n, err := f.Read(buf); return buf[:max(n, 0)], err })
}

var fences atomic.Int64

// count reads frames with the marker until the fence comes. What it returns
// sends the fence, again and again, since a port forwards only some time after
// its TAP was opened, and then tells the number.
func count(t *testing.T, read func([]byte) ([]byte, error)) func(send func(text string) error) int64 {
	var n atomic.Int64
	done := make(chan struct{})
	last := fmt.Sprintf("%s-%d;", fence, fences.Add(1)) // one of its own, as late ones are still on their way
	go func() {
		defer close(done)
		for buf := make([]byte, 1<<16); ; {
			b, err := read(buf)
			if err != nil || bytes.Contains(b, []byte(last)) {
				return
			}
			if bytes.Contains(b, []byte(marker)) {
				n.Add(1)
			}
		}
	}()
	return func(send func(text string) error) int64 {
		for again := time.NewTicker(50 * time.Millisecond); ; {
			if err := send(last); err != nil {
				t.Fatal(err)
			}
			select {
			case <-done:
				again.Stop()
				return n.Load()
			case <-again.C:
			}
		}
	}
}

// toB returns a function that sends the fence from the host to B.
func toB(t *testing.T) func(text string) error {
	t.Helper()
	nettest.Run(t, "ip neigh replace 172.16.0.3 lladdr "+net6(macB)+" dev br-fc\n"+
		"ip link set "+hostnet.TAP(idB)+" txqueuelen 10000") // what passes must not be lost for want of room
	c, err := net.Dial("udp", "172.16.0.3:9")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return func(text string) error { _, err := c.Write([]byte(text)); return err }
}

// toHost returns a function that sends the fence from A to the host.
func toHost(a *nettest.Tap) func(text string) error {
	return func(text string) error {
		return a.Send(ether(macHost, macA, 0x0800, udp(addrA, gateway, 9, text)))
	}
}

// TestSpoofedFrames sends a thousand of each kind from A and counts them at
// the host, at B, and at the filter's own counter. None gets through; of a
// thousand honest ones, all do.
func TestSpoofedFrames(t *testing.T) {
	const each = 1000
	n := newNetwork(t)
	attach(t, n, idA, addrA, true)
	attach(t, n, idB, addrB, true)
	a, b := nettest.OpenTap(t, hostnet.TAP(idA)), nettest.OpenTap(t, hostnet.TAP(idB))
	sniff(t, "br-fc")(toHost(a))
	for name, frame := range spoofs() {
		atHost := sniff(t, "br-fc")
		before := drops(t)
		for range each {
			if err := a.Send(frame); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		after := drops(t)
		if got := atHost(toHost(a)); got != 0 {
			t.Errorf("%s: %d of %d frames reached the host", name, got, each)
		}
		// Frames to the bridge's own group addresses never enter it.
		if want := map[bool]int{true: 0, false: each}[frame[0] == 1 && frame[1] == 0x80 && frame[5] != 0]; after-before != want {
			t.Errorf("%s: the filter dropped %d frames, want %d", name, after-before, want)
		}
	}
	honest := sniff(t, "br-fc")
	for range each {
		if err := a.Send(ether(macHost, macA, 0x0800, udp(addrA, gateway, 9, marker))); err != nil {
			t.Fatal(err)
		}
	}
	if got := honest(toHost(a)); got != each {
		t.Errorf("%d of %d honest frames reached the host", got, each)
	}
	// What B got in all this time: the host sends it one frame, after which
	// nothing can be on its way.
	if got := count(t, b.Receive)(toB(t)); got != 0 {
		t.Errorf("%d frames reached B", got)
	}
}

// TestGuestToGuest sends honest frames from A straight to B, and takes one of
// the two walls away at a time.
func TestGuestToGuest(t *testing.T) {
	const each = 1000
	n := newNetwork(t)
	attach(t, n, idA, addrA, true)
	attach(t, n, idB, addrB, true)
	a, b := nettest.OpenTap(t, hostnet.TAP(idA)), nettest.OpenTap(t, hostnet.TAP(idB))
	fromHost := toB(t)
	count(t, b.Receive)(fromHost)
	sniff(t, "br-fc")(toHost(a))
	for _, tt := range []struct {
		walls  string
		passes bool
	}{
		{"", false},
		{"bridge link set dev " + hostnet.TAP(idA) + " isolated off", false},
		{"bridge link set dev " + hostnet.TAP(idA) + " isolated on\nnft flush chain bridge banger forward", false},
		{"bridge link set dev " + hostnet.TAP(idA) + " isolated off", true}, // so the test can see what passes
	} {
		nettest.Run(t, tt.walls)
		got := count(t, b.Receive)
		for range each {
			for _, frame := range [][]byte{
				ether(macB, macA, 0x0800, udp(addrA, addrB, 9, marker)),
				ether(broadcast, macA, 0x0806, arp(1, macA, addrA, addrB, marker)),
			} {
				if err := a.Send(frame); err != nil {
					t.Fatal(err)
				}
			}
		}
		// Some kernels suppress the broadcast even then.
		if got := got(fromHost); !tt.passes && got != 0 || tt.passes && got != each && got != 2*each {
			t.Errorf("after %q: %d frames reached B, want that they pass: %v", tt.walls, got, tt.passes)
		}
	}
}
