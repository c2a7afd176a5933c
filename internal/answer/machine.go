package answer

import (
	"fmt"
	"io"
	"slices"
	"time"

	"banger/internal/api"
	"banger/internal/size"
)

// Machines writes a table of VMs; it says how to get one if there are none. running
// tells that only those were asked for.
func (p Printer) Machines(w io.Writer, ms []api.Machine, running bool) {
	switch {
	case len(ms) == 0 && running:
		p.Note("no VM is running: see all with: banger vm list")
		return
	case len(ms) == 0:
		p.Note("no VMs yet: make one with: banger vm run")
		return
	}
	now := time.Now()
	header := "ID NAME STATE IMAGE VCPU MEM DISK"
	addresses := slices.ContainsFunc(ms, func(m api.Machine) bool { return m.Address.IsValid() })
	if addresses {
		header += " ADDRESS"
	}
	header += " CREATED"
	workspaces := slices.ContainsFunc(ms, func(m api.Machine) bool { return m.Workspace != nil })
	if workspaces { // the longest, so last: it may leave a narrow terminal
		header += " WORKSPACE"
	}
	var rows [][]string
	for _, m := range ms {
		row := []string{
			m.ID[:min(8, len(m.ID))], m.Name, string(m.State), m.Image, fmt.Sprint(m.Spec.VCPUs),
			MiB(m.Spec.MemoryMiB), size.Bytes(m.Spec.DiskBytes).String(),
		}
		if addresses {
			address := "-"
			if m.Address.IsValid() {
				address = m.Address.String()
			}
			row = append(row, address)
		}
		row = append(row, Ago(now, m.Created))
		switch {
		case m.Workspace != nil:
			row = append(row, m.Workspace.Source)
		case workspaces:
			row = append(row, "-")
		}
		rows = append(rows, row)
	}
	Table(w, header, rows)
}

// Machine writes all that is known of a VM.
func Machine(w io.Writer, m api.Machine) {
	row := func(key, format string, args ...any) { fmt.Fprintf(w, "%-10s %s\n", key, fmt.Sprintf(format, args...)) }
	row("name", "%s", m.Name)
	row("id", "%s", m.ID)
	state := string(m.State)
	if m.Stage != "" {
		state += ", guest at " + string(m.Stage)
	}
	if m.Reason != "" {
		state += " (" + m.Reason + ")"
	}
	row("state", "%s", state)
	row("image", "%s (%.12s)", m.Image, m.ImageID)
	row("kernel", "%s", m.Kernel)
	row("size", "%d vCPU, %s memory, %v disk", m.Spec.VCPUs, MiB(m.Spec.MemoryMiB), size.Bytes(m.Spec.DiskBytes))
	row("on disk", "%s", Bytes(m.DiskUsed))
	row("network", "%s", m.Network)
	if m.Address.IsValid() {
		row("address", "%v", m.Address)
	}
	if m.Driver != "" {
		row("driver", "%s", m.Driver)
	}
	if m.VMMPID != 0 {
		row("vmm pid", "%d", m.VMMPID)
	}
	if m.Autostart {
		row("autostart", "yes, after a start of this host")
	}
	if m.Ephemeral {
		row("lifetime", "deleted when its command or session ends (--rm)")
	}
	if m.Workspace != nil {
		row("workspace", "%s from %s at %.12s", m.Workspace.GuestPath, m.Workspace.Source, Dash(m.Workspace.Commit))
	}
	row("created", "%s", m.Created.Local().Format(time.RFC3339))
	if !m.Started.IsZero() {
		row("started", "%s", m.Started.Local().Format(time.RFC3339))
	}
}
