// Package testneed says what a test cannot do without.
//
// A test that misses something skips on a developer's machine, with the name
// of what is missing, and fails where CI=true: there, a silent skip would be a
// green tick for something that never ran.
package testneed

import (
	"os"
	"os/exec"
	"testing"
)

// searchDirs are looked at after PATH: Debian keeps file system tools in sbin,
// which ordinary accounts do not search.
var searchDirs = []string{"/usr/local/sbin", "/usr/sbin", "/sbin"}

// Tool returns the path of an executable, looking in PATH and then in the sbin
// directories. Without it the test ends: see [Missing].
func Tool(t testing.TB, name string) string {
	t.Helper()
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	for _, d := range searchDirs {
		if p, err := exec.LookPath(d + "/" + name); err == nil {
			return p
		}
	}
	Missing(t, "the program "+name)
	return ""
}

// QEMU returns the path of qemu-system-x86_64, which every test that boots a
// VM needs. Without it the test ends: see [Missing].
func QEMU(t testing.TB) string {
	t.Helper()
	return Tool(t, "qemu-system-x86_64")
}

// Root ends the test unless it runs as root: see [Missing].
func Root(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		Missing(t, "root")
	}
}

// Missing ends the test because of what is missing: as failed where CI=true,
// as skipped elsewhere.
func Missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("this test needs %s, and nothing may be skipped in CI", what)
	}
	t.Skipf("this test needs %s", what)
}

// LabEnv is set in the lab machine: see internal/lab.
const LabEnv = "BANGER_LAB"

// Lab ends the test as failed unless it runs in the lab machine. Tests that say
// so change the machine that they run on; they are built with the tag lab only,
// so nobody meets them by accident, and none is skipped in silence.
func Lab(t testing.TB) {
	t.Helper()
	if os.Getenv(LabEnv) != "1" {
		t.Fatal("this test changes the machine that it runs on: use make lab")
	}
}
