package config_test

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"banger/internal/api"
	"banger/internal/config"
	"banger/internal/size"
)

func TestParse(t *testing.T) {
	got, err := config.Parse([]byte(`
default_image_name = "debian-bookworm"
ssh_key_path = "~/.ssh/id_ed25519"
mirror = "http://mirror.example/debian"
log_level = "debug"
default_dns = ["192.0.2.53", "10.0.0.1"]
[vm_defaults]
vcpu = 4
memory_mib = 4096
disk_size = "16G"
nat = true
`), "/home/alice")
	if err != nil {
		t.Fatal(err)
	}
	want := config.Config{
		DefaultImageName: "debian-bookworm",
		SSHKeyPath:       "/home/alice/.ssh/id_ed25519",
		Mirror:           "http://mirror.example/debian",
		LogLevel:         slog.LevelDebug,
		Defaults:         config.Sizes{VCPUs: 4, Memory: 4 * size.GiB, Disk: 16 * size.GiB},
		NAT:              true,
		DefaultDNS:       []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("10.0.0.1")},
	}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); d != "" {
		t.Errorf("Parse: -want +got\n%s", d)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"default_image = \"x\"", `line 1: there is no key "default_image"`},
		{"\n[vm_defaults]\nvcpus = 4", `line 3: there is no key "vm_defaults.vcpus"`},
		{"ssh_key_path = \"keys/id\"", `ssh_key_path: "keys/id" is neither absolute nor begins with ~/`},
		{"log_level = \"loud\"", "log_level: \"loud\" is not one of"},
		{"mirror = \"mirror.example\"", "mirror: \"mirror.example\" is not an http, https or file URL"},
		{"[vm_defaults]\nvcpu = 0", "vm_defaults.vcpu: 0 is not a number of CPUs"},
		{"[vm_defaults]\nvcpu = 65", "vm_defaults: 65 vCPUs"},
		{"[vm_defaults]\nmemory_mib = 64", "vm_defaults: 64 MiB of memory"},
		{"[vm_defaults]\nmemory_mib = -1", "vm_defaults.memory_mib: -1"},
		{"[vm_defaults]\ndisk_size = \"much\"", "vm_defaults.disk_size:"},
		{"default_dns = \"192.0.2.53\"", "line 1: default_dns takes no string"},
		{"default_dns = [\"ns.example\"]", `default_dns: "ns.example" is not an IPv4 address`},
		{"default_dns = [\"127.0.0.53\"]", `default_dns: "127.0.0.53" is not an IPv4 address that a guest can reach`},
		{"default_dns = [\"2001:db8::1\"]", `default_dns: "2001:db8::1" is not an IPv4 address`},
		{`default_dns = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]`, "default_dns: there are 4, and a guest heeds 3"},
		{"[vm_defaults]\nnat = \"yes\"", "line 2: vm_defaults.nat takes no string"},
		{"default_image_name = \"../etc\"", "default_image_name:"},
		{"default_image_name = 7", "line 1:"},
		{"= nothing", "line 1:"},
	} {
		_, err := config.Parse([]byte(tt.text), "/home/alice")
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Parse(%q) = %v, want it to contain %q", tt.text, err, tt.want)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	if c, err := config.Load(dir, ""); err != nil || !cmp.Equal(c, config.Config{}) {
		t.Errorf("Load without a file = %+v, %v; want the zero Config", c, err)
	}
	path := filepath.Join(dir, config.FileName)
	if err := os.WriteFile(path, []byte("nonsense = 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := config.Load(dir, "")
	if api.CodeOf(err) != api.Invalid || !strings.Contains(err.Error(), path) {
		t.Errorf("Load of a bad file = %v, want an invalid error that names %s", err, path)
	}
}

func TestResolve(t *testing.T) {
	for _, tt := range []struct {
		name   string
		flags  config.Sizes
		config config.Sizes
		host   config.Host
		want   config.Resolved
	}{
		{
			name: "a small host gets the floors",
			host: config.Host{CPUs: 2, Memory: 4 * size.GiB},
			want: config.Resolved{Spec: api.Spec{VCPUs: 1, MemoryMiB: 1024, DiskBytes: 8 << 30}, VCPUs: api.FromBuiltin, Memory: api.FromBuiltin, Disk: api.FromBuiltin},
		},
		{
			name: "a large host is capped",
			host: config.Host{CPUs: 64, Memory: 256 * size.GiB},
			want: config.Resolved{Spec: api.Spec{VCPUs: 4, MemoryMiB: 8192, DiskBytes: 8 << 30}, VCPUs: api.FromHost, Memory: api.FromHost, Disk: api.FromBuiltin},
		},
		{
			name:   "config beats the host",
			config: config.Sizes{VCPUs: 6, Disk: 16 * size.GiB},
			host:   config.Host{CPUs: 64, Memory: 24 * size.GiB},
			want:   config.Resolved{Spec: api.Spec{VCPUs: 6, MemoryMiB: 3072, DiskBytes: 16 << 30}, VCPUs: api.FromConfig, Memory: api.FromHost, Disk: api.FromConfig},
		},
		{
			name:   "a flag beats all",
			flags:  config.Sizes{VCPUs: 1, Memory: 256 * size.MiB, Disk: size.GiB},
			config: config.Sizes{VCPUs: 6, Memory: 2 * size.GiB},
			host:   config.Host{CPUs: 64, Memory: 24 * size.GiB},
			want:   config.Resolved{Spec: api.Spec{VCPUs: 1, MemoryMiB: 256, DiskBytes: 1 << 30}, VCPUs: api.FromFlag, Memory: api.FromFlag, Disk: api.FromFlag},
		},
	} {
		got, err := config.Config{Defaults: tt.config}.Resolve(tt.flags, tt.host)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s: -want +got\n%s", tt.name, d)
		}
	}
}

// TestRefuses: what no VM can have, and what this host has not.
func TestRefuses(t *testing.T) {
	host := config.Host{CPUs: 4, Memory: 4 * size.GiB}
	for _, tt := range []struct {
		flags config.Sizes
		want  string
	}{
		{config.Sizes{VCPUs: 65}, "65 vCPUs"},
		{config.Sizes{Memory: 64 * size.MiB}, "64 MiB of memory"},
		{config.Sizes{Memory: 5 * size.GiB}, "5GiB of memory are more than the 4GiB"},
		{config.Sizes{Disk: 1 << 50}, "a disk of"},
	} {
		if _, err := (config.Config{}).Resolve(tt.flags, host); api.CodeOf(err) != api.Invalid || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Resolve(%+v): %v, want an invalid error with %q", tt.flags, err, tt.want)
		}
	}
	if err := (config.Host{}).Holds(size.TiB); err != nil {
		t.Errorf("a host of unknown memory: %v", err)
	}
}

func TestThisHost(t *testing.T) {
	if h := config.ThisHost(); h.CPUs < 1 || h.Memory < 64*size.MiB {
		t.Errorf("ThisHost() = %+v, want CPUs and memory", h)
	}
}
