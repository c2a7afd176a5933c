//go:build lab

package install

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"banger/internal/rootapi"
)

// The whole life of an installation without VMs. What it leaves is looked at by
// prepare.
func TestLife(t *testing.T) {
	before := prepare(t)
	dry := system(t, built, "", "install", "--firecracker", firecracker, "--dry-run")
	if dry.status != 0 || !strings.Contains(dry.out, "/usr/local/libexec/banger/bangerd-root") {
		t.Errorf("install --dry-run: %+v", dry)
	}
	same(t, "after a dry run", before)
	first := install(t, "--owner", "owner")
	if !strings.Contains(first.out, "banger vm run") {
		t.Errorf("install says %q, want the next command", first.out)
	}
	asTheOwner(t)
	asAnother(t)

	// Again: nothing is replaced, nothing starts anew.
	running := pids(t)
	again := system(t, built, "", "install")
	if again.status != 0 || !strings.Contains(again.err, "nothing to replace") || pids(t) != running {
		t.Errorf("the second install: %+v, processes %q and then %q", again, running, pids(t))
	}

	// Restarted: others, which answer.
	if s := system(t, installed, "", "restart"); s.status != 0 || pids(t) == running {
		t.Errorf("restart: %+v, processes %q and then %q", s, running, pids(t))
	}
	healthy(t, "after a restart")
	drift(t)
	uninstallAndBack(t, before)
}

// asTheOwner: the owner has system mode, and nothing of root.
func asTheOwner(t *testing.T) {
	t.Helper()
	healthy(t, "after install")
	var d struct {
		Running bool
		Daemon  struct{ Socket, State string }
	}
	s := run(t, ownerUID, nil, installed, "daemon", "status", "--json")
	must(t, json.Unmarshal([]byte(s.out), &d))
	if !d.Running || d.Daemon.Socket != "/run/banger/bangerd.sock" || d.Daemon.State != "/var/lib/banger" {
		t.Errorf("the owner's daemon: %+v", d)
	}
	for path, want := range map[string]os.FileMode{"/run/banger/bangerd.sock": 0o600 | os.ModeSocket, "/run/banger": 0o700 | os.ModeDir,
		"/var/lib/banger": 0o700 | os.ModeDir, "/var/cache/banger": 0o700 | os.ModeDir} {
		if st, err := os.Lstat(path); err != nil || st.Mode() != want {
			t.Errorf("%s: mode %v, %v; want %v", path, st.Mode(), err, want)
		}
	}
	for _, verb := range []string{"install", "restart", "uninstall"} {
		s := run(t, ownerUID, nil, installed, "system", verb)
		if s.status != failure || !strings.Contains(s.err, "sudo banger system "+verb) {
			t.Errorf("the owner's system %s: %+v", verb, s)
		}
	}
	for _, verb := range []string{"stop", "restart"} {
		if s := run(t, ownerUID, nil, installed, "daemon", verb); s.status != failure || !strings.Contains(s.err, "sudo banger system restart") {
			t.Errorf("the owner's daemon %s: %+v", verb, s)
		}
	}
	if s := run(t, ownerUID, nil, installed, "daemon", "logs"); s.status == 0 && !strings.Contains(s.out, "bangerd") || s.status != 0 && !strings.Contains(s.err, "journalctl") {
		t.Errorf("the owner's daemon logs: %+v", s)
	}
	// User mode is there for what was made before.
	if s := run(t, ownerUID, []string{"BANGER_MODE=user"}, installed, "daemon", "status"); s.status != 0 || !strings.Contains(s.out, "not running") {
		t.Errorf("the owner's user mode: %+v", s)
	}
}

// asAnother: everybody else is in user mode, and may look.
func asAnother(t *testing.T) {
	t.Helper()
	if s := run(t, otherUID, nil, installed, "daemon", "status"); s.status != 0 || !strings.Contains(s.out, "not running") {
		t.Errorf("another's daemon status: %+v", s)
	}
	if s := run(t, otherUID, nil, installed, "system", "status"); s.status != 0 || !strings.Contains(s.out, "owner (uid 1000)") {
		t.Errorf("another's system status: %+v", s)
	}
	if s := run(t, otherUID, []string{"BANGER_MODE=system"}, installed, "daemon", "status"); s.status != failure || !strings.Contains(s.err, "owner's") {
		t.Errorf("another's system mode: %+v", s)
	}
}

func healthy(t *testing.T, when string) {
	t.Helper()
	s := run(t, ownerUID, nil, installed, "system", "status")
	if s.status != 0 || strings.Contains(s.out, "problem") {
		t.Errorf("%s: system status: %+v", when, s)
	}
}

// drift: what others have changed is found, named, and mended by install.
func drift(t *testing.T) {
	t.Helper()
	const unit, tool = "/etc/systemd/system/bangerd.service", "/usr/local/libexec/banger/banger-jail"
	b, err := os.ReadFile(unit)
	must(t, err, os.WriteFile(unit, append(b, "# mine\n"...), 0o644), os.Remove(tool))
	s := run(t, ownerUID, nil, installed, "system", "status")
	if s.status != failure || !strings.Contains(s.out, unit) || !strings.Contains(s.out, tool) || !strings.Contains(s.out, "fix: sudo banger system install") {
		t.Errorf("status after changes: %+v", s)
	}
	if s := system(t, built, "", "install"); s.status != 0 {
		t.Errorf("install after changes: %+v", s)
	}
	healthy(t, "after a repair")
	do(t, "systemctl", "stop", "bangerd.service", "bangerd-root.socket")
	if s := run(t, ownerUID, nil, installed, "vm", "list"); s.status != failure || !strings.Contains(s.err, "sudo banger system restart") {
		t.Errorf("a command without the daemon: %+v", s)
	}
	if s := run(t, ownerUID, nil, installed, "system", "status"); s.status != failure || !strings.Contains(s.out, "fix: sudo banger system restart") {
		t.Errorf("status without the daemons: %+v", s)
	}
	if s := system(t, installed, "", "restart"); s.status != 0 {
		t.Errorf("restart of what does not run: %+v", s)
	}
	healthy(t, "after that")
}

// uninstallAndBack: what is kept is found again.
func uninstallAndBack(t *testing.T, before string) {
	t.Helper()
	must(t, os.WriteFile("/var/lib/banger/mark", nil, 0o600), os.Chown("/var/lib/banger/mark", ownerUID, ownerUID))
	if s := system(t, installed, "", "uninstall"); s.status != 0 {
		t.Fatalf("uninstall: %+v", s)
	}
	if _, err := os.Stat("/var/lib/banger/mark"); err != nil {
		t.Errorf("uninstall has not kept the state: %v", err)
	}
	if s := system(t, built, "", "uninstall"); s.status != 0 || !strings.Contains(s.err, "nothing to do") {
		t.Errorf("the second uninstall: %+v", s)
	}
	if s := run(t, ownerUID, nil, built, "system", "status"); s.status != failure || !strings.Contains(s.err, "not installed") {
		t.Errorf("status of nothing: %+v", s)
	}
	// Kept state is its owner's, and is not given to another.
	if s := system(t, built, "", "install", "--owner", "other", "--firecracker", firecracker); s.status != failure || !strings.Contains(s.err, "belongs to uid 1000") {
		t.Errorf("install for another over kept state: %+v", s)
	}
	install(t)
	if st, err := os.Stat("/var/lib/banger/mark"); err != nil {
		t.Errorf("the second install has not kept the state: %v, %v", st, err)
	}
	if s := system(t, installed, "", "uninstall", "--purge"); s.status != 0 {
		t.Fatalf("uninstall --purge: %+v", s)
	}
	same(t, "after uninstall --purge", before)
}

// The three units, as systemd judges them, at most so exposed.
func TestExposure(t *testing.T) {
	prepare(t)
	install(t)
	for unit, tenths := range map[string]string{"bangerd.service": "20", "bangerd-root.service": "25"} {
		s := run(t, 0, nil, "systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold="+tenths, "/etc/systemd/system/"+unit)
		lines := strings.Split(strings.TrimSpace(s.out), "\n")
		t.Logf("%s", lines[len(lines)-1])
		if s.status != 0 {
			t.Errorf("%s is more exposed than %s tenths:\n%s%s", unit, tenths, s.out, s.err)
		}
	}
	for _, unit := range []string{"bangerd.service", "bangerd-root.service", "bangerd-root.socket", "banger.slice"} {
		if s := run(t, 0, nil, "systemd-analyze", "verify", "/etc/systemd/system/"+unit); strings.Contains(s.err, "banger") {
			t.Errorf("systemd finds fault with %s: %s", unit, s.err)
		}
	}
	in, err := rootapi.ReadInstall(rootapi.InstallPath)
	if err != nil || in.Owner.Name != "owner" || in.Programs[0].Firecracker != firecracker {
		t.Errorf("the record: %+v, %v", in, err)
	}
}
