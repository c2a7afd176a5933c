// Package lease hands out guest addresses from one IPv4 prefix.
//
// A [Pool] remembers which VM holds which address, so a VM keeps its address
// across restarts. It knows nothing of bridges, TAPs or names, and saves
// nothing: callers write the address into the VM's row, and [Pool.Keep] it
// when they read the row again.
package lease

import (
	"fmt"
	"net/netip"
	"sync"

	"banger/internal/api"
)

// A Pool is a set of addresses, some of them held. Its methods may be called
// from several goroutines.
type Pool struct {
	prefix netip.Prefix

	mu   sync.Mutex // guards what follows
	held map[netip.Addr]string
	of   map[string]netip.Addr
	next netip.Addr // where the search begins: what was just given back rests
}

// New returns a pool over prefix. The network, gateway and broadcast addresses
// are never handed out.
func New(prefix netip.Prefix) *Pool {
	p := &Pool{prefix: prefix.Masked(), held: map[netip.Addr]string{}, of: map[string]netip.Addr{}}
	p.next = p.first()
	return p
}

func (p *Pool) first() netip.Addr { return p.prefix.Addr().Next().Next() } // .0 is the network, .1 the gateway

func (p *Pool) usable(a netip.Addr) bool {
	return p.prefix.Contains(a) && a.Compare(p.first()) >= 0 && p.prefix.Contains(a.Next())
}

// Take returns the address that the VM holds, choosing a free one on the first
// call.
func (p *Pool) Take(id string) (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a, ok := p.of[id]; ok {
		return a, nil
	}
	for a, wrapped := p.next, false; ; a = a.Next() {
		if !p.usable(a) {
			if wrapped || !p.usable(p.first()) {
				break
			}
			a, wrapped = p.first(), true
		}
		if _, taken := p.held[a]; !taken {
			p.held[a], p.of[id], p.next = id, a, a.Next()
			return a, nil
		}
	}
	return netip.Addr{}, &api.Error{
		Code: api.NoSpace,
		Msg:  fmt.Sprintf("all %d guest addresses of %v are held by VMs", len(p.held), p.prefix),
		Hint: "delete one with: banger vm delete NAME",
	}
}

// Keep gives a VM the address that its row says. It is a conflict if another
// has it, or if the pool's prefix is another by now.
func (p *Pool) Keep(id string, a netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.usable(a) {
		return &api.Error{Code: api.Conflict, Msg: fmt.Sprintf("the address %v of VM %s is not one of %v", a, id, p.prefix)}
	}
	if other, taken := p.held[a]; taken && other != id {
		return &api.Error{Code: api.Conflict, Msg: fmt.Sprintf("the address %v of VM %s is held by VM %s", a, id, other)}
	}
	if old, ok := p.of[id]; ok {
		delete(p.held, old)
	}
	p.held[a], p.of[id] = id, a
	return nil
}

// Drop gives a VM's address back, if it holds one.
func (p *Pool) Drop(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.held, p.of[id])
	delete(p.of, id)
}

// Choose offers a prefix for a host with these routes: wanted, or else the
// first /24 of the private ranges that meets none of them.
func Choose(wanted netip.Prefix, routes []netip.Prefix) (netip.Prefix, bool) {
	free := func(p netip.Prefix) bool {
		for _, r := range routes {
			if r.Overlaps(p) {
				return false
			}
		}
		return true
	}
	if free(wanted) {
		return wanted, true
	}
	for second := range 16 {
		for third := range 256 {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(16 + second), byte(third), 0}), 24)
			if free(p) {
				return p, true
			}
		}
	}
	for third := range 256 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 213, byte(third), 0}), 24)
		if free(p) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}
