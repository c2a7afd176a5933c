package rtnl

import (
	"errors"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// A MAC is an Ethernet address.
type MAC [6]byte

// A Link is a network interface.
type Link struct {
	Index, Master int    // Master is the bridge that it is a port of, or 0
	Name, Kind    string // Kind is "bridge", "dummy", "tun"; empty for hardware
	Alias         string // a text that the kernel keeps with the link
	MAC           MAC
	Up, Carrier   bool // a TAP has carrier while a program holds its other end
}

// info is struct ifinfomsg.
func info(family byte, index int, flags, change uint32) []byte {
	b := ne.AppendUint32([]byte{family, 0, 0, 0}, uint32(index))
	return ne.AppendUint32(ne.AppendUint32(b, flags), change)
}

// number reads 32 bits; what is absent is 0.
func number(b []byte) int { return int(ne.Uint32(append(b[:len(b):len(b)], 0, 0, 0, 0))) }

// Links lists all interfaces.
func (c *Conn) Links() ([]Link, error) {
	replies, err := c.Do(unix.RTM_GETLINK, unix.NLM_F_DUMP, info(0, 0, 0, 0))
	var links []Link
	for _, r := range replies {
		flags, a := number(r[8:]), Attrs(r[unix.SizeofIfInfomsg:])
		str := func(b []byte) string { return strings.TrimRight(string(b), "\x00") }
		l := Link{
			Index: number(r[4:]), Master: number(a[unix.IFLA_MASTER]),
			Name: str(a[unix.IFLA_IFNAME]), Kind: str(Attrs(a[unix.IFLA_LINKINFO])[unix.IFLA_INFO_KIND]),
			Alias: str(a[unix.IFLA_IFALIAS]),
			Up:    flags&unix.IFF_UP != 0, Carrier: flags&unix.IFF_LOWER_UP != 0,
		}
		copy(l.MAC[:], a[unix.IFLA_ADDRESS])
		links = append(links, l)
	}
	return links, err
}

// AddLink makes an interface of a kind with an address of its own: a bridge
// without one would take that of a port, and change it as ports come and go.
func (c *Conn) AddLink(name, kind string, mac MAC) error {
	_, err := c.Do(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, info(0, 0, 0, 0), Text(unix.IFLA_IFNAME, name),
		Attr(unix.IFLA_ADDRESS, mac[:]), Attr(unix.IFLA_LINKINFO, Text(unix.IFLA_INFO_KIND, kind)))
	return err
}

// DeleteLink removes an interface.
func (c *Conn) DeleteLink(index int) error {
	_, err := c.Do(unix.RTM_DELLINK, 0, info(0, index, 0, 0))
	return err
}

// SetUp switches an interface on or off.
func (c *Conn) SetUp(index int, up bool) error {
	flags := map[bool]uint32{true: unix.IFF_UP}[up]
	_, err := c.Do(unix.RTM_NEWLINK, 0, info(0, index, flags, unix.IFF_UP))
	return err
}

// SetAlias keeps a text with an interface.
func (c *Conn) SetAlias(index int, alias string) error {
	_, err := c.Do(unix.RTM_NEWLINK, 0, info(0, index, 0, 0), Attr(unix.IFLA_IFALIAS, []byte(alias)))
	return err
}

// SetMaster makes an interface a port of a bridge.
func (c *Conn) SetMaster(index, bridge int) error {
	_, err := c.Do(unix.RTM_NEWLINK, 0, info(0, index, 0, 0), Attr(unix.IFLA_MASTER, ne.AppendUint32(nil, uint32(bridge))))
	return err
}

// NoIPv6 keeps the kernel from giving an interface a link-local address when
// it goes up. A kernel without IPv6 needs nothing.
func (c *Conn) NoIPv6(index int) error {
	none := Attr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{1}) // IN6_ADDR_GEN_MODE_NONE
	_, err := c.Do(unix.RTM_SETLINK, 0, info(0, index, 0, 0), Attr(unix.IFLA_AF_SPEC, Attr(unix.AF_INET6, none)))
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return nil
	}
	return err
}

// Restrict makes a port one with a hostile machine behind it: isolated ports
// reach the bridge but not each other. The bridge learns nothing from it and
// floods nothing to it, so it is told which address is there.
func (c *Conn) Restrict(port int, mac MAC) error {
	on, off := []byte{1}, []byte{0}
	if _, err := c.Do(unix.RTM_SETLINK, 0, info(unix.AF_BRIDGE, port, 0, 0), Attr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED,
		Attr(unix.IFLA_BRPORT_ISOLATED, on), Attr(unix.IFLA_BRPORT_NEIGH_SUPPRESS, on), Attr(unix.IFLA_BRPORT_LEARNING, off),
		Attr(unix.IFLA_BRPORT_UNICAST_FLOOD, off), Attr(unix.IFLA_BRPORT_MCAST_FLOOD, off))); err != nil {
		return err
	}
	ndm := ne.AppendUint32([]byte{unix.AF_BRIDGE, 0, 0, 0}, uint32(port))
	ndm = append(ne.AppendUint16(ndm, unix.NUD_NOARP|unix.NUD_REACHABLE), unix.NTF_MASTER, 0)
	_, err := c.Do(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, ndm, Attr(unix.NDA_LLADDR, mac[:]))
	return err
}

// AddAddr gives an interface an IPv4 address, and with it the route to its
// prefix once the interface is up.
func (c *Conn) AddAddr(index int, p netip.Prefix) error {
	msg := ne.AppendUint32([]byte{unix.AF_INET, byte(p.Bits()), 0, 0}, uint32(index))
	_, err := c.Do(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, msg, Attr(unix.IFA_LOCAL, p.Addr().AsSlice()))
	return err
}

// Routes lists the IPv4 destinations of the host, its own addresses among
// them, but not those of less than 8 bits: they stand for "everything else".
func (c *Conn) Routes() (routes []netip.Prefix, err error) {
	replies, err := c.Do(unix.RTM_GETROUTE, unix.NLM_F_DUMP, []byte{unix.AF_INET, 11: 0})
	for _, r := range replies {
		dst, ok := netip.AddrFromSlice(Attrs(r[unix.SizeofRtMsg:])[unix.RTA_DST])
		if ok && r[1] >= 8 {
			routes = append(routes, netip.PrefixFrom(dst, int(r[1])))
		}
	}
	return routes, err
}
