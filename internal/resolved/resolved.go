// Package resolved has systemd-resolved send one zone's names, and no others,
// to our server: by the bridge's link, over the system bus.
//
// What it sets lives as long as the link does, so it is set again for a bridge
// that was made anew. A restart of systemd-resolved keeps it.
package resolved

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/dbus"
)

// A Resolver says which names, and by which link.
type Resolver struct{ Bridge, Zone string }

// Route sends what is asked below the zone to a port of 127.0.0.1, and makes
// the link silent otherwise. Port 0 takes all of it back.
func (r Resolver) Route(ctx context.Context, port uint16) (err error) {
	link, err := net.InterfaceByName(r.Bridge)
	if err != nil && port == 0 {
		return nil // it went with the link
	} else if err != nil {
		return fmt.Errorf("finding %s: %w", r.Bridge, err)
	}
	bus, err := dbus.Dial(ctx, "/run/dbus/system_bus_socket")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bus.Close()) }()
	const daemon = "org.freedesktop.DBus"
	_, err = bus.Call(ctx, dbus.Method{Dest: daemon, Path: "/org/freedesktop/DBus", Interface: daemon, Name: "Hello"}, "")
	set := func(method, sig string, args ...any) {
		m := dbus.Method{Dest: "org.freedesktop.resolve1", Path: "/org/freedesktop/resolve1",
			Interface: "org.freedesktop.resolve1.Manager", Name: method}
		if err == nil {
			_, err = bus.Call(ctx, m, sig, append([]any{int32(link.Index)}, args...)...)
		}
	}
	if port == 0 {
		set("RevertLink", "i")
		return err
	}
	set("SetLinkLLMNR", "is", "no")
	set("SetLinkMulticastDNS", "is", "no")
	set("SetLinkDNSSEC", "is", "no")
	set("SetLinkDefaultRoute", "ib", false)
	set("SetLinkDNSEx", "ia(iayqs)", []dbus.Struct{{int32(unix.AF_INET), []byte{127, 0, 0, 1}, port, ""}})
	set("SetLinkDomains", "ia(sb)", []dbus.Struct{{strings.Trim(r.Zone, "."), true}}) // true: for routing only
	return err
}
