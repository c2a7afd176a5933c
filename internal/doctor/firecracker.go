package doctor

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"banger/internal/vmm/firecracker"
)

// chosen is the Firecracker that VMs run on: what the configuration names, or the
// one in PATH.
func chosen(h Host, s Subject) (path string, ok bool) {
	return h.Look(cmp.Or(s.Config.FirecrackerBin, firecracker.Program))
}

// catalogs is all that matters of the configuration of the catalog's kernels: it
// is Debian's, which has no option to find devices on the command line.
const catalogs = "CONFIG_VIRTIO_MMIO=m\n"

// firecrackerUsable looks at the Firecracker of the VMs: it passes within the
// window of versions, warns above it, and fails below it, without one, or where
// it suits no kernel of the catalog, which is a warning only where QEMU runs VMs
// too.
func firecrackerUsable(ctx context.Context, h Host, s Subject) Row {
	fail, instead := Warn, "; QEMU runs the VMs"
	if s.NeedsFirecracker {
		fail, instead = Fail, ""
	}
	osRelease, _ := h.ReadFile("/etc/os-release") // no hint for this system without
	hint := firecracker.InstallHint(string(osRelease))
	path, ok := chosen(h, s)
	switch bin := s.Config.FirecrackerBin; {
	case !ok && bin == "":
		return Row{Status: fail, Detail: "there is no " + firecracker.Program + " in PATH" + instead, Fix: hint}
	case !ok && s.Layout.System:
		return Row{Status: fail, Detail: fmt.Sprintf("firecracker_bin is %s, which system mode does not know", bin), Fix: "sudo banger system install --firecracker " + bin}
	case !ok:
		return Row{Status: fail, Detail: fmt.Sprintf("firecracker_bin is %s, which cannot be run%s", bin, instead), Fix: hint}
	}
	v, err := h.Firecracker(ctx, path)
	if err != nil {
		return Row{Status: fail, Detail: err.Error() + instead, Fix: hint}
	}
	window := fmt.Sprintf("min v%s, tested v%s", firecracker.MinSupportedVersion, firecracker.KnownTestedVersion)
	switch firecracker.Window(v) {
	case firecracker.Below:
		return Row{Status: fail, Detail: fmt.Sprintf("v%v at %s is older than what banger uses (%s)%s", v, path, window, instead), Fix: hint}
	case firecracker.Above:
		return Row{Status: Warn, Detail: fmt.Sprintf("v%v at %s is newer than what banger was tested with (%s); it usually works", v, path, window),
			Fix: "if it does not, install v" + firecracker.KnownTestedVersion + " from " + firecracker.Releases}
	}
	if err := firecracker.Suits(v, catalogs); err != nil {
		return Row{Status: fail, Detail: fmt.Sprintf("v%v at %s: %v%s", v, path, err, instead), Fix: hint}
	}
	return pass("v%v at %s (within tested range; %s)", v, path, window)
}

// firecrackerRuns reports whether user mode's VMs run on Firecracker here.
func firecrackerRuns(ctx context.Context, h Host, s Subject) bool {
	path, ok := chosen(h, s)
	if !ok || !h.KVM(ctx).Usable {
		return false
	}
	v, err := h.Firecracker(ctx, path)
	return err == nil && firecracker.Window(v) != firecracker.Below && firecracker.Suits(v, catalogs) == nil
}

// firecrackerFlaws names what is known to be wrong with the Firecracker of the VMs.
func firecrackerFlaws(ctx context.Context, h Host, s Subject) Row {
	path, ok := chosen(h, s)
	if !ok {
		return pass("there is no Firecracker")
	}
	v, err := h.Firecracker(ctx, path)
	if err != nil {
		return pass("not known: the version is not")
	}
	var what, fixed, moot []string
	for _, c := range firecracker.CVEs(v) {
		if c.Moot != "" {
			moot = append(moot, c.ID+" does not matter: "+c.Moot)
			continue
		}
		what, fixed = append(what, c.ID+": "+c.What), append(fixed, c.ID+" in "+c.Fixed)
	}
	switch {
	case len(what) == 0 && len(moot) > 0:
		return pass("v%v: %s", v, strings.Join(moot, "; "))
	case len(what) == 0:
		return pass("none is known of v%v", v)
	}
	return Row{Status: Warn, Detail: fmt.Sprintf("v%v: %s", v, strings.Join(what, "; ")),
		Fix: "install a release where it is mended (" + strings.Join(fixed, ", ") + ") from " + firecracker.Releases}
}
