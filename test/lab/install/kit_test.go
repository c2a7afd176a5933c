//go:build lab

package install

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"banger/internal/crash"
	"banger/internal/testneed"
)

const (
	ownerUID, otherUID = 1000, 1001
	built              = "/lab/bin/banger"       // what `make build` gives
	installed          = "/usr/local/bin/banger" // what install makes of it
	programs           = "/opt/banger-lab"       // root's Firecracker
	firecracker        = programs + "/firecracker"
	failure            = 125 // exit status of banger's own errors
)

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// A said is what a command did.
type said struct {
	out, err string
	status   int // as in a shell: 128 and the signal
}

// run runs a program as uid, with a clean environment.
func run(t testing.TB, uid int, env []string, argv ...string) said {
	t.Helper()
	home := map[int]string{0: "/root", ownerUID: "/home/owner", otherUID: "/home/other"}[uid]
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = append([]string{"HOME=" + home, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "GOCOVERDIR=" + os.Getenv("GOCOVERDIR")}, env...)
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	var out, complaints strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &complaints
	err := cmd.Run()
	s := said{out.String(), complaints.String(), cmd.ProcessState.ExitCode()}
	if w, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		s.status = 128 + int(w.Signal())
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", argv, err)
	}
	return s
}

// do runs a program as root, which must succeed.
func do(t testing.TB, argv ...string) string {
	t.Helper()
	s := run(t, 0, nil, argv...)
	if s.status != 0 {
		t.Fatalf("%s: status %d\n%s%s", strings.Join(argv, " "), s.status, s.out, s.err)
	}
	return strings.TrimSpace(s.out)
}

// system runs `banger system` as root, dying at a crash point if one is named.
func system(t testing.TB, program, point string, args ...string) said {
	t.Helper()
	return run(t, 0, []string{crash.Env + "=" + point, "SUDO_USER=owner"}, append([]string{program, "system"}, args...)...)
}

// install installs, and uninstalls in the end, whatever happens.
func install(t testing.TB, args ...string) said {
	t.Helper()
	s := system(t, built, "", append([]string{"install", "--firecracker", firecracker}, args...)...)
	if s.status != 0 {
		t.Fatalf("install %v: status %d\n%s%s", args, s.status, s.out, s.err)
	}
	return s
}

// prepare makes the machine one on which an install can succeed, and returns
// what it looks like; in the end it must look so again.
func prepare(t *testing.T) (before string) {
	t.Helper()
	testneed.Lab(t)
	do(t, "modprobe", "-a", "kvm-amd", "tun")
	must(t, os.MkdirAll(programs, 0o755), os.MkdirAll("/home/owner", 0o755), os.Chown("/home/owner", ownerUID, ownerUID))
	for _, name := range []string{"firecracker", "jailer"} {
		b, err := os.ReadFile("/lab/firecracker/" + name)
		must(t, err, os.RemoveAll(programs+"/"+name), os.WriteFile(programs+"/"+name, b, 0o755))
	}
	do(t, built, "system", "uninstall", "--purge") // what other tests have put there by hand
	before = snapshot(t)
	t.Cleanup(func() {
		s := run(clean{t}, 0, nil, built, "system", "uninstall", "--purge")
		if s.status != 0 {
			t.Errorf("uninstall --purge in the end: status %d\n%s%s", s.status, s.out, s.err)
		}
		same(t, "in the end", before)
	})
	return before
}

// clean is a test whose context has not ended.
type clean struct{ testing.TB }

// Context is one that has not.
func (clean) Context() context.Context { return context.Background() }

// same compares the machine with what it looked like.
func same(t testing.TB, when, before string) {
	t.Helper()
	compare(t, when, before, snapshot(clean{t}))
}

func compare(t testing.TB, when, before, now string) {
	t.Helper()
	was, is := strings.Split(before, "\n"), strings.Split(now, "\n")
	for _, l := range was {
		if !slices.Contains(is, l) {
			t.Errorf("%s: no more: %s", when, l)
		}
	}
	for _, l := range is {
		if !slices.Contains(was, l) {
			t.Errorf("%s: new: %s", when, l)
		}
	}
	if before != now && len(was) != len(is) {
		t.Errorf("%s: %d lines, %d before", when, len(is), len(was))
	}
}

// busy are directories in which a running system writes for itself.
var busy = []string{"/var/lib/systemd", "/run/systemd", "/run/udev", "/run/log", "/run/user", "/run/lock", "/run/dbus", "/run/utmp", "/run/mount", "/etc/.updated", "/var/.updated"}

// snapshot is the machine as a text: files, units, the network, names.
func snapshot(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	b.WriteString(tree(t, "/etc", "/usr/local", "/var/lib", "/var/cache", "/run", "/opt", "/home", "/root"))
	for _, argv := range []string{
		"systemctl list-unit-files --no-legend --no-pager",
		"systemctl list-units --all --no-legend --no-pager --plain banger*",
		"systemctl --failed --no-legend --no-pager --plain",
		"nft list ruleset", "ip -o link", "ip -o addr", "ip route show table all", "sysctl net.ipv4.ip_forward",
		"resolvectl --no-pager status", "find /run/systemd/resolve/netif /run/systemd/system /run/systemd/transient -mindepth 1",
		"ss -Hltun", "sh -c ls\t/sys/fs/cgroup/system.slice\t/sys/fs/cgroup|grep\tbanger",
		"sh -c ps\t-eo\tcomm|grep\tbanger|sort",
	} {
		words := strings.Split(argv, " ")
		for i := range words {
			words[i] = strings.ReplaceAll(words[i], "\t", " ")
		}
		cmd := exec.Command(words[0], words[1:]...)
		out, err := cmd.Output()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			fmt.Fprintf(&b, "%s: %s\n", words[0], strings.TrimSpace(line))
		}
	}
	return b.String()
}

// tree is all files below some directories, with what is in them.
func tree(t testing.TB, roots ...string) string {
	t.Helper()
	var b strings.Builder
	for _, root := range roots {
		must(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist): // it went meanwhile
				return nil
			case err != nil:
				return err
			case slices.Contains(busy, path) && d.IsDir():
				return fs.SkipDir
			case slices.Contains(busy, path):
				return nil
			}
			return describe(&b, path)
		}))
	}
	return b.String()
}

func describe(b *strings.Builder, path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	what := ""
	switch {
	case st.Mode().Type() == fs.ModeSymlink:
		if what, err = os.Readlink(path); err != nil {
			return err
		}
	case st.Mode().IsRegular():
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		what = fmt.Sprintf("%x", sha256.Sum256(data))
	}
	sys := st.Sys().(*syscall.Stat_t)
	fmt.Fprintf(b, "%s %v %d:%d %s\n", path, st.Mode(), sys.Uid, sys.Gid, what)
	return nil
}

// pids are the main processes of both services.
func pids(t testing.TB) string {
	t.Helper()
	return do(t, "systemctl", "show", "--property=MainPID", "--value", "bangerd.service", "bangerd-root.service")
}
