//go:build lab

package install

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"banger/internal/rootapi"
)

// Each of these is refused, with the reason and what to do, before anything is
// done.
func TestRefusals(t *testing.T) {
	prepare(t)
	put := func(path, text string, mode os.FileMode) { must(t, os.WriteFile(path, []byte(text), mode)) }
	for _, tt := range []struct {
		name       string
		set, unset func()
		args       []string
		want       string
		hint       string
	}{
		{name: "an unknown owner", args: []string{"--owner", "mallory"}, want: `no account "mallory"`, hint: "--owner"},
		{name: "root", args: []string{"--owner", "root"}, want: "root cannot be the owner", hint: "--owner"},
		{name: "a relative Firecracker", args: []string{"--firecracker", "firecracker"}, want: "not absolute", hint: "firecracker"},
		{name: "a script in the owner's home", set: func() {
			put("/home/owner/firecracker", "#!/bin/sh\necho Firecracker v1.14.1\n", 0o755)
		}, unset: func() { os.Remove("/home/owner/firecracker") },
			args: []string{"--firecracker", "/home/owner/firecracker"}, want: "/home", hint: "/usr/local"},
		{name: "a script of root's", set: func() { put(programs+"/script", "#!/bin/sh\necho Firecracker v1.14.1\n", 0o755) },
			unset: func() { os.Remove(programs + "/script") }, args: []string{"--firecracker", programs + "/script"}, want: "no program of this machine's", hint: "sudo install"},
		{name: "a Firecracker that others can write", set: func() { must(t, os.Chmod(firecracker, 0o777)) }, unset: func() { must(t, os.Chmod(firecracker, 0o755)) },
			args: []string{"--firecracker", firecracker}, want: "can be written by others", hint: "sudo install"},
		{name: "a Firecracker without a jailer", set: func() { must(t, os.Rename(programs+"/jailer", programs+"/kept")) },
			unset: func() { must(t, os.Rename(programs+"/kept", programs+"/jailer")) }, args: []string{"--firecracker", firecracker}, want: "no usable jailer", hint: "jailer"},
		{name: "no Firecracker", want: "no Firecracker that banger can use", hint: "sudo install"},
		{name: "a prefix with a route", set: func() {
			do(t, "ip", "link", "add", "dum0", "type", "dummy")
			do(t, "ip", "addr", "add", "10.77.0.1/16", "dev", "dum0")
			do(t, "ip", "link", "set", "dum0", "up")
		}, unset: func() { do(t, "ip", "link", "del", "dum0") },
			args: []string{"--firecracker", firecracker, "--prefix", "10.77.3.0/24"}, want: "10.77.0.0/16", hint: "--prefix 172.16.0.0/24"},
		{name: "a prefix that is no private one", args: []string{"--firecracker", firecracker, "--prefix", "8.8.8.0/24"}, want: "8.8.8.0/24", hint: "--help"},
		{name: "a program of somebody else's", set: func() { put(installed, "theirs", 0o755) }, unset: func() { os.Remove(installed) },
			args: []string{"--firecracker", firecracker}, want: installed + " is there", hint: "sudo mv"},
		{name: "a unit of somebody else's", set: func() { put("/etc/systemd/system/bangerd.service", "[Service]\nExecStart=/bin/true\n", 0o644) },
			unset: func() { os.Remove("/etc/systemd/system/bangerd.service") }, args: []string{"--firecracker", firecracker}, want: "bangerd.service is there", hint: "sudo mv"},
		{name: "no KVM", set: func() { do(t, "modprobe", "-r", "kvm-amd") }, unset: func() { do(t, "modprobe", "kvm-amd") },
			args: []string{"--firecracker", firecracker}, want: "KVM", hint: "virtualization"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.set != nil {
				tt.set()
				defer tt.unset()
			}
			before := brief(t)
			s := system(t, built, "", append([]string{"install"}, tt.args...)...)
			hint := s.err[strings.LastIndex(s.err, "hint:")+1:]
			if s.status != failure || !strings.Contains(s.err, tt.want) || !strings.Contains(hint, tt.hint) {
				t.Errorf("install: %+v; want %q and the hint %q", s, tt.want, tt.hint)
			}
			compare(t, tt.name, before, brief(t))
		})
	}
}

// brief is what an install changes first, at less cost than a snapshot.
func brief(t testing.TB) string {
	t.Helper()
	return tree(t, "/etc", "/usr/local") + do(t, "sh", "-c", "ls -d /var/lib/banger /var/cache/banger /run/banger* 2>&1; systemctl list-units --all --plain --no-legend 'banger*'; sysctl net.ipv4.ip_forward")
}

// A program that has the port of the names is named.
func TestPortTaken(t *testing.T) {
	prepare(t)
	c, err := net.ListenPacket("udp4", "127.0.0.1:42069")
	must(t, err)
	defer c.Close()
	s := system(t, built, "", "install", "--firecracker", firecracker)
	if s.status != failure || !strings.Contains(s.err, fmt.Sprintf("(pid %d)", os.Getpid())) {
		t.Errorf("install with the port taken: %+v, want this process named", s)
	}
}

// Where the host has a route into the usual prefix another is chosen, said and
// kept.
func TestAnotherPrefix(t *testing.T) {
	prepare(t)
	do(t, "ip", "link", "add", "dum0", "type", "dummy")
	defer do(t, "ip", "link", "del", "dum0")
	do(t, "ip", "addr", "add", "172.16.0.9/24", "dev", "dum0")
	do(t, "ip", "link", "set", "dum0", "up")
	for range 2 {
		if s := install(t); !strings.Contains(s.err, "172.16.1.0/24 on br-fc") {
			t.Errorf("install beside a route: %+v", s)
		}
	}
	// Another owner is refused; another prefix is taken, as there is no VM yet.
	if s := system(t, built, "", "install", "--owner", "other"); s.status != failure || !strings.Contains(s.err, "installed for owner") || !strings.Contains(s.err, "uninstall --purge") {
		t.Errorf("install for another owner: %+v", s)
	}
	install(t, "--prefix", "10.9.0.0/24", "--zone", "lab", "--bridge", "br-vm")
	in, err := rootapi.ReadInstall(rootapi.InstallPath)
	if err != nil || in.Prefix.String() != "10.9.0.0/24" || in.Zone != "lab" || in.Bridge != "br-vm" {
		t.Errorf("the record: %+v, %v", in, err)
	}
	healthy(t, "with another prefix")
	const vm = "/var/lib/banger/vms/0123456789ab"
	must(t, os.MkdirAll(vm, 0o700))
	if s := system(t, built, "", "install", "--prefix", "10.8.0.0/24"); s.status != failure || !strings.Contains(s.err, "1 VMs") {
		t.Errorf("another prefix with a VM: %+v", s)
	}
	must(t, os.Remove(vm))
	if s := system(t, installed, "", "uninstall", "--purge"); s.status != 0 {
		t.Errorf("uninstall: %+v", s)
	}
}

// VMs of user mode are mentioned, and left alone.
func TestUserModesVMs(t *testing.T) {
	const vm = "/home/owner/.local/state/banger/vms/0123456789ab"
	must(t, os.MkdirAll(vm, 0o755))
	t.Cleanup(func() { os.RemoveAll("/home/owner/.local") })
	prepare(t)
	if s := install(t); !strings.Contains(s.err, "1 VMs of user mode in /home/owner/.local/state/banger") || !strings.Contains(s.err, "BANGER_MODE=user banger vm list") {
		t.Errorf("install beside VMs of user mode: %+v", s)
	}
}
