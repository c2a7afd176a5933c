//go:build lab

package e2e

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The root helper, traced through the life of a VM, executes nothing but nft
// (docs/adr/0017), and mounts nothing; and nothing on the host ever mounts what a
// guest wrote.
func TestLabHelperExecutes(t *testing.T) {
	w := labWorld(t)
	before := root(t, "losetup -a; cat /proc/self/mountinfo")
	w.must(t, "daemon", "census") // now it runs
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := exec.CommandContext(t.Context(), "strace", "-f", "-o", trace, "-e", "trace=execve,execveat,mount,move_mount,open_tree,umount2,pivot_root,setns,unshare",
		"-p", mainPID(t, "bangerd-root.service"))
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(said)
	for lines.Scan() && !strings.Contains(lines.Text(), "attached") {
	}
	go func() { // or it would wait to be read
		for lines.Scan() {
		}
	}()
	vm := w.vm(t)
	w.must(t, "vm", "set", vm, "--nat")
	w.must(t, "vm", "set", vm, "--nat=false")
	w.must(t, "vm", "stop", vm)
	w.must(t, "vm", "start", vm, "--wait", "agent")
	during := root(t, "losetup -a; cat /proc/self/mountinfo")
	w.must(t, "vm", "delete", vm)
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // by that signal
	b, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	call := regexp.MustCompile(`^\d+ +(\w+)\((.*)`)
	executed := 0
	for line := range strings.Lines(string(b)) {
		m := call.FindStringSubmatch(line)
		switch {
		case m == nil: // a signal, or a process's end
		case m[1] == "execve" && strings.HasPrefix(m[2], `"/usr/sbin/nft", ["/usr/sbin/nft", "-a", "-n", "-f", "-"]`):
			executed++
		default:
			t.Errorf("the helper did this: %s", line)
		}
	}
	if executed == 0 {
		t.Errorf("the trace has no nft:\n%s", b)
	}
	if during != before {
		t.Errorf("loops and mounts of the host were\n%s\nand while a VM ran\n%s", before, during)
	}
}
