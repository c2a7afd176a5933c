// Package choice decides what goes into the install record: who owns it, which
// addresses the VMs get, and which Firecrackers may run them.
//
// It looks at the host and changes nothing. What was decided before is kept
// unless something else is asked for. How the record is put there is others'.
package choice

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"banger/internal/api"
	"banger/internal/install/record"
	"banger/internal/lease"
	"banger/internal/rootapi"
	"banger/internal/vmm/firecracker"

	"golang.org/x/net/publicsuffix"
)

// What a record has if nothing else is asked for.
const (
	Prefix = "172.16.0.0/24"
	Bridge = "br-fc"
	Zone   = "vm"
)

// Wanted is what the user asks for; empty fields are chosen.
type Wanted struct {
	Owner        string   // a name or a uid
	Invoker      string   // who uses sudo: the owner if none is named and there was none
	Firecrackers []string // paths, in the order of the record
	Prefix       string
	Bridge       string
	Zone         string
}

// Host is the host as the decisions see it.
type Host struct {
	Before  *rootapi.Install // what was decided before, nil if nothing
	Account func(name string) (rootapi.Owner, error)
	Routes  func() ([]netip.Prefix, error)
	// Find looks for programs that may be a Firecracker; Trust refuses one that
	// others than root may replace, or that a jail cannot run; Version asks one,
	// which it has trusted, what it is.
	Find      func(name string) []string
	Trust     func(path string, inJail bool) (real string, err error)
	Version   func(ctx context.Context, path string) (firecracker.Version, error)
	OSRelease string
}

// A Choice is a record, and what is to be said about it.
type Choice struct {
	rootapi.Install
	Versions []firecracker.Version // of the record's programs
	Notes    []string
}

// Choose decides. What cannot be had is an *api.Error with its fix.
func Choose(ctx context.Context, w Wanted, h Host) (c Choice, err error) {
	if c.Owner, err = owner(w, h); err != nil {
		return c, err
	}
	before := cmp.Or(h.Before, &rootapi.Install{})
	c.Bridge = cmp.Or(w.Bridge, before.Bridge, Bridge)
	c.Zone = cmp.Or(strings.Trim(w.Zone, "."), before.Zone, Zone)
	if err := zone(strings.Trim(w.Zone, ".")); err != nil {
		return c, err
	}
	if err := c.prefix(w, h); err != nil {
		return c, err
	}
	if err := c.programs(ctx, w, h); err != nil {
		return c, err
	}
	if err := record.Check(c.Install); err != nil {
		return c, &api.Error{Code: api.Invalid, Msg: err.Error(), Hint: "see what may be chosen with: banger system install --help"}
	}
	return c, nil
}

// zone refuses one whose names the host needs: all that is in it comes to the
// VMs' server while a VM runs, which knows of nothing but VMs.
func zone(z string) error {
	why := ""
	switch suffix, public := publicsuffix.PublicSuffix("x." + z); {
	case z == "local":
		why = "is multicast DNS's (RFC 6762)"
	case z == "localhost":
		why = "is the host itself (RFC 6761)"
	case public && (suffix == z || suffix == "x."+z): // of some only what is below them
		why = "is one of the internet's"
	default:
		return nil
	}
	return &api.Error{Code: api.Invalid, Msg: fmt.Sprintf("--zone %s %s: its names would no longer be found", z, why), Hint: "such as: --zone " + Zone}
}

// owner finds the account, which stays the one that it was.
func owner(w Wanted, h Host) (o rootapi.Owner, err error) {
	name := w.Owner
	if name == "" && h.Before != nil {
		name = h.Before.Owner.Name
	}
	name = cmp.Or(name, w.Invoker)
	if name == "" {
		return o, &api.Error{Code: api.Invalid, Msg: "it is not known whose VMs they will be", Hint: "sudo banger system install --owner NAME"}
	}
	o, err = h.Account(name)
	if err != nil {
		return o, &api.Error{Code: api.NotFound, Msg: fmt.Sprintf("there is no account %q", name), Hint: "name yours: sudo banger system install --owner NAME", Err: err}
	}
	switch {
	case o.UID == 0:
		return o, &api.Error{Code: api.Invalid, Msg: "root cannot be the owner: what its VMs' daemon may do must be less than root may", Hint: "name an ordinary account: sudo banger system install --owner NAME"}
	case o.UID >= rootapi.FirstUID:
		return o, &api.Error{Code: api.Invalid, Msg: fmt.Sprintf("the uid %d of %s is among those that VMs get (from %d)", o.UID, o.Name, uint32(rootapi.FirstUID)), Hint: "name an account with a smaller uid: sudo banger system install --owner NAME"}
	case !strings.HasPrefix(o.Home, "/") || o.Home == "/":
		return o, &api.Error{Code: api.Invalid, Msg: fmt.Sprintf("%s has no home directory (%q)", o.Name, o.Home), Hint: "give the account one, or name another: sudo banger system install --owner NAME"}
	case h.Before != nil && h.Before.Owner.UID != o.UID:
		b := h.Before.Owner
		return o, &api.Error{Code: api.Conflict, Msg: fmt.Sprintf("banger is installed for %s (uid %d), not for %s", b.Name, b.UID, o.Name),
			Hint: "to keep it so: sudo banger system install --owner " + b.Name + "; to give it away, which deletes the VMs: sudo banger system uninstall --purge"}
	}
	return o, nil
}

// prefix keeps the one that there was, takes the one that is asked for if the
// host has no route into it, or else one that is free.
func (c *Choice) prefix(w Wanted, h Host) error {
	wanted, err := netip.ParsePrefix(cmp.Or(w.Prefix, Prefix))
	if err != nil {
		return &api.Error{Code: api.Invalid, Msg: fmt.Sprintf("--prefix %s is not an IPv4 prefix", w.Prefix), Hint: "such as: --prefix " + Prefix}
	}
	if b := h.Before; b != nil && (w.Prefix == "" || wanted == b.Prefix) {
		c.Prefix = b.Prefix
		return nil
	}
	routes, err := h.Routes()
	if err != nil {
		return fmt.Errorf("looking at the host's routes: %w", err)
	}
	if h.Before != nil { // the bridge's own are no obstacle
		routes = slices.DeleteFunc(routes, func(r netip.Prefix) bool {
			return r.Bits() >= h.Before.Prefix.Bits() && h.Before.Prefix.Overlaps(r)
		})
	}
	free, ok := lease.Choose(wanted, routes)
	switch {
	case ok && free == wanted:
	case !ok:
		return &api.Error{Code: api.Conflict, Msg: fmt.Sprintf("the host has routes into %v and into all other private networks that banger tries", wanted), Hint: "name a free one: --prefix 10.200.0.0/24"}
	case w.Prefix != "":
		return &api.Error{Code: api.Conflict, Msg: fmt.Sprintf("the host has a route into %v: %v", wanted, meets(wanted, routes)), Hint: fmt.Sprintf("this one is free: --prefix %v", free)}
	default:
		c.Notes = append(c.Notes, fmt.Sprintf("the host has a route into %v (%v), so the VMs get %v", wanted, meets(wanted, routes), free))
	}
	c.Prefix = free
	return nil
}

func meets(p netip.Prefix, routes []netip.Prefix) netip.Prefix {
	i := slices.IndexFunc(routes, p.Overlaps)
	return routes[i]
}

// programs finds the Firecrackers: all that are named, which must be good; or
// those of before that still are; or those that the host has.
func (c *Choice) programs(ctx context.Context, w Wanted, h Host) error {
	for _, path := range w.Firecrackers {
		p, v, err := program(ctx, path, h)
		if err != nil {
			return &api.Error{Code: api.Unsupported, Msg: err.Error(), Hint: hint(h)}
		}
		c.add(p, v)
	}
	var reasons []string
	try := func(paths []string) {
		for _, path := range paths {
			p, v, err := program(ctx, path, h)
			if err != nil {
				reasons = append(reasons, err.Error())
				continue
			}
			c.add(p, v)
		}
	}
	if len(c.Programs) == 0 && h.Before != nil {
		var paths []string
		for _, p := range h.Before.Programs {
			paths = append(paths, p.Firecracker)
		}
		try(paths)
	}
	if len(c.Programs) == 0 {
		try(h.Find(firecracker.Program))
	}
	if len(c.Programs) == 0 {
		return &api.Error{Code: api.Missing, Msg: "there is no Firecracker that banger can use",
			Detail: strings.Join(reasons, "\n"), Hint: hint(h)}
	}
	for _, r := range reasons {
		c.Notes = append(c.Notes, "not used: "+r)
	}
	return nil
}

func (c *Choice) add(p rootapi.Program, v firecracker.Version) {
	if !slices.Contains(c.Programs, p) {
		c.Programs, c.Versions = append(c.Programs, p), append(c.Versions, v)
	}
}

// program looks at one Firecracker and finds its jailer. It is asked for its
// version only when it is known to be root's.
func program(ctx context.Context, path string, h Host) (p rootapi.Program, v firecracker.Version, err error) {
	if p.Firecracker, err = h.Trust(path, true); err != nil {
		return p, v, err
	}
	if v, err = h.Version(ctx, p.Firecracker); err != nil {
		return p, v, err
	}
	if firecracker.Window(v) == firecracker.Below {
		return p, v, fmt.Errorf("%s is version %v, and banger needs at least %s", path, v, firecracker.MinSupportedVersion)
	}
	if !rootapi.PlainPath(p.Firecracker) {
		return p, v, fmt.Errorf("using %q: there are unusual characters in its name", p.Firecracker)
	}
	var reasons []string
	for _, jailer := range jailers(path, p.Firecracker, h) {
		if p.Jailer, err = h.Trust(jailer, false); err == nil && rootapi.PlainPath(p.Jailer) {
			return p, v, nil
		}
		if err != nil {
			reasons = append(reasons, err.Error())
		}
	}
	return p, v, fmt.Errorf("%s has no usable jailer beside it: %s", path, cmp.Or(strings.Join(slices.Compact(reasons), "; "), "there is none"))
}

// jailers are the places of a Firecracker's jailer: beside it, under the name
// that a release gives it or its plain one, and wherever the host has one.
func jailers(path, real string, h Host) (list []string) {
	add := func(p string) {
		if p != path && p != real && !slices.Contains(list, p) {
			list = append(list, p)
		}
	}
	for _, p := range []string{path, real} {
		dir, name := filepath.Split(p)
		add(dir + strings.Replace(name, firecracker.Program, "jailer", 1))
		add(dir + "jailer")
	}
	for _, p := range h.Find("jailer") {
		add(p)
	}
	return list
}

// hint says how to install both programs.
func hint(h Host) string {
	one := firecracker.InstallHint(h.OSRelease)
	if !strings.HasPrefix(one, "curl ") {
		return one + "; its jailer belongs beside it, both root's"
	}
	jailer := strings.NewReplacer("x86_64/firecracker-v", "x86_64/jailer-v", "bin/firecracker", "bin/jailer").Replace(one)
	return one + " && " + jailer
}
