//go:build lab

package install

import (
	"os"
	"strings"
	"testing"

	inst "banger/internal/install"
)

// An install or uninstall that is killed anywhere is completed by the next one,
// and what it left is removed without a trace; each by turns.
func TestKillAtEveryPoint(t *testing.T) {
	prepare(t) // which looks at all of the machine in the end
	before := brief(t)
	args := map[string][]string{"install": {"install", "--firecracker", firecracker}, "uninstall": {"uninstall", "--purge"}}
	for i, point := range inst.Points() {
		t.Run(point, func(t *testing.T) {
			verb, _, _ := strings.Cut(point, ".")
			next := []string{"install", "uninstall"}[i%2]
			if verb == "uninstall" {
				install(t)
			}
			if s := system(t, built, point, args[verb]...); s.status != 128+9 {
				t.Errorf("%s: %+v, want it killed", verb, s)
			}
			if s := run(t, ownerUID, nil, built, "system", "status"); s.status != failure {
				t.Errorf("status after that: %+v", s)
			}
			if s := system(t, built, "", args[next]...); s.status != 0 {
				t.Fatalf("%s after that: %+v", next, s)
			}
			if next == "install" {
				healthy(t, "after that")
				if s := system(t, built, "", "uninstall", "--purge"); s.status != 0 {
					t.Fatalf("uninstall after that: %+v", s)
				}
			}
			compare(t, "in the end", before, brief(t))
		})
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
