package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/names"
	"banger/internal/testneed"
)

// without is the world's environment with a variable less.
func (w *world) without(name string) {
	w.env = slices.DeleteFunc(slices.Clone(w.env), func(e string) bool { return strings.HasPrefix(e, name+"=") })
}

// procStatus reads a field of /proc/PID/status.
func procStatus(t *testing.T, pid int, field string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if val, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.Join(strings.Fields(val), " ")
		}
	}
	t.Fatalf("/proc/%d/status has no %s", pid, field)
	return ""
}

// One user with two sets of XDG directories has two bangers, also with VMs of
// one name; the second has no XDG_RUNTIME_DIR.
func TestTwoRoots(t *testing.T) {
	t.Parallel()
	a, b := shared.stocked(t), shared.stocked(t)
	b.without("XDG_RUNTIME_DIR")
	for _, w := range []*world{a, b} {
		w.vm(t, "--name", "same")
	}
	if a.daemonPID(t) == b.daemonPID(t) {
		t.Fatal("one daemon serves both")
	}
	if a.layout(t).Socket == b.layout(t).Socket {
		t.Errorf("both are at %s", a.layout(t).Socket)
	}
	ma, mb := a.show(t, "same"), b.show(t, "same")
	if ma.ID == mb.ID || ma.VMMPID == mb.VMMPID || a.bootID(t, "same") == b.bootID(t, "same") {
		t.Errorf("the two VMs are one: %+v and %+v", ma, mb)
	}
	for _, w := range []*world{a, b} {
		if got := w.must(t, "vm", "list", "-q"); got != "same\n" {
			t.Errorf("the VMs are %q, want one", got)
		}
		if c := w.census(t); len(c.VMMs) != 1 || len(c.Companions) != 1 {
			t.Errorf("the census has %+v, want its own VM alone", c)
		}
	}
	a.must(t, "vm", "delete", "same")
	if got := b.must(t, "vm", "exec", "same", "--", "echo", "alive"); got != "alive\n" {
		t.Errorf("the other VM says %q", got)
	}
	confined(t, mb.VMMPID)
}

// confined checks what a VMM may do: nothing as root, nothing more by executing
// a program, and only the system calls that it needs.
func confined(t *testing.T, pid int) {
	t.Helper()
	if uid := procStatus(t, pid, "Uid"); strings.Contains(" "+uid+" ", " 0 ") {
		t.Errorf("the VMM's uids are %s, want none of root's", uid)
	}
	for field, want := range map[string]string{"CapPrm": "0000000000000000", "CapEff": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"} {
		if got := procStatus(t, pid, field); got != want {
			t.Errorf("the VMM's %s is %s, want %s", field, got, want)
		}
	}
}

// account makes an ordinary account and gives its world: no XDG variables, and
// programs and packages where it can read them.
func (w *world) account(t *testing.T) *world {
	t.Helper()
	testneed.Root(t)
	w.start(t)
	root, err := os.MkdirTemp("", "banger-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	name, home := "bt"+names.NewID(), filepath.Join(root, "home")
	run := func(program string, args ...string) {
		t.Helper()
		if out, err := exec.Command(testneed.Tool(t, program), args...).CombinedOutput(); err != nil { //nolint:noctx // also in a cleanup
			t.Fatalf("%s %v: %v\n%s", program, args, err, out)
		}
	}
	run("useradd", "--create-home", "--home-dir", home, "--shell", "/bin/sh", name)
	// By force: userdel also counts what has ended and is not reaped yet. That
	// nothing lives is seen at the world's end.
	t.Cleanup(func() { run("userdel", "--force", name) })
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		t.Fatal(err)
	}
	run("chmod", "711", home) // the ids of its namespaces pass through it
	run("cp", "-r", w.bin, filepath.Join(root, "bin"))
	if packages := filepath.Join(w.layout(t).Cache, "packages"); exists(packages) {
		run("mkdir", "-p", filepath.Join(home, ".cache/banger"))
		run("cp", "-r", packages, filepath.Join(home, ".cache/banger/"))
		run("chown", "-R", name+":", filepath.Join(home, ".cache"))
	}
	o := &world{root: root, bin: filepath.Join(root, "bin"), as: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	o.env = []string{"HOME=" + home, "USER=" + name, "LANG=C.UTF-8", "PATH=" + o.bin + ":/usr/bin:/bin"}
	t.Cleanup(func() {
		r := o.banger(t, "daemon", "stop")
		if err := os.RemoveAll(o.layout(t).Runtime); err != nil || r.code != 0 {
			t.Errorf("daemon stop = %d, %s, %v", r.code, r.stderr, err)
		}
		until(t, "the account has no process", func() bool { return len(o.processes(t)) == 0 })
	})
	return o
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// An ordinary account builds its kernel in a user namespace, runs VMs, and
// never meets another's daemon.
func TestAccount(t *testing.T) {
	t.Parallel()
	w := shared.account(t)
	if got := w.must(t, "vm", "list", "--json"); got != "[]\n" {
		t.Errorf("the account's VMs are %s, want none", got)
	}
	uid := strconv.Itoa(int(w.as.Uid))
	if got := procStatus(t, w.daemonPID(t), "Uid"); got != strings.Join([]string{uid, uid, uid, uid}, " ") {
		t.Errorf("its daemon has uids %s, want %s", got, uid)
	}
	w.must(t, "kernel", "pull")
	w.importSmall(t)
	j := w.begin(t, "vm", "run", "--rm", "--name", "mine", "--image", "small", "--memory", "256M", "--", "sh", "-c", "id -u; read -r x")
	j.await("0\n")
	confined(t, w.show(t, "mine").VMMPID)
	j.say("go on")
	if r := j.wait(); r.code != 0 || r.stdout != "0\n" {
		t.Errorf("vm run -- id -u = %d, %q\n%s", r.code, r.stdout, r.stderr)
	}
	w.census(t)
}

// Another account can neither reach a daemon's socket nor, if its directories
// are opened by mistake, be served.
func TestAnotherAccountIsRefused(t *testing.T) {
	t.Parallel()
	testneed.Root(t)
	w := shared.isolated(t)
	w.must(t, "vm", "list")
	l := w.layout(t)
	const nobody = 65534
	if _, err := dialAs(nobody, l.Socket); err != unix.EACCES {
		t.Errorf("dialling as another user = %v, want EACCES", err)
	}
	for dir := l.Runtime; dir != filepath.Dir(w.root); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	f, err := dialAs(nobody, l.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, request := range []string{"GET /v1/hello", "GET /v1/machines", "POST /v1/shutdown"} {
		if _, err := fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: banger\r\n\r\n", request); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusForbidden || !strings.Contains(string(b), "uid 65534") {
			t.Errorf("%s = %d %s (%v), want a refusal that names the uid", request, res.StatusCode, b, err)
		}
	}
}

// dialAs connects to a unix socket as another user. The ids are those of one
// thread, which ends with its goroutine.
func dialAs(uid int, path string) (f *os.File, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked
		if _, _, e := syscall.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
			err = e
			return
		}
		var fd int
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		f = os.NewFile(uintptr(fd), path)
		if err = unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			f.Close()
		}
	}()
	<-done
	return f, err
}
