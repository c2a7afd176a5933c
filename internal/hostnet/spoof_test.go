package hostnet_test

import (
	"bytes"
	"fmt"
	"net"
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
)

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
		return a.Send(nettest.Ether(macHost, macA, 0x0800, nettest.UDP(addrA, gateway, 9, text)))
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
	from := nettest.Sender{Addr: addrA, Other: addrB, Gateway: gateway, MAC: macA, GatewayMAC: macHost}
	for name, frame := range from.Spoofs(marker) {
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
		if err := a.Send(nettest.Ether(macHost, macA, 0x0800, nettest.UDP(addrA, gateway, 9, marker))); err != nil {
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
				nettest.Ether(macB, macA, 0x0800, nettest.UDP(addrA, addrB, 9, marker)),
				nettest.Ether(broadcast, macA, 0x0806, nettest.ARP(1, macA, nettest.Asks{From: addrA, For: addrB}, marker)),
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
