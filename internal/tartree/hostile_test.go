package tartree_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/tartree"
)

// e is one entry of a hand-made tar.
type e struct {
	name string
	kind byte
	link string
	body string
	mode int64
}

func file(name, body string) e   { return e{name: name, kind: tar.TypeReg, body: body, mode: 0o644} }
func dir(name string) e          { return e{name: name, kind: tar.TypeDir, mode: 0o755} }
func symlink(name, to string) e  { return e{name: name, kind: tar.TypeSymlink, link: to} }
func hardlink(name, to string) e { return e{name: name, kind: tar.TypeLink, link: to} }

func pack(t testing.TB, entries ...e) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{
			Name: e.name, Typeflag: e.kind, Linkname: e.link, Mode: e.mode, Size: int64(len(e.body)),
			ModTime: time.Unix(1_700_000_000, 0), Uid: os.Getuid(), Gid: os.Getgid(),
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("WriteHeader(%.100q): %v", e.name, err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatalf("writing %q: %v", e.name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// header patches the first header of a tar and mends its checksum: what
// archive/tar refuses to write.
func header(b []byte, off int, val string) []byte {
	copy(b[off:], val)
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	const octal = "01234567"
	for i := 5; i >= 0; i-- {
		b[148+i] = octal[sum&7]
		sum >>= 3
	}
	b[154], b[155] = 0, ' '
	return b
}

type hostile struct {
	name    string
	before  func(t *testing.T, in string) // what is below the directory already
	tar     func(t *testing.T, out string) []byte
	opt     tartree.Options
	wantErr error  // nil: any error, unless ok
	ok      bool   // harmless: unpacks without an error
	has     string // with ok: this must be there
}

func with(entries ...e) func(*testing.T, string) []byte {
	return func(t *testing.T, _ string) []byte { t.Helper(); return pack(t, entries...) }
}

// aim makes a tar from entries in whose names and targets OUT is the canary
// directory.
func aim(entries ...e) func(*testing.T, string) []byte {
	return func(t *testing.T, out string) []byte {
		t.Helper()
		for i := range entries {
			entries[i].name = strings.ReplaceAll(entries[i].name, "OUT", out)
			entries[i].link = strings.ReplaceAll(entries[i].link, "OUT", out)
		}
		return pack(t, entries...)
	}
}

func linkTo(name, to string) func(*testing.T, string) {
	return func(t *testing.T, in string) {
		t.Helper()
		if err := os.Symlink(to, filepath.Join(in, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func hostiles() []hostile {
	unsafe := tartree.ErrUnsafe
	return []hostile{
		{name: "parent", tar: with(file("../canary", "x")), wantErr: unsafe},
		{name: "parent twice", tar: with(file("../../etc/x", "x")), wantErr: unsafe},
		{name: "parent inside", tar: with(file("a/../../canary", "x")), wantErr: unsafe},
		{name: "parent that stays below", tar: with(file("a/../b", "x")), wantErr: unsafe},
		{name: "parent at the end", tar: with(dir("a/..")), wantErr: unsafe},
		{name: "only parent", tar: with(dir("..")), wantErr: unsafe},
		{name: "parent after dot", tar: with(file("./../canary", "x")), wantErr: unsafe},
		{name: "parent after slashes", tar: with(file("a//../../canary", "x")), wantErr: unsafe},
		{name: "absolute", tar: aim(file("OUT/canary", "x")), wantErr: unsafe},
		{name: "absolute, two slashes", tar: aim(file("/OUT/canary", "x")), wantErr: unsafe},
		{name: "absolute directory", tar: aim(dir("OUT/made")), wantErr: unsafe},
		{name: "root", tar: with(dir("/")), wantErr: unsafe},
		{name: "symlink then through it", tar: aim(symlink("l", "OUT"), file("l/canary", "x")), wantErr: unsafe},
		{name: "relative symlink then through it", tar: aim(symlink("l", "../out"), file("l/canary", "x")), wantErr: unsafe},
		{name: "symlink to parent", tar: with(symlink("l", ".."), file("l/x", "x")), wantErr: unsafe},
		{name: "symlink chain", tar: with(symlink("a", "b"), symlink("b", "c"), symlink("c", "../out"), file("a/canary", "x")), wantErr: unsafe},
		{name: "deep symlink", tar: aim(dir("d"), dir("d/e"), symlink("d/e/l", "OUT"), file("d/e/l/canary", "x")), wantErr: unsafe},
		{name: "symlink loop", tar: with(symlink("l", "l"), file("l/x", "x")), wantErr: unsafe},
		{name: "symlink that stays below", tar: with(dir("d"), symlink("l", "d"), file("l/x", "x")), wantErr: unsafe},
		{name: "symlink then mkdir through it", tar: aim(symlink("l", "OUT"), dir("l/made")), wantErr: unsafe},
		{name: "symlink then symlink through it", tar: aim(symlink("l", "OUT"), symlink("l/made", "x")), wantErr: unsafe},
		{name: "symlink then hard link through it", tar: aim(file("f", "x"), symlink("l", "OUT"), hardlink("l/made", "f")), wantErr: unsafe},
		{name: "directory over symlink", tar: aim(symlink("l", "OUT"), dir("l")), wantErr: unsafe},
		{name: "file over symlink replaces the link", tar: aim(symlink("l", "OUT/canary"), file("l", "mine")), ok: true, has: "l"},
		{name: "directory then symlink in its place", tar: aim(dir("d"), symlink("d", "OUT"), file("d/canary", "x"))},
		{name: "symlink was there", before: linkTo("l", "../out"), tar: with(file("l/canary", "x")), wantErr: unsafe},
		{name: "symlink was there, deep", before: linkTo("l", "../out"), tar: with(file("l/a/b/canary", "x")), wantErr: unsafe},
		{name: "symlink to a file was there", before: linkTo("l", "../out/canary"), tar: with(file("l", "mine")), ok: true, has: "l"},
		{name: "hard link to outside", tar: aim(hardlink("h", "OUT/canary")), wantErr: unsafe},
		{name: "hard link to parent", tar: with(hardlink("h", "../out/canary")), wantErr: unsafe},
		{name: "hard link through symlink", tar: aim(symlink("l", "OUT"), hardlink("h", "l/canary"), file("h", "x")), wantErr: unsafe},
		{name: "hard link to a symlink, then written", tar: aim(symlink("l", "OUT/canary"), hardlink("h", "l"), file("h", "mine")), ok: true, has: "h"},
		{name: "hard link to nothing", tar: with(hardlink("h", "gone")), wantErr: os.ErrNotExist},
		{name: "hard link to a directory", tar: with(dir("d"), hardlink("h", "d"))},
		{name: "hard link to the top", tar: with(hardlink("h", ".")), wantErr: unsafe},
		{name: "hard link to itself", tar: with(file("f", "x"), hardlink("f", "f")), ok: true, has: "f"},
		{name: "hard link over its target's twin", tar: with(file("f", "x"), hardlink("g", "f"), hardlink("g", "f")), ok: true, has: "f"},
		{name: "duplicate file", tar: with(file("f", "one"), file("f", "two")), ok: true, has: "f"},
		{name: "file over directory", tar: with(dir("d"), file("d", "x"))},
		{name: "file in a file", tar: with(file("f", "x"), file("f/g", "x"))},
		{name: "no name", tar: func(t *testing.T, _ string) []byte { return header(pack(t, file("x", "")), 0, "\x00") }, wantErr: unsafe},
		{name: "dot as a file", tar: with(file(".", "x")), wantErr: unsafe},
		{name: "dot as a symlink", tar: aim(symlink(".", "OUT")), wantErr: unsafe},
		{name: "character device", tar: with(e{name: "null", kind: tar.TypeChar, mode: 0o666}), ok: true},
		{name: "block device", tar: with(e{name: "sda", kind: tar.TypeBlock, mode: 0o666}), ok: true},
		{name: "fifo", tar: with(e{name: "p", kind: tar.TypeFifo, mode: 0o666}), ok: true},
		{name: "device despite Owner", tar: with(e{name: "null", kind: tar.TypeChar, mode: 0o666}), opt: tartree.Options{Owner: true}, ok: true},
		{name: "set-user-id", tar: with(e{name: "su", kind: tar.TypeReg, mode: 0o6755, body: "x"}), ok: true, has: "su"},
		{name: "name of 300 bytes", tar: with(file(strings.Repeat("n", 300), "x"))},
		{name: "name of 100,000 bytes", tar: with(file(strings.Repeat("n/", 50_000)+"f", "x")), wantErr: tartree.ErrLimit},
		{name: "2,000 directories deep", tar: with(file(strings.Repeat("d/", 2000)+"f", "x")), wantErr: tartree.ErrLimit},
		{name: "2 MiB of a name", tar: func(t *testing.T, _ string) []byte { return paxBomb(t) }},
		{name: "damaged PAX record", tar: func(t *testing.T, _ string) []byte { return badPAX(t, "9 path=../x") }},
		{name: "PAX path with parent", tar: func(t *testing.T, _ string) []byte { return badPAX(t, "18 path=../canary\n") }, wantErr: unsafe},
		{name: "PAX path with NUL", tar: func(t *testing.T, _ string) []byte { return badPAX(t, "12 path=a\x00b\n") }},
		{name: "PAX negative size", tar: func(t *testing.T, _ string) []byte { return badPAX(t, "11 size=-9\n") }},
		{name: "file larger than allowed", tar: with(file("f", strings.Repeat("x", 5000))), opt: tartree.Options{MaxBytes: 4096}, wantErr: tartree.ErrLimit},
		{name: "files together larger than allowed", tar: with(file("f", strings.Repeat("x", 3000)), file("g", strings.Repeat("x", 3000))), opt: tartree.Options{MaxBytes: 4096}, wantErr: tartree.ErrLimit},
		{name: "8 EiB", tar: func(t *testing.T, _ string) []byte { return badPAX(t, "28 size=9223372036854775807\n") }, opt: tartree.Options{MaxBytes: 4096}, wantErr: tartree.ErrLimit},
		{name: "sparse bomb", tar: func(t *testing.T, _ string) []byte { return sparseBomb(t) }, opt: tartree.Options{MaxBytes: 1 << 20}, wantErr: tartree.ErrLimit},
		{name: "more entries than allowed", tar: with(file("a", ""), file("b", ""), file("c", "")), opt: tartree.Options{MaxEntries: 2}, wantErr: tartree.ErrLimit},
		{name: "cut in a file", tar: func(t *testing.T, _ string) []byte { return pack(t, file("f", strings.Repeat("x", 5000)))[:2000] }, wantErr: io.ErrUnexpectedEOF},
		{name: "cut in a header", tar: func(t *testing.T, _ string) []byte { return pack(t, file("f", "x"))[:100] }, wantErr: io.ErrUnexpectedEOF},
		{name: "not a tar", tar: func(*testing.T, string) []byte { return bytes.Repeat([]byte("banger"), 500) }},
		{name: "unknown type", tar: func(t *testing.T, _ string) []byte { return header(pack(t, file("f", "")), 156, "Z") }},
		{name: "two tops for one name", tar: with(file("a", ""), file("b", "")), opt: tartree.Options{As: "c"}},
		{name: "As leads out", tar: with(file("a", "x")), opt: tartree.Options{As: ".."}, wantErr: unsafe},
		{name: "As with a slash", tar: with(file("a", "x")), opt: tartree.Options{As: "../canary"}, wantErr: unsafe},
		{name: "As and a link under the old name", tar: aim(symlink("a", "OUT"), file("a/canary", "x")), opt: tartree.Options{As: "b"}, wantErr: unsafe},
	}
}

// badPAX is a tar whose first entry has a PAX header with these records.
func badPAX(t testing.TB, records string) []byte {
	t.Helper()
	b := pack(t, e{name: "PaxHeaders/x", kind: tar.TypeReg, body: records})
	b = header(b, 156, "x")
	return append(b[:512+(len(records)+511)/512*512], pack(t, file("x", "x"))...)
}

func paxBomb(t *testing.T) []byte {
	t.Helper()
	return badPAX(t, strings.Repeat("x", 2<<20))
}

// sparseBomb is a sparse file (GNU, in PAX form 0.1) of 1 TiB without any data.
func sparseBomb(t *testing.T) []byte {
	t.Helper()
	records := ""
	for _, r := range []string{"GNU.sparse.size=1099511627776", "GNU.sparse.numblocks=1", "GNU.sparse.map=1099511627776,0", "size=0"} {
		records += fmt.Sprintf("%d %s\n", len(r)+4, r) // all lengths have two digits
	}
	b := badPAX(t, records)
	return append(b[:512+(len(records)+511)/512*512], pack(t, file("x", ""))...)
}

func TestNothingLeavesTheDirectory(t *testing.T) {
	t.Parallel()
	tests := hostiles()
	if len(tests) < 40 {
		t.Errorf("only %d hostile tars", len(tests))
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			base := t.TempDir()
			in, out := filepath.Join(base, "in"), filepath.Join(base, "out")
			for _, d := range []string{in, out} {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			canary := filepath.Join(out, "canary")
			if err := os.WriteFile(canary, []byte("alive"), 0o600); err != nil {
				t.Fatal(err)
			}
			if tt.before != nil {
				tt.before(t, in)
			}
			o := tt.opt
			o.Foreign = true
			_, err := tartree.Unpack(t.Context(), in, bytes.NewReader(tt.tar(t, out)), o)
			if tt.ok != (err == nil) {
				t.Errorf("Unpack: %v, want ok=%t", err, tt.ok)
			}
			if tt.wantErr != nil && !errors.Is(err, tt.wantErr) {
				t.Errorf("Unpack: %v, want %v", err, tt.wantErr)
			}
			if tt.has != "" {
				if _, err := os.Lstat(filepath.Join(in, tt.has)); err != nil {
					t.Errorf("after Unpack: %v", err)
				}
			}
			checkOutside(t, base, canary)
			checkInside(t, in)
		})
	}
}

// checkOutside fails if anything beside the directory has changed.
func checkOutside(t *testing.T, base, canary string) {
	t.Helper()
	for dir, want := range map[string]string{base: "in out", filepath.Dir(canary): "canary"} {
		list, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range list {
			names = append(names, e.Name())
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("in %s there is %q, want %q", filepath.Base(dir), got, want)
		}
	}
	fi, err := os.Lstat(canary)
	if err != nil || fi.Mode() != 0o600 {
		t.Errorf("canary: %v, %v", fi, err)
	}
	if b, _ := os.ReadFile(canary); string(b) != "alive" {
		t.Errorf("the canary says %q", b)
	}
	var got [2]os.FileInfo
	got[0], _ = os.Stat(canary)
	if n := nlink(got[0]); n != 1 {
		t.Errorf("the canary has %d names, want 1", n)
	}
}

// checkInside fails if there are devices or set-id bits.
func checkInside(t *testing.T, in string) {
	t.Helper()
	err := filepath.WalkDir(in, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		if fi.Mode()&(os.ModeDevice|os.ModeNamedPipe|os.ModeSetuid|os.ModeSetgid|os.ModeSticky) != 0 {
			t.Errorf("%s has mode %v", p, fi.Mode())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func FuzzUnpack(f *testing.F) {

	f.Add(pack(f, file("a/b", "x"), symlink("l", "a"), hardlink("h", "a/b"), dir("d")))
	f.Add(badPAX(f, "18 path=../canary\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		base := t.TempDir()
		dir := filepath.Join(base, "in")
		_, _ = tartree.Unpack(t.Context(), dir, bytes.NewReader(in), tartree.Options{Foreign: true, MaxBytes: 1 << 20, MaxEntries: 100})
		list, err := os.ReadDir(base)
		if err != nil || len(list) > 1 {
			t.Errorf("beside the directory: %v, %v", list, err)
		}
	})
}
