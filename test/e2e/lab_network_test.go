//go:build lab

package e2e

import (
	"strings"
	"testing"
)

// reaches says whether a guest gets an answer from a web server. A static wget
// would crash in the name service.
func (w *world) reaches(t *testing.T, vm, addr, port string) bool {
	t.Helper()
	r := w.banger(t, "vm", "exec", vm, "--", "sh", "-c", `printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 5 `+addr+" "+port)
	return strings.Contains(r.stdout, "200 OK")
}

// Guests do not reach each other, nor the host; the host reaches them.
func TestLabGuestsAreApart(t *testing.T) {
	w := labWorld(t)
	a, b := w.vm(t), w.vm(t)
	addr := w.show(t, b).Address.String()
	w.serve(t, b, "3000", "b")
	until(t, "the host reaches b", func() bool {
		_, code := w.program(t, "curl", "-sS", "--max-time", "5", "http://"+addr+":3000/")
		return code == 0
	})
	w.serve(t, a, "3000", "a")
	until(t, "a reaches itself", func() bool { return w.reaches(t, a, "127.0.0.1", "3000") })
	if w.reaches(t, a, addr, "3000") {
		t.Error("a reaches b")
	}
	if r := w.banger(t, "vm", "exec", a, "--", "ping", "-c", "1", "-W", "2", addr); r.code == 0 {
		t.Errorf("a pings b:\n%s", r.stdout)
	}
	// A server on every address of the host.
	root(t, "mkdir -p /run/web; systemd-run -q --unit=lab-web busybox httpd -f -p 0.0.0.0:3001 -h /run/web")
	t.Cleanup(func() { root(t, "systemctl stop lab-web; ip addr del 192.0.2.9/32 dev lo") })
	root(t, "ip addr add 192.0.2.9/32 dev lo; echo host >/run/web/index.html")
	until(t, "the server of the host answers", func() bool {
		_, code := w.program(t, "curl", "-sS", "--max-time", "5", "http://127.0.0.1:3001/")
		return code == 0
	})
	gateway := strings.Fields(root(t, "ip -4 -br addr show br-fc"))[2]
	gateway, _, _ = strings.Cut(gateway, "/")
	for _, host := range []string{gateway, "192.0.2.9"} {
		if w.reaches(t, a, host, "3001") {
			t.Errorf("a reaches the host at %s", host)
		}
	}
	// No port of the bridge's address answers, and none that resolves names; all
	// ports are scanned in hostnet's test.
	ports := w.inGuest(t, a, "for p in 22 53 67 80 111 443 631 3000 3001 5353 5355 8080 42069; do nc -w 1 -z "+gateway+" $p && echo $p; done; true")
	if strings.TrimSpace(ports) != "" {
		t.Errorf("the bridge's address answers on ports %q", ports)
	}
	if out := w.inGuest(t, a, "ip -6 addr show dev eth0"); strings.Contains(out, "inet6") {
		t.Errorf("the guest's device has an IPv6 address:\n%s", out)
	}
}

// With NAT a guest reaches the internet, played by another network namespace;
// without it does not, and what it has open ends.
func TestLabNAT(t *testing.T) {
	w := labWorld(t)
	root(t, `ip netns add internet
ip link add up0 type veth peer name up1 netns internet
ip addr add 198.51.100.1/24 dev up0; ip link set up0 up
ip -n internet addr add 198.51.100.2/24 dev up1; ip -n internet link set up1 up; ip -n internet link set lo up
mkdir -p /run/internet; echo internet >/run/internet/index.html
systemd-run -q --unit=lab-internet ip netns exec internet busybox httpd -f -p 80 -h /run/internet`)
	t.Cleanup(func() {
		root(t, "systemctl stop lab-internet; ip netns del internet; ip link del up0 2>/dev/null || true")
	})
	until(t, "the internet answers the host", func() bool {
		_, code := w.program(t, "curl", "-sS", "--max-time", "5", "http://198.51.100.2/")
		return code == 0
	})
	in, out := w.vm(t), w.vm(t, "--nat")
	if m := w.show(t, out); m.Network != "host and internet" || !m.NAT {
		t.Errorf("the VM with NAT has network %q", m.Network)
	}
	if w.reaches(t, in, "198.51.100.2", "80") {
		t.Error("a VM without NAT reaches the internet")
	}
	if !w.reaches(t, out, "198.51.100.2", "80") {
		t.Error("a VM with NAT does not reach the internet")
		t.Logf("the guest:\n%s", w.inGuest(t, out, "ip addr; ip route; ping -c 1 -W 2 198.51.100.2; true"))
		t.Logf("the host:\n%s", root(t, "sysctl net.ipv4.ip_forward; ip addr; ip route; nft list ruleset; conntrack -L"))
	}
	w.must(t, "vm", "set", in, "--nat")
	if !w.reaches(t, in, "198.51.100.2", "80") {
		t.Error("a VM that got NAT does not reach the internet")
	}
	w.must(t, "vm", "set", in, "--nat=false")
	if w.reaches(t, in, "198.51.100.2", "80") {
		t.Error("a VM that lost NAT reaches the internet")
	}
}
