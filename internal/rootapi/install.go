package rootapi

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
)

// InstallPath is the install record, in a directory of root's.
const InstallPath = "/etc/banger/install.json"

// Install is what `system install` decided. The helper goes by it alone.
type Install struct {
	Owner    Owner        `json:"owner"`
	Prefix   netip.Prefix `json:"prefix"`
	Bridge   string       `json:"bridge"`
	Zone     string       `json:"zone"` // without dots around it
	Programs []Program    `json:"programs"`
}

// Owner is the one account besides root that the helper serves.
type Owner struct {
	UID  uint32 `json:"uid"`
	GID  uint32 `json:"gid"`
	Name string `json:"name"`
	Home string `json:"home"`
}

// Program is one Firecracker and its jailer, as absolute paths without links.
type Program struct {
	Firecracker string `json:"firecracker"`
	Jailer      string `json:"jailer"`
}

var plainPath = regexp.MustCompile(`^(/[A-Za-z0-9._+=~,@-]+)+$`)

// ReadInstall reads the record at path. It is root's word, and is not doubted:
// package record checks it before it is written.
func ReadInstall(path string) (in Install, err error) {
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &in)
	}
	if err != nil {
		return Install{}, fmt.Errorf("reading install record %s: %w", path, err)
	}
	return in, nil
}

// PlainPath reports whether a path is absolute, as short as it can be and of
// ordinary characters, so that systemd expands nothing in it.
func PlainPath(path string) bool { return plainPath.MatchString(path) && filepath.Clean(path) == path }

// Guest reports whether a VM may have the address: any of the prefix but the
// network's, the bridge's and the broadcast address.
func (in Install) Guest(a netip.Addr) bool {
	host := in.UID(a) - FirstUID
	return in.Prefix.Contains(a) && host > 1 && host < 1<<(32-in.Prefix.Bits())-1
}

// UID is the uid and gid that belong to an address of the prefix. Two live VMs
// never share an address, so they never share a uid.
func (in Install) UID(a netip.Addr) uint32 {
	b := a.As16()
	return FirstUID + binary.BigEndian.Uint32(b[12:])&(1<<(32-in.Prefix.Bits())-1)
}

// Addr is the inverse of UID; the zero address for any other uid.
func (in Install) Addr(uid uint32) netip.Addr {
	b := in.Prefix.Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])|(uid-FirstUID))
	if a := netip.AddrFrom4(b); in.Guest(a) && in.UID(a) == uid {
		return a
	}
	return netip.Addr{}
}

// TAP is the name of a VM's interface: 15 bytes, as long as one can be.
func TAP(id string) string { return "bvm" + id }

// MAC is the hardware address that goes with a guest's IPv4 address.
func MAC(a netip.Addr) net.HardwareAddr { return append(net.HardwareAddr{0x02, 0xfc}, a.AsSlice()...) }
