package hostnet_test

import (
	"context"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"testing"

	"banger/internal/hostnet"
	"banger/internal/hostnet/remove"
	"banger/internal/nettest"
)

func TestMain(m *testing.M) {
	if id := os.Getenv("BANGER_TEST_CRASH_STEP"); id != "" {
		crashStep(id)
	}
	os.Exit(nettest.Main(m))
}

const (
	idA, idB = "0000000000aa", "0000000000bb"
	uidA     = 1879048194
)

var (
	gateway = netip.MustParseAddr("172.16.0.1")
	addrA   = netip.MustParseAddr("172.16.0.2")
	addrB   = netip.MustParseAddr("172.16.0.3")
	outside = netip.MustParseAddr("203.0.113.2") // a server on the internet
	hostOut = netip.MustParseAddr("203.0.113.1") // the host's address on that side
	lan     = netip.MustParseAddr("10.9.0.2")    // a machine on the host's own network
)

func open(t *testing.T) *hostnet.Network {
	t.Helper()
	n, err := hostnet.Open("br-fc", netip.MustParsePrefix("172.16.0.0/24"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// newNetwork returns a network that is removed at the end, leaving nothing.
func newNetwork(t *testing.T) *hostnet.Network {
	t.Helper()
	nettest.Need(t)
	n := open(t)
	t.Cleanup(func() {
		if err := remove.Network(context.WithoutCancel(t.Context()), n); err != nil {
			t.Errorf("Remove: %v", err)
		}
	})
	return n
}

func attach(t *testing.T, n *hostnet.Network, id string, addr netip.Addr, nat bool) {
	t.Helper()
	if err := n.Attach(t.Context(), id, addr, uidA, nat); err != nil {
		t.Fatalf("Attach(%s, %v): %v", id, addr, err)
	}
}

// guest starts a namespace as the VM behind a TAP, configured as the agent
// does it: a /32, and the gateway on the link.
func guest(t *testing.T, id string, addr netip.Addr) *nettest.Space {
	t.Helper()
	mac := hostnet.MAC(addr)
	g := nettest.Guest(t, hostnet.TAP(id), net6(mac))
	g.Run("ip addr add " + addr.String() + "/32 dev eth0\n" +
		"ip route add " + gateway.String() + " dev eth0 scope link\n" +
		"ip route add default via " + gateway.String())
	return g
}

// internet connects a namespace to the host, with one address of the internet
// and one of a private network.
func internet(t *testing.T) *nettest.Space {
	t.Helper()
	s := nettest.NewSpace(t)
	nettest.Run(t, "ip link add up0 type veth peer name up1")
	t.Cleanup(func() { s.Run("ip link del up1") })
	s.Take("up1")
	nettest.Run(t, "ip addr add 203.0.113.1/24 dev up0\nip addr add 10.9.0.1/24 dev up0\nip addr add 169.254.169.1/16 dev up0\nip link set up0 up")
	s.Run("ip addr add 203.0.113.2/24 dev up1\nip addr add 10.9.0.2/24 dev up1\nip addr add 169.254.169.254/16 dev up1\nip link set up1 up")
	// Without a limit on ICMP errors every refusal of UDP is told.
	nettest.Run(t, "sysctl -q -w net.ipv4.ip_forward=1 net.ipv4.icmp_ratelimit=0")
	return s
}

var dropped = regexp.MustCompile(`(?m)^\s*counter packets (\d+) bytes \d+ drop$`)

// drops reads how many frames the ports' chain has dropped.
func drops(t *testing.T) int {
	t.Helper()
	m := dropped.FindStringSubmatch(nettest.Run(t, "nft list chain bridge banger port"))
	if m == nil {
		t.Fatal("no drop counter in the port chain")
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
