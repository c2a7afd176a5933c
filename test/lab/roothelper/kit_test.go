//go:build lab

package roothelper

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/internal/crash"
	"banger/internal/initramfs"
	"banger/internal/install/record"
	"banger/internal/install/units"
	"banger/internal/rootapi"
	"banger/internal/rootclient"
	"banger/internal/testneed"
	"banger/internal/vmtest"

	"golang.org/x/sys/unix"
)

const (
	ownerUID, otherUID = 1000, 1001
	programs           = "/opt/banger-lab" // root's
	state, cache       = "/var/lib/banger", "/var/cache/banger"
	unit               = "/etc/systemd/system/bangerd-root.service"
	limit              = 2 * time.Minute // of a guest's boot on a busy machine
)

func TestMain(m *testing.M) {
	switch {
	case os.Getpid() == 1:
		fmt.Fprintln(os.Stderr, "guest:", guest())
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case len(os.Args) == 3 && os.Args[1] == "launch-as-owner":
		os.Exit(launchAsOwner(os.Args[2]))
	}
	code := m.Run()
	if os.Getenv(testneed.LabEnv) == "1" {
		if out, err := exec.Command("sh", "-ec", remove).CombinedOutput(); err != nil { //nolint:noctx // after the tests
			fmt.Fprintf(os.Stderr, "leaving the machine as it was: %v\n%s", err, out)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// remove takes away what install has put where `banger system install` would, so
// that other tests find a machine without banger.
const remove = `systemctl stop bangerd-root.socket bangerd-root.service banger.slice
rm -rf /etc/systemd/system/bangerd-root.* /etc/systemd/system/banger.slice
systemctl daemon-reload
systemctl reset-failed
rm -rf /etc/banger /var/lib/banger /var/cache/banger /run/banger-root /opt/banger-lab /home/owner/firecracker
for link in br-fc br-fc-up; do ip link del $link 2>/dev/null || true; done
for family in inet bridge; do nft delete table $family banger 2>/dev/null || true; done`

// The install record's Firecrackers: the good one, and bad ones by number.
const (
	theGood = iota
	theOwners
	groupWritable
	dynamicallyLinked
	behindALink
	inTheOwnersHome // which the helper does not see
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

// install puts the helper, its units, its record and the owner's files where
// they belong, and sees to it that a test ends with nothing left.
func install(t *testing.T) rootclient.Client {
	t.Helper()
	testneed.Lab(t)
	do(t, "modprobe", "-a", "kvm-amd", "tun")
	must(t, os.MkdirAll(programs+"/owners", 0o755), os.MkdirAll("/home/owner", 0o755))
	copyTo := func(from, to string, mode os.FileMode) {
		b, err := os.ReadFile(from)
		must(t, err, os.RemoveAll(to), os.WriteFile(to, b, mode), os.Chmod(to, mode))
	}
	for _, name := range []string{"firecracker", "jailer"} {
		copyTo("/lab/firecracker/"+name, programs+"/"+name, 0o755)
	}
	copyTo("/lab/bin/bangerd-root", programs+"/bangerd-root", 0o755)
	copyTo("/lab/bin/banger-jail", programs+"/banger-jail", 0o755)
	copyTo("/lab/firecracker/firecracker", "/home/owner/firecracker", 0o755)
	copyTo("/lab/firecracker/firecracker", programs+"/owners/firecracker", 0o755)
	copyTo("/lab/firecracker/firecracker", programs+"/firecracker-loose", 0o775)
	copyTo("/bin/true", programs+"/firecracker-dynamic", 0o755)
	_ = os.Remove(programs + "/firecracker-link")
	must(t, os.Symlink("firecracker", programs+"/firecracker-link"), os.Chown(programs+"/owners", ownerUID, ownerUID))
	in := rootapi.Install{Owner: rootapi.Owner{UID: ownerUID, GID: ownerUID, Name: "owner", Home: "/home/owner"},
		Prefix: netip.MustParsePrefix("172.16.0.0/24"), Bridge: "br-fc", Zone: "vm"}
	for _, name := range []string{programs + "/firecracker", programs + "/owners/firecracker", programs + "/firecracker-loose",
		programs + "/firecracker-dynamic", programs + "/firecracker-link", "/home/owner/firecracker"} {
		in.Programs = append(in.Programs, rootapi.Program{Firecracker: name, Jailer: programs + "/jailer"})
	}
	must(t, record.Write(rootapi.InstallPath, in))
	for _, name := range []string{"bangerd-root.service", "bangerd-root.socket", "banger.slice"} {
		text, err := units.Files.ReadFile(name)
		must(t, err)
		filled := strings.NewReplacer("@OWNER@", "owner", "@BINDIR@", programs).Replace(string(text))
		must(t, os.WriteFile("/etc/systemd/system/"+name, []byte(filled), 0o644))
	}
	arm(t, "")
	do(t, "systemctl", "restart", "bangerd-root.socket")
	ownersFiles(t)
	var c rootclient.Client
	t.Cleanup(func() { leaveNothing(t, c) })
	return c
}

// ownersFiles makes the kernel, the initramfs and the state directory.
func ownersFiles(t *testing.T) {
	t.Helper()
	k := vmtest.NeedKernel(t)
	for _, dir := range []string{state, cache} {
		must(t, os.RemoveAll(dir), os.MkdirAll(dir, 0o700))
	}
	b, err := os.ReadFile(k.Vmlinux)
	must(t, err, os.WriteFile(cache+"/vmlinux", b, 0o600))
	self, err := os.Executable()
	must(t, err)
	agent, err := os.ReadFile(self)
	must(t, err)
	f, err := os.Create(cache + "/initramfs")
	must(t, err, initramfs.Build(f, initramfs.In{Agent: agent, Modules: modules(t, k.Tar)}), f.Close())
	must(t, os.WriteFile(cache+"/base", make([]byte, 1<<20), 0o600))
	for _, name := range []string{state, cache, cache + "/vmlinux", cache + "/initramfs", cache + "/base"} {
		must(t, os.Chown(name, ownerUID, ownerUID))
	}
}

func modules(t *testing.T, name string) (list []initramfs.Module) {
	t.Helper()
	f, err := os.Open(name)
	must(t, err)
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		must(t, err)
		if mod, ok := strings.CutSuffix(path.Base(h.Name), ".ko"); ok && slices.Contains(guestModules(), mod) {
			b, err := io.ReadAll(r)
			must(t, err)
			list = append(list, initramfs.Module{Name: mod, Data: b})
		}
	}
}

// leaveNothing releases all that a test made, and looks for more.
func leaveNothing(t *testing.T, c rootclient.Client) {
	ctx := context.WithoutCancel(t.Context())
	held, err := c.Census(ctx)
	if err != nil {
		t.Errorf("census at the end: %v", err)
	}
	for _, h := range held {
		if err := c.Release(ctx, h.ID); err != nil {
			t.Errorf("releasing %s at the end: %v", h.ID, err)
		}
	}
	if left := leftovers(ctx, c); left != "" {
		t.Errorf("left at the end: %s", left)
	}
}

// leftovers looks at the machine itself, not only at what the helper says.
func leftovers(ctx context.Context, c rootclient.Client) string {
	var left []string
	held, err := c.Census(ctx)
	if err != nil || len(held) != 0 {
		left = append(left, fmt.Sprintf("census %v, %v", held, err))
	}
	for _, argv := range [][]string{
		{"sh", "-c", "ls /run/banger-root/vm /run/banger-root/jail | grep -v :"},
		{"systemctl", "list-units", "--all", "--no-legend", "--plain", "banger-vm-*"},
		{"sh", "-c", "ls /sys/fs/cgroup/banger.slice 2>/dev/null | grep banger-vm"},
		{"pgrep", "-l", "firecracker|jailer"},
		{"pgrep", "-l", "banger-jail"},
		{"sh", "-c", "grep -E 'jail|banger-root/vm' /proc/self/mountinfo"},
		{"sh", "-c", "ls /sys/class/net | grep bvm"},
		{"sh", "-c", "nft list ruleset 2>/dev/null | grep -E 'bvm[0-9a-f]{12}'"},
	} {
		out, _ := exec.CommandContext(ctx, argv[0], argv[1:]...).Output() // nothing found is a failure to them
		if s := strings.TrimSpace(string(out)); s != "" {
			left = append(left, strings.Join(argv, " ")+": "+s)
		}
	}
	return strings.Join(left, "\n")
}

// arm restarts the helper's service with a crash point, or without one.
func arm(t *testing.T, point string) {
	t.Helper()
	dropin := unit + ".d/crash.conf"
	_ = os.Remove(dropin)
	if point != "" {
		must(t, os.MkdirAll(filepath.Dir(dropin), 0o755), os.WriteFile(dropin, []byte("[Service]\nEnvironment="+crash.Env+"="+point+"\n"), 0o644))
	}
	do(t, "systemctl", "daemon-reload")
	do(t, "systemctl", "stop", "bangerd-root.service") // the next connection starts it
}

// as runs f on a thread that is of another uid for good.
func as[T any](uid int, f func() (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			done <- result{err: errno}
			return
		}
		v, err := f()
		done <- result{v, err}
	}()
	r := <-done
	return r.v, r.err
}

// disk makes a VM's own disk, and returns its path.
func disk(t *testing.T, id string) string {
	t.Helper()
	name := state + "/vms/" + id + "/disk"
	must(t, os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, nil, 0o600), os.Truncate(name, 1<<20))
	for _, at := range []string{state + "/vms", filepath.Dir(name), name} {
		must(t, os.Chown(at, ownerUID, ownerUID))
	}
	return name
}

func open(t testing.TB, name string, flags int) *os.File {
	t.Helper()
	f, err := as(ownerUID, func() (*os.File, error) { return os.OpenFile(name, flags, 0) })
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

var small = rootapi.Launch{VCPUs: 1, MemoryMiB: 256, ReadOnly: 0b01}

// ends are the descriptors of a launch: kernel, initramfs, base and disk.
func ends(t *testing.T, id string) []*os.File {
	t.Helper()
	return []*os.File{open(t, cache+"/vmlinux", os.O_RDONLY), open(t, cache+"/initramfs", os.O_RDONLY),
		open(t, cache+"/base", os.O_RDONLY), open(t, disk(t, id), os.O_RDWR)}
}

// launch launches a VM as the owner.
func launch(t *testing.T, c rootclient.Client, id string) *rootclient.VM {
	t.Helper()
	v, err := tryLaunch(t, c, id, small, ends(t, id)...)
	must(t, err)
	return v
}

func tryLaunch(t *testing.T, c rootclient.Client, id string, l rootapi.Launch, files ...*os.File) (*rootclient.VM, error) {
	v, err := as(ownerUID, func() (*rootclient.VM, error) { return c.Launch(t.Context(), id, l, files...) })
	if err == nil {
		t.Cleanup(func() { closeVM(v) })
	}
	return v, err
}

func closeVM(v *rootclient.VM) { rootapi.CloseAll([]*os.File{v.Pidfd, v.Agent, v.API, v.Console}) }

// put speaks to the API.
func put(t testing.TB, api *os.File, at string, body any, method ...string) {
	t.Helper()
	b, err := json.Marshal(body)
	must(t, err)
	conn, err := net.FileConn(api)
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(limit)))
	req, err := http.NewRequestWithContext(t.Context(), append(method, http.MethodPut)[0], "http://localhost"+at, strings.NewReader(string(b)))
	must(t, err, req.Write(conn))
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	must(t, err)
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusNoContent {
		t.Fatalf("PUT %s: %s %s", at, resp.Status, text)
	}
}

type object = map[string]any

// boot says what to boot, and returns when the guest has called.
func boot(t *testing.T, v *rootclient.VM) *talk {
	t.Helper()
	put(t, v.API, "/boot-source", object{"kernel_image_path": "/kernel", "initrd_path": "/initramfs",
		"boot_args": "console=ttyS0 reboot=k panic=-1 quiet 8250.nr_uarts=1"})
	put(t, v.API, "/machine-config", object{"vcpu_count": small.VCPUs, "mem_size_mib": small.MemoryMiB})
	put(t, v.API, "/drives/base", object{"drive_id": "base", "path_on_host": "/disk0", "is_root_device": false, "is_read_only": true})
	put(t, v.API, "/drives/vm", object{"drive_id": "vm", "path_on_host": "/disk1", "is_root_device": false, "is_read_only": false})
	put(t, v.API, "/vsock", object{"guest_cid": 3, "uds_path": "/s/v.sock"})
	put(t, v.API, "/entropy", object{})
	put(t, v.API, "/actions", object{"action_type": "InstanceStart"})
	return accept(t, v.Agent)
}

// A talk is a guest's call.
type talk struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Scanner
	boot string // the guest's boot id
}

func accept(t testing.TB, agent *os.File) *talk {
	t.Helper()
	l, err := net.FileListener(agent)
	must(t, err)
	defer l.Close()
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	must(t, l.(*net.UnixListener).SetDeadline(time.Now().Add(limit)))
	conn, err := l.Accept()
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	k := &talk{t: t, conn: conn, in: bufio.NewScanner(conn)}
	word, id, _ := strings.Cut(k.line(), " ")
	if word != "hello" {
		t.Fatalf("the guest says %q, want hello", word)
	}
	k.boot = id
	return k
}

func (k *talk) line() string {
	k.t.Helper()
	must(k.t, k.conn.SetDeadline(time.Now().Add(limit)))
	if !k.in.Scan() {
		k.t.Fatalf("the guest says nothing: %v", k.in.Err())
	}
	return k.in.Text()
}

func (k *talk) ask(text string) string {
	k.t.Helper()
	_, err := fmt.Fprintln(k.conn, text)
	must(k.t, err)
	return k.line()
}

// ended waits until the process behind the pidfd has ended.
func ended(t testing.TB, pidfd *os.File) {
	t.Helper()
	fd, err := rootapi.FD(pidfd)
	must(t, err)
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(limit.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n != 1 {
			t.Fatalf("the VMM has not ended: %d, %v", n, err)
		}
		return
	}
}

func code(err error) rootapi.Code {
	var e *rootapi.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}
