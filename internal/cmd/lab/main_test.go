package main

import (
	"strings"
	"testing"

	"banger/internal/lab"
)

// A guest's reset is that of the step that was running, and of its last run.
func TestResetting(t *testing.T) {
	var out strings.Builder
	r := &resetting{Writer: &out, among: map[string]bool{}}
	say := func(lines ...string) {
		for _, l := range lines {
			if _, err := r.Write([]byte(l + "\n")); err != nil {
				t.Fatal(err)
			}
		}
	}
	say("lab: == first ^TestA$", "all is well", "lab: == second", "--- FAIL\n x_test.go:1: the VM has ended: the guest rebooted", "FAIL", "lab: == third")
	for step, want := range map[string]bool{"first ^TestA$": false, "second": true, "third": false, "fourth": false} {
		if got := r.during(step); got != want {
			t.Errorf("during(%q) = %v, want %v", step, got, want)
		}
	}
	say("lab: == second", "ok")
	if r.during("second") {
		t.Error("during(second) after a run without one")
	}
	if !strings.HasSuffix(out.String(), "lab: == second\nok\n") {
		t.Errorf("printed %q", out.String())
	}
}

func TestBegins(t *testing.T) {
	steps := []lab.Step{{}, {Before: lab.Reboot}, {}, {Before: lab.PowerCut}, {Before: lab.Reboot}}
	for i, want := range []int{0, 0, 2, 2, 2} {
		if got := begins(steps, i); got != want {
			t.Errorf("begins(%d) = %d, want %d", i, got, want)
		}
	}
}
