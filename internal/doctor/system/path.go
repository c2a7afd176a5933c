package system

import (
	"debug/elf"
	"fmt"
	"slices"

	"banger/internal/beneath"
	"banger/internal/doctor"
)

// A Program is one of the record's, as it is on this host.
type Program struct {
	Path    string
	Err     error // why the root helper does not start it
	Dynamic bool  // it needs a loader, which is not in a jail
}

// look asks what the root helper asks: whether anybody but root could have it
// start something else.
func look(path string) Program {
	p := Program{Path: path, Err: beneath.Program(path)}
	if p.Err == nil {
		p.Dynamic, p.Err = dynamic(path)
	}
	return p
}

// dynamic says whether a program names a loader.
func dynamic(path string) (bool, error) {
	f, err := elf.Open(path)
	if err != nil {
		return false, fmt.Errorf("looking at %s: %w", path, err)
	}
	defer f.Close()
	return slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }), nil
}

func programs(f Facts) doctor.Row {
	const other = fixInstall + " --firecracker PATH, of a release in a directory of root's"
	for _, p := range f.Programs {
		switch {
		case p.Err != nil:
			return fail(other, "no VM starts: %v", p.Err)
		case p.Dynamic:
			return fail(other, "no VM starts: %s is linked dynamically, and its loader is not in a VM's jail", p.Path)
		}
	}
	if len(f.Programs) == 0 {
		return fail(other, "no VM starts: the record names no Firecracker")
	}
	return pass("%s and its jailer are root's alone", f.Programs[0].Path)
}
