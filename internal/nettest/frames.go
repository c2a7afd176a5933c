package nettest

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"banger/internal/rtnl"
)

// Ether is an Ethernet frame.
func Ether(dst, src rtnl.MAC, kind uint16, payload ...[]byte) []byte {
	b := binary.BigEndian.AppendUint16(append(dst[:], src[:]...), kind)
	return append(b, rtnl.Join(payload...)...)
}

// UDP is an IPv4 datagram with a text.
func UDP(src, dst netip.Addr, port uint16, text string) []byte {
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

// Asks are an ARP packet's two protocol addresses.
type Asks struct{ From, For netip.Addr }

// ARP says that a.From is at mac, and carries a text in its padding.
func ARP(op byte, mac rtnl.MAC, a Asks, text string) []byte {
	b := append([]byte{0, 1, 8, 0, 6, 4, 0, op}, mac[:]...)
	b = append(append(b, a.From.AsSlice()...), 0, 0, 0, 0, 0, 0)
	return append(append(b, a.For.AsSlice()...), text...)
}

// RA is an IPv6 router advertisement.
func RA(text string) []byte {
	body := append([]byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}, text...)
	b := append([]byte{0x60, 0, 0, 0, 0, byte(len(body)), unix.IPPROTO_ICMPV6, 255}, net.ParseIP("fe80::1")...)
	return append(append(b, net.ParseIP("ff02::1")...), body...)
}

// A Sender is the guest that sends frames: its addresses and those around it.
type Sender struct {
	Addr, Other, Gateway netip.Addr
	MAC, GatewayMAC      rtnl.MAC
}

// Spoofs are the kinds of frames that a guest must not be able to send, by what
// they pretend, each with a text in it.
func (g Sender) Spoofs(text string) map[string][]byte {
	// A is the sender, B its neighbour.
	addrA, addrB, gateway, macA, macHost := g.Addr, g.Other, g.Gateway, g.MAC, g.GatewayMAC
	macOther, broadcast := rtnl.MAC{0x02, 0xfc, 9, 9, 9, 9}, rtnl.MAC{255, 255, 255, 255, 255, 255}
	tag := func(id byte) []byte { return []byte{0, id} }
	ip4 := func(b []byte) []byte { return append([]byte{8, 0}, b...) }
	good := UDP(addrA, gateway, 9, text)
	return map[string][]byte{
		"another guest's address":      Ether(macHost, macA, 0x0800, UDP(addrB, gateway, 9, text)),
		"an address of the internet":   Ether(macHost, macA, 0x0800, UDP(netip.MustParseAddr("8.8.8.8"), gateway, 9, text)),
		"the bridge's own address":     Ether(macHost, macA, 0x0800, UDP(gateway, addrA, 9, text)),
		"another Ethernet address":     Ether(macHost, macOther, 0x0800, good),
		"ARP for the gateway":          Ether(broadcast, macA, 0x0806, ARP(2, macA, Asks{gateway, addrB}, text)),
		"ARP for another guest":        Ether(broadcast, macA, 0x0806, ARP(1, macA, Asks{addrB, gateway}, text)),
		"ARP with another inner MAC":   Ether(broadcast, macA, 0x0806, ARP(2, macOther, Asks{addrA, gateway}, text)),
		"ARP probe without an address": Ether(broadcast, macA, 0x0806, ARP(1, macA, Asks{netip.MustParseAddr("0.0.0.0"), addrB}, text)),
		"IPv6 router advertisement":    Ether(rtnl.MAC{0x33, 0x33, 0, 0, 0, 1}, macA, 0x86dd, RA(text)),
		"VLAN tag":                     Ether(macHost, macA, 0x8100, tag(7), ip4(good)),
		"priority tag, VLAN 0":         Ether(macHost, macA, 0x8100, tag(0), ip4(good)),
		"two VLAN tags":                Ether(macHost, macA, 0x88a8, tag(7), []byte{0x81, 0}, tag(8), ip4(good)),
		"DHCP":                         Ether(broadcast, macA, 0x0800, UDP(netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("255.255.255.255"), 67, text)),
		"spanning tree":                Ether(rtnl.MAC{1, 0x80, 0xc2, 0, 0, 0}, macA, 40, []byte{0x42, 0x42, 3}, []byte(text)),
		"LLDP":                         Ether(rtnl.MAC{1, 0x80, 0xc2, 0, 0, 0x0e}, macA, 0x88cc, []byte(text)),
		"an unknown protocol":          Ether(macHost, macA, 0x88b5, []byte(text)),
	}
}

// Honest is a datagram that a guest may send to its gateway.
func (g Sender) Honest(text string) []byte {
	return Ether(g.GatewayMAC, g.MAC, 0x0800, UDP(g.Addr, g.Gateway, 9, text))
}
