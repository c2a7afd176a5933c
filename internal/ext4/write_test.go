package ext4

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/testneed"
)

// short lists an image as "path type+perm uid:gid links size target".
func short(t *testing.T, r io.ReaderAt) (lines []string) {
	t.Helper()
	f, err := Open(r)
	if err != nil {
		t.Fatal(err)
	}
	err = f.Walk(func(path string, e Entry) error {
		line := fmt.Sprintf("%s %o %d:%d %d", path, e.Mode, e.UID, e.GID, e.Links)
		switch e.Mode & modeType {
		case modeFile:
			line += " " + read(t, r, path)
		case modeLink:
			line += " -> " + e.Target
		case modeChar, modeBlock:
			line += fmt.Sprintf(" %d:%d", e.Major, e.Minor)
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func TestWriteTree(t *testing.T) {
	long := strings.Repeat("n", 255)
	for _, c := range []struct {
		name  string
		items []item
		want  []string // without the root, unless it begins with it
	}{
		{"nothing", nil, []string{". 40755 0:0 2"}},
		{"root's own entry", []item{{tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o1777, Uid: 5, Gid: 6}, ""}},
			[]string{". 41777 5:6 2"}},
		{"missing parents", []item{file("a/b/f", "x")},
			[]string{"a 40755 0:0 3", "a/b 40755 0:0 2", "a/b/f 100644 0:0 1 x"}},
		{"names to clean", []item{file("/abs", "1"), file("./dot", "2"), file("d//./e", "3"), file("d/./../x"[:4]+"f", "4")},
			[]string{"abs 100644 0:0 1 1", "d 40755 0:0 2", "d/e 100644 0:0 1 3", "d/f 100644 0:0 1 4", "dot 100644 0:0 1 2"}},
		{"odd bytes", []item{file("a\nb", "1"), file("\xff\xfe", "2"), file(long, "3"), file("...", "4")},
			[]string{"... 100644 0:0 1 4", "a\nb 100644 0:0 1 1", long + " 100644 0:0 1 3", "\xff\xfe 100644 0:0 1 2"}},
		{"file replaces file", []item{file("f", "old"), file("f", "new")},
			[]string{"f 100644 0:0 1 new"}},
		{"symlink replaces file", []item{file("f", "old"), symlink("f", "x")},
			[]string{"f 120777 0:0 1 -> x"}},
		{"file replaces symlink, not its target", []item{file("x", "x"), symlink("f", "x"), file("f", "new")},
			[]string{"f 100644 0:0 1 new", "x 100644 0:0 1 x"}},
		{"directory replaces file", []item{file("f", "old"), dir("f"), file("f/g", "g")},
			[]string{"f 40755 0:0 2", "f/g 100644 0:0 1 g"}},
		{"directory replaces symlink", []item{dir("d"), symlink("f", "d"), dir("f/"), file("f/g", "g")},
			[]string{"d 40755 0:0 2", "f 40755 0:0 2", "f/g 100644 0:0 1 g"}},
		{"file replaces tree", []item{file("d/e/f", "1"), file("d", "2")},
			[]string{"d 100644 0:0 1 2"}},
		{"directory again", []item{dir("d"), file("d/f", "1"), {tar.Header{Typeflag: tar.TypeDir, Name: "d", Mode: 0o2700, Uid: 7, Gid: 8}, ""}},
			[]string{"d 42700 7:8 2", "d/f 100644 0:0 1 1"}},
		{"hard links", []item{file("f", "1"), hard("g", "./f"), hard("d/h", "/g")},
			[]string{"d 40755 0:0 2", "d/h 100644 0:0 3 1", "f 100644 0:0 3 1", "g 100644 0:0 3 1"}},
		{"hard link to a replaced file", []item{file("f", "old"), hard("g", "f"), file("f", "new")},
			[]string{"f 100644 0:0 1 new", "g 100644 0:0 1 old"}},
		{"hard link to itself", []item{file("f", "1"), hard("f", "f")},
			[]string{"f 100644 0:0 1 1"}},
		{"hard link to a symlink", []item{symlink("s", "x"), hard("t", "s")},
			[]string{"s 120777 0:0 2 -> x", "t 120777 0:0 2 -> x"}},
		{"hard link replaces the directory of its target", []item{file("d/f", "1"), hard("d", "d/f")},
			[]string{"d 100644 0:0 1 1"}},
		{"symlink in the way", []item{dir("usr/lib"), symlink("lib", "usr/lib"), file("lib/x", "1")},
			[]string{"lib 120777 0:0 1 -> usr/lib", "usr 40755 0:0 3", "usr/lib 40755 0:0 2", "usr/lib/x 100644 0:0 1 1"}},
		{"symlink that leads out", []item{dir("etc"), symlink("d/up", "../../../../etc"), file("d/up/x", "1"), symlink("abs", "/etc"), file("abs/y", "2")},
			[]string{"abs 120777 0:0 1 -> /etc", "d 40755 0:0 2", "d/up 120777 0:0 1 -> ../../../../etc", "etc 40755 0:0 2", "etc/x 100644 0:0 1 1", "etc/y 100644 0:0 1 2"}},
		{"special files", []item{
			{tar.Header{Typeflag: tar.TypeChar, Name: "c", Mode: 0o666, Devmajor: 5, Devminor: 1}, ""},
			{tar.Header{Typeflag: tar.TypeBlock, Name: "b", Mode: 0o660, Gid: 6, Devmajor: 259, Devminor: 70000}, ""},
			{tar.Header{Typeflag: tar.TypeFifo, Name: "p", Mode: 0o600}, ""},
			{tar.Header{Typeflag: tar.TypeReg, Name: "s", Mode: modeSocket | 0o755}, ""},
			{tar.Header{Typeflag: tar.TypeChar, Name: "whiteout"}, ""}},
			[]string{"b 60660 0:6 1 259:70000", "c 20666 0:0 1 5:1", "p 10600 0:0 1", "s 140755 0:0 1", "whiteout 20000 0:0 1 0:0"}},
		{"modes and owners", []item{
			{tar.Header{Typeflag: tar.TypeReg, Name: "su", Mode: 0o6755, Uid: 1<<32 - 2, Gid: 70000}, "x"}},
			[]string{"su 106755 4294967294:70000 1 x"}},
		{"lost+found is nothing special", []item{file("a", "a"), dir("lost+found")},
			[]string{"a 100644 0:0 1 a", "lost+found 40755 0:0 2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f, info := write(t, bytes.NewReader(tarOf(t, c.items...)), Options{})
			got := short(t, f)
			if out, want := debugfs(t, f, "stats -h"), fmt.Sprintf("Free inodes:              %d\n", 16-10-info.Inodes+1); info.Inodes < 7 && !strings.Contains(out, want) {
				t.Errorf("no line %q in:\n%s", want, out)
			}
			if !strings.HasPrefix(c.want[0], ". ") {
				got = got[1:]
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWriteRefuses(t *testing.T) {
	for _, c := range []struct {
		name, want string
		items      []item
	}{
		{"dot dot", `adding "a/../b": name contains ".."`, []item{file("a/../b", "")}},
		{"dot dot in a hard link", `hard link to "../f": name contains ".."`, []item{file("f", ""), hard("g", "../f")}},
		{"long name", "name of 256 bytes", []item{file(strings.Repeat("x", 256), "")}},
		{"long path", "path of 4097 bytes", []item{file(strings.Repeat("x/", 2048)+"x", "")}},
		{"missing target", `adding "g": hard link to "nowhere/f"`, []item{hard("g", "nowhere/f")}},
		{"missing target in the root", `adding "g": hard link to "f", which does not exist`, []item{hard("g", "f")}},
		{"hard link to a directory", `hard link to "d", which is a directory`, []item{dir("d"), hard("g", "d")}},
		{"file as a parent", `"f" is not a directory`, []item{file("f", ""), file("f/g", "")}},
		{"symlink to nothing as a parent", `"gone" does not exist`, []item{symlink("l", "gone"), file("l/g", "")}},
		{"symlinks in a circle", "more than 40 symlinks", []item{symlink("a", "b"), symlink("b", "a"), file("a/g", "")}},
		{"root that is a file", "the root must be a directory", []item{file(".", "x")}},
		{"empty symlink", "symlink to 0 bytes", []item{symlink("s", "")}},
		{"long symlink", "symlink to 4096 bytes", []item{symlink("s", strings.Repeat("x", 4096))}},
		{"negative owner", "owner -1:0", []item{{tar.Header{Typeflag: tar.TypeReg, Name: "f", Uid: -1}, ""}}},
		{"big device", "device 4096:0", []item{{tar.Header{Typeflag: tar.TypeChar, Name: "c", Devmajor: 4096}, ""}}},
		{"unknown type", "unknown type 'Z'", []item{{tar.Header{Typeflag: 'Z', Name: "z"}, ""}}},
		{"access control list", "not an access control list", []item{
			{tar.Header{Typeflag: tar.TypeReg, Name: "f", PAXRecords: map[string]string{paxXattr + "system.posix_acl_access": "x"}}, ""}}},
		{"attributes too large", "too large", []item{
			{tar.Header{Typeflag: tar.TypeReg, Name: "f", PAXRecords: map[string]string{paxXattr + "user.a": strings.Repeat("x", 5000)}}, ""}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Write(t.Context(), bytes.NewReader(tarOf(t, c.items...)), tempFile(t), Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want it to contain %q", err, c.want)
			}
		})
	}
}

func TestWriteBrokenStream(t *testing.T) {
	whole := tarOf(t, file("a", strings.Repeat("x", 3000)), file("b", "y"))
	for _, c := range []struct {
		name string
		tar  []byte
		want error
	}{
		{"empty", nil, ErrTruncated},
		{"no end marker", whole[:len(whole)-1024], ErrTruncated},
		{"in a header", whole[:100], io.ErrUnexpectedEOF},
		{"in content", whole[:1000], io.ErrUnexpectedEOF},
		{"noise", bytes.Repeat([]byte{0xA5}, 2048), tar.ErrHeader},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := Write(t.Context(), bytes.NewReader(c.tar), tempFile(t), Options{}); !errors.Is(err, c.want) {
				t.Errorf("got error %v, want %v", err, c.want)
			}
		})
	}
	t.Run("padding is read", func(t *testing.T) {
		in := bytes.NewReader(append(whole, make([]byte, 100<<10)...))
		if _, err := Write(t.Context(), in, tempFile(t), Options{}); err != nil || in.Len() != 0 {
			t.Errorf("got error %v and %d bytes unread, want none", err, in.Len())
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		o := Options{Progress: func(int64) { cancel() }}
		big := tarOf(t, file("f", strings.Repeat("x", 8<<20)))
		if _, err := Write(ctx, bytes.NewReader(big), tempFile(t), o); !errors.Is(err, context.Canceled) {
			t.Errorf("got error %v, want context.Canceled", err)
		}
	})
}

func TestWriteLimits(t *testing.T) {
	noise := strings.Repeat("0123456789abcdef", 64<<10) // 1 MiB
	many := make([]item, 101)
	for i := range many {
		many[i] = dir(fmt.Sprintf("d%d", i))
	}
	var links, heavy []item
	for i := range 100 {
		links = append(links, hard(fmt.Sprintf("l%d", i), "f"))
	}
	for i := range 6 {
		f := file(fmt.Sprintf("h%d", i), "x")
		f.PAXRecords = map[string]string{paxXattr + "user.x": noise[:3000]}
		heavy = append(heavy, f)
	}
	for _, c := range []struct {
		name string
		tar  []byte
		o    Options
		ok   bool
	}{
		{"bytes", tarOf(t, file("f", noise)), Options{MaxBytes: 1 << 20}, false},
		{"bytes are enough", tarOf(t, file("f", noise)), Options{MaxBytes: 1<<20 + 64<<10}, true},
		{"bytes of directories", tarOf(t, many...), Options{MaxBytes: 400 << 10}, false},
		{"inodes", tarOf(t, many...), Options{MaxInodes: 101}, false},
		{"names", tarOf(t, many...), Options{MaxNames: 100 * 162}, false},
		{"names are enough", tarOf(t, many...), Options{MaxNames: 101 * 200}, true},
		{"names of one file", tarOf(t, append([]item{file("f", "x")}, links...)...), Options{MaxNames: 16 << 10}, false},
		{"attributes", tarOf(t, heavy...), Options{MaxNames: 16 << 10}, false},
		{"inodes are enough", tarOf(t, many...), Options{MaxInodes: 102}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := tempFile(t)
			info, err := Write(t.Context(), bytes.NewReader(c.tar), f, c.o)
			if c.ok && err != nil || !c.ok && !errors.Is(err, ErrTooLarge) {
				t.Fatalf("got error %v, want none: %v", err, c.ok)
			}
			if c.ok {
				fsck(t, f)
			}
			if c.ok && c.o.MaxBytes != 0 && info.Bytes > c.o.MaxBytes {
				t.Errorf("got %d bytes, limit %d", info.Bytes, c.o.MaxBytes)
			}
		})
	}
}

func TestWriteOptions(t *testing.T) {
	data := tarOf(t, file("keep", strings.Repeat("k", 3<<20)), file("drop", "d"), file("old", "o"))
	var told []int64
	o := Options{
		Label: "golden",
		UUID:  [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16},
		Filter: func(h *tar.Header) bool {
			if h.Name == "old" {
				h.Name = "new"
			}
			return h.Name != "drop"
		},
		Progress: func(n int64) { told = append(told, n) },
	}
	f, _ := write(t, bytes.NewReader(data), o)
	if got, want := slices.Sorted(maps.Keys(listing(t, f))), []string{".", "keep", "new"}; !slices.Equal(got, want) {
		t.Errorf("got names %q, want %q", got, want)
	}
	if !slices.IsSorted(told) || len(told) < 3 || told[len(told)-1] != int64(len(data)) {
		t.Errorf("got progress %v, want rising steps up to %d", told, len(data))
	}
	stats := debugfs(t, f, "stats -h")
	for _, want := range []string{"golden", "01020304-0506-0708-090a-0b0c0d0e0f10", "Filesystem state:         clean"} {
		if !strings.Contains(stats, want) {
			t.Errorf("superblock without %q:\n%s", want, stats)
		}
	}
	if _, err := Write(t.Context(), bytes.NewReader(data), tempFile(t), Options{Label: "seventeen bytes.."}); err == nil {
		t.Error("a label of 17 bytes was taken")
	}
}

func TestWriteWritable(t *testing.T) {
	const size = 1 << 30
	data := tarOf(t, append(randomItems(7, 400), file("there", "before"))...)
	f, info := write(t, bytes.NewReader(data), Options{Writable: size})
	if info.Bytes != size || info.Used > size/4 {
		t.Errorf("got %d bytes, %d of them used, want %d, most of them free", info.Bytes, info.Used, size)
	}
	if stats := debugfs(t, f, "stats -h"); strings.Contains(stats, "read-only") || !strings.Contains(stats, "Inode count:              65536\n") {
		t.Errorf("want a superblock with 65536 inodes and no mark:\n%s", stats)
	}
	big := filepath.Join(t.TempDir(), "big") // larger than a group
	if err := os.WriteFile(big, bytes.Repeat([]byte("added "), 200<<20/6), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"write " + big + " added", "mkdir below", "write " + big + " below/again", "rm added"} {
		if out, err := exec.CommandContext(t.Context(), testneed.Tool(t, "debugfs"), "-w", "-R", command, f.Name()).CombinedOutput(); err != nil {
			t.Fatalf("debugfs %s: %v\n%s", command, err, out)
		}
	}
	fsck(t, f)
	if got := stat(t, f, "below/again").Size; got < 200<<20-6 {
		t.Errorf("got a file of %d bytes, want all that was written", got)
	}
	if got := read(t, f, "there"); got != "before" {
		t.Errorf("got %q in a file that was there, want it as it was", got)
	}
	if _, err := Write(t.Context(), bytes.NewReader(data), tempFile(t), Options{Writable: size, MaxBytes: size / 2}); err == nil {
		t.Error("an image larger than the limit was taken")
	}
}

func TestWriteIsReproducible(t *testing.T) {
	data := tarOf(t, randomItems(7, 400)...)
	a, _ := write(t, bytes.NewReader(data), Options{})
	b := tempFile(t)
	if _, err := b.WriteString(strings.Repeat("stale", 1<<20)); err != nil {
		t.Fatal(err)
	}
	if _, err := Write(t.Context(), io.MultiReader(bytes.NewReader(data[:777]), bytes.NewReader(data[777:])), b, Options{}); err != nil {
		t.Fatal(err)
	}
	pa, errA := os.ReadFile(a.Name())
	pb, errB := os.ReadFile(b.Name())
	if errA != nil || errB != nil || !bytes.Equal(pa, pb) {
		t.Errorf("the same tar gave different images (%v, %v)", errA, errB)
	}
	c, _ := write(t, bytes.NewReader(tarOf(t, file("other", ""))), Options{})
	if ua, uc := debugfs(t, a, "show_super_stats -h"), debugfs(t, c, "show_super_stats -h"); ua == uc {
		t.Error("different trees have the same UUID")
	}
}

func TestWriteTimes(t *testing.T) {
	for _, c := range []struct{ in, want time.Time }{
		{time.Unix(1700000000, 123456789), time.Unix(1700000000, 123456789)},
		{time.Unix(-5, 0), time.Unix(-5, 0)},
		{time.Unix(1<<31, 7), time.Unix(1<<31, 7)}, // 2038
		{time.Unix(maxSeconds, 999999999), time.Unix(maxSeconds, 999999999)},
		{time.Unix(1<<40, 1), time.Unix(maxSeconds, 0)},
		{time.Unix(-1<<40, 1), time.Unix(minSeconds, 0)},
	} {
		it := file("f", "x")
		it.ModTime, it.Format = c.in, tar.FormatPAX
		f, _ := write(t, bytes.NewReader(tarOf(t, it)), Options{})
		e := stat(t, f, "f")
		if !e.Mtime.Equal(c.want) || !e.Atime.Equal(c.want) || !e.Ctime.Equal(c.want) {
			t.Errorf("%v: got %v, %v, %v, want %v", c.in, e.Mtime, e.Atime, e.Ctime, c.want)
		}
	}
}

func TestWriteSymlinkLengths(t *testing.T) {
	var items []item
	want := map[string]string{}
	for _, n := range []int{1, 58, 59, 60, 61, 100, 4095} {
		name := fmt.Sprintf("s%d", n)
		want[name] = strings.Repeat("t", n)
		items = append(items, symlink(name, want[name]))
	}
	f, _ := write(t, bytes.NewReader(tarOf(t, items...)), Options{})
	for name, target := range want {
		if got := stat(t, f, name); got.Target != target || got.Size != int64(len(target)) {
			t.Errorf("%s: got a target of %d bytes (size %d), want %d", name, len(got.Target), got.Size, len(target))
		}
	}
}

func TestWriteErasesReplacedContent(t *testing.T) {
	secret := strings.Repeat("top secret ", 100_000)
	f, info := write(t, bytes.NewReader(tarOf(t, file("f", secret), file("f", "public"))), Options{})
	p, err := os.ReadFile(f.Name())
	if err != nil || bytes.Contains(p, []byte("top secret")) {
		t.Errorf("the image still has what was replaced (%v)", err)
	}
	if info.Used > info.Bytes-int64(len(secret)) {
		t.Errorf("%d of %d bytes in use: the replaced content counts", info.Used, info.Bytes)
	}
}

// allocated is how many bytes a file takes on its own file system.
func allocated(t testing.TB, f *os.File) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}
