package install

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"banger/internal/api"
	"banger/internal/install/files"
	"banger/internal/install/systemctl"
	"banger/internal/kvm"
	"banger/internal/rootapi"
	"banger/internal/zone"
)

func TestRefuse(t *testing.T) {
	good := func() facts {
		return facts{arch: "amd64", systemd: func() bool { return true }, look: func(string) bool { return true },
			kvm: func(context.Context) kvm.Verdict { return kvm.Verdict{Usable: true} }, port: func(context.Context) error { return nil }}
	}
	if err := errors.Join(good().refuse(t.Context()), good().virtual(t.Context())); err != nil {
		t.Errorf("refuse() of a good host = %v", err)
	}
	for name, tt := range map[string]struct {
		spoil      func(*facts)
		code       api.Code
		says, hint string
	}{
		"arm64":      {func(f *facts) { f.arch = "arm64" }, api.Unsupported, "arm64", "x86_64"},
		"no systemd": {func(f *facts) { f.systemd = func() bool { return false } }, api.Unsupported, "systemd", "banger vm run"},
		"no nft":     {func(f *facts) { f.look = func(p string) bool { return p != "/usr/sbin/nft" } }, api.Missing, "no /usr/sbin/nft", "nftables"},
		"no KVM": {func(f *facts) {
			f.kvm = func(context.Context) kvm.Verdict { return kvm.Verdict{Why: "no device", Fix: "switch it on"} }
		}, api.Unsupported, "no device", "switch it on"},
		"a KVM that cannot": {func(f *facts) { f.kvm = func(context.Context) kvm.Verdict { return kvm.Verdict{Why: "interpreted"} } }, api.Unsupported, "interpreted", "user mode"},
		"a port": {func(f *facts) {
			f.port = func(context.Context) error { return &api.Error{Code: api.Conflict, Msg: "taken", Hint: "end it"} }
		}, api.Conflict, "taken", "end it"},
	} {
		f := good()
		tt.spoil(&f)
		err := errors.Join(f.refuse(t.Context()), f.virtual(t.Context()))
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != tt.code || !strings.Contains(e.Msg, tt.says) || !strings.Contains(e.Hint, tt.hint) {
			t.Errorf("%s: %+v, want code %s, %q and hint %q", name, err, tt.code, tt.says, tt.hint)
		}
	}
}

// One port, named in two places: the programs shall not link each other's.
func TestPortIsTheZones(t *testing.T) {
	if dnsPort != zone.Port {
		t.Errorf("install looks at port %d, and names are answered for at %d", dnsPort, zone.Port)
	}
}

func TestUnitName(t *testing.T) {
	for name, want := range map[string]string{"alice": "alice", "a-b_c1": "a-b_c1", "1000": "1000", "%i": "1000", "DOM\\bob": "1000", "a b": "1000", "-x": "1000", strings.Repeat("x", 40): "1000"} {
		if got := unitName(rootapi.Owner{Name: name, UID: 1000}); got != want {
			t.Errorf("unitName(%q) = %q, want %q", name, got, want)
		}
	}
}

// Who holds a port is found in /proc, for the user's own processes too.
func TestListener(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	if got := listener("/proc", port); !strings.HasSuffix(got, fmt.Sprintf("(pid %d)", os.Getpid())) {
		t.Errorf("listener() = %q, want this process", got)
	}
	if got := listener(t.TempDir(), port); got != "another program" {
		t.Errorf("listener() without /proc = %q", got)
	}
}

// One at a time, and nothing of the lock is left. Nobody else than root, or who
// runs this test, can open it and so hold it.
func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	for range 2 {
		unlock, err := lock(path)
		if err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
			t.Errorf("the lock is %v, %v; want mode 0600", st, err)
		}
		if _, err := lock(path); api.CodeOf(err) != api.Conflict {
			t.Errorf("lock() a second time = %v, want a conflict", err)
		}
		unlock()
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("after unlock() the lock is still there: %v", err)
		}
	}
	if err := os.Symlink("elsewhere", path); err != nil {
		t.Fatal(err)
	}
	if _, err := lock(path); err == nil {
		t.Error("lock() of a link = nil")
	}
}

// A bridge of somebody else's is refused; ours is known, also before it moves to
// another prefix.
func TestBridgeFree(t *testing.T) {
	record := func(bridge, prefix string) *rootapi.Install {
		return &rootapi.Install{Bridge: bridge, Prefix: netip.MustParsePrefix(prefix)}
	}
	for name, tt := range map[string]struct {
		was  *rootapi.Install
		mac  net.HardwareAddr
		free bool
	}{
		"no interface":          {nil, nil, true},
		"one without address":   {nil, net.HardwareAddr{}, false},
		"another's":             {nil, net.HardwareAddr{2, 0x42, 1, 2, 3, 4}, false},
		"ours":                  {nil, net.HardwareAddr{2, 0xfc, 172, 16, 0, 1}, true},
		"ours of before":        {record("br-fc", "10.9.0.0/24"), net.HardwareAddr{2, 0xfc, 10, 9, 0, 1}, true},
		"of before, other name": {record("br-x", "10.9.0.0/24"), net.HardwareAddr{2, 0xfc, 10, 9, 0, 1}, false},
	} {
		err := bridgeFree(*record("br-fc", "172.16.0.0/24"), tt.was, func(string) net.HardwareAddr { return tt.mac })
		if (err == nil) != tt.free || err != nil && api.CodeOf(err) != api.Conflict {
			t.Errorf("%s: %v, want free: %v", name, err, tt.free)
		}
	}
	if linkOf("lo") == nil || linkOf("banger-none") != nil {
		t.Error("linkOf() does not tell an interface from none")
	}
}

// The owner chooses what is in the directories that a purge removes.
func TestPurgeFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	state, outside := filepath.Join(dir, "state"), filepath.Join(dir, "outside")
	err := errors.Join(os.MkdirAll(state+"/vms/0123456789ab", 0o700), os.MkdirAll(outside+"/sub", 0o700), os.WriteFile(outside+"/sub/file", []byte("kept"), 0o600),
		os.Symlink(outside, state+"/link"), os.Symlink("../../../outside/sub", state+"/vms/0123456789ab/disk"), os.Symlink(outside+"/sub/file", state+"/file"),
		os.Symlink("/", state+"/root"), os.Symlink(state, state+"/loop"), os.Symlink(outside, dir+"/itself"))
	if err != nil {
		t.Fatal(err)
	}
	if err := purge([]string{state, dir + "/itself", dir + "/none"}); err != nil {
		t.Errorf("purge() = %v", err)
	}
	if b, err := os.ReadFile(outside + "/sub/file"); string(b) != "kept" || err != nil {
		t.Errorf("what the links led to is %q, %v", b, err)
	}
	for _, gone := range []string{state, dir + "/itself"} {
		if _, err := os.Lstat(gone); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", gone, err)
		}
	}
}

func TestHolder(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]struct {
		uid   int
		empty bool
	}{dir: {os.Getuid(), true}, dir + "/none": {-1, true}, filepath.Dir(dir): {os.Getuid(), false}} {
		if uid, empty, err := holder(path); uid != want.uid || empty != want.empty || err != nil {
			t.Errorf("holder(%s) = %d, %v, %v; want %+v", path, uid, empty, err, want)
		}
	}
	if err := os.Symlink("/etc", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := holder(dir + "/link"); err == nil {
		t.Error("holder() of a link = nil")
	}
}

// All units are filled in, and none but those in the embedded files is left out.
func TestContents(t *testing.T) {
	dir := t.TempDir()
	for _, name := range programs {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	in := rootapi.Install{Owner: rootapi.Owner{UID: 1000, GID: 1000, Name: "alice", Home: "/home/alice"}}
	if _, err := contents(filepath.Join(dir, "banger"), in); err == nil {
		t.Error("contents() with a bad record = nil")
	}
	in.Prefix = netip.MustParsePrefix("172.16.0.0/24")
	in.Bridge, in.Zone, in.Programs = "br-fc", "vm", []rootapi.Program{{Firecracker: "/opt/fc/firecracker", Jailer: "/opt/fc/jailer"}}
	list, err := contents(filepath.Join(dir, "banger"), in)
	if err != nil || list[len(list)-1].Path != rootapi.InstallPath {
		t.Fatalf("contents() = %d files, %v; want the record last", len(list), err)
	}
	placeholder := regexp.MustCompile(`@[A-Z]+@`)
	for _, n := range list {
		if left := placeholder.Find(n.Data); left != nil {
			t.Errorf("%s: %s is not filled in", n.Path, left)
		}
	}
	if err := os.Remove(filepath.Join(dir, "banger-jail")); err != nil {
		t.Fatal(err)
	}
	if _, err := contents(filepath.Join(dir, "banger"), in); api.CodeOf(err) != api.Missing || !strings.Contains(err.Error(), "banger-jail") {
		t.Errorf("contents() without a program = %v", err)
	}
}

func TestPlanPrints(t *testing.T) {
	p := Plan{Version: "v1", Versions: []string{"1.12.1"}, Restart: true, Notes: []string{"a note"}, Drops: []string{"/old"},
		Files: []Planned{{"/a", files.Absent}, {"/b", files.Same}, {"/c", files.Changed}}}
	p.Record.Owner = rootapi.Owner{Name: "alice", UID: 1000}
	p.Record.Programs = []rootapi.Program{{Firecracker: "/fc/firecracker", Jailer: "/fc/jailer"}}
	var b strings.Builder
	p.Print(func(format string, args ...any) { b.WriteString(fmt.Sprintf(format, args...) + "\n") })
	for _, want := range []string{"for alice (uid 1000)", "/fc/firecracker (1.12.1), /fc/jailer", "new          /a\n", "changed since then)  /c", "remove       /old", "note: a note"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the plan says %q, want %q in it", &b, want)
		}
	}
	if strings.Contains(b.String(), "/b") {
		t.Errorf("the plan names what does not change: %q", &b)
	}
}

func TestStatusPrints(t *testing.T) {
	s := Status{Version: "v1", Units: []systemctl.Unit{{Name: "bangerd.service", Active: "active", Sub: "running", Enabled: "enabled"}, {Name: "x.service", Active: "inactive", Sub: "dead"}}}
	s.wrong("type this", "it is %s", "broken")
	var b strings.Builder
	s.Print(func(format string, args ...any) { b.WriteString(fmt.Sprintf(format, args...) + "\n") })
	for _, want := range []string{"bangerd.service        active (running), enabled\n", "x.service              inactive (dead)\n", "problem: it is broken\n    fix: type this\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("status says %q, want %q in it", &b, want)
		}
	}
}

// TestCrashPointsAreListed holds the list to the source, both ways.
func TestCrashPointsAreListed(t *testing.T) {
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var inSource []string
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`crash\.Point\("([^"]+)"\)`).FindAllSubmatch(b, -1) {
			inSource = append(inSource, string(m[1]))
		}
	}
	listed := Points()
	slices.Sort(inSource)
	slices.Sort(listed)
	if !slices.Equal(inSource, listed) {
		t.Errorf("points in the source %v\nlisted %v; want the same, once each", inSource, listed)
	}
}
