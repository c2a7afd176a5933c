//go:build lab

package e2e

import (
	"testing"

	"banger/internal/api"
)

// What TestLabBeforeReboot leaves, TestLabAfterReboot finds: the lab machine
// boots again between them.
func TestLabBeforeReboot(t *testing.T) {
	w := labWorld(t)
	w.keep = true
	for _, name := range []string{"again", "once", "never"} {
		w.must(t, "vm", "create", "--name", name, "--image", "small", "--memory", "256M")
		w.inGuest(t, name, "echo "+name+" >/root/kept; sync")
	}
	w.must(t, "vm", "set", "again", "--autostart")
	w.must(t, "vm", "set", "never", "--autostart")
	w.must(t, "vm", "stop", "never")
}

// After a reboot of the host nothing is lost, nothing is said to run that does
// not, and what is to start by itself has started.
func TestLabAfterReboot(t *testing.T) {
	w := labWorld(t)
	w.becomes(t, "again", api.Running)
	if m := w.show(t, "once"); m.State != api.Stopped || m.Reason == "" {
		t.Errorf("once is %s because %q, want stopped and why", m.State, m.Reason)
	}
	w.becomes(t, "never", api.Running)
	w.must(t, "vm", "start", "once")
	for _, name := range []string{"again", "once", "never"} {
		if got := w.inGuest(t, name, "cat /root/kept"); got != name+"\n" {
			t.Errorf("the file of %s is %q", name, got)
		}
		w.must(t, "vm", "delete", name)
	}
	w.nothing(t)
}
