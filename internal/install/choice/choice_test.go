package choice

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/api"
	"banger/internal/rootapi"
	"banger/internal/testneed"
	"banger/internal/vmm/firecracker"
)

// plain is a host with everything in place.
func plain() Host {
	return Host{
		Account: func(name string) (rootapi.Owner, error) {
			for _, o := range []rootapi.Owner{{UID: 0, Name: "root", Home: "/root"}, {UID: 1000, GID: 1000, Name: "alice", Home: "/home/alice"},
				{UID: 1001, GID: 1001, Name: "bob", Home: "/home/bob"}, {UID: rootapi.FirstUID + 1, Name: "far", Home: "/home/far"}, {UID: 33, Name: "homeless", Home: "/"}} {
				if o.Name == name {
					return o, nil
				}
			}
			return rootapi.Owner{}, errors.New("exit status 2")
		},
		Routes: func() ([]netip.Prefix, error) {
			return []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24"), netip.MustParsePrefix("127.0.0.0/8")}, nil
		},
		Find:      func(name string) []string { return []string{"/usr/local/bin/" + name} },
		Trust:     func(path string, _ bool) (string, error) { return path, nil },
		Version:   func(context.Context, string) (firecracker.Version, error) { return firecracker.Parse("1.12.1") },
		OSRelease: "ID=debian\n",
	}
}

func before() *rootapi.Install {
	return &rootapi.Install{Owner: rootapi.Owner{UID: 1000, GID: 1000, Name: "alice", Home: "/home/alice"}, Prefix: netip.MustParsePrefix("10.9.0.0/24"),
		Bridge: "br-vm", Zone: "box", Programs: []rootapi.Program{{Firecracker: "/opt/fc/firecracker", Jailer: "/opt/fc/jailer"}}}
}

func TestFirstChoice(t *testing.T) {
	c, err := Choose(t.Context(), Wanted{Owner: "alice"}, plain())
	want := rootapi.Install{Owner: rootapi.Owner{UID: 1000, GID: 1000, Name: "alice", Home: "/home/alice"}, Prefix: netip.MustParsePrefix(Prefix), Bridge: Bridge, Zone: Zone,
		Programs: []rootapi.Program{{Firecracker: "/usr/local/bin/firecracker", Jailer: "/usr/local/bin/jailer"}}}
	if err != nil || c.Owner != want.Owner || c.Prefix != want.Prefix || c.Bridge != want.Bridge || c.Zone != want.Zone || !slices.Equal(c.Programs, want.Programs) || len(c.Notes) != 0 {
		t.Errorf("Choose() = %+v, %v; want %+v", c, err, want)
	}
}

// Without other wishes an install keeps what the one before has decided, also
// where the bridge's own route is in the way by now.
func TestKeeps(t *testing.T) {
	h := plain()
	h.Before = before()
	h.Routes = func() ([]netip.Prefix, error) { return []netip.Prefix{h.Before.Prefix}, nil }
	for _, w := range []Wanted{{}, {Owner: "alice"}, {Prefix: "10.9.0.0/24"}} {
		c, err := Choose(t.Context(), w, h)
		b := h.Before
		if err != nil || c.Owner != b.Owner || c.Prefix != b.Prefix || c.Bridge != b.Bridge || c.Zone != b.Zone || !slices.Equal(c.Programs, b.Programs) {
			t.Errorf("Choose(%+v) = %+v, %v; want as before", w, c, err)
		}
	}
	c, err := Choose(t.Context(), Wanted{Prefix: "10.9.0.0/24", Zone: ".lab.", Bridge: "br0", Firecrackers: []string{"/b/firecracker", "/a/firecracker"}}, h)
	if err != nil || c.Prefix.String() != "10.9.0.0/24" || c.Zone != "lab" || c.Bridge != "br0" || len(c.Programs) != 2 || c.Programs[0].Firecracker != "/b/firecracker" {
		t.Errorf("Choose() of something else = %+v, %v", c, err)
	}
}

func TestPrefixBesideRoutes(t *testing.T) {
	h := plain()
	h.Routes = func() ([]netip.Prefix, error) { return []netip.Prefix{netip.MustParsePrefix("172.16.0.0/16")}, nil }
	c, err := Choose(t.Context(), Wanted{Owner: "alice"}, h)
	if err != nil || c.Prefix.String() != "172.17.0.0/24" || len(c.Notes) != 1 || !strings.Contains(c.Notes[0], "172.16.0.0/16") {
		t.Errorf("Choose() beside a route = %v, notes %q, %v", c.Prefix, c.Notes, err)
	}
}

func TestRefusals(t *testing.T) {
	alice := Wanted{Owner: "alice"}
	routes := func(list ...string) func(*Host) {
		return func(h *Host) {
			h.Routes = func() (out []netip.Prefix, err error) {
				for _, r := range list {
					out = append(out, netip.MustParsePrefix(r))
				}
				return out, nil
			}
		}
	}
	version := func(s string) func(*Host) {
		return func(h *Host) {
			h.Version = func(context.Context, string) (firecracker.Version, error) { return firecracker.Parse(s) }
		}
	}
	distrust := func(what string) func(*Host) {
		return func(h *Host) {
			h.Trust = func(p string, _ bool) (string, error) {
				if filepath.Base(p) == what {
					return "", errors.New("trusting " + p + ": /x belongs to uid 1000, not to root")
				}
				return p, nil
			}
		}
	}
	for name, tt := range map[string]struct {
		w          Wanted
		spoil      func(*Host)
		code       api.Code
		says, hint string
	}{
		"nobody":            {Wanted{}, nil, api.Invalid, "whose", "--owner"},
		"unknown":           {Wanted{Owner: "mallory"}, nil, api.NotFound, "mallory", "--owner"},
		"root":              {Wanted{Owner: "root"}, nil, api.Invalid, "root cannot", "--owner"},
		"a VM's uid":        {Wanted{Owner: "far"}, nil, api.Invalid, "1879048192", "--owner"},
		"no home":           {Wanted{Owner: "homeless"}, nil, api.Invalid, "home", "--owner"},
		"another's":         {Wanted{Owner: "bob"}, func(h *Host) { h.Before = before() }, api.Conflict, "for alice", "uninstall"},
		"no prefix":         {Wanted{Owner: "alice", Prefix: "nonsense"}, nil, api.Invalid, "nonsense", Prefix},
		"public":            {Wanted{Owner: "alice", Prefix: "8.8.8.0/24"}, nil, api.Invalid, "8.8.8.0/24", "--help"},
		"too small":         {Wanted{Owner: "alice", Prefix: "10.0.0.0/30"}, nil, api.Invalid, "10.0.0.0/30", "--help"},
		"prefix taken":      {Wanted{Owner: "alice", Prefix: "10.1.0.0/24"}, routes("10.0.0.0/8"), api.Conflict, "10.0.0.0/8", "--prefix 172.16.0.0/24"},
		"all taken":         {alice, routes("10.0.0.0/8", "172.16.0.0/12"), api.Conflict, "all other", "--prefix"},
		"bridge":            {Wanted{Owner: "alice", Bridge: "bvm0"}, nil, api.Invalid, "bvm0", "--help"},
		"zone of mDNS":      {Wanted{Owner: "alice", Zone: "local"}, nil, api.Invalid, "multicast DNS", "--zone vm"},
		"zone of the host":  {Wanted{Owner: "alice", Zone: "localhost."}, nil, api.Invalid, "is the host itself", "--zone vm"},
		"zone of all":       {Wanted{Owner: "alice", Zone: "com"}, nil, api.Invalid, "com is one of the internet's", "--zone vm"},
		"zone of names":     {Wanted{Owner: "alice", Zone: "np"}, nil, api.Invalid, "np is one of the internet's", "--zone vm"},
		"zone":              {Wanted{Owner: "alice", Zone: "a.b"}, nil, api.Invalid, "a.b", "--help"},
		"none":              {alice, func(h *Host) { h.Find = func(string) []string { return nil } }, api.Missing, "no Firecracker", "bin/jailer"},
		"none, elsewhere":   {alice, func(h *Host) { h.Find, h.OSRelease = func(string) []string { return nil }, "ID=fedora" }, api.Missing, "no Firecracker", firecracker.Releases},
		"found, not root's": {alice, distrust("firecracker"), api.Missing, "no Firecracker", "sudo install"},
		"named, not root's": {Wanted{Owner: "alice", Firecrackers: []string{"/x/firecracker"}}, distrust("firecracker"), api.Unsupported, "belongs to uid 1000", "sudo install"},
		"no jailer":         {Wanted{Owner: "alice", Firecrackers: []string{"/x/firecracker"}}, distrust("jailer"), api.Unsupported, "no usable jailer", "jailer"},
		"old":               {Wanted{Owner: "alice", Firecrackers: []string{"/x/firecracker"}}, version("1.4.1"), api.Unsupported, "at least 1.5.0", "1.14.1"},
		"found, old":        {alice, version("1.4.1"), api.Missing, "no Firecracker", "1.14.1"},
		"no version":        {Wanted{Owner: "alice", Firecrackers: []string{"/x/firecracker"}}, version("garbage"), api.Unsupported, "not a version", "sudo install"},
	} {
		h := plain()
		if tt.spoil != nil {
			tt.spoil(&h)
		}
		_, err := Choose(t.Context(), tt.w, h)
		e := api.AsError(cmpErr(err))
		if err == nil || e.Code != tt.code || !strings.Contains(e.Msg, tt.says) || !strings.Contains(e.Hint, tt.hint) {
			t.Errorf("%s: %v (code %s, hint %q); want code %s, %q and hint %q", name, err, e.Code, e.Hint, tt.code, tt.says, tt.hint)
		}
	}
}

func cmpErr(err error) error {
	if err == nil {
		return errors.New("no error")
	}
	return err
}

func TestJailers(t *testing.T) {
	h := Host{Find: func(string) []string { return []string{"/usr/bin/jailer", "/fc/jailer"} }}
	got := jailers("/usr/local/bin/firecracker", "/fc/firecracker-v1.14.1-x86_64", h)
	want := []string{"/usr/local/bin/jailer", "/fc/jailer-v1.14.1-x86_64", "/fc/jailer", "/usr/bin/jailer"}
	if !slices.Equal(got, want) {
		t.Errorf("jailers() = %v, want %v", got, want)
	}
}

func TestTrust(t *testing.T) {
	testneed.Root(t)
	script := filepath.Join(t.TempDir(), "firecracker")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	real, err := filepath.EvalSymlinks("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{script: "sees nothing of", "relative": "not absolute", "/none": "no such file", "/bin/true": "dynamically linked", "/etc/passwd": "no executable"} {
		if got, err := trust(path, true); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("trust(%s) = %q, %v; want %q", path, got, err, want)
		}
	}
	if got, err := trust("/bin/true", false); got != real || err != nil {
		t.Errorf("trust(/bin/true) outside a jail = %q, %v; want %s", got, err, real)
	}
}

func TestAccounts(t *testing.T) {
	o, err := parseAccount("alice:x:1000:1001:Alice,,,:/home/alice:/bin/bash")
	if err != nil || o != (rootapi.Owner{UID: 1000, GID: 1001, Name: "alice", Home: "/home/alice"}) {
		t.Errorf("parseAccount() = %+v, %v", o, err)
	}
	for _, line := range []string{"", "alice", ":x:1:1::/h:/s", "a:x:-1:1::/h:/s", "a:x:1:4294967296::/h:/s"} {
		if o, err := parseAccount(line); err == nil {
			t.Errorf("parseAccount(%q) = %+v", line, o)
		}
	}
	if o, err := account(t.Context(), "root"); err != nil || o.UID != 0 {
		t.Errorf("account(root) = %+v, %v", o, err)
	}
	if _, err := account(t.Context(), "no-such-account"); err == nil {
		t.Error("account() of nobody = nil")
	}
}
