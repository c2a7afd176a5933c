package doctor_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/internal/api"
	"banger/internal/config"
	"banger/internal/doctor"
	"banger/internal/kvm"
	"banger/internal/paths"
	"banger/internal/size"
	"banger/internal/version"
	"banger/internal/vmm/firecracker"
)

// healthy is a host on which every row passes.
func healthy() (doctor.Host, doctor.Subject) {
	h := doctor.Host{
		Arch:     "amd64",
		UID:      1000,
		Look:     func(p string) (string, bool) { return "/usr/bin/" + p, true },
		KVM:      func(context.Context) kvm.Verdict { return kvm.Verdict{Usable: true} },
		Free:     func(string) (size.Bytes, error) { return 100 * size.GiB, nil },
		ReadFile: func(string) ([]byte, error) { return nil, fs.ErrNotExist },
		Firecracker: func(context.Context, string) (firecracker.Version, error) {
			return firecracker.Parse(firecracker.KnownTestedVersion)
		},
		Recipes: func() error { return nil },
		Daemon: func(context.Context) (doctor.Daemon, error) {
			return doctor.Daemon{
				Hello:   api.Hello{Version: version.Get().String(), Protocol: api.Protocol, PID: 7},
				Images:  []api.Image{{Name: "debian"}},
				Kernels: []api.Kernel{{Name: "linux", Release: "6.1"}},
			}, nil
		},
	}
	s := doctor.Subject{
		Layout: paths.Layout{State: "/state", Cache: "/cache", Config: "/config"}, DefaultImage: "debian", DefaultKernel: "linux",
		Sizes:      config.Resolved{Spec: api.Spec{VCPUs: 2, MemoryMiB: 2048, DiskBytes: 8 << 30}, VCPUs: api.FromHost, Memory: api.FromConfig, Disk: api.FromBuiltin},
		SSHInclude: true,
	}
	return h, s
}

func TestHealthyHostPasses(t *testing.T) {
	h, s := healthy()
	rows := doctor.Run(t.Context(), h, s)
	for _, r := range rows {
		if r.Status != doctor.Pass || r.Fix != "" || r.Detail == "" {
			t.Errorf("on a healthy host: %+v, want PASS with a detail and no fix", r)
		}
	}
	if doctor.Failed(rows) {
		t.Error("Failed() on a healthy host")
	}
}

// spoils makes each row fail or warn once.
var spoils = []struct {
	check  string
	want   doctor.Status
	spoil  func(*doctor.Host, *doctor.Subject)
	detail string
	fix    string
}{
	{"architecture", doctor.Fail, func(h *doctor.Host, _ *doctor.Subject) { h.Arch = "arm64" }, "arm64", "x86_64"},
	{"qemu", doctor.Warn, without("qemu-system-x86_64"), "qemu-system-x86_64 is not installed", "sudo apt install qemu-system-x86"}, // Firecracker runs the VMs
	{"qemu", doctor.Fail, alone(without("qemu-system-x86_64")), "qemu-system-x86_64 is not installed", "sudo apt install qemu-system-x86"},
	{"qemu", doctor.Fail, without("qemu-system-x86_64", "firecracker", "apt-get"), "", "sudo dnf install qemu-system-x86"},
	{"qemu", doctor.Fail, without("qemu-system-x86_64", "firecracker", "apt-get", "dnf"), "", "sudo pacman -S qemu-system-x86"},
	{"qemu", doctor.Fail, without("qemu-system-x86_64", "firecracker", "apt-get", "dnf", "pacman"), "", "install qemu-system-x86"},
	{"kvm", doctor.Warn, func(h *doctor.Host, _ *doctor.Subject) {
		h.KVM = func(context.Context) kvm.Verdict { return kvm.Verdict{Why: "no hardware support"} }
	}, "no hardware support", "software emulation"},
	{"firecracker", doctor.Warn, without("firecracker"), "no firecracker in PATH; QEMU runs the VMs", firecracker.Releases},
	{"firecracker", doctor.Fail, needed(without("firecracker")), "no firecracker in PATH", firecracker.Releases},
	{"firecracker", doctor.Fail, needed(firecrackerIs("1.4.1")), "v1.4.1 at /usr/bin/firecracker is older", "get it from"},
	{"firecracker", doctor.Warn, firecrackerIs("1.16.1"), "v1.16.1 at /usr/bin/firecracker is newer", "v1.14.1"},
	{"firecracker", doctor.Fail, needed(firecrackerIs("garbage")), "is not a version", "get it from"},
	{"firecracker", doctor.Fail, needed(debian(without("firecracker"))), "no firecracker", "sudo install"},
	{"firecracker-cves", doctor.Warn, firecrackerIs("1.12.1"), "CVE-2026-1386", "1.13.2"},
	{"firecracker", doctor.Fail, needed(firecrackerIs("1.7.0")), "v1.7.0 at /usr/bin/firecracker: as Firecracker 1.7.0 shows", "get it from"},
	{"firecracker", doctor.Warn, firecrackerIs("1.7.0"), "QEMU runs the VMs", "get it from"},
	{"firecracker", doctor.Warn, chosenIs("/opt/fc", without("/opt/fc")), "firecracker_bin is /opt/fc, which cannot be run; QEMU", "get it from"},
	{"firecracker", doctor.Warn, inSystem(chosenIs("/opt/fc", without("/opt/fc"))), "firecracker_bin is /opt/fc, which system mode does not know", "sudo banger system install --firecracker /opt/fc"},
	{"mmdebstrap", doctor.Fail, without("mmdebstrap"), "mmdebstrap is not installed", "mmdebstrap"},
	{"image-build", doctor.Fail, func(h *doctor.Host, _ *doctor.Subject) {
		h.Recipes = func() error { return &api.Error{Code: api.Missing, Msg: "no subuids", Hint: "usermod"} }
	}, "no subuids", "usermod"},
	{"ssh", doctor.Fail, without("ssh"), "ssh", "openssh-client"},
	{"git", doctor.Warn, without("git"), "git", "git"},
	{"user-namespaces", doctor.Fail, file("/proc/sys/user/max_user_namespaces", "0\n"), "max_user_namespaces is 0", "sysctl"},
	{"user-namespaces", doctor.Fail, file("/proc/sys/kernel/unprivileged_userns_clone", "0"), "userns_clone", "sysctl"},
	{"user-namespaces", doctor.Fail, file("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"), "apparmor", "sysctl"},
	{"disk-space-state", doctor.Fail, free("/state", size.MiB), "/state has 1MiB free", "make room in /state"},
	{"disk-space-state", doctor.Warn, free("/state", size.GiB), "/state has 1GiB free", "make room in /state"},
	{"disk-space-cache", doctor.Fail, free("/cache", size.MiB), "/cache", "make room"},
	{"disk-space-build", doctor.Fail, free("/var/tmp", size.MiB), "/var/tmp", "make room"},
	{"disk-space-build", doctor.Warn, func(h *doctor.Host, _ *doctor.Subject) {
		h.Free = func(string) (size.Bytes, error) { return 0, errors.New("no such file system") }
	}, "no such file system", "df"},
	{"config", doctor.Fail, func(_ *doctor.Host, s *doctor.Subject) {
		s.ConfigErr = &api.Error{Code: api.Invalid, Msg: "line 3", Hint: "edit it"}
	}, "line 3", "edit it"},
	{"daemon", doctor.Warn, daemon(func(d *doctor.Daemon) { d.Hello.Version = "v0.0.1" }), "v0.0.1", "banger daemon restart"},
	{"daemon", doctor.Fail, func(h *doctor.Host, _ *doctor.Subject) {
		h.Daemon = func(context.Context) (doctor.Daemon, error) {
			return doctor.Daemon{}, &api.Error{Code: api.Denied, Msg: "not yours"}
		}
	}, "not yours", "banger daemon logs"},
	{"kvm", doctor.Fail, inSystem(func(h *doctor.Host, _ *doctor.Subject) {
		h.KVM = func(context.Context) kvm.Verdict { return kvm.Verdict{Why: "no hardware support"} }
	}), "no hardware support", "BANGER_MODE=user"},
	{"daemon", doctor.Fail, inSystem(func(h *doctor.Host, _ *doctor.Subject) {
		h.Daemon = func(context.Context) (doctor.Daemon, error) {
			return doctor.Daemon{}, &api.Error{Code: api.NotFound, Msg: "not running", Hint: "sudo banger system restart"}
		}
	}), "not running", "sudo banger system restart"},
	{"daemon", doctor.Warn, inSystem(daemon(func(d *doctor.Daemon) { d.Hello.Version = "v0.0.1" })), "v0.0.1", "sudo banger system install"},
	{"daemon", doctor.Fail, daemon(func(d *doctor.Daemon) { d.Hello.Problem = &api.Error{Msg: "no KVM"} }), "no KVM", "banger daemon logs"},
	{"daemon", doctor.Warn, daemon(func(d *doctor.Daemon) {
		d.Hello.Network = &api.Network{Problem: &api.Error{Msg: "the port is taken", Hint: "ss -l"}}
	}), "the port is taken", "ss -l"},
	{"daemon", doctor.Warn, daemon(func(d *doctor.Daemon) {
		d.Hello.Network = &api.Network{Mended: []string{"bridge br-fc", "packet filter"}, MendedAt: time.Now().Add(-time.Minute)}
	}), ": bridge br-fc, packet filter", "systemctl status nftables"},
	{"leaks", doctor.Warn, inSystem(daemon(func(d *doctor.Daemon) { d.Census.Leaks = []string{"pid 7"} })), "pid 7", "sudo banger system restart"},
	{"leaks", doctor.Warn, daemon(func(d *doctor.Daemon) { d.Census.Leaks = []string{"pid 7"} }), "pid 7", "banger daemon restart"},
	{"image", doctor.Fail, func(_ *doctor.Host, s *doctor.Subject) { s.DefaultImage = "nope" }, `no image named "nope"`, "banger image import nope"},
	{"ssh-config", doctor.Warn, func(_ *doctor.Host, s *doctor.Subject) { s.SSHInclude = false }, "not set up", "banger ssh-config --install"},
}

type spoil = func(*doctor.Host, *doctor.Subject)

func firecrackerIs(version string) spoil {
	return func(h *doctor.Host, _ *doctor.Subject) {
		h.Firecracker = func(context.Context, string) (firecracker.Version, error) { return firecracker.Parse(version) }
	}
}

// needed is a host on which nothing else runs VMs.
func needed(f spoil) spoil {
	return func(h *doctor.Host, s *doctor.Subject) {
		f(h, s)
		s.NeedsFirecracker = true
	}
}

// alone is a host on which only QEMU could run VMs.
func alone(f spoil) spoil {
	return func(h *doctor.Host, s *doctor.Subject) {
		f(h, s)
		h.KVM = func(context.Context) kvm.Verdict { return kvm.Verdict{Why: "no hardware support"} }
	}
}

func chosenIs(path string, f spoil) spoil {
	return func(h *doctor.Host, s *doctor.Subject) {
		f(h, s)
		s.Config.FirecrackerBin = path
	}
}

func inSystem(f spoil) spoil {
	return func(h *doctor.Host, s *doctor.Subject) {
		f(h, s)
		s.Layout.System = true
	}
}

func debian(f spoil) spoil {
	return func(h *doctor.Host, s *doctor.Subject) {
		f(h, s)
		file("/etc/os-release", "ID=debian\n")(h, s)
	}
}

func TestFirecrackerRowPasses(t *testing.T) {
	h, s := healthy()
	for _, r := range doctor.Run(t.Context(), h, s) {
		want := "v1.14.1 at /usr/bin/firecracker (within tested range; min v1.5.0, tested v1.14.1)"
		if r.Check == "firecracker" && (r.Detail != want || r.Status != doctor.Pass) {
			t.Errorf("%+v, want PASS with %q", r, want)
		}
		if r.Check == "firecracker-cves" && !strings.Contains(r.Detail, "CVE-2026-5747 does not matter") {
			t.Errorf("%+v, want that what is known does not matter", r)
		}
	}
}

func TestEveryRowCanFail(t *testing.T) {
	// These rows inform; they have nothing that could be wrong.
	failed := map[string]bool{"vm-defaults": true, "kernel": true}
	for _, tt := range spoils {
		failed[tt.check] = true
		h, s := healthy()
		tt.spoil(&h, &s)
		for _, r := range doctor.Run(t.Context(), h, s) {
			if r.Check != tt.check {
				continue
			}
			if r.Status != tt.want || !strings.Contains(r.Detail, tt.detail) || !strings.Contains(r.Fix, tt.fix) || r.Fix == "" {
				t.Errorf("%s: %+v, want %s with %q and the fix %q", tt.check, r, tt.want, tt.detail, tt.fix)
			}
		}
	}
	for _, c := range doctor.Checks() {
		if !failed[c.Name] {
			t.Errorf("no test makes %s fail", c.Name)
		}
	}
}

func TestDefaultsTellTheirSources(t *testing.T) {
	h, s := healthy()
	for _, r := range doctor.Run(t.Context(), h, s) {
		if want := "2 vCPU (host), 2GiB memory (config), 8GiB disk (builtin)"; r.Check == "vm-defaults" && r.Detail != want {
			t.Errorf("vm-defaults says %q, want %q", r.Detail, want)
		}
	}
}

func TestDefaultsOfTheNetwork(t *testing.T) {
	for want, c := range map[string]config.Config{
		", no internet (builtin), with it the host's name servers (host)": {},
		", internet (config), with it name servers [192.0.2.1] (config)":  {NAT: true, DefaultDNS: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
	} {
		h, s := healthy()
		s.Layout.System, s.Config = true, c
		for _, r := range doctor.Run(t.Context(), h, s) {
			if r.Check == "vm-defaults" && !strings.HasSuffix(r.Detail, want) {
				t.Errorf("vm-defaults says %q, want %q at its end", r.Detail, want)
			}
		}
	}
}

func TestWithoutADaemonNothingFails(t *testing.T) {
	h, s := healthy()
	h.Daemon = func(context.Context) (doctor.Daemon, error) {
		return doctor.Daemon{}, &api.Error{Code: api.NotFound, Msg: "not running"}
	}
	for _, r := range doctor.Run(t.Context(), h, s) {
		if r.Status != doctor.Pass {
			t.Errorf("without a daemon: %+v, want PASS", r)
		}
	}
}

// The owner needs no right to /dev/kvm, and what was mended long ago is over.
func TestSystemModeOfAnOrdinaryAccount(t *testing.T) {
	h, s := healthy()
	inSystem(daemon(func(d *doctor.Daemon) {
		d.Hello.Network = &api.Network{Mended: []string{"packet filter"}, MendedAt: time.Now().Add(-time.Hour)}
	}))(&h, &s)
	h.KVM = func(context.Context) kvm.Verdict { return kvm.Verdict{Why: "you may not open it", Denied: true} }
	for _, r := range doctor.Run(t.Context(), h, s) {
		if r.Status != doctor.Pass {
			t.Errorf("%+v, want PASS", r)
		}
	}
}

func TestSystemModeNeedsNoQEMU(t *testing.T) {
	h, s := healthy()
	inSystem(without("qemu-system-x86_64"))(&h, &s)
	if rows := doctor.Run(t.Context(), h, s); doctor.Failed(rows) {
		t.Errorf("%+v, want none that fails", rows)
	}
}

// TestMend makes two fixes of three commands, one of them twice wanted, and
// leaves the others to whom they are.
func TestMend(t *testing.T) {
	h, s := healthy()
	daemon(func(d *doctor.Daemon) { d.Hello.Version, d.Census.Leaks = "v0", []string{"pid 7"} })(&h, &s)
	without("git")(&h, &s)
	free("/state", size.GiB)(&h, &s)
	s.SSHInclude = false
	var ran, said []string
	run := func(_ context.Context, args []string) error {
		ran = append(ran, strings.Join(args, " "))
		if args[0] == "ssh-config" {
			return errors.New("read-only")
		}
		return nil
	}
	say := func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
	rows := doctor.Run(t.Context(), h, s)
	if !doctor.Mend(t.Context(), rows, run, say) {
		t.Error("Mend = false, and a fix was made")
	}
	if want := []string{"daemon restart", "ssh-config --install"}; !slices.Equal(ran, want) {
		t.Errorf("ran %q, want %q", ran, want)
	}
	want := []string{"git: needs root, so it is yours to type: sudo apt install git", "disk-space-state: yours to do: make room in /state",
		"daemon: banger daemon restart", "ssh-config: banger ssh-config --install", "ssh-config: read-only"}
	if !slices.Equal(said, want) {
		t.Errorf("said %q, want %q", said, want)
	}
	h, s = healthy()
	if doctor.Mend(t.Context(), doctor.Run(t.Context(), h, s)[:3], run, say) {
		t.Error("Mend of nothing = true")
	}
}

func without(programs ...string) func(*doctor.Host, *doctor.Subject) {
	return func(h *doctor.Host, _ *doctor.Subject) {
		h.Look = func(p string) (string, bool) {
			for _, missing := range programs {
				if p == missing {
					return "", false
				}
			}
			return "/usr/bin/" + p, true
		}
	}
}

func file(path, text string) func(*doctor.Host, *doctor.Subject) {
	return func(h *doctor.Host, _ *doctor.Subject) {
		h.ReadFile = func(p string) ([]byte, error) {
			if p == path {
				return []byte(text), nil
			}
			return nil, fs.ErrNotExist
		}
	}
}

func free(dir string, n size.Bytes) func(*doctor.Host, *doctor.Subject) {
	return func(h *doctor.Host, _ *doctor.Subject) {
		h.Free = func(d string) (size.Bytes, error) {
			if d == dir {
				return n, nil
			}
			return 100 * size.GiB, nil
		}
	}
}

func daemon(change func(*doctor.Daemon)) func(*doctor.Host, *doctor.Subject) {
	return func(h *doctor.Host, _ *doctor.Subject) {
		was := h.Daemon
		h.Daemon = func(ctx context.Context) (doctor.Daemon, error) {
			d, err := was(ctx)
			change(&d)
			return d, err
		}
	}
}
