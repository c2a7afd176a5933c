package system

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/doctor"
	"banger/internal/install/units"
	"banger/internal/rootapi"
	"banger/internal/rootclient"
	"banger/internal/rtnl"
	"banger/internal/vmm/firecracker"
)

// DNSPort is where the owner daemon answers for the VMs' names: docs/dns-routing.md.
const DNSPort = 42069

// patience is for one answer of a program or a daemon on this host.
const patience = 10 * time.Second

// Facts are what the host is like.
type Facts struct {
	InUse      bool   // system mode is this account's, or root asks
	Build      string // what the toolchain calls this program, as the helper calls itself; "" if unknown
	Install    rootapi.Install
	InstallErr error // of reading the record; fs.ErrNotExist: not installed

	NoKVM       string // why it is not usable; not asked for where another row tells it
	KVMFix      string
	Systemd     bool
	TUN         error    // what is wrong with /dev/net/tun
	Release     string   // of the kernel
	ModulesDir  bool     // its modules are there
	NoModules   []string // of moduleNames, neither loaded nor to be had
	Nft         bool
	Controllers string // of cgroup v2
	Forwarding  bool   // IPv4 packets pass this host

	Routes    []Route
	Bridge    bool // there is one of the record's name
	Docker    bool
	UFW       bool
	Firewalld bool
	Legacy    bool // the filter of iptables-legacy is loaded

	Programs  []Program         // of the record
	Units     map[string]string // the texts that are installed, by name; what is missing is not in it
	Helper    rootapi.Version
	HelperErr error
	Mended    []string // what the helper had to mend just now
	MendErr   error

	DNS      map[string]error // of asking the owner daemon's server for the zone, by udp and tcp
	Resolved Resolved
	Wired    bool // this host's own resolver knows the zone
}

// A Route is one of the host's, with the link that it leads to.
type Route struct {
	Dst  netip.Prefix
	Link string
}

// Resolved is what systemd-resolved says of the bridge's link.
type Resolved struct {
	Running bool
	Domains string // "Link 5 (br-fc): ~vm"
	Servers string // "Link 5 (br-fc): 127.0.0.1:42069"
	Asked   bool   // the C library's lookups reach it
}

// Installed reports whether there is a record that can be read.
func (f Facts) Installed() bool { return f.InstallErr == nil }

// Gather asks the host. mine says that system mode is this account's.
func Gather(ctx context.Context, h doctor.Host, mine bool) Facts {
	var f Facts
	if info, ok := debug.ReadBuildInfo(); ok {
		f.Build = info.Main.Version
	}
	f.Install, f.InstallErr = rootapi.ReadInstall(rootapi.InstallPath)
	f.InUse = mine || h.UID == 0 && f.Installed()
	f.host(h)
	if !f.InUse || !f.Installed() {
		if v := h.KVM(ctx); !v.Usable {
			f.NoKVM, f.KVMFix = v.Why, v.Fix
		}
		return f
	}
	f.installed(ctx, h, rootclient.Client{})
	return f
}

// host looks at what is there before an install.
func (f *Facts) host(h doctor.Host) {
	f.Systemd = isDir("/run/systemd/system") // sd_booted(3)
	f.TUN = device("/dev/net/tun")
	f.kernel(h)
	_, f.Nft = h.Look("nft")
	f.Controllers = text(h, "/sys/fs/cgroup/cgroup.controllers")
	f.Forwarding = text(h, "/proc/sys/net/ipv4/ip_forward") == "1"
	f.routes()
}

// installed looks at what an install has made.
func (f *Facts) installed(ctx context.Context, h doctor.Host, helper rootclient.Client) {
	f.firewalls(ctx, h)
	for _, p := range f.Install.Programs {
		f.Programs = append(f.Programs, look(p.Firecracker), look(p.Jailer))
	}
	f.Units = map[string]string{}
	for _, name := range unitNames() {
		if b, err := h.ReadFile("/etc/systemd/system/" + name); err == nil {
			f.Units[name] = string(b)
		}
	}
	f.daemons(ctx, helper)
	f.resolver(ctx, h)
}

// unitNames are the units that banger has.
func unitNames() []string {
	list, err := units.Files.ReadDir(".")
	if err != nil {
		return nil // it is part of this program
	}
	var names []string
	for _, d := range list {
		names = append(names, d.Name())
	}
	return names
}

func isDir(path string) bool {
	st, err := os.Lstat(path)
	return err == nil && st.IsDir()
}

func device(path string) error {
	st, err := os.Stat(path)
	if err == nil && st.Mode()&fs.ModeCharDevice == 0 {
		err = fmt.Errorf("%s is no device", path)
	}
	return err
}

// text is a small file without the space around it, "" if it cannot be read.
func text(h doctor.Host, path string) string {
	b, err := h.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// kernel looks for modules among those that are loaded, built in, or to be had.
func (f *Facts) kernel(h doctor.Host) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return
	}
	f.Release = unix.ByteSliceToString(u.Release[:])
	dir := "/lib/modules/" + f.Release
	f.ModulesDir = isDir(dir + "/.")
	known := map[string]bool{}
	for _, list := range []string{"/modules.builtin", "/modules.dep"} {
		for line := range strings.Lines(text(h, dir+list)) {
			known[moduleName(line)] = true
		}
	}
	for _, m := range moduleNames {
		if !known[m] && !isDir("/sys/module/"+m) {
			f.NoModules = append(f.NoModules, m)
		}
	}
}

// moduleName is that of "kernel/net/nf-tables.ko.xz: kernel/...".
func moduleName(line string) string {
	file, _, _ := strings.Cut(strings.TrimSpace(line), ":")
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// routes lists the host's, but those of less than 8 bits: they stand for
// everything else. A host whose routes cannot be read has none that we know of.
func (f *Facts) routes() {
	c, err := rtnl.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return
	}
	defer c.Close()
	links, err := c.Links()
	if err != nil {
		return
	}
	names := map[uint32]string{}
	for _, l := range links {
		names[uint32(l.Index)] = l.Name
		f.Bridge = f.Bridge || l.Name == f.Install.Bridge
		f.Docker = f.Docker || l.Name == "docker0"
	}
	replies, err := c.Do(unix.RTM_GETROUTE, unix.NLM_F_DUMP, []byte{unix.AF_INET, 11: 0})
	if err != nil {
		return
	}
	for _, r := range replies {
		a := rtnl.Attrs(r[unix.SizeofRtMsg:])
		if dst, ok := netip.AddrFromSlice(a[unix.RTA_DST]); ok && r[1] >= 8 {
			link := ""
			if oif := a[unix.RTA_OIF]; len(oif) == 4 {
				link = names[binary.NativeEndian.Uint32(oif)]
			}
			f.Routes = append(f.Routes, Route{netip.PrefixFrom(dst, int(r[1])), link})
		}
	}
}

// firewalls looks for those whose rules stand beside ours. Only root can read
// the rules; who makes them can be seen by anybody.
func (f *Facts) firewalls(ctx context.Context, h doctor.Host) {
	f.UFW = strings.Contains("\n"+text(h, "/etc/ufw/ufw.conf")+"\n", "\nENABLED=yes\n")
	_, err := output(ctx, "systemctl", "is-active", "--quiet", "firewalld.service")
	f.Firewalld = err == nil
	f.Legacy = isDir("/sys/module/iptable_filter")
}

// output is what a program prints. It has no terminal, and a limit.
func output(ctx context.Context, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "SYSTEMD_COLORS=0", "SYSTEMD_PAGER=")
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}

// daemons asks the root helper who it is and what had to be mended, and the
// owner daemon's name server for its zone.
func (f *Facts) daemons(ctx context.Context, c rootclient.Client) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	f.Helper, f.HelperErr = c.Hello(ctx)
	if f.HelperErr == nil {
		f.Mended, f.MendErr = c.Mend(ctx)
	}
	f.DNS = map[string]error{}
	for _, network := range []string{"udp", "tcp"} {
		f.DNS[network] = askZone(ctx, network, f.Install.Zone)
	}
}

// zoneServer is what our server says of its zone, and nobody else would.
const zoneServer = "localhost."

func askZone(ctx context.Context, network, zone string) error {
	ours := net.Resolver{PreferGo: true, StrictErrors: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, fmt.Sprintf("127.0.0.1:%d", DNSPort))
	}}
	list, err := ours.LookupNS(ctx, zone+".")
	if err == nil && (len(list) != 1 || list[0].Host != zoneServer) {
		err = errors.New("the answer is another server's")
	}
	return err
}

// resolver asks systemd-resolved what it does for the bridge, and whoever
// /etc/resolv.conf names for the zone.
func (f *Facts) resolver(ctx context.Context, h doctor.Host) {
	f.Resolved.Running = isDir("/run/systemd/resolve")
	if f.Resolved.Running && f.Bridge {
		// What cannot be asked for is seen to be missing.
		f.Resolved.Domains, _ = output(ctx, "resolvectl", "domain", f.Install.Bridge)
		f.Resolved.Servers, _ = output(ctx, "resolvectl", "dns", f.Install.Bridge)
	}
	f.Resolved.Asked = asked(text(h, "/etc/resolv.conf"), text(h, "/etc/nsswitch.conf"))
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	list, err := (&net.Resolver{PreferGo: true}).LookupNS(ctx, f.Install.Zone+".")
	f.Wired = err == nil && len(list) == 1 && list[0].Host == zoneServer
}

// asked says whether lookups reach systemd-resolved: by its stub address or by
// the C library's module.
func asked(resolvConf, nsswitch string) bool {
	for line := range strings.Lines(resolvConf) {
		if w := strings.Fields(line); len(w) == 2 && w[0] == "nameserver" && (w[1] == "127.0.0.53" || w[1] == "127.0.0.54") {
			return true
		}
	}
	for line := range strings.Lines(nsswitch) {
		if w := strings.Fields(line); len(w) > 1 && w[0] == "hosts:" && slices.Contains(w, "resolve") {
			return true
		}
	}
	return false
}

// apply has the ordinary checks look at what system mode goes by.
func (f Facts) apply(h *doctor.Host, s *doctor.Subject) {
	if !s.Layout.System || !f.Installed() {
		return
	}
	s.NeedsFirecracker = true
	look, bin := h.Look, s.Config.FirecrackerBin
	h.Look = func(program string) (string, bool) {
		if program != firecracker.Program && program != bin || len(f.Programs) == 0 {
			return look(program)
		}
		i := 0 // which the daemon takes if the configuration names none
		if program == bin {
			i = slices.IndexFunc(f.Programs, func(p Program) bool { return p.Path == bin })
		}
		if i < 0 {
			return "", false
		}
		return f.Programs[i].Path, f.Programs[i].Err == nil
	}
}

// sorted are a map's keys, for rows that always read the same.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
