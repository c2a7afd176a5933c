// Package crash names the places where a process may die half-way.
//
// A [Point] does nothing unless the environment arms it, so that a test can
// kill a real daemon between any two steps and look at what is left. Points
// are declared once, in the list that [Points] returns, and a test compares
// that list with the calls in the source: a step cannot be forgotten.
package crash

import (
	"os"
	"strings"
	"syscall"
)

// Env is the variable that arms points: a comma-separated list of
// NAME or NAME=ACTION, where ACTION is "kill" (the default: SIGKILL to the
// process itself) or "stop" (SIGSTOP, for a test that wants to look first).
const Env = "BANGER_CRASH"

// Point is where the process dies if name is armed. It returns at once
// otherwise, at the price of one look into the environment.
func Point(name string) {
	armed := os.Getenv(Env)
	if armed == "" {
		return
	}
	for _, entry := range strings.Split(armed, ",") {
		at, action, _ := strings.Cut(entry, "=")
		if at != name {
			continue
		}
		sig := syscall.SIGKILL
		if action == "stop" {
			sig = syscall.SIGSTOP
		}
		// Nothing can be done about a refusal to die: the test will notice.
		_ = syscall.Kill(os.Getpid(), sig)
		if sig == syscall.SIGKILL {
			select {} // SIGKILL is delivered on the way out of the system call
		}
	}
}
