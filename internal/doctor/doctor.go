// Package doctor looks at a host and says what banger needs of it, with a fix
// for each thing that is not as it should be.
//
// A [Check] is a name and a function. It runs in the CLI, so it works with the
// daemon down; it changes nothing. What it asks of the outside comes through
// [Host], so that every row can be made to fail in a test.
package doctor

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"banger/internal/api"
	"banger/internal/config"
	"banger/internal/kvm"
	"banger/internal/paths"
	"banger/internal/recipe"
	"banger/internal/size"
	"banger/internal/version"
	"banger/internal/vmm/firecracker"
)

// Status of a row.
type Status string

// The statuses. A single Fail makes `banger doctor` exit with an error.
const (
	Pass Status = "PASS"
	Warn Status = "WARN" // works, but not as well as it could
	Fail Status = "FAIL" // the main job does not work
)

// A Row is the answer of one check.
type Row struct {
	Check  string `json:"check"` // lower-kebab-case, stable
	Status Status `json:"status"`
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"` // the next command to type; empty with Pass
	// Run are arguments of banger that are the fix, if that is safe and needs no
	// root.
	Run []string `json:"-"`
}

// Host is what the checks ask. Every function is required.
type Host struct {
	Arch     string // as in GOARCH
	UID      int
	Look     func(program string) (path string, ok bool)
	KVM      func(ctx context.Context) kvm.Verdict
	Free     func(dir string) (size.Bytes, error) // of the file system of dir or its first parent that exists
	ReadFile func(path string) ([]byte, error)
	// Firecracker asks a program for its version.
	Firecracker func(ctx context.Context, path string) (firecracker.Version, error)
	// Recipes tells what keeps this account from building the default image.
	Recipes func() error
	// Daemon asks a daemon that runs; an error if there is none.
	Daemon func(ctx context.Context) (Daemon, error)
}

// Daemon is what a running daemon said.
type Daemon struct {
	Hello   api.Hello
	Images  []api.Image
	Kernels []api.Kernel
	Census  api.Census
}

// Subject is what is checked beside the host: the user's layout and
// configuration.
type Subject struct {
	Layout        paths.Layout
	Config        config.Config
	ConfigErr     error // of reading it
	DefaultImage  string
	DefaultKernel string
	Sizes         config.Resolved
	SSHInclude    bool // ~/.ssh/config includes our file
	// NeedsFirecracker is set where nothing but Firecracker runs VMs.
	NeedsFirecracker bool
}

// A Check is one row's name and how to find it out.
type Check struct {
	Name string
	Run  func(ctx context.Context, h Host, s Subject) Row
}

// Checks lists all of them, in the order of the rows.
func Checks() []Check {
	return []Check{
		{"architecture", architecture},
		{"qemu", emulator},
		{"kvm", kvmUsable},
		{"firecracker", firecrackerUsable},
		{"firecracker-cves", firecrackerFlaws},
		{"mmdebstrap", tool("mmdebstrap", "builds the default image", "mmdebstrap", Fail)},
		{"image-build", imageBuild},
		{"ssh", tool("ssh", "carries interactive sessions", "openssh-client", Fail)},
		{"git", tool("git", "reads workspaces", "git", Warn)},
		{"user-namespaces", userNamespaces},
		{"disk-space-state", space(func(l paths.Layout) string { return l.State }, 4*size.GiB)},
		{"disk-space-cache", space(func(l paths.Layout) string { return l.Cache }, size.GiB)},
		{"disk-space-build", space(func(paths.Layout) string { return "/var/tmp" }, 3*size.GiB)},
		{"config", configReadable},
		{"vm-defaults", vmDefaults},
		{"daemon", daemonReachable},
		{"leaks", leaks},
		{"image", imageThere},
		{"kernel", kernelThere},
		{"ssh-config", sshInclude},
	}
}

// Run makes all checks, one after the other.
func Run(ctx context.Context, h Host, s Subject) []Row {
	var rows []Row
	for _, c := range Checks() {
		r := c.Run(ctx, h, s)
		r.Check = c.Name
		if r.Status == Pass {
			r.Fix, r.Run = "", nil
		}
		rows = append(rows, r)
	}
	return rows
}

// Failed reports whether any row is a Fail.
func Failed(rows []Row) bool {
	for _, r := range rows {
		if r.Status == Fail {
			return true
		}
	}
	return false
}

func pass(format string, args ...any) Row {
	return Row{Status: Pass, Detail: fmt.Sprintf(format, args...)}
}

func architecture(_ context.Context, h Host, _ Subject) Row {
	if h.Arch == "amd64" {
		return pass("x86_64")
	}
	return Row{Status: Fail, Detail: h.Arch + ": guests, kernels and images are x86_64 only", Fix: "use an x86_64 machine"}
}

// tool checks for a program. The package name is Debian's, which the others
// share or nearly so.
func tool(program, why, pkg string, missing Status) func(context.Context, Host, Subject) Row {
	return func(_ context.Context, h Host, _ Subject) Row {
		if path, ok := h.Look(program); ok {
			return pass("%s", path)
		}
		return Row{Status: missing, Detail: program + " is not installed; it " + why, Fix: install(h, pkg)}
	}
}

func emulator(ctx context.Context, h Host, s Subject) Row {
	if s.Layout.System {
		return pass("not needed: Firecracker runs the VMs")
	}
	missing := Fail
	if firecrackerRuns(ctx, h, s) {
		missing = Warn // it is for kernels that Firecracker does not suit
	}
	return tool("qemu-system-x86_64", "runs the VMs", "qemu-system-x86", missing)(ctx, h, s)
}

func install(h Host, pkg string) string {
	for _, m := range []struct{ tool, command string }{
		{"apt-get", "apt install "}, {"dnf", "dnf install "}, {"pacman", "pacman -S "},
	} {
		if _, ok := h.Look(m.tool); ok {
			if h.UID != 0 {
				return "sudo " + m.command + pkg
			}
			return m.command + pkg
		}
	}
	return "install " + pkg
}

func kvmUsable(ctx context.Context, h Host, s Subject) Row {
	v := h.KVM(ctx)
	if v.Usable {
		return pass("a guest runs at the processor's speed")
	}
	if s.Layout.System && v.Denied {
		return pass("it is there; this account may not open it, and need not: each VM has an account of its own")
	}
	if s.Layout.System {
		return Row{Status: Fail, Detail: "not usable: " + v.Why, Fix: cmp.Or(v.Fix, "user mode does without, and is slower: BANGER_MODE=user banger vm run")}
	}
	return Row{Status: Warn, Detail: "not usable: " + v.Why, Fix: cmp.Or(v.Fix, "none needed: VMs run in software emulation, slower")}
}

func imageBuild(_ context.Context, h Host, s Subject) Row {
	err := h.Recipes()
	if err == nil {
		return pass("this account can build %s", s.DefaultImage)
	}
	e := api.AsError(err)
	return Row{Status: Fail, Detail: e.Msg, Fix: e.Hint}
}

func userNamespaces(_ context.Context, h Host, _ Subject) Row {
	if h.UID == 0 {
		return pass("not needed as root")
	}
	for _, f := range []struct{ path, off, fix string }{
		{"/proc/sys/user/max_user_namespaces", "0", "sudo sysctl user.max_user_namespaces=10000"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sudo sysctl kernel.unprivileged_userns_clone=1"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"},
	} {
		text, err := h.ReadFile(f.path)
		if err == nil && strings.TrimSpace(string(text)) == f.off {
			return Row{Status: Fail, Detail: fmt.Sprintf("%s is %s: mmdebstrap cannot build as an ordinary user", f.path, f.off), Fix: f.fix}
		}
	}
	return pass("allowed for ordinary users")
}

func space(dir func(paths.Layout) string, need size.Bytes) func(context.Context, Host, Subject) Row {
	return func(_ context.Context, h Host, s Subject) Row {
		d := dir(s.Layout)
		free, err := h.Free(d)
		switch {
		case err != nil:
			return Row{Status: Warn, Detail: fmt.Sprintf("%s: %v", d, err), Fix: "df -h " + d}
		case free < need/8:
			return Row{Status: Fail, Detail: fmt.Sprintf("%s has %s free; a default image needs %v", d, free.Short(), need), Fix: "make room in " + d}
		case free < need:
			return Row{Status: Warn, Detail: fmt.Sprintf("%s has %s free; %v is comfortable", d, free.Short(), need), Fix: "make room in " + d}
		}
		return pass("%s has %s free", d, free.Short())
	}
}

func configReadable(_ context.Context, _ Host, s Subject) Row {
	switch {
	case s.ConfigErr != nil:
		e := api.AsError(s.ConfigErr)
		return Row{Status: Fail, Detail: e.Msg, Fix: e.Hint}
	case s.Config.Path == "":
		return pass("all defaults, without %s", filepath.Join(s.Layout.Config, config.FileName))
	}
	return pass("%s", s.Config.Path)
}

func vmDefaults(_ context.Context, _ Host, s Subject) Row {
	r := s.Sizes
	row := pass("%d vCPU (%s), %v memory (%s), %v disk (%s)", r.Spec.VCPUs, r.VCPUs,
		size.Bytes(r.Spec.MemoryMiB)*size.MiB, r.Memory, size.Bytes(r.Spec.DiskBytes), r.Disk)
	if !s.Layout.System {
		return row
	}
	nat, dns := "no internet (builtin)", "the host's name servers (host)"
	if s.Config.NAT {
		nat = "internet (config)"
	}
	if len(s.Config.DefaultDNS) > 0 {
		dns = fmt.Sprintf("name servers %v (config)", s.Config.DefaultDNS)
	}
	row.Detail += ", " + nat + ", with it " + dns
	return row
}

// lately is how long what was mended is worth telling.
const lately = 10 * time.Minute

func daemonReachable(ctx context.Context, h Host, s Subject) Row {
	d, err := h.Daemon(ctx)
	if err != nil {
		if api.CodeOf(err) == api.NotFound && !s.Layout.System {
			return pass("not running; any command that needs it starts it")
		}
		e := api.AsError(err)
		return Row{Status: Fail, Detail: e.Msg, Fix: cmp.Or(e.Hint, "banger daemon logs")}
	}
	if v := version.Get().String(); d.Hello.Version != v || d.Hello.Protocol != api.Protocol {
		r := Row{Status: Warn, Detail: fmt.Sprintf("pid %d is %s, this banger is %s", d.Hello.PID, d.Hello.Version, v)}
		if s.Layout.System { // a restart would start the same programs again
			r.Fix = "sudo banger system install"
			return r
		}
		return restart(s, r)
	}
	if e := d.Hello.Problem; e != nil {
		return Row{Status: Fail, Detail: e.Msg, Fix: cmp.Or(e.Hint, "banger daemon logs")}
	}
	if n := d.Hello.Network; n != nil && n.Problem != nil {
		return Row{Status: Warn, Detail: n.Problem.Msg, Fix: cmp.Or(n.Problem.Hint, "banger daemon logs")}
	}
	if n := d.Hello.Network; n != nil && time.Since(n.MendedAt) < lately {
		return Row{Status: Warn, Detail: fmt.Sprintf("others had changed the VMs' network, and it was mended at %s: %s", n.MendedAt.Local().Format(time.TimeOnly), strings.Join(n.Mended, ", ")),
			Fix: "find what does that: a firewall that flushes all rules, perhaps: systemctl status nftables"}
	}
	return pass("pid %d; VMs: %d, of which %d running", d.Hello.PID, d.Hello.Machines, d.Hello.Running)
}

// restart has the daemon started anew as the fix. VMs and what runs in them go on.
func restart(s Subject, r Row) Row {
	if s.Layout.System {
		r.Fix = "sudo banger system restart"
		return r
	}
	r.Fix, r.Run = "banger daemon restart", []string{"daemon", "restart"}
	return r
}

func leaks(ctx context.Context, h Host, s Subject) Row {
	d, err := h.Daemon(ctx)
	if err != nil {
		return pass("not looked for: the daemon does not run")
	}
	if n := len(d.Census.Leaks); n > 0 {
		return restart(s, Row{Status: Warn, Detail: fmt.Sprintf("%d, the first: %s", n, d.Census.Leaks[0])})
	}
	return pass("none")
}

func imageThere(ctx context.Context, h Host, s Subject) Row {
	d, err := h.Daemon(ctx)
	if err != nil {
		return pass("%s; pulled when it is first needed", s.DefaultImage)
	}
	for _, i := range d.Images {
		if i.Name == s.DefaultImage {
			return pass("%s, %s", i.Name, size.Bytes(i.Used).Short())
		}
	}
	if _, err := recipe.Image(s.DefaultImage); err != nil {
		return Row{Status: Fail, Detail: api.AsError(err).Msg, Fix: "banger image import " + s.DefaultImage + " FILE.tar, or another default_image_name in " + config.FileName}
	}
	return pass("%s is not here yet; the first `banger vm run` pulls it", s.DefaultImage)
}

func kernelThere(ctx context.Context, h Host, s Subject) Row {
	d, err := h.Daemon(ctx)
	if err != nil {
		return pass("%s; pulled when it is first needed", s.DefaultKernel)
	}
	for _, k := range d.Kernels {
		if k.Name == s.DefaultKernel {
			return pass("%s, %s", k.Name, k.Release)
		}
	}
	return pass("%s is not here yet; the first `banger vm run` pulls it", s.DefaultKernel)
}

func sshInclude(_ context.Context, _ Host, s Subject) Row {
	if s.SSHInclude {
		return pass("`ssh NAME.vm` works from any terminal")
	}
	return Row{Status: Warn, Detail: "`ssh NAME.vm` is not set up; `banger vm ssh NAME` works without", Fix: "banger ssh-config --install", Run: []string{"ssh-config", "--install"}}
}
