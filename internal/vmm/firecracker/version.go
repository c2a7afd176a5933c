package firecracker

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// The window of versions.
const (
	// MinSupportedVersion is the floor: nothing older is started.
	MinSupportedVersion = "1.5.0"
	// KnownTestedVersion is the newest that banger was tried with.
	KnownTestedVersion = "1.14.1"
)

// Releases is where the releases are.
const Releases = "https://github.com/firecracker-microvm/firecracker/releases"

// A Version is one of Firecracker's. The zero Version is before all others.
type Version struct {
	Major, Minor, Patch int
	Pre                 string // "dev", "rc1"; before the release of the same numbers
}

// String is the version as Firecracker prints it, without the v.
func (v Version) String() string {
	s := fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch)
	if v.Pre != "" {
		s += "-" + v.Pre
	}
	return s
}

// Compare is negative if v is before w, positive if it is after.
func (v Version) Compare(w Version) int {
	for _, d := range []int{v.Major - w.Major, v.Minor - w.Minor, v.Patch - w.Patch} {
		if d != 0 {
			return d
		}
	}
	switch {
	case v.Pre == w.Pre:
		return 0
	case v.Pre == "":
		return 1
	case w.Pre == "":
		return -1
	}
	return strings.Compare(v.Pre, w.Pre)
}

// Parse reads "1.14.1", "v1.15.0-dev".
func Parse(s string) (Version, error) {
	var v Version
	numbers, pre, dash := strings.Cut(strings.TrimPrefix(s, "v"), "-")
	numbers, _, _ = strings.Cut(numbers, "+")
	pre, _, _ = strings.Cut(pre, "+")
	fields := strings.Split(numbers, ".")
	if len(fields) != 3 || dash && pre == "" || strings.ContainsFunc(pre, notPre) {
		return v, fmt.Errorf("%.40q is not a version", s)
	}
	for i, to := range []*int{&v.Major, &v.Minor, &v.Patch} {
		n, err := strconv.ParseUint(fields[i], 10, 16)
		if err != nil || len(fields[i]) > 1 && fields[i][0] == '0' {
			return Version{}, fmt.Errorf("%.40q is not a version", s)
		}
		*to = int(n)
	}
	v.Pre = pre
	return v, nil
}

// notPre says whether a rune has no place in the name of a version before a release.
func notPre(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '-'
}

// must parses a constant.
func must(s string) Version {
	v, err := Parse(s)
	if err != nil {
		panic(err)
	}
	return v
}

// ParseOutput reads what `firecracker --version` prints: a line "Firecracker
// vX.Y.Z" among others, such as that of its log.
func ParseOutput(out string) (Version, error) {
	for line := range strings.Lines(out) {
		if s, ok := strings.CutPrefix(strings.TrimSpace(line), "Firecracker "); ok {
			if v, err := Parse(s); err == nil && strings.HasPrefix(s, "v") {
				return v, nil
			}
		}
	}
	return Version{}, fmt.Errorf("reading Firecracker's version: there is none in %.80q", out)
}

// versionLimit is for a program that only prints a line; maxOutput is more than
// it prints.
const (
	versionLimit = 5 * time.Second
	maxOutput    = 4 << 10
)

// Query asks a program for its version.
func Query(ctx context.Context, path string) (Version, error) {
	ctx, cancel := context.WithTimeout(ctx, versionLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	out := &first{left: maxOutput}
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.WaitDelay = "/", []string{}, out, time.Second
	if err := cmd.Run(); err != nil {
		return Version{}, fmt.Errorf("asking %s for its version: %w", path, err)
	}
	return ParseOutput(out.b.String())
}

// first keeps the first bytes that are written.
type first struct {
	b    bytes.Buffer
	left int
}

// Write takes all, and keeps what there is room for.
func (f *first) Write(p []byte) (int, error) {
	n, _ := f.b.Write(p[:min(len(p), f.left)])
	f.left -= n
	return len(p), nil
}

// A Place is where a version is in the window.
type Place int

// The places.
const (
	Below  Place = iota // of the floor: not started
	Within              // tried, or between two that were
	Above               // newer than what was tried: usually works
)

// Window says where v is. What comes before the floor's release is below it.
func Window(v Version) Place {
	switch {
	case v.Compare(must(MinSupportedVersion)) < 0:
		return Below
	case v.Compare(must(KnownTestedVersion)) > 0:
		return Above
	}
	return Within
}

// A CVE is a known flaw of a version.
type CVE struct {
	ID     string
	What   string // in a few words
	Fixed  string // the versions that mend it
	Moot   string // why it cannot hurt banger's VMs; empty if it can
	ranges []span
}

// span is from one version to another, both in it.
type span struct{ from, to string }

// known are the flaws that a user should know of.
var known = []CVE{
	{"CVE-2026-1386", "the jailer follows symbolic links of a directory that is not root's alone", "1.13.2 and 1.14.1", "",
		[]span{{"0.0.0", "1.13.1"}, {"1.14.0", "1.14.0"}}},
	{"CVE-2026-5747", "a guest can write beyond its memory if Firecracker runs with --enable-pci", "1.14.4 and 1.15.1", "banger never passes --enable-pci",
		[]span{{"1.13.0", "1.14.3"}, {"1.15.0", "1.15.0"}}},
}

// CVEs are the known flaws of v.
func CVEs(v Version) []CVE {
	var out []CVE
	for _, c := range known {
		for _, s := range c.ranges {
			if v.Compare(must(s.from)) >= 0 && v.Compare(must(s.to)) <= 0 {
				out = append(out, c)
				break
			}
		}
	}
	return out
}

// acpi is the first version that shows a guest its devices through ACPI; before,
// they were on the kernel's command line only.
const acpi = "1.8.0"

// mmioCmdline is the kernel's option to find devices there.
const mmioCmdline = "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES"

// Suits is an error if a kernel with this configuration finds no device in a
// Firecracker of version v. Nothing is said of a kernel whose configuration is
// not known.
func Suits(v Version, kernelConfig string) error {
	if kernelConfig == "" || v.Compare(must(acpi)) >= 0 {
		return nil
	}
	for line := range strings.Lines(kernelConfig) {
		if strings.TrimSpace(line) == mmioCmdline+"=y" {
			return nil
		}
	}
	return fmt.Errorf("as Firecracker %v shows a guest its devices on the kernel's command line only (ACPI came with %s), it suits no kernel without %s, such as Debian's", v, acpi, mmioCmdline)
}

// InstallHint is how to install Firecracker on a system with this
// /etc/os-release; where that is not known for sure, where to get it.
func InstallHint(osRelease string) string {
	hints := map[string]string{
		// Debian has no such package: the release, as root's own file.
		"debian": "curl -fL " + Releases + "/download/v" + KnownTestedVersion + "/firecracker-v" + KnownTestedVersion + "-x86_64.tgz | " +
			"sudo tar -xzO -f - release-v" + KnownTestedVersion + "-x86_64/firecracker-v" + KnownTestedVersion + "-x86_64 | " +
			"sudo install -o root -g root -m 0755 /dev/stdin /usr/local/bin/firecracker",
		"arch":    "paru -S firecracker-bin",
		"manjaro": "paru -S firecracker-bin",
		"nixos":   "nix-env -iA nixos.firecracker",
	}
	for _, id := range distributions(osRelease) {
		if h, ok := hints[id]; ok {
			return h
		}
	}
	return "get it from " + Releases
}

// distributions are ID and then the words of ID_LIKE (os-release(5)).
func distributions(osRelease string) []string {
	fields := map[string]string{}
	for line := range strings.Lines(osRelease) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			fields[key] = strings.Trim(value, `"'`)
		}
	}
	return append([]string{fields["ID"]}, strings.Fields(fields["ID_LIKE"])...)
}
