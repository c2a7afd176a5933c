package jail

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"banger/internal/dbus"
)

// A service has every property that makes a jail, and its limits follow from
// the VM's size. What they come to is looked at in the lab.
func TestProperties(t *testing.T) {
	list := properties([]string{"/opt/banger-jail", "{}"}, Spec{ID: "0123456789ab", VCPUs: 3, MemoryMiB: 512})
	got := map[string]dbus.Variant{}
	for _, p := range list {
		name, ok := p[0].(string)
		if _, twice := got[name]; !ok || twice {
			t.Errorf("property %v is not named, or is there twice", p)
		}
		got[name] = p[1].(dbus.Variant)
	}
	for _, name := range []string{"NoNewPrivileges", "PrivateMounts", "PrivateTmp", "PrivateIPC", "ProtectClock", "ProtectControlGroups", "ProtectHostname",
		"ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "LockPersonality", "MemoryDenyWriteExecute", "RestrictRealtime",
		"RestrictSUIDSGID", "RemoveIPC", "RemainAfterExit"} {
		if got[name].Value != true {
			t.Errorf("%s is %v, want true", name, got[name].Value)
		}
	}
	for name, want := range map[string]any{
		"Type": "exec", "Slice": "banger.slice", "ProtectSystem": "strict", "ProtectHome": "yes", "ProtectProc": "invisible", "ProcSubset": "pid",
		"KeyringMode": "private", "DevicePolicy": "closed", "UMask": uint32(0o077), "LimitCORE": uint64(0), "MemorySwapMax": uint64(0),
		"MemoryMax": uint64(512+160) << 20, "TasksMax": uint64(35), "CPUWeight": uint64(100), "CapabilityBoundingSet": uint64(0x82000c3),
		"RestrictNamespaces": uint64(0x10020000), "SystemCallArchitectures": []string{"native"},
		"ExecStart":               []dbus.Struct{{"/opt/banger-jail", []string{"/opt/banger-jail", "{}"}, false}},
		"DeviceAllow":             []dbus.Struct{{"/dev/kvm", "rwm"}, {"/dev/net/tun", "rwm"}},
		"RestrictAddressFamilies": dbus.Struct{true, []string{"AF_UNIX"}},
		"SystemCallFilter":        dbus.Struct{true, []string{"@system-service", "@mount", "seccomp"}},
	} {
		if !reflect.DeepEqual(got[name].Value, want) {
			t.Errorf("%s is %v, want %v", name, got[name].Value, want)
		}
	}
	if _, ok := got["IPAddressDeny"]; !ok {
		t.Error("no IPAddressDeny")
	}
}

// What the child reads is what was written.
func TestSpecCrosses(t *testing.T) {
	want := Spec{ID: "0123456789ab", UID: 1879048199, Owner: 1000, OwnerGID: 1001, Firecracker: "/opt/firecracker", Jailer: "/opt/jailer",
		Files: []File{{Name: "disk0", Base: "/var/lib", Path: "banger/vms/x/disk", Dev: 1 << 40, Ino: 1<<64 - 1, ReadOnly: true}}}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got Spec
	if err := json.Unmarshal(b, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if strings.ContainsAny(string(b), "$%\\") {
		t.Errorf("systemd would expand something in %s", b)
	}
}

func TestIDs(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"banger-vm-0123456789ab.service", "banger-vm-x.service", "other.service", "cgroup.procs", "banger-vm-../..0.service0"} {
		if err := os.WriteFile(dir+"/"+strings.ReplaceAll(name, "/", "_"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := ids(entries, "banger-vm-", ".service"); len(got) != 1 || got[0] != "0123456789ab" {
		t.Errorf("ids() = %v", got)
	}
}

// A VM that is not there has no uid, and an API that is not there is waited
// for no longer than its process and ctx last.
func TestNothingThere(t *testing.T) {
	if uid := Dir("ffffffffffff").UID(); uid != 0 {
		t.Errorf("UID() = %d", uid)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Dir("ffffffffffff").API(ctx, int(r.Fd())); !errors.Is(err, context.Canceled) {
		t.Errorf("API() = %v, want Canceled", err)
	}
	w.Close() // readable, as the pidfd of a dead process is
	if _, err := Dir("ffffffffffff").API(t.Context(), int(r.Fd())); !errors.Is(err, ErrEnded) {
		t.Errorf("API() of a dead process = %v, want ErrEnded", err)
	}
}
