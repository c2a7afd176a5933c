package doctor

import (
	"context"
	"fmt"
	"strings"

	"banger/internal/vmm/firecracker"
)

// firecrackerUsable looks at the Firecracker in PATH: it passes within the window
// of versions, warns above it, and fails below it or without one, which is a
// warning only where QEMU runs VMs too.
func firecrackerUsable(ctx context.Context, h Host, s Subject) Row {
	fail, instead := Warn, "; QEMU runs the VMs"
	if s.NeedsFirecracker {
		fail, instead = Fail, ""
	}
	osRelease, _ := h.ReadFile("/etc/os-release") // no hint for this system without
	hint := firecracker.InstallHint(string(osRelease))
	path, ok := h.Look(firecracker.Program)
	if !ok {
		return Row{Status: fail, Detail: "there is no " + firecracker.Program + " in PATH" + instead, Fix: hint}
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
	return pass("v%v at %s (within tested range; %s)", v, path, window)
}

// firecrackerFlaws names what is known to be wrong with the Firecracker in PATH.
func firecrackerFlaws(ctx context.Context, h Host, _ Subject) Row {
	path, ok := h.Look(firecracker.Program)
	if !ok {
		return pass("there is no Firecracker")
	}
	v, err := h.Firecracker(ctx, path)
	if err != nil {
		return pass("not known: the version is not")
	}
	var what, fixed []string
	for _, c := range firecracker.CVEs(v) {
		what, fixed = append(what, c.ID+": "+c.What), append(fixed, c.ID+" in "+c.Fixed)
	}
	if len(what) == 0 {
		return pass("none is known of v%v", v)
	}
	return Row{Status: Warn, Detail: fmt.Sprintf("v%v: %s", v, strings.Join(what, "; ")),
		Fix: "install a release where it is mended (" + strings.Join(fixed, ", ") + ") from " + firecracker.Releases}
}
