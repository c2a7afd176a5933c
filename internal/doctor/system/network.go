package system

import (
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"strings"

	"banger/internal/doctor"
	"banger/internal/install/units"
	"banger/internal/lease"
	"banger/internal/rootapi"
)

// usualPrefix is what an install takes if it is free.
var usualPrefix = netip.MustParsePrefix("172.16.0.0/24")

// subnet looks for routes into the VMs' addresses that are not the bridge's.
// Before an install, one that is taken is no fault: another is chosen.
func subnet(f Facts) doctor.Row {
	p := f.Install.Prefix
	if !f.Installed() {
		p = usualPrefix
	}
	var others []netip.Prefix
	var worst Route
	for _, r := range f.Routes {
		if f.Installed() && r.Link == f.Install.Bridge {
			continue
		}
		others = append(others, r.Dst)
		if r.Dst.Overlaps(p) && (!worst.Dst.IsValid() || r.Dst.Bits() > worst.Dst.Bits()) {
			worst = r
		}
	}
	free, ok := lease.Choose(p, others)
	fix := fixInstall + " --prefix PREFIX, one that this host has no route into"
	if ok {
		fix = fmt.Sprintf("%s --prefix %v (VMs of the old one must be deleted first)", fixInstall, free)
	}
	switch {
	case !f.Installed() && ok:
		return pass("%v is free", free)
	case !f.Installed():
		return fail(fix, "all private networks that could be the VMs' are taken")
	case !worst.Dst.IsValid():
		return pass("%v meets no other route", p)
	case worst.Dst.Bits() < p.Bits():
		return warn(fix, "the VMs' %v hides a part of %v, which is by way of %s", p, worst.Dst, worst.Link)
	}
	return fail(fix, "%v, by way of %s, is inside the VMs' %v: VMs there are not reached", worst.Dst, worst.Link, p)
}

// policies names who else decides what is forwarded.
func policies(f Facts) doctor.Row {
	switch {
	case f.Firewalld:
		return warn(fmt.Sprintf("sudo firewall-cmd --permanent --zone=trusted --add-interface=%s && sudo firewall-cmd --reload", f.Install.Bridge),
			"firewalld refuses what it does not know, VMs with --nat among it")
	case f.Legacy:
		return warn("sudo update-alternatives --set iptables /usr/sbin/iptables-nft, and load its rules again",
			"iptables-legacy has rules of its own, which can drop what VMs with --nat send")
	}
	var who []string
	if f.Docker {
		who = append(who, "Docker")
	}
	if f.UFW {
		who = append(who, "ufw")
	}
	if who == nil {
		return pass("nobody else's is known")
	}
	return pass("%s may drop what it does not know; rules beside its own let VMs with --nat pass", strings.Join(who, ", "))
}

// network tells what others had done to it.
func network(f Facts) doctor.Row {
	switch {
	case f.HelperErr != nil:
		return pass("not looked at: the root helper does not answer")
	case f.MendErr != nil:
		return fail(fixRestart, "it cannot be mended: %v", f.MendErr)
	case len(f.Mended) > 0:
		return warn("find what does that: a firewall that flushes all rules, perhaps: systemctl status nftables", "something had changed it, and it was mended just now: %s", strings.Join(f.Mended, ", "))
	}
	return pass("bridge and packet filter are whole")
}

// names asks the owner daemon's server.
func names(f Facts) doctor.Row {
	for _, network := range sorted(f.DNS) {
		if err := f.DNS[network]; err != nil {
			return fail(fmt.Sprintf("%s; if another program has the port: sudo ss -lnp 'sport = :%d'", fixRestart, DNSPort),
				"nobody answers for .%s at 127.0.0.1:%d (%s): %v", f.Install.Zone, DNSPort, network, err)
		}
	}
	return pass("127.0.0.1:%d answers for .%s", DNSPort, f.Install.Zone)
}

// resolver says whether `getent hosts NAME.vm` gets there.
func resolver(f Facts) doctor.Row {
	zone, r := f.Install.Zone, f.Resolved
	switch {
	case f.Wired:
		return pass("this host's resolver sends .%s to the VMs' server", zone)
	case !r.Running:
		return warn(fmt.Sprintf("have your resolver ask 127.0.0.1:%d for .%s; dnsmasq: server=/%s/127.0.0.1#%d", DNSPort, zone, zone, DNSPort), "systemd-resolved does not run here, and who does not know of .%s: names of VMs are not found", zone)
	case !r.Asked:
		return warn("sudo ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf", "systemd-resolved runs and is asked by nobody: names of VMs are not found")
	case !f.Bridge:
		return pass("set up when the first VM starts")
	case !strings.Contains(r.Domains+" ", " ~"+zone+" ") || !strings.Contains(r.Servers+" ", fmt.Sprintf(" 127.0.0.1:%d ", DNSPort)):
		return warn(fixRestart, "systemd-resolved does not send .%s to the VMs' server: names of VMs are not found", zone)
	}
	return pass("systemd-resolved sends .%s to the VMs' server while a VM runs", zone)
}

var placeholder = regexp.MustCompile(`@[A-Z]+@`)

// unitDrift compares the installed units with the texts of this program. What is
// filled in when they are installed may be any word, but the owner is known.
func unitDrift(f Facts) doctor.Row {
	for _, name := range unitNames() {
		have, ok := f.Units[name]
		if !ok {
			return fail(fixInstall, "there is no %s", name)
		}
		text, err := units.Files.ReadFile(name)
		if err != nil {
			return fail(fixInstall, "%v", err)
		}
		if !fits(string(text), have, f.Install.Owner) {
			return warn(fixInstall, "%s is not as this banger has it", name)
		}
	}
	return pass("all are as this banger has them")
}

func fits(template, text string, owner rootapi.Owner) bool {
	pattern, rest := "^", 0
	for _, at := range placeholder.FindAllStringIndex(template, -1) {
		word := `[^\s]+`
		if template[at[0]:at[1]] == "@OWNER@" {
			word = fmt.Sprintf("(?:%s|%d)", regexp.QuoteMeta(owner.Name), owner.UID)
		}
		pattern += regexp.QuoteMeta(template[rest:at[0]]) + word
		rest = at[1]
	}
	ok, err := regexp.MatchString(pattern+regexp.QuoteMeta(template[rest:])+"$", text)
	return err == nil && ok
}

func same(a, b rootapi.Install) bool { return reflect.DeepEqual(a, b) }
