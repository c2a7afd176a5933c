// Package resolvconf finds the name servers that this host asks, for guests that
// may ask them too.
//
// It reads files and asks nobody: whether a server answers is the guest's
// business.
package resolvconf

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// most is how many name servers a resolver heeds: MAXNS of resolv.h.
const most = 3

// Upstreams are the host's name servers that a guest can reach by IPv4. Where
// resolv.conf names only a server on the host itself, such as the stub of
// systemd-resolved, those that resolved asks are taken. root is "/" but in tests.
func Upstreams(root string) []netip.Addr {
	for _, path := range []string{"etc/resolv.conf", "run/systemd/resolve/resolv.conf"} {
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			continue // then it names nobody
		}
		if all := parse(string(text)); len(all) > 0 {
			return all
		}
	}
	return nil
}

// parse reads the nameserver lines of a resolv.conf. A link-local or loopback
// address means another host to a guest, and an IPv6 address nothing.
func parse(text string) (all []netip.Addr) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "nameserver" || len(all) == most {
			continue
		}
		a, err := netip.ParseAddr(words[1])
		if err == nil && a.Is4() && !a.IsLoopback() && !a.IsUnspecified() && !a.IsLinkLocalUnicast() {
			all = append(all, a)
		}
	}
	return all
}
