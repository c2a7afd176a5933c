//go:build lab

package install

import (
	"os"
	"strings"
	"testing"

	inst "banger/internal/install"
)

// An install or uninstall that is killed anywhere is completed by the next one,
// and what it left is removed without a trace.
func TestKillAtEveryPoint(t *testing.T) {
	before := prepare(t)
	for _, point := range inst.Points() {
		verb, _, _ := strings.Cut(point, ".")
		for _, next := range []string{"install", "uninstall"} {
			if verb == "uninstall" {
				install(t)
			}
			args := map[string][]string{"install": {"install", "--firecracker", firecracker}, "uninstall": {"uninstall", "--purge"}}
			if s := system(t, built, point, args[verb]...); s.status != 128+9 {
				t.Errorf("%s killed at %s: %+v", verb, point, s)
			}
			if s := run(t, ownerUID, nil, built, "system", "status"); s.status == 0 && point != "install.answered" {
				t.Errorf("status after a death at %s: %+v", point, s)
			}
			if s := system(t, built, "", args[next]...); s.status != 0 {
				t.Errorf("%s after a death at %s: %+v", next, point, s)
			}
			if next == "install" {
				healthy(t, "after a death at "+point)
			}
			if s := system(t, built, "", "uninstall", "--purge"); s.status != 0 {
				t.Errorf("uninstall after a death at %s: %+v", point, s)
			}
			same(t, "after a death at "+point+" and "+next, before)
		}
	}
}

// A first install whose daemon does not start leaves nothing.
func TestFailureIsUndone(t *testing.T) {
	must(t, os.MkdirAll("/home/owner/.config/banger", 0o755), os.WriteFile("/home/owner/.config/banger/config.toml", []byte("nonsense\n"), 0o644))
	t.Cleanup(func() { os.RemoveAll("/home/owner/.config") })
	before := prepare(t)
	s := system(t, built, "", "install", "--firecracker", firecracker)
	if s.status != failure || !strings.Contains(s.err, "bangerd.service does not work") || !strings.Contains(s.err, "config.toml") {
		t.Errorf("install with a broken configuration: %+v", s)
	}
	same(t, "after it", before)
}
