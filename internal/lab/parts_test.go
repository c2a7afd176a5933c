package lab

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/fetch"
	"banger/internal/testneed"
)

func TestTarIsKeptAndChanged(t *testing.T) {
	var in, out bytes.Buffer
	w := tar.NewWriter(&in)
	for _, f := range [][2]string{
		{"./etc/passwd", "root:x:0:0::/root:/bin/bash\n"}, {"./etc/gshadow", "root:*::\n"}, {"./etc/other", "as it is"},
		{"./boot/vmlinuz-6.1", "kernel"}, {"./boot/initrd.img-6.1", "large"},
		{"./usr/lib/modules/6.1/kernel/fs/ext4/ext4.ko", "module"}, {"./usr/lib/modules/6.1/kernel/fs/xfs/xfs.ko", "not wanted"},
	} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f[0], Mode: 0o644, Size: int64(len(f[1]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	k := kept{files: map[string][]byte{}}
	if err := k.copy(&in, &out); err != nil {
		t.Fatal(err)
	}
	if string(k.vmlinuz) != "kernel" || len(k.files) != 1 || string(k.files["ext4.ko"]) != "module" {
		t.Errorf("kept %q and %q, want the kernel and its module", k.vmlinuz, k.files)
	}
	got := contents(t, &out)
	for name, want := range map[string]string{
		"./etc/passwd":  "root:x:0:0::/root:/bin/bash\nowner:x:1000:1000::/home/owner:/bin/bash\nother:x:1001:1001::/home/other:/bin/bash\n",
		"./etc/gshadow": "root:*::\nowner:!::\nother:!::\n",
		"./etc/other":   "as it is", "./boot/vmlinuz-6.1": "kernel", "./home/owner/": "", "./home/other/": "",
	} {
		if body, ok := got[name]; !ok || body != want {
			t.Errorf("%s is %q, want %q", name, body, want)
		}
	}
	if _, ok := got["./boot/initrd.img-6.1"]; ok {
		t.Error("Debian's initramfs is there, want it left out")
	}
}

// contents reads a tar.
func contents(t *testing.T, in io.Reader) map[string]string {
	t.Helper()
	got := map[string]string{}
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got[h.Name] = string(b)
	}
}

func TestFilesOfAJob(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sub/file"), []byte("body"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("sub/file", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := writeFiles(&b, []File{{Name: "d", Path: dir}, {Name: "f", Body: []byte("f")}}); err != nil {
		t.Fatal(err)
	}
	got := contents(t, &b)
	for name, want := range map[string]string{"d/sub/file": "body", "d/link": "body", "f": "f"} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	if err := writeFiles(io.Discard, []File{{Name: "gone", Path: filepath.Join(dir, "gone")}}); err == nil || !strings.Contains(err.Error(), "packing gone for the lab") {
		t.Errorf("got %v, want an error that names the file", err)
	}
}

func TestLinesComeWhole(t *testing.T) {
	var b recorder
	l := &lines{w: &b}
	for _, piece := range []string{"one\ntw", "o\nthr", "ee"} {
		l.add([]byte(piece))
	}
	l.flush()
	if got, want := strings.Join(b, "|"), "one\n|two\n|three\n"; got != want {
		t.Errorf("got writes %q, want %q", got, want)
	}
	if got := l.tail(); got != "one\ntwo\nthree" {
		t.Errorf("got tail %q, want all of it", got)
	}
	l.add(bytes.Repeat([]byte("x\n"), tailBytes))
	if got := len(l.tail()); got != tailBytes {
		t.Errorf("got a tail of %d bytes, want %d", got, tailBytes)
	}
}

// recorder keeps each write.
type recorder []string

func (r *recorder) Write(b []byte) (int, error) {
	*r = append(*r, string(b))
	return len(b), nil
}

func TestConsoleIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console")
	c, err := newConsole(path)
	if err != nil {
		t.Fatal(err)
	}
	c.left = 10
	for range 100 {
		if n, err := io.WriteString(c, "a line\r\n"); n != 8 || err != nil {
			t.Fatalf("got %d, %v, want all of it taken", n, err)
		}
	}
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "a line\r\na " {
		t.Errorf("the file is %q (%v), want ten bytes", b, err)
	}
	if got := c.tail(); strings.Count(got, "a line") != 40 || strings.Contains(got, "\r") {
		t.Errorf("got tail %q, want forty plain lines", got)
	}
}

// TestFirecrackerByPip gets the package anew, with nothing in the cache.
func TestFirecrackerByPip(t *testing.T) {
	testneed.Tool(t, "pip3")
	store := fetch.Store{Dir: t.TempDir()}
	if err := pip(t.Context(), store); err != nil {
		t.Fatal(err)
	}
	files, err := cachedItems(t.Context(), store)
	if err != nil || len(files) != 2 {
		t.Fatalf("got %d files (%v), want firecracker and jailer, by their sums", len(files), err)
	}
	if left, err := os.ReadDir(store.Dir); err != nil || len(left) != 2 {
		t.Errorf("the store has %v (%v), want the two files alone", left, err)
	}
}

// A fault while KVM ran a guest is told from others, in whatever pieces it comes.
func TestFaultInAGuest(t *testing.T) {
	for said, want := range map[string]bool{"[ 9.8]  svm_v|cpu_run+0x1cf/0x720 [kvm_amd]\n": true, "[ 9.8]  nft_do_chain+0x1/0x2\n|[ 9.9] svm_init": false} {
		c, err := newConsole("")
		if err != nil {
			t.Fatal(err)
		}
		for piece := range strings.SplitSeq(said, "|") {
			if _, err := c.Write([]byte(piece)); err != nil {
				t.Fatal(err)
			}
		}
		if got := c.brokeInGuest(); got != want {
			t.Errorf("brokeInGuest() after %q = %v, want %v", said, got, want)
		}
	}
}
