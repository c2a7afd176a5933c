package rtnl_test

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/nettest"
	"banger/internal/rtnl"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

func dial(t *testing.T) *rtnl.Conn {
	t.Helper()
	nettest.Need(t)
	c, err := rtnl.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func find(t *testing.T, c *rtnl.Conn, name string) rtnl.Link {
	t.Helper()
	links, err := c.Links()
	i := slices.IndexFunc(links, func(l rtnl.Link) bool { return l.Name == name })
	if err != nil || i < 0 {
		t.Fatalf("Links() = %v, %v; want %s among them", links, err, name)
	}
	return links[i]
}

// TestLinks makes what ip(8) then sees, and reads what it has made.
func TestLinks(t *testing.T) {
	c := dial(t)
	mac := rtnl.MAC{2, 0xfc, 1, 2, 3, 4}
	if err := c.AddLink("br-t", "bridge", mac); err != nil {
		t.Fatal(err)
	}
	b := find(t, c, "br-t")
	defer func() {
		if err := c.DeleteLink(b.Index); err != nil {
			t.Error(err)
		}
		if err := c.DeleteLink(b.Index); !errors.Is(err, unix.ENODEV) {
			t.Errorf("DeleteLink again = %v, want %v", err, unix.ENODEV)
		}
	}()
	if err := c.AddLink("br-t", "bridge", mac); !errors.Is(err, unix.EEXIST) {
		t.Errorf("AddLink again = %v, want %v", err, unix.EEXIST)
	}
	if err := c.AddLink("x", "no-such-kind", mac); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("AddLink of an unknown kind = %v, want %v", err, unix.EOPNOTSUPP)
	}
	nettest.Run(t, "ip link add v0 type veth peer name v1")
	defer nettest.Run(t, "ip link del v0")
	v := find(t, c, "v0")
	for name, err := range map[string]error{
		"NoIPv6":    c.NoIPv6(b.Index),
		"AddAddr":   c.AddAddr(b.Index, netip.MustParsePrefix("198.51.100.1/24")),
		"again":     c.AddAddr(b.Index, netip.MustParsePrefix("198.51.100.1/24")),
		"SetMaster": c.SetMaster(v.Index, b.Index),
		"Restrict":  c.Restrict(v.Index, rtnl.MAC{2, 0xfc, 9, 9, 9, 9}),
		"repeated":  c.Restrict(v.Index, rtnl.MAC{2, 0xfc, 9, 9, 9, 9}),
		"SetAlias":  c.SetAlias(v.Index, "a text, of words"),
		"SetUp":     errors.Join(c.SetUp(b.Index, true), c.SetUp(v.Index, true), c.SetUp(v.Index, true)),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	b, v = find(t, c, "br-t"), find(t, c, "v0")
	if want := (rtnl.Link{Index: v.Index, Master: b.Index, Name: "v0", Kind: "veth", Alias: "a text, of words", MAC: v.MAC, Up: true}); v != want {
		t.Errorf("v0 is %+v, want %+v", v, want)
	}
	if want := (rtnl.Link{Index: b.Index, Name: "br-t", Kind: "bridge", MAC: mac, Up: true, Carrier: b.Carrier}); b != want {
		t.Errorf("br-t is %+v, want %+v", b, want)
	}
	if got, want := nettest.Run(t, "bridge fdb show dev v0"), "02:fc:09:09:09:09 master br-t static"; strings.Count(got, want) != 1 {
		t.Errorf("the forwarding table is\n%swant once %q", got, want)
	}
	if got := nettest.Run(t, "ip -6 addr show dev br-t"); got != "" {
		t.Errorf("the bridge has an IPv6 address:\n%s", got)
	}
	if err := c.SetUp(v.Index, false); err != nil || find(t, c, "v0").Up {
		t.Errorf("SetUp to false: %v, or it is still up", err)
	}
	if err := c.SetUp(1<<20, true); !errors.Is(err, unix.ENODEV) {
		t.Errorf("SetUp of no link = %v, want %v", err, unix.ENODEV)
	}
}

// TestManyLinks has a list that needs several packets.
func TestManyLinks(t *testing.T) {
	c := dial(t)
	for i := range 100 {
		name := "m" + string(rune('a'+i/10)) + string(rune('a'+i%10))
		if err := c.AddLink(name, "bridge", rtnl.MAC{2, 0, 0, 0, 0, byte(i)}); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.DeleteLink(find(t, c, name).Index) }()
	}
	links, err := c.Links()
	if err != nil || len(links) < 101 {
		t.Errorf("%d links, %v; want at least 101", len(links), err)
	}
}

func TestRoutes(t *testing.T) {
	c := dial(t)
	nettest.Run(t, "ip link add v0 type veth peer name v1\nip link set v0 up\nip addr add 198.51.100.1/24 dev v0\n"+
		"ip route add default via 198.51.100.2\nip route add 0.0.0.0/1 dev v0\nip route add 10.0.0.0/8 dev v0\nip route add 10.9.0.0/16 dev v0 table 77")
	defer nettest.Run(t, "ip link del v0")
	routes, err := c.Routes()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"198.51.100.0/24", "198.51.100.1/32", "10.0.0.0/8", "10.9.0.0/16", "127.0.0.0/8"} {
		if !slices.Contains(routes, netip.MustParsePrefix(want)) {
			t.Errorf("Routes() = %v, want %s among them", routes, want)
		}
	}
	for _, r := range routes {
		if r.Bits() < 8 {
			t.Errorf("Routes() has %v, which stands for everything else", r)
		}
	}
}

func TestAttrs(t *testing.T) {
	b := rtnl.Join(rtnl.Attr(1, []byte("odd")), rtnl.Text(2, "name"), rtnl.Attr(3|unix.NLA_F_NESTED, rtnl.Attr(4, []byte{5})), rtnl.Attr(6))
	a := rtnl.Attrs(b)
	if len(b)%4 != 0 || len(a) != 4 || string(a[1]) != "odd" || string(a[2]) != "name\x00" || !bytes.Equal(rtnl.Attrs(a[3])[4], []byte{5}) || len(a[6]) != 0 {
		t.Errorf("Attrs(% x) = %v", b, a)
	}
}

func FuzzEach(f *testing.F) {
	f.Add(rtnl.Join(rtnl.Attr(1, []byte("odd")), rtnl.Attr(2, rtnl.Attr(3))))
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{3, 0, 1, 0, 9})
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		rtnl.Each(b, func(_ uint16, v []byte) { n += 4 + len(v) })
		if n > len(b) {
			t.Errorf("%d bytes of attributes in %d", n, len(b))
		}
	})
}
