package guestinit_test

import (
	"bytes"
	"context"
	"database/sql"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"banger/internal/agentapi"
	"banger/internal/kernel"
	"banger/internal/smallimage"
	"banger/internal/store"
	"banger/internal/vmtest"
)

// networked is an identity at the other end of QEMU's network, where 10.0.2.2
// answers pings.
func networked(dns ...string) *agentapi.Identity {
	id := identity()
	id.Net = &agentapi.Net{Addr: netip.MustParseAddr("10.0.2.15"), Gateway: netip.MustParseAddr("10.0.2.2")}
	for _, s := range dns {
		id.Net.DNS = append(id.Net.DNS, netip.MustParseAddr(s))
	}
	return id
}

// networkIs wants the guest to be on the network with these resolvers.
func (v *vm) networkIs(resolvers string) {
	v.t.Helper()
	v.wants("ip -4 -o addr show dev eth0 | grep -o '10[^ ]*' | head -1; ip -6 addr show dev eth0; cat /sys/class/net/eth0/mtu /proc/sys/net/ipv6/conf/eth0/disable_ipv6", "10.0.2.15/32\n1500\n1")
	// Destination, gateway, flags (up, gateway, host): the least significant byte first.
	v.wants(`awk '$1 == "eth0" { print $2, $3, $4 }' /proc/net/route`, "00000000 0202000A 0003\n0202000A 00000000 0005")
	v.wants("grep ^nameserver /etc/resolv.conf || true", resolvers)
	v.wants("grep box /etc/hosts", "10.0.2.15\tbox # banger")
	v.wants("ls -l /sys/class/net/eth0/device/driver | grep -o 'virtio_net$'", "virtio_net")
}

func TestNetwork(t *testing.T) {
	t.Parallel()
	v := newVM(t, "")
	v.network = true
	start(t, v, 1, 256)
	events := v.identifiedAs(networked())
	v.networkIs("")
	v.wants("ping -c1 -W5 10.0.2.2 >/dev/null && echo up", "up")
	v.await(events, agentapi.EventHandover)

	// A new session, and an agent after this one, leave it all alone.
	v.wants("ip addr add 10.9.9.9/32 dev eth0; echo mine > /etc/resolv.conf", "")
	v.killAgent()
	events = v.events()
	v.await(events, agentapi.EventAgent)
	st, _, _ := v.call(agentapi.Request{Op: agentapi.OpIdentify, Identity: networked("192.0.2.1")})
	_ = st.Close()
	v.wants("cat /etc/resolv.conf; ip -4 -o addr show dev eth0 | grep -c 10.9.9.9; ping -c1 -W5 10.0.2.2 >/dev/null && echo up", "mine\n1\nup")
	v.shutDown(events, false)

	// The same disk, now with resolvers; then without a network, as user mode has it.
	start(t, v, 1, 256)
	events = v.identifiedAs(networked("192.0.2.1", "192.0.2.2"))
	v.networkIs("nameserver 192.0.2.1\nnameserver 192.0.2.2")
	v.await(events, agentapi.EventHandover)
	v.shutDown(events, false)
	v.network = false
	start(t, v, 1, 256)
	events = v.identified()
	v.wants("grep -c box /etc/hosts; grep box /etc/hosts; ls /sys/class/net; grep -c virtio_net /proc/modules || true", "1\n127.0.1.1\tbox\nlo\n0")
	v.await(events, agentapi.EventHandover)
	v.shutDown(events, false)
}

// TestNetworkWithoutADevice wants a guest to say what it lacks, and go on.
func TestNetworkWithoutADevice(t *testing.T) {
	t.Parallel()
	v := newVM(t, "")
	start(t, v, 1, 256)
	events := v.identifiedAs(networked())
	if e := v.await(v.events(), agentapi.EventProblem); e.Text != "setting up the network: there is no device" {
		t.Errorf("the guest's problem is %q", e.Text)
	}
	v.wants("hostname", "box")
	v.shutDown(events, false)
}

// modulesDisk makes the disk that a VM of this kernel has.
func modulesDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	db, err := store.Open(t.Context(), store.Config{Path: filepath.Join(dir, "state.db"), Migrations: kernel.Migrations(1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	s, err := kernel.Open(t.Context(), kernel.Config{Store: db, Dir: filepath.Join(dir, "kernels"),
		Users: func(context.Context, *sql.Tx, string) ([]string, error) { return nil, nil }})
	if err != nil {
		t.Fatal(err)
	}
	tar, err := os.Open(vmtest.NeedKernel(t).Tar)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tar.Close() }()
	k, err := s.Import(t.Context(), kernel.Import{Name: "k"}, tar)
	if err != nil {
		t.Fatal(err)
	}
	files, err := s.OpenFiles(k.ID)
	if err != nil {
		t.Fatal(err)
	}
	_ = files.Close()
	return files.Modules.Name()
}

// TestNetworkOfDefaultImage has systemd, and Docker with its own networks, on
// top of the network.
func TestNetworkOfDefaultImage(t *testing.T) {
	t.Parallel()
	base := filepath.Join(t.TempDir(), "image")
	makeImage(t, defaultImage(t), base)
	v := newVM(t, base)
	v.network, v.modules = true, modulesDisk(t)
	start(t, v, 2, 1024)
	events := v.identifiedAs(networked("10.0.2.3"))
	v.networkIs("nameserver 10.0.2.3")
	v.await(events, agentapi.EventBoot)
	v.networkIs("nameserver 10.0.2.3")
	// An image whose networkd would ask for an address: the word of udev, which
	// this image has not, is what networkd waits for.
	v.wants("cd /run/systemd/network; printf '[Match]\nName=*\n[Network]\nDHCP=yes\n' >50-dhcp.network; "+
		"mkdir -p /run/udev/data; echo I:1 >/run/udev/data/n$(cat /sys/class/net/eth0/ifindex); "+
		"systemctl start network-online.target systemd-networkd.service; networkctl --no-legend list eth0 | awk '{ print $4, $5 }'; "+
		"systemctl is-enabled systemd-networkd-wait-online.service || true", "routable unmanaged\nmasked-runtime")
	v.networkIs("nameserver 10.0.2.3")
	v.wants("systemctl is-system-running --wait; getent hosts box | awk '{ print $1 }'", "running\n10.0.2.15")

	busybox, err := smallimage.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	var tar bytes.Buffer
	if err := smallimage.Write(&tar, busybox); err != nil {
		t.Fatal(err)
	}
	v.put("/root/tiny", tar.Bytes())
	v.wants("tar -C /root/tiny -c . | docker import - tiny >/dev/null; docker run --rm tiny sh -c 'ping -c1 -W20 10.0.2.2 >/dev/null && echo up; cat /etc/resolv.conf | grep -c 10.0.2.3'", "up\n1")
	v.networkIs("nameserver 10.0.2.3")
	v.shutDown(events, false)
}
