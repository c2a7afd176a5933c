//go:build lab

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/hostnet"
	"banger/internal/nettest"
)

// spoofEnv makes this program, in a guest, the one that sends frames: its value
// is the guest's address, its neighbour's and its gateway's.
const spoofEnv = "BANGER_E2E_SPOOF"

// Each frame that shall not pass has the first word in it, and the honest one that
// is sent after them the second.
const spoofed, honest = "a-spoofed-frame:", "an-honest-frame"

// spoofs is how many frames of a kind are sent.
const spoofs = 200

func init() {
	words := strings.Fields(os.Getenv(spoofEnv))
	if len(words) != 3 {
		return
	}
	if err := sendFrames(words[0], words[1], words[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// sender is the guest with these addresses.
func sender(addr, other, gateway string) nettest.Sender {
	a, b, g := netip.MustParseAddr(addr), netip.MustParseAddr(other), netip.MustParseAddr(gateway)
	return nettest.Sender{Addr: a, Other: b, Gateway: g, MAC: hostnet.MAC(a), GatewayMAC: hostnet.MAC(g)}
}

// sendFrames is what root can do in a guest.
func sendFrames(addr, other, gateway string) error {
	links, err := net.Interfaces()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(links, func(l net.Interface) bool { return l.Flags&net.FlagLoopback == 0 })
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil || i < 0 {
		return fmt.Errorf("opening the device: %w", err)
	}
	to := &unix.SockaddrLinklayer{Ifindex: links[i].Index}
	from := sender(addr, other, gateway)
	for kind, frame := range from.Spoofs(spoofed) {
		for range spoofs {
			if err := unix.Sendto(fd, frame, 0, to); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return fmt.Errorf("sending %s: %w", kind, err)
			}
		}
	}
	return unix.Sendto(fd, from.Honest(honest), 0, to)
}

// capture reads the frames of a link until one has text in it, or until it is
// told to stop, and then returns how many were spoofed.
func capture(t *testing.T, link string) (count func() int, passed <-chan struct{}) {
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
	if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Index})); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "frames of "+link)
	n, seen, ended := 0, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		var once sync.Once
		for buf := make([]byte, 1<<16); ; {
			k, err := f.Read(buf)
			if err != nil {
				return
			}
			if bytes.Contains(buf[:k], []byte(spoofed)) {
				n++
			}
			if bytes.Contains(buf[:k], []byte(honest)) {
				once.Do(func() { close(seen) })
			}
		}
	}()
	return func() int { f.Close(); <-ended; return n }, seen
}

// Root in a guest sends frames of 16 kinds that pretend to be others': neither the
// host nor a neighbour sees one, and an honest one passes.
func TestLabSpoofedFrames(t *testing.T) {
	w := labWorld(t)
	a, b := w.vm(t), w.vm(t, "--nat")
	ma, mb := w.show(t, a), w.show(t, b)
	gateway := ma.Address.String()[:strings.LastIndexByte(ma.Address.String(), '.')] + ".1"
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w.must(t, "vm", "cp", self, a+":/root/sender")
	atHost, passed := capture(t, "br-fc")
	atNeighbour, _ := capture(t, hostnet.TAP(mb.ID))
	words := fmt.Sprintf("%s %s %s", ma.Address, mb.Address, gateway)
	w.must(t, "vm", "exec", "--env", spoofEnv+"="+words, a, "--", "/root/sender")
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	select {
	case <-passed:
	case <-ctx.Done():
		t.Error("the honest frame did not pass")
	}
	if n := atHost(); n != 0 {
		t.Errorf("%d spoofed frames reached the host", n)
	}
	if n := atNeighbour(); n != 0 {
		t.Errorf("%d spoofed frames reached the neighbour", n)
	}
	if dropped := root(t, "nft list chain bridge banger port"); !strings.Contains(dropped, "counter packets") || strings.Contains(dropped, "counter packets 0 ") {
		t.Errorf("the filter has dropped nothing:\n%s", dropped)
	}
}
