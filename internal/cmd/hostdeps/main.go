// Command hostdeps installs the host packages that building, running or
// testing banger needs and that are missing.
//
//	go run ./internal/cmd/hostdeps run|test
//
// It says what is missing, which packages bring it, and the command it runs.
// With apt it goes ahead, as root or through sudo; with dnf and pacman it
// tries; elsewhere it prints the list and stops. When nothing is missing it
// prints nothing and runs nothing.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
)

// A need is a program or file, and the package that brings it.
type need struct {
	program string // looked up in PATH and the sbin directories
	file    string // or a file that must exist
	why     string
	apt     string
	dnf     string
	pacman  string
	test    bool // only the tests need it
	user    bool // only ordinary accounts need it
}

var needs = []need{
	{program: "qemu-system-x86_64", why: "runs the VMs", apt: "qemu-system-x86", dnf: "qemu-system-x86-core", pacman: "qemu-system-x86"},
	{program: "mmdebstrap", why: "builds the default image", apt: "mmdebstrap", dnf: "mmdebstrap", pacman: "mmdebstrap"},
	{file: "/usr/share/keyrings/debian-archive-keyring.gpg", why: "checks Debian's signatures", apt: "debian-archive-keyring", dnf: "debian-keyring", pacman: "debian-archive-keyring"},
	{program: "ssh", why: "interactive sessions", apt: "openssh-client", dnf: "openssh-clients", pacman: "openssh"},
	{program: "git", why: "reads workspaces", apt: "git", dnf: "git-core", pacman: "git"},
	{program: "newuidmap", why: "lets mmdebstrap run without root", apt: "uidmap", dnf: "shadow-utils-subid", pacman: "shadow", user: true},
	{program: "e2fsck", why: "checks the images we write", apt: "e2fsprogs", dnf: "e2fsprogs", pacman: "e2fsprogs", test: true},
	{program: "cpio", why: "reads the initramfs we write", apt: "cpio", dnf: "cpio", pacman: "cpio", test: true},
	{program: "busybox", why: "the tests' small image", apt: "busybox-static", dnf: "busybox", pacman: "busybox", test: true},
	{program: "gcc", why: "the race detector", apt: "gcc libc6-dev", dnf: "gcc glibc-devel", pacman: "gcc", test: true},
	{program: "newuidmap", why: "tests of ordinary accounts", apt: "uidmap", dnf: "shadow-utils-subid", pacman: "shadow", test: true},
	{program: "strace", why: "counts processes and system calls", apt: "strace", dnf: "strace", pacman: "strace", test: true},
	{program: "pip3", why: "gets a Firecracker for the tests", apt: "python3-pip", dnf: "python3-pip", pacman: "python-pip", test: true},
	{program: "tmux", why: "terminal tests", apt: "tmux", dnf: "tmux", pacman: "tmux", test: true},
	{program: "nft", why: "the packet filter of the network tests", apt: "nftables", dnf: "nftables", pacman: "nftables", test: true},
	{program: "ip", why: "looks at what the network tests made", apt: "iproute2", dnf: "iproute", pacman: "iproute2", test: true},
	{program: "iptables", why: "plays Docker in the network tests", apt: "iptables", dnf: "iptables-nft", pacman: "iptables-nft", test: true},
	{program: "ping", why: "tries the guests' network", apt: "iputils-ping", dnf: "iputils", pacman: "iputils", test: true},
	{program: "conntrack", why: "counts connections in the network tests", apt: "conntrack", dnf: "conntrack-tools", pacman: "conntrack-tools", test: true},
	{program: "sysctl", why: "forwards packets in the network tests", apt: "procps", dnf: "procps-ng", pacman: "procps-ng", test: true},
	{program: "dnsmasq", why: "tries the recipes of docs/dns-routing.md", apt: "dnsmasq-base", dnf: "dnsmasq", pacman: "dnsmasq", test: true},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if len(os.Args) != 2 || (os.Args[1] != "run" && os.Args[1] != "test") {
		fmt.Fprintln(os.Stderr, "usage: hostdeps run|test")
		os.Exit(2)
	}
	if err := ensure(ctx, os.Args[1] == "test"); err != nil {
		fmt.Fprintln(os.Stderr, "hostdeps:", err)
		os.Exit(1)
	}
}

// ensure installs what is missing and looks again.
func ensure(ctx context.Context, test bool) error {
	missing := lacking(test)
	if len(missing) == 0 {
		return nil
	}
	for _, n := range missing {
		fmt.Fprintf(os.Stderr, "missing: %s (%s)\n", n.name(), n.why)
	}
	install, pkgs := manager(missing)
	if install == nil {
		return fmt.Errorf("no apt-get, dnf or pacman here: please install %s yourself", strings.Join(pkgs, " "))
	}
	if _, err := exec.LookPath("sudo"); err != nil && os.Getuid() != 0 {
		last := install[len(install)-1]
		return fmt.Errorf("there is no sudo here: as root, run %s", strings.Join(last, " "))
	}
	for _, argv := range install {
		if err := asRoot(ctx, argv); err != nil {
			return fmt.Errorf("installing %s: %w", strings.Join(pkgs, " "), err)
		}
	}
	if still := lacking(test); len(still) > 0 {
		return fmt.Errorf("%s is still missing after the packages were installed", still[0].name())
	}
	return nil
}

func lacking(test bool) []need {
	var out []need
	for _, n := range needs {
		if n.test && !test || n.user && os.Getuid() == 0 || n.there() {
			continue
		}
		out = append(out, n)
	}
	return out
}

func (n need) name() string { return n.program + n.file }

func (n need) there() bool {
	if n.file != "" {
		_, err := os.Stat(n.file)
		return err == nil
	}
	for _, dir := range []string{"", "/usr/local/sbin/", "/usr/sbin/", "/sbin/"} {
		if _, err := exec.LookPath(dir + n.program); err == nil {
			return true
		}
	}
	return false
}

// manager returns the commands that install what is missing, and the packages.
func manager(missing []need) (commands [][]string, pkgs []string) {
	has := func(name string) bool { _, err := exec.LookPath(name); return err == nil }
	collect := func(pick func(need) string) []string {
		var out []string
		for _, n := range missing {
			for _, p := range strings.Fields(pick(n)) {
				if !slices.Contains(out, p) {
					out = append(out, p)
				}
			}
		}
		return out
	}
	switch {
	case has("apt-get"):
		pkgs = collect(func(n need) string { return n.apt })
		install := append([]string{"apt-get", "install", "-y", "-qq", "--no-install-recommends"}, pkgs...)
		// A machine that never fetched its lists has no candidates: update first.
		return [][]string{{"apt-get", "update", "-qq"}, install}, pkgs
	case has("dnf"):
		pkgs = collect(func(n need) string { return n.dnf })
		return [][]string{append([]string{"dnf", "install", "-y"}, pkgs...)}, pkgs
	case has("pacman"):
		pkgs = collect(func(n need) string { return n.pacman })
		return [][]string{append([]string{"pacman", "-S", "--needed", "--noconfirm"}, pkgs...)}, pkgs
	}
	return nil, collect(func(n need) string { return n.apt })
}

func asRoot(ctx context.Context, argv []string) error {
	if os.Getuid() != 0 {
		argv = append([]string{"sudo"}, argv...)
	}
	fmt.Fprintf(os.Stderr, "+ %s\n", strings.Join(argv, " "))
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	// What the installer says belongs to the conversation, not to the answer.
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stderr, os.Stderr
	return cmd.Run()
}
