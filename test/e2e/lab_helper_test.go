//go:build lab

package e2e

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// ownersSuite are the tests of user mode that run again as the owner of an
// installed banger: those whose answer depends on the mode, but for the ones that
// send many megabytes: the emulator often resets a guest over them.
const ownersSuite = "^Test(ExecEnvironment|SignalsReachTheGuest|RunRemoves|CopyTrees|CopyTargets|Forward|TerminalOfExec|SSH|SSHConfig|" +
	"RunInTerminal|SmallLife|WorkspaceOptions|WorkspaceRefusals)$"

// The root helper, traced through the life of a VM, executes nothing but nft
// (docs/adr/0017) and mounts nothing; nor is anything mounted on the host, or on a
// loop device, while a VM runs. Then the owner's suite passes on the installed
// banger. It is not traced as well: with strace at the helper, and so with many
// more interrupts between the processors, the emulator broke a guest or the machine
// in each of five runs; where the suite came to its end, the trace had nothing but
// nft.
func TestLabOwnersSuite(t *testing.T) {
	w := labWorld(t)
	before := root(t, hostsMounts)
	var during string
	trace := w.traceHelper(t, func() {
		vm := w.vm(t)
		w.must(t, "vm", "set", vm, "--nat")
		w.must(t, "vm", "set", vm, "--nat=false")
		w.must(t, "vm", "stop", vm)
		w.must(t, "vm", "start", vm, "--wait", "agent")
		during = root(t, hostsMounts)
		w.must(t, "vm", "delete", vm)
	})
	w.runOwnersSuite(t)
	if during != before {
		t.Errorf("loops and mounts of the host were\n%s\nand while a VM ran\n%s", before, during)
	}
	call := regexp.MustCompile(`^\d+ +(\w+)\((.*)`)
	executed := 0
	for line := range strings.Lines(trace) {
		m := call.FindStringSubmatch(line)
		switch {
		case m == nil: // a signal, or a process's end
		case m[1] == "execve" && strings.HasPrefix(m[2], `"/usr/sbin/nft", ["/usr/sbin/nft", "-a", "-n", "-f", "-"]`):
			executed++
		default:
			t.Errorf("the helper did this: %s", line)
		}
	}
	t.Logf("the helper executed nft %d times, and nothing else", executed)
	if executed == 0 {
		t.Errorf("the trace has no nft:\n%s", trace)
	}
}

// hostsMounts prints what is mounted, and which loop devices there are.
const hostsMounts = "losetup -a; cat /proc/self/mountinfo"

// traceHelper returns what the root helper called while do ran, of what could
// execute a program or mount something.
func (w *world) traceHelper(t *testing.T, do func()) string {
	t.Helper()
	w.must(t, "daemon", "census") // now it runs
	helper := mainPID(t, "bangerd-root.service")
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := exec.CommandContext(t.Context(), "strace", "-f", "-o", trace, "-e", "trace=execve,execveat,mount,move_mount,open_tree,umount2,pivot_root,setns,unshare",
		"-p", helper)
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(said)
	attached := false
	var first string
	for !attached && lines.Scan() {
		first = lines.Text()
		attached = strings.Contains(first, "attached")
	}
	if !attached {
		t.Fatalf("strace does not trace the helper: %s (%v)", first, cmd.Wait())
	}
	go func() { // or it would wait to be read
		for lines.Scan() {
		}
	}()
	detach := sync.OnceFunc(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait() // by that signal
	})
	defer detach()
	do()
	if now := mainPID(t, "bangerd-root.service"); now != helper {
		t.Errorf("the helper was process %s and is %s: not all of it was traced", helper, now)
	}
	detach()
	b, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// runOwnersSuite runs this program's tests again, as the owner.
func (w *world) runOwnersSuite(t *testing.T) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// One after the other: the emulator breaks less with one guest at a time.
	argv := []string{"-test.v", "-test.run", ownersSuite, "-test.parallel", "1"}
	if end, ok := t.Deadline(); ok { // so that it says where it hangs, before this test's end does not
		argv = append(argv, "-test.timeout", (time.Until(end) * 9 / 10).String())
	}
	cmd := exec.CommandContext(t.Context(), self, argv...)
	cmd.Env, cmd.SysProcAttr = w.env, &syscall.SysProcAttr{Credential: w.as}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr // as if they were tests of this run
	if err := cmd.Run(); err != nil {
		t.Errorf("the owner's suite: %v", err)
	}
}
