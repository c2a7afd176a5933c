package record_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"banger/internal/install/record"
	"banger/internal/rootapi"
)

func good() rootapi.Install {
	return rootapi.Install{
		Owner:    rootapi.Owner{UID: 1000, GID: 1000, Name: "alice", Home: "/home/alice"},
		Prefix:   netip.MustParsePrefix("172.16.0.0/24"),
		Bridge:   "br-fc",
		Zone:     "vm",
		Programs: []rootapi.Program{{Firecracker: "/opt/fc/firecracker", Jailer: "/opt/fc/jailer"}},
	}
}

func TestCheck(t *testing.T) {
	if err := record.Check(good()); err != nil {
		t.Fatalf("a good record is refused: %v", err)
	}
	for field, spoil := range map[string]func(*rootapi.Install){
		"owner":        func(in *rootapi.Install) { in.Owner.UID = 0 },
		"owner: ":      func(in *rootapi.Install) { in.Owner.UID = rootapi.FirstUID + 3 },
		"prefix":       func(in *rootapi.Install) { in.Prefix = netip.MustParsePrefix("172.16.0.1/24") },
		"prefix:":      func(in *rootapi.Install) { in.Prefix = netip.MustParsePrefix("172.16.0.0/30") },
		"prefix: ":     func(in *rootapi.Install) { in.Prefix = netip.MustParsePrefix("8.8.8.0/24") },
		"prefix: f":    func(in *rootapi.Install) { in.Prefix = netip.MustParsePrefix("fd00::/64") },
		"prefix: wide": func(in *rootapi.Install) { in.Prefix = netip.MustParsePrefix("10.0.0.0/23") },
		"bridge":       func(in *rootapi.Install) { in.Bridge = "../x" },
		"bridge:":      func(in *rootapi.Install) { in.Bridge = "bvm1" },
		"zone":         func(in *rootapi.Install) { in.Zone = "vm." },
		"zone:":        func(in *rootapi.Install) { in.Zone = "" },
		"programs":     func(in *rootapi.Install) { in.Programs = nil },
		"programs:":    func(in *rootapi.Install) { in.Programs[0].Jailer = "/opt/../jailer" },
		"programs: ":   func(in *rootapi.Install) { in.Programs[0].Firecracker = "/opt/$HOME/firecracker" },
	} {
		in := good()
		spoil(&in)
		want, _, _ := strings.Cut(field, ":")
		if err := record.Check(in); err == nil || !strings.HasPrefix(err.Error(), want+":") {
			t.Errorf("%s spoiled: Check() = %v", field, err)
		}
	}
}

func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger", "install.json")
	if err := record.Write(path, good()); err != nil {
		t.Fatal(err)
	}
	in, err := rootapi.ReadInstall(path)
	if err != nil || !reflect.DeepEqual(in, good()) {
		t.Errorf("ReadInstall() = %+v, %v", in, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, %v; want 0644", st.Mode(), err)
	}
	bad := good()
	bad.Owner.UID = 0
	if err := record.Write(path, bad); err == nil {
		t.Error("Write() of a bad record = nil")
	}
}
