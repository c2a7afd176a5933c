package system

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/doctor"
	"banger/internal/install/units"
	"banger/internal/rootapi"
	"banger/internal/rootclient"
	"banger/internal/testneed"
)

// healthy is a host with system mode on which every row passes.
func healthy(t *testing.T) Facts {
	t.Helper()
	in := rootapi.Install{
		Owner:  rootapi.Owner{UID: 1000, GID: 1000, Name: "alice", Home: "/home/alice"},
		Prefix: netip.MustParsePrefix("172.16.0.0/24"), Bridge: "br-fc", Zone: "vm",
		Programs: []rootapi.Program{{Firecracker: "/opt/fc/firecracker", Jailer: "/opt/fc/jailer"}},
	}
	f := Facts{
		InUse: true, Build: "v1", Install: in,
		Systemd: true, Release: "6.1", ModulesDir: true, Nft: true,
		Controllers: "cpuset cpu io memory pids", Forwarding: true, Bridge: true,
		Routes:   []Route{route("172.16.0.0/24", "br-fc"), route("172.16.0.1/32", "br-fc"), route("192.168.1.0/24", "eth0"), route("127.0.0.0/8", "lo")},
		Programs: []Program{{Path: "/opt/fc/firecracker"}, {Path: "/opt/fc/jailer"}},
		Units:    map[string]string{},
		Helper:   rootapi.Version{Protocol: rootapi.Protocol, Build: "v1", Install: in},
		DNS:      map[string]error{"udp": nil, "tcp": nil},
		Resolved: Resolved{Running: true, Domains: "Link 5 (br-fc): ~vm", Servers: "Link 5 (br-fc): 127.0.0.1:42069", Asked: true},
	}
	for _, name := range unitNames() {
		b, err := units.Files.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f.Units[name] = strings.NewReplacer("@OWNER@", "alice", "@BINDIR@", "/usr/local/libexec/banger").Replace(string(b))
	}
	return f
}

func route(dst, link string) Route { return Route{netip.MustParsePrefix(dst), link} }

func TestHealthySystemPasses(t *testing.T) {
	for _, r := range Rows(healthy(t)) {
		if r.Status != doctor.Pass || r.Fix != "" || r.Detail == "" || r.Check == "" {
			t.Errorf("on a healthy system: %+v, want PASS with a detail and no fix", r)
		}
	}
}

var errBroken = errors.New("broken")

// spoils makes each row fail or warn; a Pass says something else than usual.
var spoils = []struct {
	check       string
	want        doctor.Status
	spoil       func(*Facts)
	detail, fix string
}{
	{"system-mode", doctor.Fail, func(f *Facts) { f.InstallErr = errBroken }, "broken", "sudo banger system install --owner NAME"},
	{"systemd", doctor.Fail, func(f *Facts) { f.Systemd = false }, "not this system's init", "BANGER_MODE=user"},
	{"tun", doctor.Fail, func(f *Facts) { f.TUN = fs.ErrNotExist }, "file does not exist", "sudo modprobe tun"},
	{"kernel-modules", doctor.Fail, func(f *Facts) { f.NoModules = []string{"nft_masq"} }, "6.1 has no nft_masq", "kernel"},
	{"kernel-modules", doctor.Warn, func(f *Facts) { f.NoModules, f.ModulesDir = []string{"tun", "bridge"}, false }, "no /lib/modules/6.1, and these may be missing: tun, bridge", "sudo reboot"},
	{"nft", doctor.Fail, func(f *Facts) { f.Nft = false }, "there is no nft", "sudo apt install nftables"},
	{"cgroup2", doctor.Fail, func(f *Facts) { f.Controllers = "" }, "cgroup v2 is not", "systemd.unified_cgroup_hierarchy=1"},
	{"cgroup2", doctor.Fail, func(f *Facts) { f.Controllers = "cpu pids" }, "without memory", "cgroup_disable"},
	{"subnet", doctor.Fail, to("172.16.0.0/24", "eth1"), "172.16.0.0/24, by way of eth1, is inside", "sudo banger system install --prefix 172.16.1.0/24"},
	{"subnet", doctor.Fail, to("172.16.0.77/32", "wg0"), "172.16.0.77/32, by way of wg0", "--prefix 172.16.1.0/24"},
	{"subnet", doctor.Warn, to("172.16.0.0/12", "tun0"), "hides a part of 172.16.0.0/12, which is by way of tun0", "--prefix 10.213.0.0/24"},
	{"subnet", doctor.Warn, func(f *Facts) {
		f.Routes = append(f.Routes, route("172.16.0.0/12", "a"), route("10.0.0.0/8", "b"))
	}, "hides", "--prefix PREFIX"},
	{"ip-forwarding", doctor.Warn, func(f *Facts) { f.Forwarding = false }, "do not reach the internet", "sudo sysctl -w net.ipv4.ip_forward=1"},
	{"forward-policy", doctor.Pass, func(f *Facts) { f.Docker, f.UFW = true, true }, "Docker, ufw may drop", ""},
	{"forward-policy", doctor.Warn, func(f *Facts) { f.Firewalld = true }, "firewalld", "--add-interface=br-fc"},
	{"forward-policy", doctor.Warn, func(f *Facts) { f.Legacy = true }, "iptables-legacy", "iptables-nft"},
	{"firecracker-path", doctor.Fail, func(f *Facts) { f.Programs[1].Err = errBroken }, "no VM starts: broken", "sudo banger system install --firecracker PATH"},
	{"firecracker-path", doctor.Fail, func(f *Facts) { f.Programs[0].Dynamic = true }, "/opt/fc/firecracker is linked dynamically", "--firecracker PATH"},
	{"firecracker-path", doctor.Fail, func(f *Facts) { f.Programs = nil }, "names no Firecracker", "--firecracker PATH"},
	{"units", doctor.Fail, func(f *Facts) { delete(f.Units, "banger.slice") }, "there is no banger.slice", "sudo banger system install"},
	{"units", doctor.Warn, func(f *Facts) { f.Units["banger.slice"] += "MemoryMax=1G\n" }, "banger.slice is not as", "sudo banger system install"},
	{"units", doctor.Warn, func(f *Facts) { f.Install.Owner.Name = "bob" }, "bangerd", "sudo banger system install"},
	{"root-helper", doctor.Fail, func(f *Facts) { f.HelperErr = errBroken }, "does not answer: broken", "sudo banger system restart"},
	{"root-helper", doctor.Fail, func(f *Facts) { f.Helper.Protocol++ }, "speaks protocol", "sudo banger system install"},
	{"root-helper", doctor.Warn, func(f *Facts) { f.Helper.Build = "v0" }, "it is v0, this banger is v1", "sudo banger system install"},
	{"root-helper", doctor.Warn, func(f *Facts) { f.Helper.Install.Zone = "test" }, "another record", "sudo banger system restart"},
	{"network", doctor.Warn, func(f *Facts) { f.Mended = []string{"filter", "bridge"} }, "mended just now: filter, bridge", "systemctl status nftables"},
	{"network", doctor.Fail, func(f *Facts) { f.MendErr = errBroken }, "cannot be mended: broken", "sudo banger system restart"},
	{"network", doctor.Pass, func(f *Facts) { f.HelperErr = errBroken }, "not looked at", ""},
	{"names", doctor.Fail, func(f *Facts) { f.DNS["tcp"] = errBroken }, "nobody answers for .vm at 127.0.0.1:42069 (tcp): broken", "sport = :42069"},
	{"resolver", doctor.Warn, func(f *Facts) { f.Resolved = Resolved{} }, "systemd-resolved does not run", "server=/vm/127.0.0.1#42069"},
	{"resolver", doctor.Pass, func(f *Facts) { f.Resolved, f.Wired = Resolved{}, true }, "sends .vm", ""},
	{"resolver", doctor.Pass, func(f *Facts) { f.Bridge, f.Resolved.Domains = false, "" }, "when the first VM starts", ""},
	{"resolver", doctor.Warn, func(f *Facts) { f.Resolved.Asked = false }, "asked by nobody", "stub-resolv.conf"},
	{"resolver", doctor.Warn, func(f *Facts) { f.Resolved.Domains = "Link 5 (br-fc): ~vmx" }, "does not send .vm", "sudo banger system restart"},
	{"resolver", doctor.Warn, func(f *Facts) { f.Resolved.Servers = "Link 5 (br-fc): 127.0.0.1:420690" }, "does not send .vm", "sudo banger system restart"},
}

func to(dst, link string) func(*Facts) {
	return func(f *Facts) { f.Routes = append(f.Routes, route(dst, link)) }
}

func TestEveryRowCanFail(t *testing.T) {
	failed := map[string]bool{}
	for _, tt := range spoils {
		f := healthy(t)
		tt.spoil(&f)
		failed[tt.check] = failed[tt.check] || tt.want != doctor.Pass
		for _, r := range Rows(f) {
			if r.Check != tt.check {
				continue
			}
			if r.Status != tt.want || !strings.Contains(r.Detail, tt.detail) || !strings.Contains(r.Fix, tt.fix) || (r.Fix == "") != (tt.want == doctor.Pass) {
				t.Errorf("%s: %+v, want %s with %q and the fix %q", tt.check, r, tt.want, tt.detail, tt.fix)
			}
		}
	}
	for _, c := range checks() {
		if !failed[c.name] {
			t.Errorf("no test makes %s fail", c.name)
		}
	}
}

// Who has no system mode is told of it in one row, which never fails.
func TestUserMode(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil       func(*Facts)
		want        doctor.Status
		detail, fix string
	}{
		"another's":           {func(*Facts) {}, doctor.Pass, "installed for alice", ""},
		"a damaged record":    {func(f *Facts) { f.InstallErr = errBroken }, doctor.Warn, "half installed: broken", "sudo banger system install"},
		"not installed":       {none(func(*Facts) {}), doctor.Pass, "this host has what it takes", ""},
		"without systemd":     {none(func(f *Facts) { f.Systemd = false }), doctor.Warn, "before it can be: systemd is not", "boot this host"},
		"without KVM":         {none(func(f *Facts) { f.NoKVM = "no hardware"; f.Nft = false }), doctor.Warn, "KVM is not usable: no hardware; there is no nft", "virtualization"},
		"a prefix is taken":   {none(to("172.16.0.0/24", "eth1")), doctor.Pass, "this host has what it takes", ""},
		"all prefixes":        {none(func(f *Facts) { f.Routes = []Route{route("172.0.0.0/8", "a"), route("10.0.0.0/8", "b")} }), doctor.Warn, "are taken", "--prefix PREFIX"},
		"damage and no fact":  {func(f *Facts) { *f = Facts{InstallErr: errBroken} }, doctor.Warn, "half installed", "sudo banger system install"},
		"no fact, no install": {none(func(f *Facts) { *f = Facts{InstallErr: fs.ErrNotExist} }), doctor.Warn, "before it can be", ""},
	} {
		f := healthy(t)
		tt.spoil(&f)
		f.InUse = false
		rows := Rows(f)
		if len(rows) != 1 || rows[0].Check != "system-mode" || rows[0].Status != tt.want || !strings.Contains(rows[0].Detail, tt.detail) ||
			!strings.Contains(rows[0].Fix, tt.fix) || (rows[0].Fix == "") != (tt.want == doctor.Pass) {
			t.Errorf("%s: %+v, want one row, %s with %q and the fix %q", name, rows, tt.want, tt.detail, tt.fix)
		}
	}
}

// none is a host where nothing is installed.
func none(spoil func(*Facts)) func(*Facts) {
	return func(f *Facts) {
		f.Install, f.InstallErr = rootapi.Install{}, fs.ErrNotExist
		f.Routes = nil
		spoil(f)
	}
}

// Both daemons down, and nothing there but the record: rows, and no panic.
func TestGatherWithNothingThere(t *testing.T) {
	f := Facts{InUse: true, Install: healthy(t).Install}
	f.Install.Programs[0].Firecracker = t.TempDir() + "/firecracker"
	h := doctor.ThisHost()
	h.ReadFile = func(string) ([]byte, error) { return nil, fs.ErrNotExist }
	f.host(h)
	f.installed(t.Context(), h, rootclient.Client{Socket: t.TempDir() + "/none"})
	byName := map[string]doctor.Row{}
	for _, r := range Rows(f) {
		byName[r.Check] = r
	}
	for _, name := range []string{"root-helper", "units", "firecracker-path", "cgroup2"} {
		if byName[name].Status != doctor.Fail {
			t.Errorf("%s: %+v, want FAIL", name, byName[name])
		}
	}
	if len(f.Routes) == 0 || f.Release == "" {
		t.Errorf("routes %v, not even lo's; kernel %q", f.Routes, f.Release)
	}
}

func TestModuleName(t *testing.T) {
	for line, want := range map[string]string{
		"kernel/drivers/net/tun.ko":                                "tun",
		"kernel/net/netfilter/nft_masq.ko.zst: kernel/net/nf.ko\n": "nft_masq",
		"kernel/crypto/a-b.ko.xz:":                                 "a_b",
		"":                                                         ".",
	} {
		if got := moduleName(line); got != want {
			t.Errorf("moduleName(%q) = %q, want %q", line, got, want)
		}
	}
}

func TestAsked(t *testing.T) {
	for name, tt := range map[string]struct {
		resolv, nsswitch string
		want             bool
	}{
		"the stub":      {"# x\nnameserver 127.0.0.53\noptions edns0\n", "hosts: files dns\n", true},
		"the module":    {"nameserver 192.0.2.1\n", "passwd: files\nhosts: files resolve [!UNAVAIL=return] dns\n", true},
		"neither":       {"nameserver 192.0.2.1\n#nameserver 127.0.0.53\n", "hosts: files dns\n", false},
		"nothing":       {"", "", false},
		"only the word": {"search 127.0.0.53\n", "networks: resolve\n", false},
	} {
		if got := asked(tt.resolv, tt.nsswitch); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

func TestPrograms(t *testing.T) {
	dir := t.TempDir()
	static, script := filepath.Join(dir, "static"), filepath.Join(dir, "script")
	src := filepath.Join(dir, "main.go")
	for name, text := range map[string]string{src: "package main\nfunc main() {}\n", script: "#!/bin/sh\n"} {
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", static, src)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if d, err := dynamic(static); d || err != nil {
		t.Errorf("dynamic(a static program) = %v, %v", d, err)
	}
	if d, err := dynamic(testneed.Tool(t, "git")); !d || err != nil {
		t.Errorf("dynamic(git) = %v, %v", d, err)
	}
	if d, err := dynamic(script); d || err == nil {
		t.Errorf("dynamic(a script) = %v, %v, want an error", d, err)
	}
	if p := look(static); p.Err == nil || !strings.Contains(p.Err.Error(), "trusting "+static) {
		t.Errorf("look at a program in a directory of all = %+v, want a refusal", p)
	}
	if p := look("/usr/missing"); !errors.Is(p.Err, fs.ErrNotExist) {
		t.Errorf("look at nothing = %+v", p)
	}
}

func TestApply(t *testing.T) {
	f := healthy(t)
	var h doctor.Host
	h.Look = func(p string) (string, bool) { return "/usr/bin/" + p, true }
	s := doctor.Subject{}
	f.apply(&h, &s)
	if p, _ := h.Look("firecracker"); p != "/usr/bin/firecracker" || s.NeedsFirecracker {
		t.Errorf("in user mode: %s, %v", p, s.NeedsFirecracker)
	}
	s.Layout.System = true
	f.apply(&h, &s)
	if p, ok := h.Look("firecracker"); p != "/opt/fc/firecracker" || !ok || !s.NeedsFirecracker {
		t.Errorf("in system mode: %s, %v, %v", p, ok, s.NeedsFirecracker)
	}
	h.Look, s.Config.FirecrackerBin = nil, "/opt/fc/firecracker"
	f.apply(&h, &s)
	if p, ok := h.Look("/opt/fc/firecracker"); p != "/opt/fc/firecracker" || !ok {
		t.Errorf("the configuration's: %s, %v", p, ok)
	}
	h.Look, s.Config.FirecrackerBin = func(p string) (string, bool) { return "/usr/bin/" + p, true }, "/home/u/firecracker"
	f.apply(&h, &s)
	if p, ok := h.Look("/home/u/firecracker"); ok {
		t.Errorf("one that is not on record: %s, %v", p, ok)
	}
	if p, _ := h.Look("git"); p != "/usr/bin/git" {
		t.Errorf("git is %s", p)
	}
}
