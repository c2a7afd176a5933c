package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/testneed"
)

func TestExecuted(t *testing.T) {
	trace := `100 execve("/opt/banger", ["banger", "vm", "run"], 0x7ffc /* 12 vars */) = 0
101 execve("/usr/local/bin/ssh", ["ssh"], 0xc000 /* 12 vars */) = -1 ENOENT (No such file or directory)
101 execve("/usr/bin/ssh", ["ssh", "a) = 0"], 0xc000 /* 12 vars */ <unfinished ...>
102 execve("/opt/banger-companion", ["banger-companion"], 0xc000 /* 3 vars */) = 0
101 <... execve resumed>)             = 0
103 execve("/bin/gone", ["gone"], 0xc000 /* 3 vars */ <unfinished ...>
103 <... execve resumed>) = -1 ENOENT (No such file or directory)
104 execveat(5, "", ["x"], 0x1, AT_EMPTY_PATH) = 0
101 +++ exited with 0 +++
102 --- SIGCHLD {si_signo=SIGCHLD} ---
`
	want := []string{"banger", "banger-companion", "ssh", "."}
	if diff := cmp.Diff(want, executed(trace)); diff != "" {
		t.Errorf("executed: want -, got +\n%s", diff)
	}
}

// TestExecutedOfStrace counts with the real strace what a shell executes.
func TestExecutedOfStrace(t *testing.T) {
	strace := testneed.Tool(t, "strace")
	file := filepath.Join(t.TempDir(), "trace")
	argv := []string{"/bin/sh", "-c", "/bin/true; nonsense-program; /bin/true & wait"}
	if out, err := exec.CommandContext(t.Context(), strace, traced(file, argv)...).CombinedOutput(); err != nil {
		testneed.Missing(t, fmt.Sprintf("a working strace (%v)\n%s", err, out))
	}
	trace, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"sh", "true", "true"}, executed(string(trace))); diff != "" {
		t.Errorf("executed: want -, got +\n%s\n%s", diff, trace)
	}
}
