//go:build lab

package systemhost

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/install/units"
	"banger/internal/rootclient"
	"banger/internal/testneed"
	"banger/internal/vmtest"
)

const (
	ownerUID     = 1000
	programs     = "/opt/banger-lab" // root's
	state, cache = "/var/lib/banger", "/var/cache/banger"
	runDir       = "/run/banger/vm"
	rootsEar     = "/run/banger-lab.sock" // where root does what the owner may not
)

func do(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func copyTo(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	in, err := os.Open(from)
	must(t, err)
	defer in.Close()
	must(t, os.RemoveAll(to))
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, mode)
	must(t, err)
	_, err = io.Copy(out, in)
	must(t, err, out.Chmod(mode), out.Close())
}

// install installs system mode, stops its daemon, in whose place the tests are,
// and puts files where the owner would have them. In the end the machine is
// others'.
func install(t *testing.T) {
	t.Helper()
	do(t, "modprobe", "-a", "kvm-amd", "tun")
	must(t, os.RemoveAll(programs), os.MkdirAll(programs, 0o755), os.MkdirAll("/home/owner", 0o755), os.Chown("/home/owner", ownerUID, ownerUID))
	for _, name := range []string{"firecracker", "jailer"} {
		copyTo(t, "/lab/firecracker/"+name, filepath.Join(programs, name), 0o755)
	}
	t.Cleanup(func() {
		out, err := exec.CommandContext(context.WithoutCancel(t.Context()), "sh", "-c", "/lab/bin/banger system uninstall --purge && rm -r "+programs).CombinedOutput()
		if err != nil {
			t.Errorf("uninstalling: %v\n%s", err, out)
		}
	})
	do(t, "/lab/bin/banger", "system", "install", "--owner", "owner", "--firecracker", programs+"/firecracker")
	do(t, "systemctl", "stop", "bangerd.service")
	k := vmtest.NeedKernel(t)
	g := vmtest.NeedGuest(t)
	for to, from := range map[string]string{"kernel/vmlinux": k.Vmlinux, "kernel/kernel.tar": k.Tar, "guest/initramfs": g.Initramfs, "guest/base": g.Base, "tmp/x": "/dev/null"} {
		to = filepath.Join(map[bool]string{true: state, false: cache}[strings.HasPrefix(to, "tmp")], to)
		must(t, os.MkdirAll(filepath.Dir(to), 0o700), os.Chown(filepath.Dir(to), ownerUID, ownerUID))
		copyTo(t, from, to, 0o600)
		must(t, os.Chown(to, ownerUID, ownerUID))
	}
}

// The host's tests run as the owner, in a process of their own; this one is root,
// and does what they may not: kill a VMM, or the helper.
func TestSystemHost(t *testing.T) {
	testneed.Lab(t)
	install(t)
	listen(t)
	t.Run("Plain", func(t *testing.T) { asTheOwner(t, "^TestOwner") })
	t.Run("InAUnit", func(t *testing.T) { asTheOwner(t, "^TestOwner(Survival|Lease|Reasons)$", sandbox(t)...) })
	var c rootclient.Client
	held, err := c.Census(t.Context())
	if err != nil || len(held) != 0 {
		t.Errorf("left at the end: %+v, %v", held, err)
	}
	for _, argv := range [][]string{
		{"sh", "-c", "ls /run/banger-root/vm " + runDir + " | grep -v :"},
		{"systemctl", "list-units", "--all", "--no-legend", "--plain", "banger-vm-*"},
		{"pgrep", "-l", "firecracker|jailer|banger-companion"},
		{"sh", "-c", "ls /sys/class/net | grep bvm"},
	} {
		out, _ := exec.CommandContext(t.Context(), argv[0], argv[1:]...).Output() // nothing found is a failure to them
		if s := strings.TrimSpace(string(out)); s != "" {
			t.Errorf("left at the end: %s: %s", strings.Join(argv, " "), s)
		}
	}
}

// sandbox is what the daemon's unit confines it with: it sees no process of
// another uid, no device, and can write only where its state is.
func sandbox(t *testing.T) []string {
	t.Helper()
	text, err := units.Files.ReadFile("bangerd.service")
	must(t, err)
	_, rest, ok := strings.Cut(string(text), "\nCapabilityBoundingSet=")
	rest, _, ok2 := strings.Cut("CapabilityBoundingSet="+rest, "\n[Install]")
	if !ok || !ok2 || !strings.Contains(rest, "ProtectProc=invisible") {
		t.Fatalf("the daemon's unit is not what it was:\n%s", text)
	}
	list := []string{"ReadWritePaths=" + state + " " + cache + " /run/banger /lab/out"}
	for line := range strings.Lines(rest) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			list = append(list, line)
		}
	}
	return list
}

// asTheOwner runs some of the owner's tests in a unit of their own.
func asTheOwner(t *testing.T, pattern string, directives ...string) {
	self, err := os.Executable()
	must(t, err)
	at := programs + "/tests"
	copyTo(t, self, at, 0o755)
	argv := []string{"--wait", "--pipe", "--quiet", "--collect", "-p", "User=owner", "-p", "KillMode=process"}
	for _, d := range directives {
		argv = append(argv, "-p", d)
	}
	for _, e := range []string{"CI=true", testneed.LabEnv + "=1", "PATH=" + os.Getenv("PATH"), "HOME=/home/owner", "TMPDIR=" + state + "/tmp",
		vmtest.KernelEnv + "=" + cache + "/kernel", vmtest.GuestEnv + "=" + cache + "/guest", "GOCOVERDIR=" + os.Getenv("GOCOVERDIR")} {
		argv = append(argv, "-E", e)
	}
	cmd := exec.CommandContext(t.Context(), "systemd-run", append(argv, at, "-test.v", "-test.timeout=0", "-test.run", pattern)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		t.Errorf("the owner's tests: %v\n%s", err, do(t, "journalctl", "-b", "-n", "60", "--no-pager", "-u", "bangerd-root", "-u", "banger-vm-*"))
	}
}

// listen does what the owner's tests ask of root: a line is a command, and the
// reply its output.
func listen(t *testing.T) {
	t.Helper()
	_ = os.Remove(rootsEar) // of a run before
	l, err := net.Listen("unix", rootsEar)
	must(t, err, os.Chmod(rootsEar, 0o666))
	t.Cleanup(func() { l.Close() })
	ctx := context.WithoutCancel(t.Context())
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				line, _ := bufio.NewReader(c).ReadString('\n')
				out, err := exec.CommandContext(ctx, "sh", "-c", line).CombinedOutput()
				if err != nil {
					fmt.Fprintf(c, "failed: %v: ", err)
				}
				_, _ = io.Copy(c, bytes.NewReader(out))
			}()
		}
	}()
}

// root has a shell command run as root.
func root(t testing.TB, command string) string {
	t.Helper()
	c, err := net.Dial("unix", rootsEar)
	must(t, err)
	defer c.Close()
	_, err = fmt.Fprintln(c, command)
	must(t, err)
	out, err := io.ReadAll(c)
	if err != nil || bytes.HasPrefix(out, []byte("failed: ")) {
		t.Errorf("as root, %s: %s, %v", command, out, err)
	}
	return strings.TrimSpace(string(out))
}
