package rootapi

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func record() Install {
	return Install{
		Owner:    Owner{UID: 1000, GID: 1000, Name: "alice", Home: "/home/alice"},
		Prefix:   netip.MustParsePrefix("172.16.0.0/24"),
		Bridge:   "br-fc",
		Zone:     "vm",
		Programs: []Program{{"/opt/fc/firecracker", "/opt/fc/jailer"}},
	}
}

func good() Launch {
	return Launch{VCPUs: 2, MemoryMiB: 1024, Addr: netip.MustParseAddr("172.16.0.7"), NAT: true, ReadOnly: 0b01}
}

const id = "0123456789ab"

// One field at a time of a good launch is spoiled, and named in the refusal.
func TestLaunchCheck(t *testing.T) {
	in := record()
	l := good()
	if err := (Request{Verb: Start, ID: id, Launch: &l}).Check(4, in); err != nil {
		t.Fatalf("a good launch is refused: %v", err)
	}
	for _, tt := range []struct {
		field string
		spoil func(*Launch)
		files int
	}{
		{"vcpus", func(l *Launch) { l.VCPUs = 0 }, 4},
		{"vcpus", func(l *Launch) { l.VCPUs = -1 }, 4},
		{"vcpus", func(l *Launch) { l.VCPUs = 33 }, 4},
		{"memory_mib", func(l *Launch) { l.MemoryMiB = 63 }, 4},
		{"memory_mib", func(l *Launch) { l.MemoryMiB = -1 }, 4},
		{"memory_mib", func(l *Launch) { l.MemoryMiB = 1<<20 + 1 }, 4},
		{"memory_mib", func(l *Launch) { l.MemoryMiB = 1 << 62 }, 4},
		{"firecracker", func(l *Launch) { l.Firecracker = 1 }, 4},
		{"firecracker", func(l *Launch) { l.Firecracker = -1 }, 4},
		{"addr", func(l *Launch) { l.Addr = netip.MustParseAddr("172.16.1.7") }, 4},
		{"addr", func(l *Launch) { l.Addr = netip.MustParseAddr("172.16.0.0") }, 4},
		{"addr", func(l *Launch) { l.Addr = netip.MustParseAddr("172.16.0.1") }, 4},
		{"addr", func(l *Launch) { l.Addr = netip.MustParseAddr("172.16.0.255") }, 4},
		{"addr", func(l *Launch) { l.Addr = netip.MustParseAddr("127.0.0.1") }, 4},
		{"addr", func(l *Launch) { l.Addr = netip.MustParseAddr("169.254.169.254") }, 4},
		{"addr", func(l *Launch) { l.Addr = netip.MustParseAddr("::ffff:172.16.0.7") }, 4},
		{"addr", func(l *Launch) { l.Addr = netip.MustParseAddr("fe80::1%eth0") }, 4},
		{"nat", func(l *Launch) { l.Addr = netip.Addr{} }, 4},
		{"read_only", func(l *Launch) { l.ReadOnly = 0b100 }, 4},
		{"read_only", func(l *Launch) { l.ReadOnly = ^uint(0) }, 4},
		{"files", func(*Launch) {}, 0},
		{"files", func(*Launch) {}, 2},
		{"files", func(*Launch) {}, 7},
	} {
		l := good()
		tt.spoil(&l)
		err := (Request{Verb: Start, ID: id, Launch: &l}).Check(tt.files, in)
		var e *Error
		if !errors.As(err, &e) || e.Code != Invalid || !strings.HasPrefix(e.Message, tt.field+":") {
			t.Errorf("%s spoiled (%+v, %d files): Check() = %v, want it named", tt.field, l, tt.files, err)
		}
	}
}

// Each verb takes what belongs to it and nothing else.
func TestRequestCheck(t *testing.T) {
	in, l := record(), good()
	fields := map[string]func(*Request){
		"id":     func(r *Request) { r.ID = id },
		"launch": func(r *Request) { r.Launch = &l },
		"nat":    func(r *Request) { r.NAT = true },
		"port":   func(r *Request) { r.Port = 5300 },
	}
	takes := map[Verb]string{Hello: "", Census: "", Resolve: "port", Adopt: "id", Release: "id", SetPolicy: "id nat", Start: "id launch"}
	needs := map[Verb]string{Adopt: "id", Release: "id", SetPolicy: "id", Start: "id launch"}
	for verb, list := range takes {
		files := 0
		if verb == Start {
			files = 4
		}
		r := Request{Verb: verb}
		for _, f := range strings.Fields(list) {
			fields[f](&r)
		}
		if err := r.Check(files, in); err != nil {
			t.Errorf("a good %s is refused: %v", verb, err)
		}
		for name, set := range fields {
			if !strings.Contains(list, name) {
				extra := r
				set(&extra)
				if err := extra.Check(files, in); err == nil {
					t.Errorf("%s with %s is accepted", verb, name)
				}
			}
		}
		for _, f := range strings.Fields(needs[verb]) {
			lacks := Request{Verb: verb}
			for _, g := range strings.Fields(list) {
				if g != f {
					fields[g](&lacks)
				}
			}
			if err := lacks.Check(files, in); err == nil {
				t.Errorf("%s without %s is accepted", verb, f)
			}
		}
		if verb != Start {
			if err := r.Check(1, in); err == nil || !strings.HasPrefix(err.Error(), "files:") {
				t.Errorf("%s with a descriptor: Check() = %v", verb, err)
			}
		}
	}
	for _, verb := range []Verb{"", "Launch", "launch ", "exec", "kill", "mount", "chown", Verb(strings.Repeat("x", 1<<16))} {
		if err := (Request{Verb: verb}).Check(0, in); err == nil || len(err.Error()) > 200 {
			t.Errorf("verb %.20q: Check() = %.300v", verb, err)
		}
	}
	for _, bad := range []string{"", "0123456789a", "0123456789abc", "0123456789AB", "../../../etc", "0123456789a/", "0123456789a\x00", "............", "0123456789aé", strings.Repeat("a", 1<<16)} {
		for _, verb := range []Verb{Adopt, Release, SetPolicy, Start} {
			r := Request{Verb: verb, ID: bad}
			if verb == Start {
				r.Launch = &l
			}
			if err := r.Check(4, in); err == nil || !strings.HasPrefix(err.Error(), "id:") || len(err.Error()) > 200 {
				t.Errorf("%s of %.20q: Check() = %.300v", verb, bad, err)
			}
		}
	}
}

// What another encoder than our own sends is refused, though it means the same.
func TestDecodeIsStrict(t *testing.T) {
	l := good()
	packet, err := json.Marshal(Request{Verb: Start, ID: id, Launch: &l})
	if err != nil {
		t.Fatal(err)
	}
	var r Request
	if err := decode(packet, &r); err != nil || r.ID != id || *r.Launch != l {
		t.Fatalf("decode(%s) = %+v, %v", packet, r, err)
	}
	change := func(old, new string) string { return strings.Replace(string(packet), old, new, 1) }
	for name, p := range map[string]string{
		"nothing":                "",
		"no object":              "null",
		"an array":               "[]",
		"trailing bytes":         string(packet) + "x",
		"a second value":         string(packet) + "{}",
		"a trailing space":       string(packet) + " ",
		"a trailing zero":        string(packet) + "\x00",
		"truncated":              string(packet[:len(packet)-1]),
		"an unknown field":       change(`"id"`, `"path":"/etc","id"`),
		"an unknown inner field": change(`"vcpus"`, `"argv":[],"vcpus"`),
		"a field twice":          change(`"id"`, `"id":"ffffffffffff","id"`),
		"an inner field twice":   change(`"nat":true`, `"nat":false,"nat":true`),
		"another case":           change(`"id"`, `"ID"`),
		"another order":          `{"id":"` + id + `","verb":"release"}`,
		"a number as text":       change(`"vcpus":2`, `"vcpus":"2"`),
		"a fraction":             change(`"vcpus":2`, `"vcpus":2.0`),
		"an exponent":            change(`"vcpus":2`, `"vcpus":2e0`),
		"too large a number":     change(`"vcpus":2`, `"vcpus":99999999999999999999`),
		"a null":                 change(`"nat":true`, `"nat":null`),
		"an escape":              change(`"launch"`, `"\u006caunch"`),
		"an explicit zero":       change(`"launch":{`, `"port":0,"launch":{`),
		"a zoned address":        change(`172.16.0.7`, `172.16.0.7%eth0`),
		"an odd address":         change(`172.16.0.7`, `172.16.0.007`),
		"deep nesting":           strings.Repeat("[", 20000),
	} {
		var r Request
		if err := decode([]byte(p), &r); err == nil {
			t.Errorf("%s: decode(%.200s) = nil", name, p)
		}
	}
}

// FuzzRequest looks for a packet that is accepted and not in the one form.
func FuzzRequest(f *testing.F) {
	l := good()
	for _, r := range []Request{{Verb: Hello}, {Verb: Start, ID: id, Launch: &l}, {Verb: SetPolicy, ID: id, NAT: true}, {Verb: Resolve, Port: 1}} {
		b, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, 4)
	}
	in := record()
	f.Fuzz(func(t *testing.T, packet []byte, files int) {
		var r Request
		if decode(packet, &r) != nil || r.Check(files, in) != nil {
			return
		}
		again, err := json.Marshal(r)
		if err != nil || string(again) != string(packet) {
			t.Errorf("%q is accepted, and is %q", packet, again)
		}
		if r.ID != "" && !ValidID(r.ID) || r.Launch != nil && (files < 3 || files > MaxFiles) {
			t.Errorf("%q is accepted with %d files", packet, files)
		}
	})
}

func TestAddressesAndUIDs(t *testing.T) {
	for _, prefix := range []string{"172.16.0.0/24", "10.0.0.0/16", "192.168.1.8/29", "10.77.128.0/17"} {
		in := record()
		in.Prefix = netip.MustParsePrefix(prefix)
		guests := 0
		for a := in.Prefix.Addr(); in.Prefix.Contains(a); a = a.Next() {
			if !in.Guest(a) {
				continue
			}
			guests++
			uid := in.UID(a)
			if uid <= FirstUID || uid >= FirstUID+UIDBlock || in.Addr(uid) != a {
				t.Fatalf("%s: %v has uid %d, which is %v's", prefix, a, uid, in.Addr(uid))
			}
		}
		if want := 1<<(32-in.Prefix.Bits()) - 3; guests != want {
			t.Errorf("%s has %d guests, want %d", prefix, guests, want)
		}
		for _, uid := range []uint32{0, 1, 1000, FirstUID, FirstUID + 1, FirstUID - 1, FirstUID + UIDBlock, FirstUID + UIDBlock + 7, ^uint32(0)} {
			if a := in.Addr(uid); a.IsValid() {
				t.Errorf("%s: Addr(%d) = %v, want none", prefix, uid, a)
			}
		}
	}
}

func TestInstallRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "install.json")
	write := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := json.Marshal(record())
	if err != nil {
		t.Fatal(err)
	}
	write(b)
	if in, err := ReadInstall(path); err != nil || in.Owner != record().Owner {
		t.Fatalf("ReadInstall() = %+v, %v", in, err)
	}
	for _, text := range []string{"", "[]", `{"owner":1}`} {
		write([]byte(text))
		if _, err := ReadInstall(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%.40q: ReadInstall() = %v", text, err)
		}
	}
	for _, path := range []string{"", "/", "a", "/a/../b", "/a//b", "/a/", "/a b", "/a$b", "/a%b", "/a\"b", "/a\\b", "/a\nb", "/\u00e9", "/a;b"} {
		if PlainPath(path) {
			t.Errorf("PlainPath(%q) = true", path)
		}
	}
}
