package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/nft"
	"banger/internal/rtnl"
)

// State is what there is of the network.
type State struct {
	Bridge  int  // its interface index, new each time it is made; 0 if it is not there
	Carrier bool // without it systemd-resolved asks no server on the bridge
	Filter  bool // the filter is whole
	Ports   []Port
	Pins    []nft.Pin
}

// State looks, and changes nothing.
func (n *Network) State() (State, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	ports, bridge, err := n.ports()
	pins, err2 := n.pins()
	return State{bridge.Index, bridge.Carrier, n.whole(ports, pins), ports, pins}, errors.Join(err, err2)
}

// Census lists the VMs of which anything is on the network.
func (n *Network) Census(context.Context) (ids []string, err error) {
	s, err := n.State()
	for _, p := range s.Ports {
		ids = append(ids, p.ID)
	}
	for _, p := range s.Pins {
		ids = append(ids, strings.TrimPrefix(p.Port, TAP("")))
	}
	slices.Sort(ids)
	return slices.Compact(ids), err
}

// Repair makes what is missing and brings back what others have taken away,
// such as the filter after "nft flush ruleset" or the bridge, and says what it
// was. When nothing is amiss it starts no process, unless VMs with NAT stand
// beside the host's own forwarding rules: those are looked at.
func (n *Network) Repair(ctx context.Context) (mended []string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mend(ctx)
}

func (n *Network) mend(ctx context.Context) (mended []string, err error) {
	if made, err := n.makeBridge(); err != nil {
		return nil, fmt.Errorf("making %s: %w", n.Bridge, err)
	} else if made {
		mended = append(mended, "bridge "+n.Bridge)
	}
	ports, bridge, err := n.ports()
	pins, err2 := n.pins()
	if err := errors.Join(err, err2); err != nil {
		return mended, err
	}
	ports = slices.DeleteFunc(ports, func(p Port) bool { return !p.Addr.IsValid() }) // Attach makes those anew
	if !n.whole(ports, pins) {
		pins = nil
		for _, p := range ports {
			pins = append(pins, p.pin())
		}
		if _, err := n.Nft.Run(ctx, nft.Load(n.Bridge, n.Prefix, pins)); err != nil {
			return mended, fmt.Errorf("loading the packet filter: %w", err)
		}
		mended = append(mended, "packet filter")
	}
	for _, p := range ports {
		if p.Ready {
			continue
		}
		if err := n.plug(p, bridge); err != nil {
			return mended, err
		}
		mended = append(mended, "port "+TAP(p.ID))
	}
	return mended, n.beside(ctx, ports)
}

// Dummy is the name of the bridge's port that is always on.
func (n *Network) Dummy() string { return n.Bridge + "-up" }

// Ours tells the bridge from somebody else's by its Ethernet address.
func (n *Network) Ours(l rtnl.Link) bool {
	return l.Name == n.Bridge && l.Kind == "bridge" && l.MAC == MAC(n.gateway())
}

// makeBridge makes the bridge, its address and its dummy port, as far as they
// are missing. That it is up says that all is done.
func (n *Network) makeBridge() (made bool, err error) {
	_, b, err := n.ports()
	switch {
	case err != nil || n.Ours(b) && b.Up:
		return false, err
	case b.Index == 0:
		err = n.addBridge()
	case !n.Ours(b):
		err = fmt.Errorf("an interface of this name is there: %w", ErrTaken)
	}
	if err != nil {
		return false, err
	}
	// A port that is always on gives carrier without a VM. A kernel that has no
	// dummy links does without: names are asked for when there are VMs.
	mac := MAC(n.gateway())
	mac[1]++
	if err = n.route.AddLink(n.Dummy(), "dummy", mac); errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EOPNOTSUPP) {
		err = nil
	}
	links, err2 := n.route.Links()
	b, d := link(links, n.Bridge), link(links, n.Dummy())
	if err = errors.Join(err, err2); err == nil && d.Index != 0 {
		err = errors.Join(n.route.SetMaster(d.Index, b.Index), n.route.NoIPv6(d.Index), n.route.SetUp(d.Index, true))
	}
	err = errors.Join(err, n.route.NoIPv6(b.Index), n.route.AddAddr(b.Index, netip.PrefixFrom(n.gateway(), n.Prefix.Bits())))
	if err == nil {
		err = n.route.SetUp(b.Index, true)
	}
	return err == nil, err
}

func (n *Network) addBridge() error {
	routes, err := n.route.Routes()
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(routes, n.Prefix.Overlaps); i >= 0 {
		return fmt.Errorf("%v meets the route to %v: %w", n.Prefix, routes[i], ErrTaken)
	}
	return n.route.AddLink(n.Bridge, "bridge", MAC(n.gateway()))
}
