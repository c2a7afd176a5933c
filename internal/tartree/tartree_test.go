package tartree_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"banger/internal/tartree"
	"banger/internal/testneed"
)

func nlink(fi os.FileInfo) uint64 { return fi.Sys().(*syscall.Stat_t).Nlink }

// node is what must be equal of a file before and after.
type node struct {
	Mode  fs.FileMode
	Time  time.Time
	Links uint64
	Data  string // contents, or the target of a link
}

func tree(t *testing.T, root string) map[string]node {
	t.Helper()
	all := map[string]node{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		n := node{Mode: fi.Mode(), Time: fi.ModTime()}
		switch {
		case fi.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			n.Data, n.Links = string(b), nlink(fi)
		case fi.Mode()&fs.ModeSymlink != 0:
			if n.Data, err = os.Readlink(p); err != nil {
				return err
			}
		}
		rel, err := filepath.Rel(root, p)
		all[rel] = n
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// randomTree makes some 150 files of all sorts below dir.
func randomTree(t *testing.T, rng *rand.Rand, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	odd := []string{"plain", "with space", "new\nline", "quote'\"", "-dash", "ünïcödé", "emoji 🙂", "\xff\xfe bytes", "back\\slash", strings.Repeat("n", 240)}
	must(os.MkdirAll(dir, 0o755))
	dirs := []string{dir}
	var files []string
	for i := range 150 {
		name := fmt.Sprintf("%s/%d %s", dirs[rng.IntN(len(dirs))], i, odd[rng.IntN(len(odd))])
		switch k := rng.IntN(10); {
		case k == 0:
			must(os.Mkdir(name, 0o700))
			dirs = append(dirs, name)
			continue
		case k == 1:
			must(os.Symlink(odd[rng.IntN(len(odd))], name))
			continue
		case k == 2 && len(files) > 0:
			must(os.Link(files[rng.IntN(len(files))], name))
			continue
		}
		size := []int{0, 1, 511, 512, 513, 4096, 70_000, 300_000}[rng.IntN(8)]
		b := make([]byte, size)
		for j := 0; j < len(b); j += 7 {
			b[j] = byte(rng.Uint32())
		}
		must(os.WriteFile(name, b, 0o600))
		must(os.Chmod(name, []fs.FileMode{0o644, 0o755, 0o600, 0o444, 0, 0o777, 0o755 | fs.ModeSetuid, 0o2711}[rng.IntN(7)]))
		files = append(files, name)
	}
	for _, f := range files {
		must(os.Chtimes(f, time.Time{}, time.Unix(1_600_000_000+rng.Int64N(1e8), rng.Int64N(1e9))))
	}
	for _, d := range slices.Backward(dirs) {
		must(os.Chmod(d, []fs.FileMode{0o755, 0o700, 0o555, 0o777 | fs.ModeSticky}[rng.IntN(4)]))
		must(os.Chtimes(d, time.Time{}, time.Unix(1_600_000_000+rng.Int64N(1e8), rng.Int64N(1e9))))
	}
}

// writable lets t.TempDir remove trees with read-only directories.
func writable(t *testing.T, root string) {
	t.Cleanup(func() {
		_ = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				_ = os.Chmod(p, 0o700)
			}
			return nil
		})
	})
}

func TestRandomTreesComeBackEqual(t *testing.T) {
	t.Parallel()
	testneed.Root(t) // files of mode 0 are readable to root alone
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		from, to := filepath.Join(t.TempDir(), "tree"), t.TempDir()
		writable(t, from)
		writable(t, to)
		randomTree(t, rng, from)
		var b bytes.Buffer
		packed, err := tartree.Pack(t.Context(), &b, from, tartree.PackOptions{})
		if err != nil {
			t.Fatalf("seed %d: Pack: %v", seed, err)
		}
		size := b.Len()
		got, err := tartree.Unpack(t.Context(), to, &b, tartree.Options{})
		if err != nil {
			t.Fatalf("seed %d: Unpack: %v", seed, err)
		}
		if got.Files != packed.Files || got.Bytes != packed.Bytes {
			t.Errorf("seed %d: packed %+v, unpacked %+v", seed, packed, got)
		}
		if d := cmp.Diff(tree(t, from), tree(t, filepath.Join(to, "tree"))); d != "" {
			t.Errorf("seed %d, tar of %d bytes: (-packed +unpacked)\n%s", seed, size, d)
		}
	}
}

// TestTarAgrees has the system's tar read what we write and write what we read.
func TestTarAgrees(t *testing.T) {
	t.Parallel()
	testneed.Root(t)
	tarTool := testneed.Tool(t, "tar")
	rng := rand.New(rand.NewPCG(7, 7))
	from, a, b := filepath.Join(t.TempDir(), "tree"), t.TempDir(), t.TempDir()
	for _, d := range []string{from, a, b} {
		writable(t, d)
	}
	randomTree(t, rng, from)
	want := tree(t, from)

	var ours bytes.Buffer
	if _, err := tartree.Pack(t.Context(), &ours, from, tartree.PackOptions{}); err != nil {
		t.Fatalf("Pack: %v", err)
	}
	cmd := exec.CommandContext(t.Context(), tarTool, "-C", a, "-xpf", "-")
	cmd.Stdin = &ours
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar x of our tar: %v\n%s", err, out)
	}
	if d := cmp.Diff(want, tree(t, filepath.Join(a, "tree"))); d != "" {
		t.Errorf("tar x of our tar: (-want +got)\n%s", d)
	}

	theirs, err := exec.CommandContext(t.Context(), tarTool, "-C", filepath.Dir(from), "--format=pax", "-cf", "-", "tree").Output()
	if err != nil {
		t.Fatalf("tar c: %v", err)
	}
	if _, err := tartree.Unpack(t.Context(), b, bytes.NewReader(theirs), tartree.Options{}); err != nil {
		t.Fatalf("Unpack of tar's: %v", err)
	}
	if d := cmp.Diff(want, tree(t, filepath.Join(b, "tree"))); d != "" {
		t.Errorf("Unpack of tar's: (-want +got)\n%s", d)
	}
}

func TestUnpackAs(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		exists string // a directory there before
		tar    []e
		want   string
	}{
		{"a file gets the name", "", []e{file("a", "x")}, "b"},
		{"a file goes into a directory of that name", "b", []e{file("a", "x")}, "b/a"},
		{"a tree gets the name", "", []e{dir("a"), dir("a/c"), file("a/c/d", "x")}, "b/c/d"},
		{"a tree goes into a directory of that name", "b", []e{dir("a"), file("a/c", "x")}, "b/a/c"},
		{"hard links are renamed too", "", []e{dir("a"), file("a/c", "x"), hardlink("a/d", "a/c")}, "b/d"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			to := t.TempDir()
			if tt.exists != "" {
				if err := os.Mkdir(filepath.Join(to, tt.exists), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := tartree.Unpack(t.Context(), to, bytes.NewReader(pack(t, tt.tar...)), tartree.Options{As: "b"}); err != nil {
				t.Fatalf("Unpack: %v", err)
			}
			if b, err := os.ReadFile(filepath.Join(to, tt.want)); string(b) != "x" {
				t.Errorf("%s holds %q, %v", tt.want, b, err)
			}
		})
	}
}

func TestUnpackKeepsWhatIsThere(t *testing.T) {
	t.Parallel()
	to := filepath.Join(t.TempDir(), "made", "deep")
	if err := os.MkdirAll(filepath.Join(to, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(to, "d", "other"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	in := pack(t, dir("d"), file("d/f", "new"), dir("implied/x"), file("./other/y", "y"))
	for range 2 { // the second time, all of it is there already
		if _, err := tartree.Unpack(t.Context(), to, bytes.NewReader(in), tartree.Options{}); err != nil {
			t.Fatalf("Unpack: %v", err)
		}
	}
	got := tree(t, to)
	if got["d"].Mode.Perm() != 0o700 || got["d/f"].Data != "new" || got["other/y"].Data != "y" {
		t.Errorf("after Unpack: %+v", got)
	}
	if _, ok := got["d/other"]; !ok {
		t.Error("a file that was there is gone")
	}
}

func TestUnpackNeedsADirectory(t *testing.T) {
	t.Parallel()
	f := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(f, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := tartree.Unpack(t.Context(), f, bytes.NewReader(pack(t, file("a", "x"))), tartree.Options{})
	if !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("Unpack into a file: %v, want ENOTDIR", err)
	}
}

func TestHolesStayHoles(t *testing.T) {
	t.Parallel()
	from, to := filepath.Join(t.TempDir(), "sparse"), t.TempDir()
	f, err := os.Create(from)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 64 << 20
	if _, err := f.WriteAt([]byte("x"), 10<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	pr, pw := io.Pipe()
	go func() {
		_, err := tartree.Pack(context.WithoutCancel(t.Context()), pw, from, tartree.PackOptions{})
		pw.CloseWithError(err)
	}()
	if _, err := tartree.Unpack(t.Context(), to, pr, tartree.Options{}); err != nil {
		t.Fatalf("Unpack: %v", err)
	}
	fi, err := os.Stat(filepath.Join(to, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	if fi.Size() != size || fi.Sys().(*syscall.Stat_t).Blocks*512 > 1<<20 {
		t.Errorf("%d bytes on %d of disk, want %d on little", fi.Size(), fi.Sys().(*syscall.Stat_t).Blocks*512, size)
	}
}

func TestCutFileIsRemoved(t *testing.T) {
	t.Parallel()
	to := t.TempDir()
	in := pack(t, file("whole", "x"), file("half", strings.Repeat("x", 100_000)))
	if _, err := tartree.Unpack(t.Context(), to, bytes.NewReader(in[:50_000]), tartree.Options{}); err == nil {
		t.Error("Unpack of half a tar: no error")
	}
	list, err := os.ReadDir(to)
	if err != nil || len(list) != 1 || list[0].Name() != "whole" {
		t.Errorf("after half a tar there is %v, %v; want the whole file only", list, err)
	}
}

func TestPackNames(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	if err := os.WriteFile(filepath.Join(d, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("f", filepath.Join(d, "l")); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(d, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, tt := range []struct {
		path string
		opt  tartree.PackOptions
		want []string
	}{
		{d + "/f", tartree.PackOptions{}, []string{"f 0"}},
		{d + "/f", tartree.PackOptions{Name: "g"}, []string{"g 0"}},
		{d + "/l", tartree.PackOptions{}, []string{"l 2"}},
		{d + "/l", tartree.PackOptions{Follow: true}, []string{"l 0"}},
		{d + "//", tartree.PackOptions{Name: "d"}, []string{"d/ 5", "d/f 0", "d/l 2"}},
		{"/proc/self/cmdline", tartree.PackOptions{}, []string{"cmdline 0"}},
	} {
		var b bytes.Buffer
		if _, err := tartree.Pack(t.Context(), &b, tt.path, tt.opt); err != nil {
			t.Errorf("Pack(%s): %v", tt.path, err)
			continue
		}
		var got []string
		for tr := tar.NewReader(&b); ; {
			h, err := tr.Next()
			if err != nil {
				break
			}
			got = append(got, fmt.Sprintf("%s %c", h.Name, h.Typeflag))
			if h.Name == "cmdline" && h.Size == 0 {
				t.Error("a file of /proc came out empty")
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("Pack(%s, %+v) = %q, want %q", tt.path, tt.opt, got, tt.want)
		}
	}
	st, _ := tartree.Pack(t.Context(), io.Discard, d, tartree.PackOptions{Name: "d"})
	if !slices.Equal(st.Skipped, []string{"d/s"}) {
		t.Errorf("skipped %q, want the socket", st.Skipped)
	}
}

// changing changes a file as soon as its header has been written.
type changing struct {
	bytes.Buffer
	change func()
}

func (c *changing) Write(b []byte) (int, error) {
	if c.change != nil {
		c.change()
		c.change = nil
	}
	return c.Buffer.Write(b)
}

func TestFileThatChangesKeepsTheTarWhole(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int64{"shorter": 1 << 20, "longer": 9 << 20} {
		d := filepath.Join(t.TempDir(), "d")
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
		f := filepath.Join(d, "a")
		if err := os.WriteFile(f, make([]byte, 4<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d, "b"), []byte("after"), 0o600); err != nil {
			t.Fatal(err)
		}
		w := &changing{change: func() { _ = os.Truncate(f, size) }}
		_, err := tartree.Pack(t.Context(), w, d, tartree.PackOptions{})
		if err == nil || !strings.Contains(err.Error(), "became "+name) {
			t.Errorf("%s: Pack: %v", name, err)
		}
		to := t.TempDir()
		if _, err := tartree.Unpack(t.Context(), to, &w.Buffer, tartree.Options{}); err != nil {
			t.Errorf("%s: Unpack: %v", name, err)
		}
		if b, _ := os.ReadFile(to + "/d/b"); string(b) != "after" {
			t.Errorf("%s: the file after it holds %q", name, b)
		}
	}
}

// A file that cannot be read takes only itself out of the tar, and its other
// names, not what follows.
func TestUnreadableFileWithTwoNames(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	err := errors.Join(os.Chmod(filepath.Dir(src), 0o755), os.WriteFile(src+"/a", []byte("secret"), 0),
		os.Link(src+"/a", src+"/b"), os.WriteFile(src+"/c", []byte("the rest"), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // which ends with the goroutine: it has lost rights
		if os.Getuid() == 0 {
			_ = unix.Setfsuid(65534) // for files, root on this thread no more
		}
		_, err := tartree.Pack(t.Context(), &b, src, tartree.PackOptions{Name: "x"})
		done <- err
	}()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "x/a") || !strings.Contains(err.Error(), "x/b") {
		t.Errorf("Pack: %v, want both names that were left out", err)
	}
	if _, err := tartree.Unpack(t.Context(), dst, &b, tartree.Options{}); err != nil {
		t.Errorf("Unpack: %v", err)
	}
	if got, err := os.ReadFile(dst + "/x/c"); string(got) != "the rest" {
		t.Errorf("what follows is %q, %v", got, err)
	}
}

func TestPackOfNothing(t *testing.T) {
	t.Parallel()
	_, err := tartree.Pack(t.Context(), io.Discard, filepath.Join(t.TempDir(), "gone"), tartree.PackOptions{})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Pack of a missing file: %v, want ErrNotExist", err)
	}
}

func TestOwnerKeepsOwnersAndDevices(t *testing.T) {
	t.Parallel()
	testneed.Root(t)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []*tar.Header{
		{Name: "f", Typeflag: tar.TypeReg, Mode: 0o4750, Uid: 1234, Gid: 4321},
		{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "f", Uid: 1234, Gid: 4321},
		{Name: "p", Typeflag: tar.TypeFifo, Mode: 0o622, Uid: 1234, Gid: 4321},
		{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o2775, Uid: 1234, Gid: 4321},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	to := t.TempDir()
	if _, err := tartree.Unpack(t.Context(), to, &b, tartree.Options{Owner: true}); err != nil {
		t.Fatalf("Unpack: %v", err)
	}
	want := map[string]fs.FileMode{
		"f": 0o750 | fs.ModeSetuid, "l": 0o777 | fs.ModeSymlink, "p": 0o622 | fs.ModeNamedPipe, "d": 0o775 | fs.ModeSetgid | fs.ModeDir,
	}
	for name, mode := range want {
		fi, err := os.Lstat(filepath.Join(to, name))
		if err != nil {
			t.Error(err)
			continue
		}
		st := fi.Sys().(*syscall.Stat_t)
		if st.Uid != 1234 || st.Gid != 4321 || fi.Mode() != mode {
			t.Errorf("%s: %d:%d %v, want 1234:4321 %v", name, st.Uid, st.Gid, fi.Mode(), mode)
		}
	}
}

// BenchmarkUnpack is the workspace of the budget: 11,000 files.
func BenchmarkUnpack(b *testing.B) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	body := bytes.Repeat([]byte("banger\n"), 1700)
	for i := range 11_000 {
		h := &tar.Header{Name: fmt.Sprintf("repo/d%d/e%d/f%d", i/1000, i/50%20, i), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body)), ModTime: time.Unix(1.7e9, 0)}
		if err := w.WriteHeader(h); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(buf.Len()))
	for b.Loop() {
		if _, err := tartree.Unpack(b.Context(), b.TempDir(), bytes.NewReader(buf.Bytes()), tartree.Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
