package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"banger/internal/api"
	"banger/internal/install/files"
	"banger/internal/install/systemctl"
	"banger/internal/rootapi"
	"banger/internal/rootclient"
	"banger/internal/version"
)

// Status is how system mode does on this host.
type Status struct {
	Version string           `json:"version"` // of what is installed
	Record  rootapi.Install  `json:"record"`
	Units   []systemctl.Unit `json:"units"`
	Helper  string           `json:"helper"` // its version, "" if it was not asked or did not answer
	Daemon  *api.Hello       `json:"daemon"` // nil if it was not asked or did not answer
	// Problems are what is wrong, each with what to do; none: all is well.
	Problems []Problem `json:"problems"`
}

// A Problem is something wrong, and what to type.
type Problem struct {
	What string `json:"what"`
	Fix  string `json:"fix"`
}

const (
	fixRestart = "sudo banger system restart"
	fixInstall = "sudo banger system install"
)

// Look asks the units, the files, and both daemons if the caller is the owner
// or root: they talk to nobody else.
func Look(ctx context.Context) (*Status, error) {
	m, err := listed()
	if err != nil {
		return nil, err
	}
	s := &Status{Version: m.Version, Problems: []Problem{}}
	if s.Record, err = installed(); err != nil {
		if errors.Is(err, ErrNotInstalled) && len(m.Files) > 0 {
			return nil, &api.Error{Code: api.StateDamaged, Msg: "system mode is half installed", Hint: fixInstall + " completes it; sudo banger system uninstall removes it"}
		}
		return nil, err
	}
	s.files(m)
	if err := s.units(ctx); err != nil {
		return nil, err
	}
	if uid := os.Geteuid(); uid == 0 || uint32(uid) == s.Record.Owner.UID {
		s.daemons(ctx)
	}
	return s, nil
}

func (s *Status) wrong(fix, format string, args ...any) {
	s.Problems = append(s.Problems, Problem{fmt.Sprintf(format, args...), fix})
}

func (s *Status) files(m files.Manifest) {
	if !m.Complete {
		s.wrong(fixInstall, "an install or uninstall was begun and not finished")
	}
	drift, err := m.Drift()
	if err != nil {
		s.wrong(fixInstall, "%v", err)
	}
	for _, path := range drift {
		s.wrong(fixInstall, "%s is not as banger has put it there", path)
	}
}

func (s *Status) units(ctx context.Context) error {
	for _, name := range []string{DaemonUnit, helperUnit, socketUnit} {
		u, err := systemctl.Show(ctx, name)
		if err != nil {
			return err
		}
		s.Units = append(s.Units, u)
		switch {
		case u.Load != "loaded":
			s.wrong(fixInstall, "%s: %s", name, u.Load)
		case u.Stale:
			s.wrong(fixRestart, "%s was changed since systemd has read it", name)
		case name == helperUnit: // its socket starts it
		case !u.Up():
			s.wrong(fixRestart, "%s: %s (%s)", name, u.Active, u.Result)
		case u.Enabled != "enabled":
			s.wrong(fixInstall, "%s is not started at boot: %s", name, u.Enabled)
		}
	}
	return nil
}

func (s *Status) daemons(ctx context.Context) {
	here := version.Get().String()
	v, err := rootclient.Client{}.Hello(ctx)
	switch {
	case err != nil:
		s.wrong(fixRestart, "the root helper does not answer: %v", err)
	case !sameBuild(v.Build, s.Version):
		s.Helper = v.Build
		s.wrong(fixRestart, "the root helper is version %s, and %s is installed", v.Build, s.Version)
	default:
		s.Helper = v.Build
	}
	d, err := askDaemon(ctx, s.Record)
	switch {
	case err != nil:
		s.wrong(fixRestart, "the owner daemon does not answer: %v", err)
	case d.Version != s.Version:
		s.Daemon = &d
		s.wrong(fixRestart, "the owner daemon is version %s, and %s is installed", d.Version, s.Version)
	default:
		s.Daemon = &d
	}
	if here != s.Version {
		s.wrong("to install this one: "+fixInstall, "this banger is version %s, and %s is installed", here, s.Version)
	}
}

// Print writes the status for people.
func (s *Status) Print(say func(format string, args ...any)) {
	r := s.Record
	say("version      %s", s.Version)
	say("owner        %s (uid %d)", r.Owner.Name, r.Owner.UID)
	say("network      %v on %s, names in .%s", r.Prefix, r.Bridge, r.Zone)
	for _, p := range r.Programs {
		say("firecracker  %s, %s", p.Firecracker, p.Jailer)
	}
	for _, u := range s.Units {
		say("%-22s %s (%s)%s", u.Name, u.Active, u.Sub, strings.TrimRight(", "+u.Enabled, ", "))
	}
	if d := s.Daemon; d != nil {
		say("VMs          %d, %d running", d.Machines, d.Running)
	}
	for _, p := range s.Problems {
		say("problem: %s\n    fix: %s", p.What, p.Fix)
	}
}
