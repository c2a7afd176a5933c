package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/nft"
	"banger/internal/rtnl"
)

// A Port is a TAP as it is found.
type Port struct {
	ID    string     // of the VM
	Addr  netip.Addr // invalid if making it was cut short
	NAT   bool
	Held  bool // a VMM has it open
	Ready bool // up, and on the bridge
	index int
}

func (p Port) pin() nft.Pin {
	return nft.Pin{Port: TAP(p.ID), MAC: MAC(p.Addr), Addr: p.Addr, Internet: p.NAT}
}

func (p Port) alias() string {
	return "banger " + p.Addr.String() + map[bool]string{true: " nat"}[p.NAT]
}

var tapName = regexp.MustCompile(`^bvm[0-9a-f]{12}$`)

// link finds a link; the zero Link if there is none.
func link(links []rtnl.Link, name string) (found rtnl.Link) {
	for _, l := range links {
		if l.Name == name {
			found = l
		}
	}
	return found
}

// ports lists the TAPs, and the bridge if it is there.
func (n *Network) ports() (ports []Port, bridge rtnl.Link, err error) {
	links, err := n.route.Links()
	bridge = link(links, n.Bridge)
	for _, l := range links {
		if !tapName.MatchString(l.Name) || l.Kind != "tun" {
			continue
		}
		p := Port{ID: l.Name[3:], index: l.Index, Held: l.Carrier, Ready: l.Up && l.Master == bridge.Index}
		addr, nat := strings.CutSuffix(strings.TrimPrefix(l.Alias, "banger "), " nat")
		p.Addr, _ = netip.ParseAddr(addr) // the zero Addr if this is not our alias
		p.NAT = nat && p.Addr.IsValid()
		ports = append(ports, p)
	}
	return ports, bridge, err
}

// addTAP makes a TAP that stays when this process has gone. It has one queue:
// whoever opens it next, with the right uid, is the only one.
func addTAP(name string, uid uint32) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
	if err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err == nil {
		err = unix.IoctlSetInt(fd, unix.TUNSETOWNER, int(uid))
	}
	if err == nil {
		err = unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)
	}
	return err
}

// tables asks nf_tables something, in the address family of a table.
func (n *Network) tables(request, flags uint16, family byte, attrs ...[]byte) ([][]byte, error) {
	return n.filter.Do(unix.NFNL_SUBSYS_NFTABLES<<8|request, flags, []byte{family, unix.NFNETLINK_V0, 0, 0}, rtnl.Join(attrs...))
}

// keys lists the elements of one of our sets; none if there is no such set.
func (n *Network) keys(family byte, set string) (keys [][]byte, err error) {
	replies, err := n.tables(unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, family,
		rtnl.Text(unix.NFTA_SET_ELEM_LIST_TABLE, nft.Table), rtnl.Text(unix.NFTA_SET_ELEM_LIST_SET, set))
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("reading the set %s: %w", set, err)
	}
	for _, r := range replies {
		rtnl.Each(rtnl.Attrs(r[4:])[unix.NFTA_SET_ELEM_LIST_ELEMENTS], func(_ uint16, element []byte) {
			key := rtnl.Attrs(element)[unix.NFTA_SET_ELEM_KEY]
			keys = append(keys, rtnl.Attrs(key)[unix.NFTA_DATA_VALUE])
		})
	}
	return keys, nil
}

// pins reads the filter's sets back. A key is a name of 16 bytes, an Ethernet
// address of 6 in 8, and an IPv4 address.
func (n *Network) pins() (pins []nft.Pin, err error) {
	source, err := n.keys(unix.NFPROTO_BRIDGE, nft.Source)
	internet, err2 := n.keys(unix.NFPROTO_INET, nft.Internet)
	for _, k := range source {
		if len(k) != 28 {
			return nil, fmt.Errorf("reading the set %s: a key of %d bytes", nft.Source, len(k))
		}
		pins = append(pins, nft.Pin{
			Port: strings.TrimRight(string(k[:16]), "\x00"), MAC: [6]byte(k[16:22]), Addr: netip.AddrFrom4([4]byte(k[24:])),
			Internet: slices.ContainsFunc(internet, func(a []byte) bool { return slices.Equal(a, k[24:]) }),
		})
	}
	return pins, errors.Join(err, err2)
}

// whole reports whether the filter has all its rules, and these ports' pins.
func (n *Network) whole(ports []Port, pins []nft.Pin) bool {
	arp, err := n.keys(unix.NFPROTO_BRIDGE, nft.Arp4)
	for name, family := range map[string]byte{"bridge": unix.NFPROTO_BRIDGE, "inet": unix.NFPROTO_INET} {
		rules, err := n.tables(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, family, rtnl.Text(unix.NFTA_RULE_TABLE, nft.Table))
		if err != nil || len(rules) != nft.Rules(name) {
			return false
		}
	}
	return err == nil && len(arp) == len(pins) &&
		!slices.ContainsFunc(ports, func(p Port) bool { return p.Addr.IsValid() && !slices.Contains(pins, p.pin()) })
}

// beside lets the bridge pass the host's own forwarding rules if one of the
// ports may go beyond the host, and if there is a table that holds such rules.
func (n *Network) beside(ctx context.Context, ports []Port) error {
	_, err := n.tables(unix.NFT_MSG_GETTABLE, 0, unix.NFPROTO_IPV4, rtnl.Text(unix.NFTA_TABLE_NAME, "filter"))
	if err != nil || !slices.ContainsFunc(ports, func(p Port) bool { return p.NAT }) {
		return ctx.Err()
	}
	return nft.Beside(ctx, n.Nft, n.Bridge)
}

// Messages and attributes of ctnetlink, linux/netfilter/nfnetlink_conntrack.h.
const (
	ctGet, ctDelete             = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1, unix.NFNL_SUBSYS_CTNETLINK<<8 | 2
	ctOriginal, ctReply, ctZone = 1, 2, 18 // in a message; in a tuple ctTupleIP, in it source and destination:
	ctTupleIP, ctSource, ctDest = 1, 1, 2
)

// cut makes the kernel forget the connections that a guest has begun and, with
// all, those that others have to it: the next packet of each is a stranger.
func (n *Network) cut(guest netip.Addr, all bool) error {
	ip4 := []byte{unix.AF_INET, unix.NFNETLINK_V0, 0, 0}
	replies, err := n.filter.Do(ctGet, unix.NLM_F_DUMP, ip4)
	for _, r := range replies {
		a := rtnl.Attrs(r[4:])
		original := rtnl.Attrs(rtnl.Attrs(a[ctOriginal])[ctTupleIP])
		reply := rtnl.Attrs(rtnl.Attrs(a[ctReply])[ctTupleIP])
		is := func(b []byte) bool { a, ok := netip.AddrFromSlice(b); return ok && a == guest }
		if !is(original[ctSource]) && !(all && (is(original[ctDest]) || is(reply[ctSource]))) {
			continue
		}
		which := rtnl.Attr(ctOriginal|unix.NLA_F_NESTED, a[ctOriginal])
		if zone, ok := a[ctZone]; ok {
			which = append(which, rtnl.Attr(ctZone, zone)...)
		}
		if _, e := n.filter.Do(ctDelete, 0, ip4, which); e != nil && !errors.Is(e, unix.ENOENT) {
			err = errors.Join(err, e)
		}
	}
	if err != nil {
		return fmt.Errorf("ending the connections of %v: %w", guest, err)
	}
	return nil
}
