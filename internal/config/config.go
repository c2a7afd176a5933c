// Package config reads config.toml and decides the size of new VMs.
//
// The file is strict: an unknown key, a wrong type or an impossible value is an
// error that names the file, the line and the key. Every key is optional and
// the zero [Config] is the configuration of a user without a file. It knows
// nothing of flags; a [Sizes] of theirs is laid over what it holds.
package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"banger/internal/api"
	"banger/internal/names"
	"banger/internal/size"
)

// FileName is the name of the file in the configuration directory.
const FileName = "config.toml"

// Config is what the user has configured.
type Config struct {
	// Path is the file it was read from, "" if there is none.
	Path string
	// DefaultImageName is the image of `vm run` without --image; "" leaves it
	// to the catalog.
	DefaultImageName string
	// SSHKeyPath is an absolute path; "" means banger's own key.
	SSHKeyPath string
	// FirecrackerBin is an absolute path; "" means the one in PATH, or in system
	// mode the first that was installed.
	FirecrackerBin string
	// Mirror is the Debian mirror for image and kernel pulls; "" means the
	// host's own apt sources.
	Mirror string
	// LogLevel is the daemon's; info if not set.
	LogLevel slog.Level
	// Defaults are the sizes of [vm_defaults]; zero where not set.
	Defaults Sizes
	// NAT gives new VMs the internet, where VMs have a network.
	NAT bool
	// DefaultDNS are the name servers of guests with NAT; the host's own if none.
	DefaultDNS []netip.Addr
}

// maxDNS is how many name servers a guest's resolver heeds: MAXNS of resolv.h.
const maxDNS = 3

// file is the form of config.toml.
type file struct {
	DefaultImageName string   `toml:"default_image_name"`
	SSHKeyPath       string   `toml:"ssh_key_path"`
	FirecrackerBin   string   `toml:"firecracker_bin"`
	Mirror           string   `toml:"mirror"`
	LogLevel         string   `toml:"log_level"`
	DefaultDNS       []string `toml:"default_dns"`
	VMDefaults       struct {
		VCPU      *int   `toml:"vcpu"`
		MemoryMiB *int64 `toml:"memory_mib"`
		DiskSize  string `toml:"disk_size"`
		NAT       bool   `toml:"nat"`
	} `toml:"vm_defaults"`
}

// Load reads config.toml in dir; ~/ in it stands for home. A missing file is
// the zero Config.
func Load(dir, home string) (Config, error) {
	path := filepath.Join(dir, FileName)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Config{}, nil
	}
	if err != nil {
		return Config{}, fmt.Errorf("reading the configuration: %w", err)
	}
	c, err := Parse(text, home)
	if err != nil {
		return Config{}, &api.Error{Code: api.Invalid, Msg: fmt.Sprintf("reading %s: %v", path, err), Hint: "edit " + path + ", or move it away"}
	}
	c.Path = path
	return c, nil
}

// Parse reads the text of a config.toml.
func Parse(text []byte, home string) (Config, error) {
	var f file
	d := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return Config{}, tomlError(err)
	}
	c := Config{DefaultImageName: f.DefaultImageName, Mirror: f.Mirror, NAT: f.VMDefaults.NAT}
	if c.DefaultImageName != "" {
		if err := names.CheckImage(c.DefaultImageName); err != nil {
			return Config{}, fmt.Errorf("default_image_name: %w", err)
		}
	}
	var err error
	if c.SSHKeyPath, err = anchored(f.SSHKeyPath, home); err != nil {
		return Config{}, fmt.Errorf("ssh_key_path: %w", err)
	}
	if c.FirecrackerBin, err = anchored(f.FirecrackerBin, home); err != nil {
		return Config{}, fmt.Errorf("firecracker_bin: %w", err)
	}
	if c.Mirror != "" {
		u, err := url.Parse(c.Mirror)
		if err != nil || u.Host == "" && u.Scheme != "file" || u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "file" {
			return Config{}, fmt.Errorf("mirror: %q is not an http, https or file URL", c.Mirror)
		}
	}
	if f.LogLevel != "" {
		if err := c.LogLevel.UnmarshalText([]byte(f.LogLevel)); err != nil {
			return Config{}, fmt.Errorf("log_level: %q is not one of debug, info, warn, error", f.LogLevel)
		}
	}
	if c.DefaultDNS, err = resolvers(f.DefaultDNS); err != nil {
		return Config{}, fmt.Errorf("default_dns: %w", err)
	}
	c.Defaults, err = f.sizes()
	return c, err
}

// resolvers reads name servers that a guest can reach, by IPv4 and not by itself.
func resolvers(texts []string) (all []netip.Addr, err error) {
	if len(texts) > maxDNS {
		return nil, fmt.Errorf("there are %d, and a guest heeds %d", len(texts), maxDNS)
	}
	for _, text := range texts {
		a, err := netip.ParseAddr(text)
		if err != nil || !a.Is4() || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() {
			return nil, fmt.Errorf("%q is not an IPv4 address that a guest can reach", text)
		}
		all = append(all, a)
	}
	return all, nil
}

func (f file) sizes() (s Sizes, err error) {
	if v := f.VMDefaults.VCPU; v != nil {
		if *v < 1 {
			return s, fmt.Errorf("vm_defaults.vcpu: %d is not a number of CPUs", *v)
		}
		s.VCPUs = *v
	}
	if m := f.VMDefaults.MemoryMiB; m != nil {
		if *m < 1 {
			return s, fmt.Errorf("vm_defaults.memory_mib: %d is not an amount of memory", *m)
		}
		s.Memory = size.Bytes(*m) * size.MiB
	}
	if d := f.VMDefaults.DiskSize; d != "" {
		if s.Disk, err = size.Parse(d); err != nil {
			return s, fmt.Errorf("vm_defaults.disk_size: %w", err)
		}
	}
	spec := api.Spec{
		VCPUs:     cmp.Or(s.VCPUs, floorVCPUs),
		MemoryMiB: int64(cmp.Or(s.Memory, floorMemory) / size.MiB),
		DiskBytes: int64(cmp.Or(s.Disk, floorDisk)),
	}
	if err := spec.Check(); err != nil {
		return s, fmt.Errorf("vm_defaults: %w", err)
	}
	return s, nil
}

// anchored makes path absolute: it may begin with ~/, and must not be relative.
func anchored(path, home string) (string, error) {
	if path == "" {
		return "", nil
	}
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		if home == "" {
			return "", fmt.Errorf("%q needs a home directory, and there is none", path)
		}
		return filepath.Join(home, rest), nil
	}
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("%q is neither absolute nor begins with ~/", path)
	}
	return filepath.Clean(path), nil
}

// tomlError says where the file is wrong and, for an unknown key, which.
func tomlError(err error) error {
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok && len(strict.Errors) > 0 {
		e := strict.Errors[0]
		row, _ := e.Position()
		return fmt.Errorf("line %d: there is no key %q", row, strings.Join(e.Key(), "."))
	}
	if e, ok := errors.AsType[*toml.DecodeError](err); ok {
		row, _ := e.Position()
		what := strings.TrimPrefix(e.Error(), "toml: ")
		// The library says which Go type it has no value for.
		if got, _, ok := strings.Cut(strings.TrimPrefix(what, "cannot decode TOML "), " into "); ok && got != what {
			what = fmt.Sprintf("%s takes no %s", strings.Join(e.Key(), "."), got)
		}
		return fmt.Errorf("line %d: %s", row, what)
	}
	return err
}
