// Package hostnet is the host's side of the VMs' network: one bridge, a TAP
// for each VM, the packet filter that pins it, and its connections.
//
// It keeps nothing of its own. What a TAP is for is written on it as its alias,
// so that everything can be read back from the kernel, and mended, by a process
// that knows only the bridge's name and the guests' prefix. Who may have a
// network, and which address, is decided by others.
package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"banger/internal/crash"
	"banger/internal/nft"
	"banger/internal/rtnl"
	"banger/internal/undo"
)

// Refusals. Each leaves everything as it was.
var (
	ErrAddress = errors.New("no address for a guest") // outside the prefix, or the bridge's
	ErrInUse   = errors.New("in use")                 // the TAP has a holder, or another VM has the address
	ErrTaken   = errors.New("taken by somebody else") // the bridge's name, or its prefix
	ErrNone    = errors.New("no such VM on the network")
)

// A Network is the bridge and what hangs on it. Its methods may be called
// from several goroutines; one process at a time may use it.
type Network struct {
	Bridge string       // at most 12 bytes
	Prefix netip.Prefix // the guests' and, first in it, the bridge's addresses
	Nft    nft.Runner

	mu            sync.Mutex // one change at a time
	route, filter *rtnl.Conn
}

// Open changes nothing yet.
func Open(bridge string, prefix netip.Prefix) (*Network, error) {
	route, err := rtnl.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	filter, err := rtnl.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, errors.Join(err, route.Close())
	}
	return &Network{Bridge: bridge, Prefix: prefix.Masked(), Nft: nft.Exec{}, route: route, filter: filter}, nil
}

// TAP is the name of a VM's TAP: 15 bytes, the longest there is.
func TAP(id string) string { return "bvm" + id }

// MAC is the Ethernet address of the machine with an IPv4 address.
func MAC(addr netip.Addr) rtnl.MAC {
	a := addr.As4()
	return rtnl.MAC{0x02, 0xfc, a[0], a[1], a[2], a[3]}
}

// gateway is the bridge's own address.
func (n *Network) gateway() netip.Addr { return n.Prefix.Addr().Next() }

// Attach gives a VM its TAP, owned by uid. Nothing but frames from its own
// addresses leaves it: the pins are in place before the bridge is reached.
func (n *Network) Attach(ctx context.Context, id string, addr netip.Addr, uid uint32, nat bool) (err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.Prefix.Contains(addr) || addr.Compare(n.gateway()) <= 0 || !n.Prefix.Contains(addr.Next()) {
		return fmt.Errorf("attaching %s: %v in %v: %w", id, addr, n.Prefix, ErrAddress)
	}
	ports, _, err := n.ports()
	for _, p := range ports {
		if p.ID == id && p.Held || p.ID != id && p.Addr == addr {
			return fmt.Errorf("attaching %s: %s with %v: %w", id, TAP(p.ID), p.Addr, ErrInUse)
		}
	}
	if err == nil {
		err = n.detach(ctx, id) // what was left when this was cut short
	}
	if err == nil {
		_, err = n.mend(ctx)
	}
	if err != nil {
		return err
	}
	var held undo.Stack
	defer held.OnError(&err)
	p := Port{ID: id, Addr: addr, NAT: nat}
	held.Push(func() error { return n.detach(context.WithoutCancel(ctx), id) })
	if err := n.allow(ctx, p); err != nil {
		return err
	}
	crash.Point("attach.pinned")
	if err := addTAP(TAP(id), uid); err != nil {
		return fmt.Errorf("making %s: %w", TAP(id), err)
	}
	crash.Point("attach.tap")
	links, err := n.route.Links()
	if p.index = link(links, TAP(id)).Index; err == nil {
		err = n.route.SetAlias(p.index, p.alias())
	}
	if err != nil {
		return fmt.Errorf("labelling %s: %w", TAP(id), err)
	}
	crash.Point("attach.labelled")
	return n.plug(p, link(links, n.Bridge))
}

// allow pins a VM in the filter, and lets it pass the host's own if it may go
// beyond the host.
func (n *Network) allow(ctx context.Context, p Port) error {
	if _, err := n.Nft.Run(ctx, nft.Set(p.pin())); err != nil {
		return fmt.Errorf("pinning %s: %w", TAP(p.ID), err)
	}
	return n.beside(ctx, []Port{p})
}

// plug puts a TAP on the bridge and, last, switches it on.
func (n *Network) plug(p Port, bridge rtnl.Link) error {
	err := n.route.SetMaster(p.index, bridge.Index)
	if err == nil {
		err = n.route.Restrict(p.index, MAC(p.Addr))
	}
	if err == nil {
		crash.Point("attach.plugged")
		err = n.route.NoIPv6(p.index)
	}
	if err == nil {
		err = n.route.SetUp(p.index, true)
	}
	if err != nil {
		return fmt.Errorf("connecting %s to %s: %w", TAP(p.ID), n.Bridge, err)
	}
	return nil
}

// Detach removes a VM's TAP, pins and connections, from whatever state. The
// TAP goes last: until then it says which address is to be cleaned up.
func (n *Network) Detach(ctx context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.detach(ctx, id)
}

func (n *Network) detach(ctx context.Context, id string) error {
	ports, _, err := n.ports()
	pins, err2 := n.pins()
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	ports = slices.DeleteFunc(ports, func(p Port) bool { return p.ID != id })
	pins = slices.DeleteFunc(pins, func(p nft.Pin) bool { return p.Port != TAP(id) })
	for _, p := range ports {
		if err := n.route.SetUp(p.index, false); err != nil {
			return fmt.Errorf("switching off %s: %w", TAP(id), err)
		}
		if err := n.cut(p.Addr, true); err != nil {
			return err
		}
	}
	crash.Point("detach.down")
	for _, p := range pins {
		if _, err := n.Nft.Run(ctx, nft.Unset(p)); err != nil {
			return fmt.Errorf("removing the pins of %s: %w", TAP(id), err)
		}
		if err := n.cut(p.Addr, true); err != nil {
			return err
		}
	}
	crash.Point("detach.unpinned")
	for _, p := range ports {
		if err := n.route.DeleteLink(p.index); err != nil {
			return fmt.Errorf("deleting %s: %w", TAP(id), err)
		}
	}
	return nil
}

// Policy says whether a VM may go beyond the host. What it loses ends at once,
// connections included; the host's own connections to it go on.
func (n *Network) Policy(ctx context.Context, id string, addr netip.Addr, nat bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	ports, _, err := n.ports()
	ports = slices.DeleteFunc(ports, func(p Port) bool { return p.ID != id || p.Addr != addr })
	if err != nil || len(ports) == 0 {
		return fmt.Errorf("finding %s: %w", TAP(id), errors.Join(err, ErrNone))
	}
	p := ports[0]
	p.NAT = nat
	if err := n.route.SetAlias(p.index, p.alias()); err != nil {
		return fmt.Errorf("labelling %s: %w", TAP(id), err)
	}
	crash.Point("policy.labelled")
	if err := n.allow(ctx, p); err != nil || nat {
		return err
	}
	crash.Point("policy.allowed")
	return n.cut(p.Addr, false)
}
