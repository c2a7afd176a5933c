// Package system says how system mode does on a host, in rows of package
// doctor's.
//
// [Gather] asks the host once and changes nothing but what the root helper mends
// whenever it is asked; the verdicts are functions of the [Facts] alone, so that
// every row can be made to fail in a test. Both daemons may be down. What is
// wrong is said, with what to type; doing it is the user's.
package system

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"banger/internal/doctor"
	"banger/internal/rootapi"
)

// The commands that mend most of it.
const (
	fixRestart = "sudo banger system restart"
	fixInstall = "sudo banger system install"
)

// A check is one row's name and its verdict.
type check struct {
	name    string
	verdict func(Facts) doctor.Row
}

// needs are what must be there before system mode can be installed, too.
func needs() []check {
	return []check{
		{"systemd", systemd},
		{"tun", tun},
		{"kernel-modules", modules},
		{"nft", nft},
		{"cgroup2", cgroup2},
		{"subnet", subnet},
	}
}

// checks are those of an installed system.
func checks() []check {
	return append(append([]check{{"system-mode", record}}, needs()...),
		check{"ip-forwarding", forwarding},
		check{"forward-policy", policies},
		check{"firecracker-path", programs},
		check{"units", unitDrift},
		check{"root-helper", helper},
		check{"network", network},
		check{"names", names},
		check{"resolver", resolver},
	)
}

// Examine makes all checks: the ordinary ones, which look at what system mode
// goes by if it is this account's, and then ours.
func Examine(ctx context.Context, h doctor.Host, s doctor.Subject) []doctor.Row {
	f := Gather(ctx, h, s.Layout.System)
	f.apply(&h, &s)
	return append(doctor.Run(ctx, h, s), Rows(f)...)
}

// Rows are the verdicts: all of them if system mode is this account's, else one
// that says what it would take.
func Rows(f Facts) []doctor.Row {
	if !f.InUse {
		return []doctor.Row{named("system-mode", notInUse(f))}
	}
	var rows []doctor.Row
	for _, c := range checks() {
		rows = append(rows, named(c.name, c.verdict(f)))
	}
	return rows
}

func named(name string, r doctor.Row) doctor.Row {
	r.Check = name
	if r.Status == doctor.Pass {
		r.Fix = ""
	}
	return r
}

func pass(format string, args ...any) doctor.Row {
	return doctor.Row{Status: doctor.Pass, Detail: fmt.Sprintf(format, args...)}
}

func warn(fix, format string, args ...any) doctor.Row {
	return doctor.Row{Status: doctor.Warn, Detail: fmt.Sprintf(format, args...), Fix: fix}
}

func fail(fix, format string, args ...any) doctor.Row {
	return doctor.Row{Status: doctor.Fail, Detail: fmt.Sprintf(format, args...), Fix: fix}
}

// notInUse is the one row of user mode. It never fails: VMs run without.
func notInUse(f Facts) doctor.Row {
	switch {
	case f.Installed():
		return pass("installed for %s; this account is in user mode", f.Install.Owner.Name)
	case !errors.Is(f.InstallErr, fs.ErrNotExist):
		return warn(fixInstall+" writes it anew", "half installed: %v", f.InstallErr)
	}
	var lacks []string
	fix := ""
	for _, c := range append([]check{{"kvm", kvmUsable}}, needs()...) {
		if r := c.verdict(f); r.Status == doctor.Fail {
			if lacks = append(lacks, r.Detail); fix == "" {
				fix = r.Fix
			}
		}
	}
	if lacks == nil {
		return pass("not installed, so VMs have no network of their own; this host has what it takes: " + fixInstall + " --owner NAME")
	}
	return warn(fix, "not installed, so VMs have no network of their own; before it can be: %s", strings.Join(lacks, "; "))
}

// kvmUsable has a row of package doctor's where system mode is in use.
func kvmUsable(f Facts) doctor.Row {
	if f.NoKVM != "" {
		return fail(cmp.Or(f.KVMFix, "none: Firecracker needs a processor's virtualization"), "KVM is not usable: %s", f.NoKVM)
	}
	return pass("usable")
}

func record(f Facts) doctor.Row {
	if f.InstallErr != nil {
		return fail(fixInstall+" --owner NAME", "%v", f.InstallErr)
	}
	in := f.Install
	return pass("installed for %s; VMs have addresses of %v on %s and names in .%s", in.Owner.Name, in.Prefix, in.Bridge, in.Zone)
}

func systemd(f Facts) doctor.Row {
	if !f.Systemd {
		return fail("boot this host with systemd; user mode needs none: BANGER_MODE=user banger vm run", "systemd is not this system's init, and system mode is two of its services")
	}
	return pass("it is this system's init")
}

func tun(f Facts) doctor.Row {
	if f.TUN != nil {
		return fail("sudo modprobe tun", "%v: no VM can have a network", f.TUN)
	}
	return pass("/dev/net/tun is there")
}

// moduleNames are what bridge, TAPs and packet filter are made of.
var moduleNames = strings.Fields("tun bridge nf_tables nf_conntrack nf_conntrack_netlink nft_ct nft_reject nft_reject_inet nft_chain_nat nft_masq")

func modules(f Facts) doctor.Row {
	switch {
	case len(f.NoModules) > 0 && !f.ModulesDir:
		return warn("if the kernel was upgraded, boot the new one: sudo reboot", "there is no /lib/modules/%s, and these may be missing: %s", f.Release, strings.Join(f.NoModules, ", "))
	case len(f.NoModules) > 0:
		return fail("use a kernel that has them: your distribution's own does", "%s has no %s", f.Release, strings.Join(f.NoModules, ", "))
	}
	return pass("%s has all", f.Release)
}

func nft(f Facts) doctor.Row {
	if !f.Nft {
		return fail("install nftables, on Debian with: sudo apt install nftables", "there is no nft, with which the VMs are kept apart")
	}
	return pass("it is there")
}

// controllers are those whose limits a VM gets.
var controllers = []string{"cpu", "memory", "pids"}

func cgroup2(f Facts) doctor.Row {
	have := strings.Fields(f.Controllers)
	var lacks []string
	for _, c := range controllers {
		if !slices.Contains(have, c) {
			lacks = append(lacks, c)
		}
	}
	switch {
	case len(have) == 0:
		return fail("boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line", "cgroup v2 is not at /sys/fs/cgroup: VMs cannot be limited")
	case lacks != nil:
		return fail("take cgroup_disable off the kernel's command line, and reboot", "cgroup v2 is without %s: VMs cannot be limited", strings.Join(lacks, ", "))
	}
	return pass("with %s", strings.Join(controllers, ", "))
}

func forwarding(f Facts) doctor.Row {
	if !f.Forwarding {
		return warn("sudo sysctl -w net.ipv4.ip_forward=1", "net.ipv4.ip_forward is not 1: VMs with --nat do not reach the internet")
	}
	return pass("net.ipv4.ip_forward is 1")
}

func helper(f Facts) doctor.Row {
	switch v := f.Helper; {
	case f.HelperErr != nil:
		return fail(fixRestart, "it does not answer: %v", f.HelperErr)
	case v.Protocol != rootapi.Protocol:
		return fail(fixInstall, "it is %s and speaks protocol %d, this banger speaks %d", v.Build, v.Protocol, rootapi.Protocol)
	case f.Build != "" && v.Build != f.Build:
		return warn(fixInstall, "it is %s, this banger is %s", v.Build, f.Build)
	case !same(v.Install, f.Install):
		return warn(fixRestart, "it goes by another record than %s", rootapi.InstallPath)
	}
	return pass("it answers")
}
