// Package systemctl asks systemd what an administrator would: by running
// systemctl and journalctl.
//
// It is for commands that a person types as root, whose errors should read as
// the tool's own. The root helper, which may run no programs, has package dbus.
package systemctl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Program is a program of the system's: in its own directories first, and only
// then in PATH, which under sudo may be that of the account that uses it.
func Program(name string) string {
	for _, dir := range []string{"/usr/bin", "/bin", "/usr/sbin", "/sbin"} {
		p := filepath.Join(dir, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p
		}
	}
	return name
}

// Run runs systemctl and returns what it printed; its complaints become the
// error.
func Run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, Program("systemctl"), append([]string{"--no-pager", "--no-ask-password"}, args...)...)
	var out, complaints strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &complaints
	cmd.Env = append(os.Environ(), "LC_ALL=C", "SYSTEMD_COLORS=0")
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return out.String(), fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(complaints.String()))
	}
	return out.String(), nil
}

// Running reports whether systemd is this system's init.
func Running() bool {
	st, err := os.Lstat("/run/systemd/system") // sd_booted(3)
	return err == nil && st.IsDir()
}

// A Unit is a unit as systemd sees it.
type Unit struct {
	Name    string `json:"name"`
	Load    string `json:"load"`    // "loaded", "not-found", ...
	Active  string `json:"active"`  // "active", "failed", ...
	Sub     string `json:"sub"`     // "running", "listening", ...
	Enabled string `json:"enabled"` // "enabled", "static", ...; "" if there is none
	Result  string `json:"result"`  // of a service's last run
	Stale   bool   `json:"stale"`   // its file was changed and not loaded since
}

// Up reports whether the unit does its work.
func (u Unit) Up() bool { return u.Active == "active" }

// Gone reports whether there is nothing of the unit: no file, and nothing that
// goes on without one, as it does when a file is deleted under it.
func (u Unit) Gone() bool {
	return u.Load == "not-found" && (u.Active == "inactive" || u.Active == "failed")
}

// Show tells about a unit, whether or not there is one of the name.
func Show(ctx context.Context, name string) (Unit, error) {
	out, err := Run(ctx, "show", "--property=LoadState,ActiveState,SubState,UnitFileState,Result,NeedDaemonReload", "--", name)
	return parse(name, out), err
}

func parse(name, out string) Unit {
	u := Unit{Name: name}
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		switch key {
		case "LoadState":
			u.Load = value
		case "ActiveState":
			u.Active = value
		case "SubState":
			u.Sub = value
		case "UnitFileState":
			u.Enabled = value
		case "Result":
			u.Result = value
		case "NeedDaemonReload":
			u.Stale = value == "yes"
		}
	}
	return u
}

// Log returns the last lines that a unit wrote to the journal; "" if they
// cannot be had.
func Log(ctx context.Context, unit string, lines int) string {
	cmd := exec.CommandContext(ctx, Program("journalctl"), "--no-pager", "-q", "-o", "cat", "-n", fmt.Sprint(lines), "-u", unit)
	out, err := cmd.Output()
	if err != nil && len(out) == 0 {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// Journal writes all that a unit wrote to the journal, as far as the caller may
// read it, with the time of each line.
func Journal(ctx context.Context, unit string) (string, error) {
	out, err := exec.CommandContext(ctx, Program("journalctl"), "--no-pager", "-q", "-o", "short-iso", "-u", unit).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return "", fmt.Errorf("reading the journal: %w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	return string(out), err
}
