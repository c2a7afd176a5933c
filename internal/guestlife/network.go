package guestlife

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/agentapi"
	"banger/internal/handover"
	"banger/internal/rtnl"
)

// network puts the guest on the host's network, and keeps what the image has for
// that purpose from doing it again: there is nobody to ask for an address.
func (l *life) network(n *agentapi.Net) error {
	if n == nil {
		return nil
	}
	c, err := rtnl.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("setting up the network: %w", err)
	}
	defer func() { _ = c.Close() }()
	links, err := c.Links()
	if err != nil {
		return fmt.Errorf("setting up the network: %w", err)
	}
	dev, err := device(links)
	if err == nil {
		err = configure(c, dev, *n)
	}
	if err != nil {
		return fmt.Errorf("setting up the network: %w", err)
	}
	return errors.Join(etc{}.resolver(n.DNS), etc{}.hands(dev, l.init == handover.InitSystemd))
}

// device is the one network device. PID 1 has loaded its driver.
func device(links []rtnl.Link) (dev rtnl.Link, err error) {
	for _, l := range links {
		if l.Kind != "" || l.MAC == (rtnl.MAC{}) { // made by software, or lo
			continue
		}
		if dev.Index != 0 {
			return dev, fmt.Errorf("there are two devices, %s and %s", dev.Name, l.Name)
		}
		dev = l
	}
	if dev.Index == 0 {
		return dev, errors.New("there is no device")
	}
	return dev, nil
}

// configure gives the device its address and routes. All of it may be there
// already: an agent that died before this one was told has done it.
func configure(c *rtnl.Conn, dev rtnl.Link, n agentapi.Net) error {
	if !n.Addr.Is4() || !n.Gateway.Is4() {
		return fmt.Errorf("%v by way of %v are no IPv4 addresses", n.Addr, n.Gateway)
	}
	// No IPv6: the host lets none pass, and a link-local address of the guest's
	// own would have programs wait for it. A kernel without it has no such file.
	off := "/proc/sys/net/ipv6/conf/" + dev.Name + "/disable_ipv6"
	if err := os.WriteFile(off, []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := c.AddAddr(dev.Index, netip.PrefixFrom(n.Addr, 32)); err != nil {
		return fmt.Errorf("giving %s the address %v: %w", dev.Name, n.Addr, err)
	}
	if err := c.SetUp(dev.Index, true); err != nil {
		return fmt.Errorf("switching on %s: %w", dev.Name, err)
	}
	oif := rtnl.Attr(unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(dev.Index)))
	src := rtnl.Attr(unix.RTA_PREFSRC, n.Addr.AsSlice())
	for _, r := range []struct {
		bits, scope byte
		flags       uint32
		to          []byte
	}{
		{32, unix.RT_SCOPE_LINK, 0, rtnl.Attr(unix.RTA_DST, n.Gateway.AsSlice())},
		{0, unix.RT_SCOPE_UNIVERSE, unix.RTNH_F_ONLINK, rtnl.Attr(unix.RTA_GATEWAY, n.Gateway.AsSlice())},
	} {
		msg := []byte{unix.AF_INET, r.bits, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, r.scope, unix.RTN_UNICAST}
		msg = binary.NativeEndian.AppendUint32(msg, r.flags)
		if _, err := c.Do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, msg, r.to, oif, src); err != nil {
			return fmt.Errorf("making a route by way of %v: %w", n.Gateway, err)
		}
	}
	return nil
}

// resolver names the resolvers. The file takes the place of a link that another
// program's file in /run would stand behind: systemd-resolved then takes it for
// its own upstream, and whoever asks without it is served from the first moment.
//
// Without resolvers nothing can be looked up, and this is to be seen at once: of
// an empty list a C library makes 127.0.0.1, where nobody listens; musl does not
// hear of that, and waits as long as is said here.
func (e etc) resolver(servers []netip.Addr) error {
	text := "# Written by banger at each start of the VM.\n"
	for _, s := range servers {
		text += "nameserver " + s.String() + "\n"
	}
	if len(servers) == 0 {
		text += "# The VM is kept in, so there is nobody to ask.\noptions timeout:1 attempts:1\n"
	}
	return e.write("/etc/resolv.conf", 0o644, []byte(text))
}

// hands keeps hands off the device: those of the programs that set up networks.
// Each is told in its own words, in /run, so that the image stays as it is. None
// is waited for to say that the network is there, which some would do for
// minutes and in vain.
func (e etc) hands(dev rtnl.Link, systemd bool) error {
	mac := net.HardwareAddr(dev.MAC[:]).String()
	var errs []error
	for _, p := range []struct{ has, file, text string }{
		{"/etc/systemd/network", "/run/systemd/network/00-banger.network", "[Match]\nMACAddress=" + mac + "\n[Link]\nUnmanaged=yes\n"},
		{"/etc/NetworkManager", "/run/NetworkManager/conf.d/99-banger.conf", "[main]\nrc-manager=unmanaged\n[device-banger]\nmatch-device=mac:" + mac + "\nmanaged=0\n"},
		// What Debian's ifup, and that of busybox and Alpine, have done already.
		{"/etc/network/interfaces", "/run/network/ifstate", dev.Name + "=" + dev.Name + "\n"},
		{"/etc/network/interfaces", "/run/network/ifstate." + dev.Name, dev.Name + "\n"},
		{"/etc/network/interfaces", "/run/ifstate", dev.Name + "=" + dev.Name + "\n"},
	} {
		if e.has(p.has) {
			errs = append(errs, e.write(p.file, 0o644, []byte(p.text)))
		}
	}
	for unit := range strings.FieldsSeq("systemd-networkd-wait-online NetworkManager-wait-online ifupdown-wait-online") {
		if !systemd || !e.has("/usr/lib/systemd/system/"+unit+".service") && !e.has("/lib/systemd/system/"+unit+".service") {
			continue
		}
		const dir = "/run/systemd/system.control"
		err := os.MkdirAll(e.path(dir), 0o755)
		if err == nil {
			err = os.Symlink("/dev/null", e.path(dir+"/"+unit+".service"))
		}
		if err != nil && !errors.Is(err, os.ErrExist) {
			errs = append(errs, fmt.Errorf("masking %s: %w", unit, err))
		}
	}
	return errors.Join(errs...)
}

func (e etc) has(p string) bool {
	_, err := os.Lstat(e.path(p))
	return err == nil
}
