package guestlife

import (
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/agentapi"
	"banger/internal/nettest"
	"banger/internal/rtnl"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

func TestDevice(t *testing.T) {
	lo := rtnl.Link{Index: 1, Name: "lo"}
	eth := rtnl.Link{Index: 2, Name: "eth0", MAC: rtnl.MAC{2, 0xfc}}
	other := rtnl.Link{Index: 3, Name: "eth1", MAC: rtnl.MAC{2, 0xfd}}
	bridge := rtnl.Link{Index: 4, Name: "docker0", Kind: "bridge", MAC: rtnl.MAC{2, 0xfe}}
	for name, tt := range map[string]struct {
		links []rtnl.Link
		want  int
		err   string
	}{
		"the one":               {[]rtnl.Link{lo, eth}, 2, ""},
		"beside a bridge":       {[]rtnl.Link{lo, bridge, eth}, 2, ""},
		"none":                  {[]rtnl.Link{lo, bridge}, 0, "no device"},
		"two":                   {[]rtnl.Link{lo, eth, other}, 0, "two devices, eth0 and eth1"},
		"nothing, not even lo":  {nil, 0, "no device"},
		"a device without name": {[]rtnl.Link{{Index: 9, MAC: rtnl.MAC{2}}}, 9, ""},
	} {
		got, err := device(tt.links)
		if err == nil && (tt.err != "" || got.Index != tt.want) || err != nil && (tt.err == "" || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%s: device = %+v, %v; want index %d, error %q", name, got, err, tt.want, tt.err)
		}
	}
}

// TestConfigure sets up a device whose other end answers as a host would that
// knows of no prefix.
func TestConfigure(t *testing.T) {
	host := nettest.NewSpace(t)
	nettest.Run(t, "ip link add g0 type veth peer name h0")
	defer nettest.Run(t, "ip link del g0")
	host.Take("h0")
	host.Run("ip addr add 172.16.0.1/24 dev h0\nip link set h0 up")
	c, err := rtnl.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	links, err := c.Links()
	i := slices.IndexFunc(links, func(l rtnl.Link) bool { return l.Name == "g0" })
	if err != nil || i < 0 {
		t.Fatalf("Links() = %v, %v", links, err)
	}
	n := agentapi.Net{Addr: netip.MustParseAddr("172.16.0.9"), Gateway: netip.MustParseAddr("172.16.0.1")}
	for range 2 { // the second as of an agent that takes the place of a dead one
		if err := configure(c, links[i], n); err != nil {
			t.Fatal(err)
		}
	}
	for command, want := range map[string]string{
		"ip -4 -br addr show dev g0":                  "UP 172.16.0.9/32",
		"ip -6 addr show dev g0":                      "",
		"ip route show dev g0":                        "default via 172.16.0.1 proto static src 172.16.0.9 onlink 172.16.0.1 proto static scope link src 172.16.0.9",
		"ip -o route get 172.16.0.77":                 "172.16.0.77 via 172.16.0.1 dev g0 src 172.16.0.9",
		"ip -o route get 192.0.2.1":                   "192.0.2.1 via 172.16.0.1 dev g0 src 172.16.0.9",
		"cat /proc/sys/net/ipv6/conf/g0/disable_ipv6": "1",
	} {
		got := strings.Join(strings.Fields(nettest.Run(t, command)), " ")
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
	nettest.Run(t, "ping -c1 -W5 172.16.0.1")

	for _, bad := range []agentapi.Net{{}, {Addr: n.Addr}, {Addr: netip.MustParseAddr("fe80::1"), Gateway: n.Gateway}} {
		if err := configure(c, links[i], bad); err == nil || !strings.Contains(err.Error(), "no IPv4 addresses") {
			t.Errorf("configure(%+v) = %v, want a refusal", bad, err)
		}
	}
}

func TestResolver(t *testing.T) {
	const first = "# Written by banger at each start of the VM.\n"
	two := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	const of2 = first + "nameserver 192.0.2.1\nnameserver 2001:db8::1\n"
	for name, prepare := range map[string]func(e etc) error{
		"no file": func(etc) error { return nil },
		"a file": func(e etc) error {
			return os.WriteFile(e.path("/etc/resolv.conf"), []byte("nameserver 10.0.0.1\n"), 0o600)
		},
		"a dangling link": func(e etc) error {
			return os.Symlink("../run/systemd/resolve/stub-resolv.conf", e.path("/etc/resolv.conf"))
		},
		"a link to a file": func(e etc) error {
			return os.Symlink("hosts", e.path("/etc/resolv.conf"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := in(t, map[string]string{"/etc/hosts": of2})
			if err := prepare(e); err != nil {
				t.Fatal(err)
			}
			if err := e.resolver(two); err != nil {
				t.Fatal(err)
			}
			e.wants(t, "/etc/resolv.conf", 0o644, of2)
			if err := e.resolver(nil); err != nil {
				t.Fatal(err)
			}
			e.wants(t, "/etc/resolv.conf", 0o644, first+"# The VM is kept in, so there is nobody to ask.\noptions timeout:1 attempts:1\n")
			e.wants(t, "/etc/hosts", 0o644, of2)
		})
	}
}

func TestHands(t *testing.T) {
	dev := rtnl.Link{Name: "eth0", MAC: rtnl.MAC{2, 0xfc, 0, 1, 2, 3}}
	for name, tt := range map[string]struct {
		systemd bool
		has     []string
		want    []string // in /run
	}{
		"an image with nothing": {true, nil, nil},
		"networkd": {true, []string{"/etc/systemd/network/50-all.network", "/usr/lib/systemd/system/systemd-networkd-wait-online.service"},
			[]string{"/run/systemd/network/00-banger.network", "/run/systemd/system.control/systemd-networkd-wait-online.service"}},
		"NetworkManager": {true, []string{"/etc/NetworkManager/NetworkManager.conf", "/lib/systemd/system/NetworkManager-wait-online.service"},
			[]string{"/run/NetworkManager/conf.d/99-banger.conf", "/run/systemd/system.control/NetworkManager-wait-online.service"}},
		"ifupdown without systemd": {false, []string{"/etc/network/interfaces", "/lib/systemd/system/ifupdown-wait-online.service"},
			[]string{"/run/ifstate", "/run/network/ifstate", "/run/network/ifstate.eth0"}},
	} {
		files := map[string]string{}
		for _, f := range tt.has {
			files[f] = "x"
		}
		e := in(t, files)
		for range 2 {
			if err := e.hands(dev, tt.systemd); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		var got []string
		_ = filepath.WalkDir(e.path("/run"), func(p string, d fs.DirEntry, err error) error { // nothing without /run
			if err == nil && !d.IsDir() {
				got = append(got, strings.TrimPrefix(p, e.root))
			}
			return nil
		})
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: made %q, want %q", name, got, tt.want)
		}
	}
}
