package e2e

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/testneed"
)

// manifest is what a tree holds: for each path its type, mode, and the hash of
// its content or what it links to.
func manifest(t *testing.T, root string) map[string]string {
	t.Helper()
	m := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() && d.Name() == ".git" {
			return fs.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			m[rel] = fmt.Sprintf("dir %o", info.Mode().Perm())
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			m[rel] = "link " + to
			return err
		case info.Mode().IsRegular():
			b, err := os.ReadFile(path)
			m[rel] = fmt.Sprintf("file %o %x", info.Mode().Perm(), sha256.Sum256(b))
			return err
		default:
			m[rel] = info.Mode().String()
		}
		return nil
	})
	if err != nil {
		t.Fatalf("looking at %s: %v", root, err)
	}
	return m
}

// write writes files with their modes, and the directories above them.
func write(t *testing.T, root string, files map[string]string, mode fs.FileMode) {
	t.Helper()
	for name, body := range files {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(body), mode), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
}

// oddTree is a directory with all that a copy has to keep.
func oddTree(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	write(t, dir, map[string]string{"plain": "text\n", "empty": "", "sub/deep/er/file": "deep", "-dash": "1", "new\nline": "2", "quote\"'`": "3",
		"grüße 日本 😀": "4", "\xff\xfe": "5", ".hidden": "6", "..x": "7", "...": "8", " space ": "9", "back\\slash": "a"}, 0o644)
	write(t, dir, map[string]string{"bin/run": "#!/bin/sh\necho run\n", "sub/script": "x"}, 0o755)
	write(t, dir, map[string]string{"secret": "y"}, 0o600)
	write(t, dir, map[string]string{"read-only/file": "z"}, 0o444)
	write(t, dir, map[string]string{"big": strings.Repeat("0123456789abcdef", 100_000)}, 0o640)
	for name, to := range map[string]string{"link": "plain", "sub/up": "../plain", "dangling": "/nowhere/at/all", "sub/dir link": "deep"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "empty dir"), 0o755), os.Chmod(filepath.Join(dir, "read-only"), 0o555)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(dir, "read-only"), 0o755) })
	return dir
}

// A tree goes in and comes back the same, as a directory and as a tar.
func TestCopyTrees(t *testing.T) {
	t.Parallel()
	w := shared
	vm := w.small(t)
	dir := oddTree(t)
	want := manifest(t, dir)
	w.must(t, "vm", "cp", dir, vm+":/srv/copied")
	if got := w.inGuest(t, vm, `cd /srv/copied && sh bin/run && cat sub/deep/er/file "new
line" && readlink dangling && stat -c %a secret bin/run read-only`); got != "run\ndeep2/nowhere/at/all\n600\n755\n555\n" {
		t.Errorf("the guest sees %q", got)
	}
	out := t.TempDir()
	w.must(t, "vm", "cp", vm+":/srv/copied", out+"/back")
	defer func() { _ = os.Chmod(out+"/back/read-only", 0o755) }()
	if diff := cmp.Diff(want, manifest(t, out+"/back")); diff != "" {
		t.Errorf("the tree came back different (-want +got):\n%s", diff)
	}
	tarball := w.must(t, "vm", "cp", vm+":/srv/copied", "-")
	if r := w.with(t, []byte(tarball), "vm", "cp", "-", vm+":/srv/tar"); r.code != 0 {
		t.Fatalf("vm cp - = %+v", r)
	}
	if got := w.inGuest(t, vm, "cd /srv && find copied | sort | sha256sum; cd tar && find copied | sort | sha256sum"); len(got) == 0 || got[:len(got)/2] != got[len(got)/2:] {
		t.Errorf("the tar's tree has other names: %s", got)
	}
	unpack := exec.CommandContext(t.Context(), testneed.Tool(t, "tar"), "x", "-C", t.TempDir())
	unpack.Stdin = strings.NewReader(tarball)
	if b, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("tar x: %v\n%s", err, b)
	}
	defer func() { _ = os.Chmod(unpack.Args[3]+"/copied/read-only", 0o755) }()
	if diff := cmp.Diff(want, manifest(t, unpack.Args[3]+"/copied")); diff != "" {
		t.Errorf("the tar holds another tree (-want +got):\n%s", diff)
	}
	pack := exec.CommandContext(t.Context(), testneed.Tool(t, "tar"), "c", "-C", filepath.Dir(dir), "tree")
	b, err := pack.Output()
	if err != nil {
		t.Fatal(err)
	}
	if r := w.with(t, b, "vm", "cp", "-", vm+":/srv/fromtar/"); r.code != 0 || r.stdout != "" {
		t.Fatalf("vm cp - = %+v", r)
	}
	if got := w.inGuest(t, vm, "cat /srv/fromtar/tree/sub/deep/er/file"); got != "deep" {
		t.Errorf("the tar of the host gave %q", got)
	}
}

// Where a copy ends up is decided as by cp -r.
func TestCopyTargets(t *testing.T) {
	t.Parallel()
	w := shared
	vm := w.small(t)
	in := t.TempDir()
	write(t, in, map[string]string{"f": "file\n", "d/x": "in d\n"}, 0o644)
	w.inGuest(t, vm, "rm -rf /tmp/t && mkdir -p /tmp/t/dir && echo old >/tmp/t/old")
	for _, tt := range []struct{ from, to, at, want string }{
		{"f", ":/tmp/t/new", "/tmp/t/new", "file\n"},
		{"f", ":/tmp/t/old", "/tmp/t/old", "file\n"},
		{"f", ":/tmp/t/dir", "/tmp/t/dir/f", "file\n"},
		{"f", ":/tmp/t/dir/", "/tmp/t/dir/f", "file\n"},
		{"f", ":/tmp/t/dir/../up", "/tmp/t/up", "file\n"},
		{"f", ":", "/root/f", "file\n"},
		{"f", ":relative", "/root/relative", "file\n"},
		{"d", ":/tmp/t/named", "/tmp/t/named/x", "in d\n"},
		{"d", ":/tmp/t/dir", "/tmp/t/dir/d/x", "in d\n"},
		{"d/", ":/tmp/t/slash", "/tmp/t/slash/x", "in d\n"},
		{"d/.", ":/tmp/t/dot", "/tmp/t/dot/x", "in d\n"},
	} {
		w.must(t, "vm", "cp", in+"/"+tt.from, vm+tt.to)
		if r := w.exec(t, vm, "cat", tt.at); r.stdout != tt.want {
			t.Errorf("cp %s %s: %s is %q, want %q; %s", tt.from, tt.to, tt.at, r.stdout, tt.want, r.stderr)
		}
	}
	out := t.TempDir()
	write(t, out, map[string]string{"dir/keep": "", "old": "old\n"}, 0o644)
	for _, tt := range []struct{ from, to, at, want string }{
		{":/tmp/t/new", "new", "new", "file\n"},
		{":/tmp/t/new", "old", "old", "file\n"},
		{":/tmp/t/new", "dir", "dir/new", "file\n"},
		{":/tmp/t/new", "dir/", "dir/new", "file\n"},
		{":f", "dir/renamed", "dir/renamed", "file\n"},
		{":/tmp/t/named", "tree", "tree/x", "in d\n"},
		{":/tmp/t/named", "dir", "dir/named/x", "in d\n"},
		{":/tmp/t/named/", "dir/again", "dir/again/x", "in d\n"},
	} {
		w.must(t, "vm", "cp", vm+tt.from, out+"/"+tt.to)
		if b, err := os.ReadFile(filepath.Join(out, tt.at)); err != nil || string(b) != tt.want {
			t.Errorf("cp %s %s: %s is %q, %v; want %q", tt.from, tt.to, tt.at, b, err, tt.want)
		}
	}
	for _, tt := range []struct {
		args   []string
		stderr string
	}{
		{[]string{in + "/missing", vm + ":/tmp"}, "missing"},
		{[]string{vm + ":/tmp/t/missing", out}, `no file or directory "/tmp/t/missing" in the guest`},
		{[]string{vm + ":/tmp/t/new", out + "/no/such/dir"}, "mkdir -p"},
		{[]string{in + "/f", out}, "is in a VM"},
		{[]string{vm + ":/a", vm + ":/b"}, "both in VMs"},
		{[]string{in + "/f", "nobody-here:/tmp"}, `"nobody-here"`},
		{[]string{in + "/d", vm + ":/tmp/t/new"}, `"new" is not a directory`}, // a directory over a file
		{[]string{in + "/f", vm + ":/proc/x"}, "/proc"},
	} {
		r := w.banger(t, append([]string{"vm", "cp"}, tt.args...)...)
		if r.code != 125 || !strings.Contains(r.stderr, tt.stderr) || r.stdout != "" {
			t.Errorf("cp %v = %+v, want 125 and %q", tt.args, r, tt.stderr)
		}
	}
}

// A large file arrives as it is, both ways, and so do holes.
func TestCopyLargeFile(t *testing.T) {
	t.Parallel()
	w := shared
	vm := w.small(t)
	dir := t.TempDir()
	f, err := os.Create(dir + "/large")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	_, err = io.CopyN(io.MultiWriter(f, sum), rand.NewChaCha8([32]byte{1}), 64<<20)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%x", sum.Sum(nil))
	w.must(t, "vm", "cp", dir+"/large", vm+":/root/large")
	if got, _, _ := strings.Cut(w.must(t, "vm", "exec", vm, "--", "sha256sum", "/root/large"), " "); got != want {
		t.Errorf("the guest has %s, want %s", got, want)
	}
	w.must(t, "vm", "cp", vm+":/root/large", dir+"/back")
	b, err := os.ReadFile(dir + "/back")
	if got := fmt.Sprintf("%x", sha256.Sum256(b)); err != nil || got != want {
		t.Errorf("what came back is %s, %v; want %s", got, err, want)
	}
	w.inGuest(t, vm, "rm /root/large; truncate -s 200M /root/hole; echo end >>/root/hole")
	w.must(t, "vm", "cp", vm+":/root/hole", dir+"/hole")
	st, err := os.Stat(dir + "/hole")
	if err != nil || st.Size() != 200<<20+4 {
		t.Fatalf("the file with a hole is %v, %v", st, err)
	}
	if used := st.Sys().(*syscall.Stat_t).Blocks * 512; used > 20<<20 {
		t.Errorf("the file with a hole takes %d bytes", used)
	}
	w.inGuest(t, vm, "rm /root/hole")
}

// What a hostile guest prepares stays below the target on the host, and gets no
// special bits there.
func TestCopyFromHostileGuest(t *testing.T) {
	t.Parallel()
	w := shared
	vm := w.small(t)
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	write(t, victim, map[string]string{"file": "untouched"}, 0o644)
	w.inGuest(t, vm, `mkdir -p /tmp/evil/sub "/tmp/evil/..x" && cd /tmp/evil && echo own >sub/file && echo own >"..x/file" && echo own >file &&
		ln -s "$1" out && ln -s ../../../../../../etc/passwd passwd && cp /bin/busybox su 2>/dev/null; chmod 6755 su && mkfifo fifo && mknod null c 1 3 && chmod 1755 sub &&
		mkdir kernel && mount -t proc proc kernel`, victim)
	into := filepath.Join(dir, "into")
	// The user's own links in the target are no way out either.
	if err := errors.Join(os.MkdirAll(into+"/evil", 0o755), os.Symlink(victim, into+"/evil/sub"), os.Symlink(victim+"/file", into+"/evil/file")); err != nil {
		t.Fatal(err)
	}
	r := w.banger(t, "vm", "cp", vm+":/tmp/evil", into)
	if r.code != 125 || !strings.Contains(r.stderr, "sub") {
		t.Errorf("copying over a link to a directory = %+v, want a refusal", r)
	}
	if b, err := os.ReadFile(victim + "/file"); err != nil || string(b) != "untouched" {
		t.Errorf("the victim is %q, %v", b, err)
	}
	r = w.banger(t, "vm", "cp", vm+":/tmp/evil", dir+"/clean")
	if r.code != 0 || !strings.Contains(r.stderr, "fifo") || !strings.Contains(r.stderr, "null") || !strings.Contains(r.stderr, "evil/kernel") {
		t.Errorf("copying = %+v, want the special files named, and what the guest left out", r)
	}
	if r = w.banger(t, "vm", "cp", vm+":/tmp/evil", "-"); r.code != 0 || !strings.Contains(r.stderr, "evil/kernel") {
		t.Errorf("copying to stdout = %d, %q; want what was left out named", r.code, r.stderr)
	}
	if got, err := os.Readlink(dir + "/clean/out"); err != nil || got != victim {
		t.Errorf("a link became %q, %v", got, err)
	}
	for name, want := range map[string]fs.FileMode{"su": 0o755, "sub": fs.ModeDir | 0o755} {
		if st, err := os.Lstat(dir + "/clean/" + name); err != nil || st.Mode() != want {
			t.Errorf("%s has mode %v, %v; want %v", name, st.Mode(), err, want)
		}
	}
	for _, name := range []string{"fifo", "null"} {
		if _, err := os.Lstat(dir + "/clean/" + name); err == nil {
			t.Errorf("%s was made on the host", name)
		}
	}
	w.inGuest(t, vm, "umount /tmp/evil/kernel && rm -rf /tmp/evil")
}

// listening waits for the line of `vm forward` and returns the address on the
// host.
func (j *job) listening(port int) string {
	j.t.Helper()
	j.await(fmt.Sprintf("port %d\n", port))
	out, _ := j.out.look()
	for line := range strings.Lines(out) {
		if address, to, ok := strings.Cut(line, " -> "); ok && strings.HasSuffix(to, fmt.Sprintf(" port %d\n", port)) {
			return address
		}
	}
	j.t.Fatalf("no address in %q", out)
	return ""
}

func TestForward(t *testing.T) {
	t.Parallel()
	w := shared
	vm := w.vm(t) // its own: it is stopped in the end
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	page := filepath.Join(t.TempDir(), "page")
	if err := os.WriteFile(page, body, 0o644); err != nil {
		t.Fatal(err)
	}
	w.must(t, "vm", "cp", page, vm+":/srv/page")
	w.inGuest(t, vm, "busybox httpd -p 127.0.0.1:8080 -h /srv; busybox nc -ll -p 7 -e cat >/dev/null 2>&1 </dev/null &")
	j := w.begin(t, "vm", "forward", vm, "0:8080", "127.0.0.1:0:7", "0:9")
	web, echo, nobody := j.listening(8080), j.listening(7), j.listening(9)

	client := http.Client{Timeout: limit}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			resp, err := client.Get("http://" + web + "/page")
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, body) {
				t.Errorf("got %d bytes, %v; want the page of %d", len(got), err, len(body))
			}
		})
	}
	wg.Wait()

	var conn net.Conn
	until(t, "the echo server answers", func() bool { // nc takes a moment to listen
		var err error
		if conn, err = net.Dial("tcp", echo); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(limit))
		_, _ = conn.Write([]byte("to and fro\n"))
		b := make([]byte, 11)
		if _, err := io.ReadFull(conn, b); err == nil && string(b) == "to and fro\n" {
			return true
		}
		_ = conn.Close()
		return false
	})
	_ = conn.(*net.TCPConn).CloseWrite()
	if rest, err := io.ReadAll(conn); err != nil || len(rest) > 0 {
		t.Errorf("after the end of one direction: %q, %v", rest, err)
	}
	_ = conn.Close()

	refused, err := net.Dial("tcp", nobody)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(refused); len(b) > 0 {
		t.Errorf("a port without a server answers %q", b)
	}
	_ = refused.Close()
	j.await("port 9: ")

	other := w.begin(t, "vm", "forward", vm, web+":8080")
	if r := other.wait(); r.code != 125 || !strings.Contains(r.stderr, web+" is in use") {
		t.Errorf("the same address again = %+v, want a refusal", r)
	}
	j.signal(syscall.SIGINT)
	if r := j.wait(); r.code != 0 && r.code != 130 {
		t.Errorf("Ctrl-C gave %+v, want 0", r)
	}
	if c, err := net.Dial("tcp", web); err == nil {
		_ = c.Close()
		t.Errorf("%s is still there", web)
	}

	j = w.begin(t, "vm", "forward", vm, "0:8080")
	j.listening(8080)
	w.must(t, "vm", "stop", vm)
	if r := j.wait(); r.code != 125 || !strings.Contains(r.stderr, vm) {
		t.Errorf("the end of the VM gave %+v, want 125", r)
	}
	for _, args := range [][]string{{"vm", "forward", vm, "0:1"}, {"vm", "cp", page, vm + ":/x"}, {"vm", "exec", vm, "--", "true"}, {"vm", "ssh", vm}} {
		if r := w.banger(t, args...); r.code != 125 || !strings.Contains(r.stderr, "banger vm start "+vm) {
			t.Errorf("banger %s on a stopped VM = %+v, want 125 and how to start it", strings.Join(args, " "), r)
		}
	}
}
