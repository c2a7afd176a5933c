package guestinit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/handover"
)

func TestUnsigned(t *testing.T) {
	sign := func(body, sig string) []byte {
		tail := make([]byte, signatureLen)
		binary.BigEndian.PutUint32(tail[8:], uint32(len(sig)))
		return []byte(body + sig + string(tail) + signatureEnd)
	}
	lying := sign("body", "sig")
	binary.BigEndian.PutUint32(lying[len(lying)-len(signatureEnd)-4:], 1<<30)
	for name, tt := range map[string]struct{ in, want []byte }{
		"a signed module":      {sign("body", "signature"), []byte("body")},
		"an unsigned module":   {[]byte("body"), []byte("body")},
		"a length that lies":   {lying, lying},
		"nothing but the end":  {[]byte(signatureEnd), []byte(signatureEnd)},
		"an empty file":        {nil, nil},
		"an empty signature":   {sign("body", ""), []byte("body")},
		"signed, without body": {sign("", "sig"), []byte{}},
	} {
		if got := unsigned(tt.in); !bytes.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

func TestCopyTree(t *testing.T) {
	src, dst := t.TempDir(), filepath.Join(t.TempDir(), "copy")
	when := time.Unix(1_000_000_000, 0)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(src+"/dir/sub", 0o750))
	must(os.WriteFile(src+"/dir/file", []byte("data"), 0o600))
	must(os.Chmod(src+"/dir/file", 0o4711))
	must(os.Symlink("dir/file", src+"/link"))
	must(unix.Mkfifo(src+"/pipe", 0o620))
	xattr := unix.Setxattr(src+"/dir/file", "user.banger", []byte("v"), 0)
	if os.Getuid() == 0 {
		must(os.Lchown(src+"/link", 12, 34))
	}
	must(os.Chtimes(src+"/dir", when, when))
	must(copyTree(src, dst))

	for _, p := range []string{"", "/dir", "/dir/sub", "/dir/file", "/link", "/pipe"} {
		var a, b unix.Stat_t
		must(unix.Lstat(src+p, &a))
		must(unix.Lstat(dst+p, &b))
		if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Mtim != b.Mtim {
			t.Errorf("%q: mode %o, owner %d:%d, time %v; want %o, %d:%d, %v", p, b.Mode, b.Uid, b.Gid, b.Mtim, a.Mode, a.Uid, a.Gid, a.Mtim)
		}
	}
	if b, err := os.ReadFile(dst + "/link"); err != nil || string(b) != "data" {
		t.Errorf("the copy holds %q, %v; want %q", b, err, "data")
	}
	if xattr == nil {
		v := make([]byte, 10)
		if n, err := unix.Getxattr(dst+"/dir/file", "user.banger", v); err != nil || string(v[:n]) != "v" {
			t.Errorf("extended attribute = %q, %v; want v", v[:max(n, 0)], err)
		}
	}
	if err := copyTree(src+"/missing", dst+"2"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("copy of nothing = %v, want ErrNotExist", err)
	}
}

// image makes a root with these files; a name that ends with a slash is a
// directory.
func image(t *testing.T, names ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, n := range names {
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(n)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, n), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func target(t *testing.T, path string) string {
	t.Helper()
	s, err := os.Readlink(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return s
}

func TestWriteUnits(t *testing.T) {
	const lib = "/lib/systemd/system/"
	for name, tt := range map[string]struct {
		units []string
		want  map[string]string // link below /run/systemd: its target
	}{
		"an image with Docker and ssh": {
			[]string{lib + "ssh.service", lib + "ssh.socket", lib + "docker.service", lib + "docker.socket"},
			map[string]string{
				"/system.control/multi-user.target.wants/ssh.service":        "/dev/null",
				"/system.control/multi-user.target.wants/docker.service":     "/dev/null",
				"/system.control/multi-user.target.wants/containerd.service": "/dev/null",
				"/system/sockets.target.wants/ssh.socket":                    lib + "ssh.socket",
				"/system/sockets.target.wants/docker.socket":                 lib + "docker.socket",
			}},
		"an image without": {nil, map[string]string{
			"/system.control/multi-user.target.wants/containerd.service": "",
			"/system/sockets.target.wants/ssh.socket":                    "",
			"/system.control/systemd-udev-trigger.service":               "/dev/null",
			"/system/reboot.target.wants/banger-reboot.socket":           "../banger-reboot.socket",
		}},
		"Docker without its socket": {[]string{lib + "docker.service"}, map[string]string{
			"/system.control/multi-user.target.wants/docker.service": "",
		}},
	} {
		root := image(t, tt.units...)
		if err := writeUnits(root, "console=ttyS0"); err != nil {
			t.Fatal(err)
		}
		for link, want := range tt.want {
			if got := target(t, root+"/run/systemd"+link); got != want {
				t.Errorf("%s: %s links to %q, want %q", name, link, got, want)
			}
		}
		unit, err := os.ReadFile(root + "/run/systemd/system/banger-sockets.socket")
		if want := "ListenStream=" + handover.StageDir + "/sockets\n"; err != nil || !strings.Contains(string(unit), want) {
			t.Errorf("%s: the stage unit is %q, %v; want it to have %q", name, unit, err, want)
		}
	}
}

func TestInitKind(t *testing.T) {
	root := image(t, "systemd", "busybox", "text")
	for _, p := range []string{"/systemd", "/busybox"} {
		if err := os.Chmod(root+p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for p, want := range map[string]string{
		"/systemd": handover.InitSystemd, "/busybox": handover.InitOther, "/text": "", "/": "",
	} {
		fd, err := unix.Open(root+p, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), p)
		if got := initKind(f); got != want {
			t.Errorf("initKind of %s = %q, want %q", p, got, want)
		}
		_ = f.Close()
	}
}

func TestHasNetwork(t *testing.T) {
	dir := t.TempDir()
	if hasNetwork(dir + "/missing") {
		t.Error("a network device without a bus")
	}
	for _, d := range []struct {
		name, device string
		want         bool
	}{{"virtio0", "0x0003\n", false}, {"virtio1", "0x0010\n", false}, {"virtio2", "0x0001\n", true}, {"virtio3", "0x0002\n", true}} {
		if err := os.MkdirAll(filepath.Join(dir, d.name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, d.name, "device"), []byte(d.device), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := hasNetwork(dir); got != d.want {
			t.Errorf("with %s: %v, want %v", d.name, got, d.want)
		}
	}
}
