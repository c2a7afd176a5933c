package hostnet_test

import (
	"context"
	_ "embed" // hostnet.go
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/crash"
	"banger/internal/hostnet"
	"banger/internal/hostnet/remove"
	"banger/internal/nettest"
	"banger/internal/nft"
	"banger/internal/rtnl"
)

func net6(mac rtnl.MAC) string { return net.HardwareAddr(mac[:]).String() }

// state is all that a network may leave behind, in this namespace.
func state(t *testing.T) string {
	t.Helper()
	return nettest.Run(t, "ip -o link\nip -o addr\nip -4 route show table all\nnft list ruleset")
}

func TestAttachDetach(t *testing.T) {
	n := newNetwork(t)
	before := state(t)
	attach(t, n, idA, addrA, false)
	attach(t, n, idB, addrB, true)
	links := nettest.Run(t, "bridge -d link show dev "+hostnet.TAP(idA))
	for _, flag := range []string{"isolated on", "learning off", " flood off", "mcast_flood off", "neigh_suppress on", "master br-fc"} {
		if !strings.Contains(links, flag) {
			t.Errorf("the port lacks %q:\n%s", flag, links)
		}
	}
	if got, want := nettest.Run(t, "ip -d link show dev "+hostnet.TAP(idA)), "tun type tap pi off vnet_hdr on persist on user 1879048194"; !strings.Contains(got, want) {
		t.Errorf("the TAP is\n%swant %q", got, want)
	}
	if got := nettest.Run(t, "ip -6 addr show"); strings.Contains(got, "fe80") {
		t.Errorf("there is an IPv6 link-local address:\n%s", got)
	}
	c, err := n.State()
	if err != nil || len(c.Ports) != 2 || !c.Filter || c.Bridge == 0 || len(c.Pins) != 2 {
		t.Fatalf("State() = %+v, %v", c, err)
	}
	for _, p := range c.Ports {
		if want := p.ID == idB; p.NAT != want || !p.Ready || p.Held {
			t.Errorf("port %+v, want ready, not held, nat %v", p, want)
		}
	}
	for range 2 {
		for _, id := range []string{idA, idB} {
			if err := n.Detach(t.Context(), id); err != nil {
				t.Errorf("Detach(%s): %v", id, err)
			}
		}
	}
	if c, err := n.State(); err != nil || len(c.Ports)+len(c.Pins) != 0 {
		t.Errorf("State() = %+v, %v; want no port", c, err)
	}
	if err := remove.Network(t.Context(), n); err != nil {
		t.Errorf("Remove: %v", err)
	}
	if after := state(t); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

func TestAttachRefusals(t *testing.T) {
	n := newNetwork(t)
	attach(t, n, idA, addrA, false)
	nettest.OpenTap(t, hostnet.TAP(idA))
	before := normal(state(t))
	for _, tt := range []struct {
		id   string
		addr string
		want error
	}{
		{idB, "172.16.0.2", hostnet.ErrInUse},   // A's address
		{idA, "172.16.0.9", hostnet.ErrInUse},   // A runs
		{idB, "172.16.0.0", hostnet.ErrAddress}, // network
		{idB, "172.16.0.1", hostnet.ErrAddress}, // bridge
		{idB, "172.16.0.255", hostnet.ErrAddress},
		{idB, "172.16.1.2", hostnet.ErrAddress},
		{idB, "::1", hostnet.ErrAddress},
		{idB, "::ffff:172.16.0.3", hostnet.ErrAddress},
	} {
		if err := n.Attach(t.Context(), tt.id, netip.MustParseAddr(tt.addr), uidA, true); !errors.Is(err, tt.want) {
			t.Errorf("Attach(%s, %s) = %v, want %v", tt.id, tt.addr, err, tt.want)
		}
	}
	if diff := cmp.Diff(before, normal(state(t))); diff != "" {
		t.Errorf("refusals changed the state (-before +now):\n%s", diff)
	}
	if err := n.Attach(t.Context(), idB, netip.Addr{}, uidA, false); !errors.Is(err, hostnet.ErrAddress) {
		t.Errorf("Attach without an address = %v, want %v", err, hostnet.ErrAddress)
	}
	if err := n.Policy(t.Context(), idB, addrB, true); !errors.Is(err, hostnet.ErrNone) {
		t.Errorf("Policy of no VM = %v, want %v", err, hostnet.ErrNone)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.Attach(cancelled, idB, addrB, uidA, false); !errors.Is(err, context.Canceled) {
		t.Errorf("Attach with an ended context = %v", err)
	}
	if diff := cmp.Diff(before, normal(state(t))); diff != "" {
		t.Errorf("refusals changed the state (-before +now):\n%s", diff)
	}
}

func TestBridgeRefusals(t *testing.T) {
	for name, setup := range map[string]string{
		"route":          "ip link add x0 type veth peer name x1\nip link set x0 up\nip addr add 172.16.0.77/28 dev x0",
		"wider route":    "ip link add x0 type veth peer name x1\nip link set x0 up\nip route add 172.16.0.0/12 dev x0",
		"local address":  "ip link add x0 type veth peer name x1\nip addr add 172.16.0.1/32 dev lo",
		"foreign bridge": "ip link add x0 type veth peer name x1\nip link add br-fc type bridge",
		"foreign link":   "ip link add x0 type veth peer name br-fc",
	} {
		t.Run(name, func(t *testing.T) {
			nettest.Need(t)
			nettest.Run(t, setup)
			defer func() {
				_ = exec.CommandContext(t.Context(), "ip", "link", "del", "br-fc").Run()
				_ = exec.CommandContext(t.Context(), "ip", "link", "del", "x0").Run()
				_ = exec.CommandContext(t.Context(), "ip", "addr", "del", "172.16.0.1/32", "dev", "lo").Run()
			}()
			before := normal(state(t)) // a link is down some time after its peer is
			n := open(t)
			if err := n.Attach(t.Context(), idA, addrA, uidA, false); !errors.Is(err, hostnet.ErrTaken) {
				t.Errorf("Attach = %v, want %v", err, hostnet.ErrTaken)
			}
			if err := remove.Network(t.Context(), n); err != nil {
				t.Errorf("Remove: %v", err)
			}
			if diff := cmp.Diff(before, normal(state(t))); diff != "" {
				t.Errorf("a refusal changed (-before +now):\n%s", diff)
			}
		})
	}
}

// TestRepair takes away, one after the other, what others may take away.
func TestRepair(t *testing.T) {
	n := newNetwork(t)
	attach(t, n, idA, addrA, false)
	attach(t, n, idB, addrB, true)
	whole, bothPorts := normal(state(t)), "port bvm"+idA+", port bvm"+idB
	for _, tt := range []struct{ break_, want string }{
		{"", ""},
		{"nft flush ruleset", "packet filter"},
		{"nft flush table inet banger", "packet filter"},
		{"nft flush chain bridge banger port", "packet filter"},
		{"nft delete table inet banger\nnft delete table bridge banger", "packet filter"},
		{"nft flush set bridge banger source", "packet filter"},
		{"nft flush set inet banger internet", "packet filter"},
		{"nft add element inet banger internet { 172.16.0.2 }", "packet filter"},
		{"ip link del br-fc", "bridge br-fc, " + bothPorts},
		{"ip link set br-fc down", "bridge br-fc"},
		{"ip link set bvm" + idB + " nomaster", "port bvm" + idB},
		{"ip link set bvm" + idA + " down", "port bvm" + idA},
		{"nft flush ruleset\nip link del br-fc", "bridge br-fc, packet filter, " + bothPorts},
		{"", ""},
	} {
		nettest.Run(t, tt.break_)
		mended, err := n.Repair(t.Context())
		if got := strings.Join(mended, ", "); err != nil || got != tt.want {
			t.Errorf("after %q: Repair() = %q, %v; want %q", tt.break_, got, err, tt.want)
		}
		if diff := cmp.Diff(whole, normal(state(t))); diff != "" {
			t.Errorf("after %q (-before +now):\n%s", tt.break_, diff)
		}
	}
}

// normal leaves out numbers that differ between two networks that are alike.
func normal(s string) []string {
	s = regexp.MustCompile(`(?m)^\d+: |<.*>|state \w+|qdisc \w+|packets \d+ bytes \d+|valid_lft.*| linkdown|master br-fc|qlen \d+`).ReplaceAllString(s, "")
	lines := strings.Split(s, "\n")
	for i, l := range lines { // elements come in the order of the kernel's hash
		if strings.Contains(l, "bvm0000000000") && strings.Contains(l, " . ") {
			lines[i] = strings.Trim(strings.Replace(l, "elements = {", "", 1), " \t,}")
		}
	}
	slices.Sort(lines)
	return slices.DeleteFunc(lines, func(l string) bool { return l == "" })
}

// crashStep is what the re-executed test binary does, in the parent's
// namespace, until the crash point that its environment arms.
func crashStep(step string) {
	ctx := context.Background()
	n, err := hostnet.Open("br-fc", netip.MustParsePrefix("172.16.0.0/24"))
	if err != nil {
		panic(err)
	}
	switch step {
	case "attach":
		err = n.Attach(ctx, idA, addrA, uidA, true)
	case "detach":
		err = n.Detach(ctx, idA)
	case "policy":
		err = n.Policy(ctx, idA, addrA, false)
	}
	if err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	os.Exit(0)
}

// TestCrash kills at each point, then releases, or does the same again.
func TestCrash(t *testing.T) {
	n := newNetwork(t)
	attach(t, n, idB, addrB, false)
	for _, point := range points(t) {
		step, _, _ := strings.Cut(point, ".")
		for _, again := range []bool{false, true} {
			if step != "attach" {
				attach(t, n, idA, addrA, true)
			}
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
			cmd.Env = append(os.Environ(), "BANGER_TEST_CRASH_STEP="+step, crash.Env+"="+point)
			var exit *exec.ExitError
			if out, err := cmd.CombinedOutput(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("%s: the process ended with %v, want a crash\n%s", point, err, out)
			}
			if again {
				cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
				cmd.Env = append(os.Environ(), "BANGER_TEST_CRASH_STEP="+step)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%s: again: %v\n%s", point, err, out)
				}
			}
			if mended, err := n.Repair(t.Context()); err != nil {
				t.Errorf("%s: Repair() = %v, %v", point, mended, err)
			}
			if err := n.Detach(t.Context(), idA); err != nil {
				t.Errorf("%s: Detach: %v", point, err)
			}
			c, err := n.State()
			if err != nil || len(c.Ports) != 1 || len(c.Pins) != 1 || !c.Filter || !c.Ports[0].Ready {
				t.Errorf("%s: State() = %+v, %v; want B alone", point, c, err)
			}
			if sets := nettest.Run(t, "nft list ruleset"); strings.Contains(sets, addrA.String()+" ") {
				t.Errorf("%s: an element of A is left:\n%s", point, sets)
			}
		}
	}
}

//go:embed hostnet.go
var source string

// points are the crash points of the package, read from its source.
func points(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, m := range regexp.MustCompile(`crash\.Point\("([a-z.]+)"\)`).FindAllStringSubmatch(source, -1) {
		out = append(out, m[1])
	}
	if len(out) < 7 {
		t.Fatalf("crash points %v, want at least 7", out)
	}
	return out
}

// counting runs nft(8), counts, and fails where it is told to.
type counting struct {
	runs   int
	failAt int
}

func (c *counting) Run(ctx context.Context, script string) (string, error) {
	if c.runs++; c.runs == c.failAt {
		return "", errors.New("no room for one more rule")
	}
	return nft.Exec{}.Run(ctx, script)
}

// TestProcesses counts the processes that each method starts.
func TestProcesses(t *testing.T) {
	n := newNetwork(t)
	c := &counting{}
	n.Nft = c
	for _, tt := range []struct {
		name string
		do   func() error
		want int
	}{
		{"the first VM", func() error { return n.Attach(t.Context(), idA, addrA, uidA, false) }, 2},
		{"another", func() error { return n.Attach(t.Context(), idB, addrB, uidA, true) }, 1},
		{"repair of nothing", func() error { _, err := n.Repair(t.Context()); return err }, 0},
		{"census", func() error { _, err := n.Census(t.Context()); return err }, 0},
		{"policy", func() error { return n.Policy(t.Context(), idA, addrA, true) }, 1},
		{"detach", func() error { return n.Detach(t.Context(), idA) }, 1},
		{"detach of nothing", func() error { return n.Detach(t.Context(), idA) }, 0},
	} {
		before := c.runs
		if err := tt.do(); err != nil || c.runs-before != tt.want {
			t.Errorf("%s: %d processes, %v; want %d", tt.name, c.runs-before, err, tt.want)
		}
	}
}

// TestFailures has each transaction fail once: nothing is left, and the same
// again succeeds.
func TestFailures(t *testing.T) {
	n := newNetwork(t)
	attach(t, n, idB, addrB, true)
	before := normal(state(t))
	for _, failAt := range []int{1, 2} {
		if failAt == 2 {
			nettest.Run(t, "nft flush ruleset") // so that there are two
		}
		n.Nft = &counting{failAt: failAt}
		if err := n.Attach(t.Context(), idA, addrA, uidA, false); err == nil || !strings.Contains(err.Error(), "no room") {
			t.Errorf("Attach, transaction %d fails: %v", failAt, err)
		}
		if diff := cmp.Diff(before, normal(state(t))); diff != "" {
			t.Errorf("transaction %d: left behind (-before +now):\n%s", failAt, diff)
		}
		attach(t, n, idA, addrA, false)
		n.Nft = &counting{failAt: 1}
		if err := n.Detach(t.Context(), idA); err == nil {
			t.Error("Detach succeeded though its transaction failed")
		}
		if err := n.Detach(t.Context(), idA); err != nil {
			t.Errorf("Detach again: %v", err)
		}
		if diff := cmp.Diff(before, normal(state(t))); diff != "" {
			t.Errorf("after Detach (-before +now):\n%s", diff)
		}
	}
}
