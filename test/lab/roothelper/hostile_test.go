//go:build lab

package roothelper

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"banger/internal/beneath"
	"banger/internal/rootapi"
	"banger/internal/rootclient"

	"golang.org/x/sys/unix"
)

// Another uid, root of its user namespace, and a guest's: none is answered but
// with a no, whatever the socket's own mode lets in.
func TestOthersAreRefused(t *testing.T) {
	c := install(t)
	if _, err := as(otherUID, func() (rootapi.Version, error) { return c.Hello(t.Context()) }); !errors.Is(err, os.ErrPermission) {
		t.Errorf("another uid at the socket = %v, want EACCES", err)
	}
	must(t, os.Chmod(rootapi.Socket, 0o666))
	defer os.Chmod(rootapi.Socket, 0o600)
	for _, uid := range []int{otherUID, rootapi.FirstUID + 2, 65534} {
		for verb, ask := range map[string]func() (any, error){
			"hello":    func() (any, error) { return c.Hello(t.Context()) },
			"launch":   func() (any, error) { return c.Launch(t.Context(), vm, small) },
			"adopt":    func() (any, error) { return c.Adopt(t.Context(), vm) },
			"release":  func() (any, error) { return nil, c.Release(t.Context(), vm) },
			"policy":   func() (any, error) { return nil, c.Policy(t.Context(), vm, true) },
			"resolver": func() (any, error) { return nil, c.Resolver(t.Context(), 53) },
			"census":   func() (any, error) { return c.Census(t.Context()) },
		} {
			if _, err := as(uid, ask); code(err) != rootapi.Denied {
				t.Errorf("%s by uid %d = %v, want it denied", verb, uid, err)
			}
		}
	}
	// Root of a user namespace of another's, asking as a plain program would.
	out := do(t, "runuser", "-u", "other", "--", "unshare", "--user", "--map-root-user", "python3", "-c",
		`import os,socket; s=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET); s.connect("`+rootapi.Socket+`")
try: s.send(b'{"verb":"census"}')
except BrokenPipeError: pass
try: r=s.recv(65536)
except ConnectionResetError: r=s.recv(65536)
print(os.getuid(), r.decode())`)
	if !strings.HasPrefix(out, "0 ") || !strings.Contains(out, `"denied"`) {
		t.Errorf("uid 0 of a user namespace hears %q, want a refusal", out)
	}
	if log := do(t, "journalctl", "-u", "bangerd-root", "-o", "cat", "--no-pager"); !strings.Contains(log, "msg=refused uid=1001 pid=") {
		t.Errorf("the journal names no refused peer:\n%s", log)
	}
}

// Firecrackers that somebody else could have made, or that could not start.
func TestBadProgramsAreRefused(t *testing.T) {
	c := install(t)
	for index, want := range map[int]string{theOwners: "belongs to uid 1000", groupWritable: "can be written by others", dynamicallyLinked: "dynamically linked",
		behindALink: "is a link", inTheOwnersHome: "no such file"} {
		l := small
		l.Firecracker = index
		if _, err := tryLaunch(t, c, vm, l, ends(t, vm)...); code(err) != rootapi.Denied || !strings.Contains(err.Error(), want) {
			t.Errorf("Firecracker %d: launch = %v, want %q", index, err, want)
		}
	}
	must(t, os.Chmod(programs, 0o777))
	defer os.Chmod(programs, 0o755)
	if _, err := tryLaunch(t, c, vm, small, ends(t, vm)...); code(err) != rootapi.Denied {
		t.Errorf("in a directory of anybody's: launch = %v", err)
	}
}

// Files that the owner has a descriptor of and no right to show, and files
// that are no longer what the descriptor says.
func TestHostileFiles(t *testing.T) {
	c := install(t)
	must(t, os.WriteFile("/var/lib/banger-not", []byte("x"), 0o644), os.Chown("/var/lib/banger-not", ownerUID, ownerUID))
	defer os.Remove("/var/lib/banger-not")
	for name, tt := range map[string]struct {
		file func() *os.File
		want string
	}{
		"root's file":      {func() *os.File { return open(t, "/etc/passwd", os.O_RDONLY) }, "not open for"},
		"O_PATH":           {func() *os.File { return open(t, disk(t, vm), unix.O_PATH) }, "O_PATH"},
		"a directory":      {func() *os.File { return open(t, state, os.O_RDONLY) }, "not a regular"},
		"a device":         {func() *os.File { return open(t, "/dev/null", os.O_RDWR) }, "not a regular"},
		"read-only":        {func() *os.File { return open(t, disk(t, vm), os.O_RDONLY) }, "not open for"},
		"beside the state": {func() *os.File { return open(t, "/var/lib/banger-not", os.O_RDWR) }, "not below"},
		"at home":          {func() *os.File { return homeFile(t) }, "not below"},
		"hard-linked": {func() *os.File {
			f := open(t, disk(t, vm), os.O_RDWR)
			must(t, os.Link(f.Name(), f.Name()+"2"))
			return f
		}, "2 names"},
		"unlinked":              {func() *os.File { f := open(t, disk(t, vm), os.O_RDWR); must(t, os.Remove(f.Name())); return f }, "0 names"},
		"replaced by a file":    {func() *os.File { return replaced(t, func(at string) error { return os.WriteFile(at, nil, 0o600) }) }, "is not the file"},
		"replaced by a link":    {func() *os.File { return replaced(t, func(at string) error { return os.Symlink("/etc/shadow", at) }) }, "is a link"},
		"replaced by its link":  {func() *os.File { return replaced(t, func(at string) error { return os.Symlink(at+"-old", at) }) }, "is a link"},
		"replaced by another's": {func() *os.File { return replaced(t, func(at string) error { return os.Link("/etc/passwd", at) }) }, "is not the file"},
	} {
		files := ends(t, vm)
		_ = os.Remove(state + "/vms/" + vm + "/disk2")
		files[3] = tt.file()
		_, err := tryLaunch(t, c, vm, small, files...)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: launch = %v, want %q", name, err, tt.want)
		}
		if strings.HasPrefix(name, "replaced") {
			arm(t, "")
		}
		if left := leftovers(t.Context(), c); left != "" {
			t.Errorf("%s: left: %s", name, left)
		}
		_ = os.RemoveAll(state + "/vms/" + vm)
	}
}

// replaced opens a disk, and something else takes its name after the helper
// has looked at the descriptor and before the child walks: the worst moment.
func replaced(t *testing.T, by func(at string) error) *os.File {
	t.Helper()
	f := open(t, disk(t, vm), os.O_RDWR)
	swapLater(t, f.Name(), by)
	return f
}

func homeFile(t *testing.T) *os.File {
	t.Helper()
	name := "/home/owner/disk"
	must(t, os.WriteFile(name, make([]byte, 4096), 0o600), os.Chown(name, ownerUID, ownerUID))
	return open(t, name, os.O_RDWR)
}

// swapLater stops the helper between its look at the descriptors and the
// child's walk, and swaps then.
func swapLater(t *testing.T, at string, by func(at string) error) {
	t.Helper()
	arm(t, "launch.opened=stop")
	go func() {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", `until p=$(systemctl show -p MainPID --value bangerd-root); [ "$p" != 0 ] && grep -q "^State:.T" /proc/$p/status; do sleep 0.05; done; echo $p`).Output()
		if err == nil {
			err = errors.Join(os.Rename(at, at+"-old"), by(at))
		}
		if err == nil {
			err = exec.CommandContext(t.Context(), "kill", "-CONT", strings.TrimSpace(string(out))).Run()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "swapping:", err)
		}
	}()
}

// 100,000 walks as root against an owner who swaps: none ends elsewhere.
func TestWalkRace(t *testing.T) {
	install(t)
	at := disk(t, vm)
	want, err := os.Lstat(at)
	must(t, err)
	stop := swapper(t, at, "/etc/shadow")
	right, refused := 0, 0
	for range 100_000 {
		f, err := beneath.Open("/var/lib", strings.TrimPrefix(at, "/var/lib/"))
		if err != nil {
			refused++
			continue
		}
		st, err := f.Stat()
		must(t, err)
		if os.SameFile(st, want) {
			right++
		} else if st.Mode()&os.ModeSymlink == 0 && st.Sys() != nil && !sameAsDecoy(t, st) {
			t.Fatalf("a walk ended at %v", st)
		}
		f.Close()
	}
	stop()
	t.Logf("100,000 walks: %d at the file, %d refused, the others at what the comparison refuses", right, refused)
	if right == 0 || refused == 0 {
		t.Error("the race was not run")
	}
}

// sameAsDecoy tells whether st is the owner's other file, which compare refuses.
func sameAsDecoy(t *testing.T, st os.FileInfo) bool {
	t.Helper()
	return st.Sys().(*syscall.Stat_t).Uid == ownerUID
}

// 50 real launches against the same: each is refused, or shows the file whose
// descriptor came.
func TestSwapRace(t *testing.T) {
	c := install(t)
	before := sums(t)
	at := disk(t, vm)
	shown, refused := 0, 0
	for range 50 {
		must(t, os.RemoveAll(state+"/vms/"+vm))
		files := ends(t, vm)
		var want unix.Stat_t
		fd, err := rootapi.FD(files[3])
		must(t, err, unix.Fstat(fd, &want))
		stop := swapper(t, at, "/etc/shadow")
		v, err := tryLaunch(t, c, vm, small, files...)
		stop()
		if err != nil {
			refused++
			continue
		}
		var got unix.Stat_t
		must(t, unix.Stat(fmt.Sprintf("/proc/%d/root/disk1", v.PID), &got))
		if got.Dev != want.Dev || got.Ino != want.Ino {
			t.Errorf("the jail shows inode %d, want %d", got.Ino, want.Ino)
		}
		shown++
		must(t, c.Release(t.Context(), vm))
	}
	t.Logf("50 launches: %d showed the right file, %d were refused", shown, refused)
	if after := sums(t); after != before {
		t.Errorf("/etc/shadow and /etc/passwd have changed")
	}
	if left := leftovers(t.Context(), c); left != "" {
		t.Errorf("left: %s", left)
	}
}

func sums(t *testing.T) string {
	t.Helper()
	var s string
	for _, name := range []string{"/etc/shadow", "/etc/passwd"} {
		b, err := os.ReadFile(name)
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Lstat(name, &st))
		s += fmt.Sprintf("%x %d %o;", sha256.Sum256(b), st.Uid, st.Mode)
	}
	return s
}

// swapper swaps, as the owner and as fast as can be, a file with a link to
// target, with another file, and its directory with a link.
func swapper(t *testing.T, at, target string) (stop func()) {
	t.Helper()
	dir := at[:strings.LastIndex(at, "/")]
	must(t, os.RemoveAll(dir+"-link"), os.RemoveAll(at+"-link"), os.RemoveAll(at+"-decoy"))
	_, err := as(ownerUID, func() (any, error) {
		return nil, errors.Join(os.Symlink(target, at+"-link"), os.Symlink("/etc", dir+"-link"), os.WriteFile(at+"-decoy", []byte("decoy"), 0o600))
	})
	must(t, err)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = as(ownerUID, func() (any, error) {
			pairs := [][2]string{{at, at + "-link"}, {at, at + "-decoy"}, {dir, dir + "-link"}}
			for i := 0; ; i++ {
				select {
				case <-done:
					return nil, nil
				default:
					p := pairs[i/2%len(pairs)] // there, and back
					_ = unix.Renameat2(unix.AT_FDCWD, p[0], unix.AT_FDCWD, p[1], unix.RENAME_EXCHANGE)
				}
			}
		})
	})
	return func() { close(done); wg.Wait() }
}

// An id or an address that is taken stays with whom it belongs to.
func TestTakenIDs(t *testing.T) {
	c := install(t)
	l := small
	l.Addr = netip.MustParseAddr("172.16.0.7")
	v, err := tryLaunch(t, c, vm, l, ends(t, vm)...)
	must(t, err)
	if v.TAP != "bvm"+vm || v.MAC != "02:fc:ac:10:00:07" || v.UID != rootapi.FirstUID+7 {
		t.Errorf("launched as %+v", v.VM)
	}
	for name, tt := range map[string]struct{ id, addr string }{
		"the same id":      {vm, "172.16.0.8"},
		"the same address": {"aaaaaaaaaaaa", "172.16.0.7"},
		"both":             {vm, "172.16.0.7"},
	} {
		l.Addr = netip.MustParseAddr(tt.addr)
		if _, err := tryLaunch(t, c, tt.id, l, ends(t, tt.id)...); code(err) != rootapi.Exists {
			t.Errorf("%s again: launch = %v", name, err)
		}
	}
	if w, err := as(ownerUID, func() (*rootclient.VM, error) { return c.Adopt(t.Context(), vm) }); err != nil || w.VM != v.VM {
		t.Errorf("the first VM after it: %v", err)
	} else {
		closeVM(w)
	}
}

// What others take away of the network is mended by the next census, which
// says so.
func TestCensusMends(t *testing.T) {
	c := install(t)
	l := small
	l.Addr = netip.MustParseAddr("172.16.0.7")
	_, err := tryLaunch(t, c, vm, l, ends(t, vm)...)
	must(t, err)
	do(t, "nft", "flush", "ruleset")
	if got, err := c.Mend(t.Context()); err != nil || !slices.Contains(got, "packet filter") {
		t.Errorf("Mend() after a flushed ruleset = %v, %v", got, err)
	}
	do(t, "ip", "link", "delete", "br-fc")
	if got, err := c.Mend(t.Context()); err != nil || !slices.Contains(got, "bridge br-fc") {
		t.Errorf("Mend() after a deleted bridge = %v, %v", got, err)
	}
	if got, err := c.Mend(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("Mend() of what is whole = %v, %v", got, err)
	}
	if err := c.Policy(t.Context(), "aaaaaaaaaaaa", true); code(err) != rootapi.NotFound {
		t.Errorf("Policy() of no VM = %v", err)
	}
}
