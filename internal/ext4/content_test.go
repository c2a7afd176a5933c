package ext4

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// pattern is content that needs no memory: zeros, but for one block of bytes
// at the start of every stride.
type pattern struct{ size, stride int64 }

func (p pattern) ReadAt(b []byte, off int64) (int, error) {
	if off >= p.size {
		return 0, io.EOF
	}
	b = b[:min(int64(len(b)), p.size-off)]
	clear(b)
	for i := 0; i < len(b); {
		in := (off + int64(i)) % p.stride
		if in >= blockSize {
			i += int(p.stride - in)
			continue
		}
		b[i] = byte(1 + (off+int64(i))/p.stride%251)
		i++
	}
	return len(b), nil
}

// tarOfPattern streams a tar with one file.
func tarOfPattern(t *testing.T, p pattern) io.Reader {
	t.Helper()
	var head bytes.Buffer
	w := tar.NewWriter(&head)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o600, Size: p.size, ModTime: time.Unix(5, 0)}); err != nil {
		t.Fatal(err)
	}
	tail := make([]byte, (512-p.size%512)%512+1024)
	return io.MultiReader(&head, io.NewSectionReader(p, 0, p.size), bytes.NewReader(tail))
}

func TestWriteLargeFiles(t *testing.T) {
	for _, c := range []struct {
		name string
		pattern
		depth string // of the extent tree, as debugfs shows it
		used  int64  // at most
	}{
		{"more than 4 GiB", pattern{5<<30 + 123, 1 << 30}, "0/ 1", 2 << 20},
		{"two levels", pattern{64<<20 - 1, 64 << 10}, "0/ 1", 8 << 20},
		{"three levels", pattern{512 << 20, 256 << 10}, "0/ 2", 12 << 20},
		{"one hole", pattern{1 << 30, 1 << 30}, "0/ 0", 1 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f, info := write(t, tarOfPattern(t, c.pattern), Options{})
			if e := stat(t, f, "f"); e.Size != c.size {
				t.Errorf("got a file of %d bytes, want %d", e.Size, c.size)
			}
			fs, err := Open(f)
			if err != nil {
				t.Fatal(err)
			}
			r, err := fs.Open("f")
			if err != nil {
				t.Fatal(err)
			}
			got, want := make([]byte, 1<<20+7), make([]byte, 1<<20+7)
			for off := int64(0); off < c.size; off += int64(len(got)) {
				n, err := r.ReadAt(got, off)
				k, _ := c.ReadAt(want, off)
				if n != k || err != nil && err != io.EOF || !bytes.Equal(got[:n], want[:n]) {
					t.Fatalf("content differs after byte %d (%d bytes, want %d, error %v)", off, n, k, err)
				}
			}
			if out := debugfs(t, f, "dump_extents f"); !strings.Contains(out, c.depth) {
				t.Errorf("extents without level %q:\n%.500s", c.depth, out)
			}
			if info.Used > c.used || allocated(t, f) > c.used {
				t.Errorf("%d bytes in use, %d allocated, want at most %d", info.Used, allocated(t, f), c.used)
			}
		})
	}
}

func TestWriteHoles(t *testing.T) {
	z := func(blocks int) string { return strings.Repeat("\x00", blocks*blockSize) }
	x := strings.Repeat("x", blockSize)
	for _, c := range []struct {
		name, body string
		blocks     int // of data
	}{
		{"empty", "", 0},
		{"one byte", "x", 1},
		{"all zero", z(3), 0},
		{"zeros, not whole blocks", "\x00\x00", 0},
		{"short run inside", x + z(minHole-1) + x, minHole + 1},
		{"long run inside", x + z(minHole) + x, 2},
		{"at the start", z(minHole) + x, 1},
		{"short at the start", z(1) + x, 2},
		{"at the end", x + z(1), 1},
		{"across chunks", x + z(600) + x + z(3) + x[:5], 6},
		{"end in a zero tail", x + "\x00\x00", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f, _ := write(t, bytes.NewReader(tarOf(t, file("f", c.body))), Options{})
			if got := read(t, f, "f"); got != c.body {
				t.Errorf("got %d other bytes, want %d", len(got), len(c.body))
			}
			if out := debugfs(t, f, "stat f"); !strings.Contains(out, fmt.Sprintf("Blockcount: %d\n", c.blocks*sectorsPerBlk)) {
				t.Errorf("not %d blocks:\n%s", c.blocks, out)
			}
		})
	}
}

// TestWriteSparseEntry takes a tar made by hand: package tar writes no sparse
// entries.
func TestWriteSparseEntry(t *testing.T) {
	const size = 64 << 20
	data := strings.Repeat("d", 512)
	sparse := fmt.Sprintf("1\n%d\n512\n", size-512)
	it := item{tar.Header{Typeflag: tar.TypeReg, Name: "GNUSparseFile.0/f", Mode: 0o644, Format: tar.FormatPAX}, ""}
	it.body = sparse + strings.Repeat("\x00", 512-len(sparse)) + data
	var b bytes.Buffer
	records := ""
	for _, kv := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=f", fmt.Sprintf("GNU.sparse.realsize=%d", size)} {
		n := len(kv) + 3
		if n+1 > 10 {
			n++
		}
		records += fmt.Sprintf("%d %s\n", n, kv)
	}
	raw := tarOf(t, item{tar.Header{Typeflag: tar.TypeReg, Name: "pax", Mode: 0o644}, records})
	raw[156] = 'x'
	fixChecksum(raw[:512])
	b.Write(raw[:len(raw)-1024])
	b.Write(tarOf(t, it))
	sparseTar := b.Bytes()
	f, info := write(t, &b, Options{})
	e := stat(t, f, "f")
	if e.Size != size || info.Used > 1<<20 {
		t.Errorf("got %d bytes with %d in use, want %d", e.Size, info.Used, size)
	}
	if got := read(t, f, "f"); got[size-512:] != data || strings.Trim(got[:size-512], "\x00") != "" {
		t.Error("content differs")
	}
	if _, err := Write(t.Context(), bytes.NewReader(sparseTar), tempFile(t), Options{MaxBytes: 32 << 20}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got error %v for more holes than the limit, want ErrTooLarge", err)
	}
}

// fixChecksum makes an edited tar header valid again.
func fixChecksum(h []byte) {
	copy(h[148:156], "        ")
	sum := 0
	for _, c := range h[:512] {
		sum += int(c)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

func TestWriteBigDirectory(t *testing.T) {
	for _, n := range []int{300, 20_000, 120_000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			long := ""
			if n > 100_000 { // so that one level of index is not enough
				n, long = n/8, strings.Repeat("l", 230)
			}
			items := make([]item, 0, n)
			for i := range n {
				items = append(items, file(fmt.Sprintf("d/%d%s", i*i, long), ""))
			}
			rand.New(rand.NewPCG(1, 1)).Shuffle(n, func(i, j int) { items[i], items[j] = items[j], items[i] })
			f, _ := write(t, bytes.NewReader(tarOf(t, items...)), Options{})
			if got := len(listing(t, f)); got != n+2 {
				t.Errorf("got %d names, want %d", got, n+2)
			}
			if out := debugfs(t, f, "stat d"); !strings.Contains(out, "Flags: 0x81000") {
				t.Errorf("the directory has no index:\n%s", out)
			}
		})
	}
}

func TestWriteManySubdirectories(t *testing.T) {
	items := make([]item, 66_000)
	for i := range items {
		items[i] = dir(fmt.Sprintf("d/%d", i))
	}
	f, _ := write(t, bytes.NewReader(tarOf(t, items...)), Options{})
	if got := stat(t, f, "d").Links; got != 1 {
		t.Errorf("got %d links, want 1: more than ext4 counts", got)
	}
}

func TestWriteManyLinks(t *testing.T) {
	items := []item{file("f", "x")}
	for i := range maxLinks - 1 {
		items = append(items, hard(fmt.Sprintf("l%d", i), "f"))
	}
	f, _ := write(t, bytes.NewReader(tarOf(t, items...)), Options{})
	if got := stat(t, f, "f").Links; got != maxLinks {
		t.Errorf("got %d links, want %d", got, maxLinks)
	}
	_, err := Write(t.Context(), bytes.NewReader(tarOf(t, append(items, hard("more", "f"))...)), tempFile(t), Options{})
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("got error %v for one link more, want ErrTooLarge", err)
	}
}

// TestWriteMoreInodesThanBlocks makes an image that needs two groups for its
// inodes alone.
func TestWriteMoreInodesThanBlocks(t *testing.T) {
	items := make([]item, 70_000)
	for i := range items {
		items[i] = file(fmt.Sprintf("d%d/%d", i%200, i), "")
	}
	f, info := write(t, bytes.NewReader(tarOf(t, items...)), Options{})
	if got := len(listing(t, f)); got != 70_201 || info.Inodes != got {
		t.Errorf("got %d names and %d inodes, want 70201", got, info.Inodes)
	}
}

func TestDirHash(t *testing.T) {
	f, _ := write(t, bytes.NewReader(tarOf(t)), Options{})
	for _, name := range []string{"a", "lost+found", "libc.so.6", strings.Repeat("ab", 16), strings.Repeat("x", 33), strings.Repeat("name ", 51)} {
		major, minor := dirHash(name)
		want := fmt.Sprintf("is 0x%x (minor 0x%x)", major, minor)
		if out := debugfs(t, f, "dx_hash -h half_md4 \""+name+"\""); !strings.Contains(out, fmt.Sprintf("0x%x", major)) {
			t.Errorf("%q: got %s, want %s", name, out, want)
		}
	}
}

func TestHashLeavesWithCollisions(t *testing.T) {
	// No two names here collide, so equal names stand in for names that do.
	entries := make([]dirent, 40)
	for i := range entries {
		entries[i] = dirent{strings.Repeat("s", 250), uint32(20 + i), 1}
	}
	leaves := hashLeaves(entries)
	major, _ := dirHash(entries[0].name)
	for i, l := range leaves {
		want := major
		if i > 0 {
			want |= 1
		}
		if l.hash != want {
			t.Errorf("leaf %d: got hash %#x, want %#x", i, l.hash, want)
		}
	}
	if len(leaves) < 2 {
		t.Fatal("one leaf is no test")
	}
}

func TestWriteXattrs(t *testing.T) {
	acl := "\x02\x00\x00\x00" +
		"\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe8\x03\x00\x00" + "\x04\x00\x04\x00\xff\xff\xff\xff" +
		"\x08\x00\x05\x00\x64\x00\x00\x00" + "\x10\x00\x06\x00\xff\xff\xff\xff" + "\x20\x00\x04\x00\xff\xff\xff\xff"
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	for _, c := range []struct {
		name    string
		attrs   map[string]string
		drop    []string
		inBlock bool
	}{
		{"capability", map[string]string{"security.capability": capability}, nil, false},
		{"small", map[string]string{"user.a": "1", "user.bc": "", "trusted.overlay.opaque": "y"}, nil, false},
		{"access control lists", map[string]string{"system.posix_acl_access": acl, "system.posix_acl_default": acl}, nil, true},
		{"block alone", map[string]string{"user.big": strings.Repeat("v", 3900)}, nil, true},
		{"inode and block", map[string]string{"user.big": strings.Repeat("v", 200), "user.x": "small", "security.selinux": "system_u:object_r:x\x00"}, nil, true},
		{"many", map[string]string{"user.1": strings.Repeat("a", 50), "user.2": strings.Repeat("b", 51), "user.33": strings.Repeat("c", 52), "trusted.z": "zzz", "security.y": "yyyy"}, nil, true},
		{"foreign", map[string]string{"com.apple.quarantine": "q", "user.k": "v", "system.other": "x"}, []string{"com.apple.quarantine", "system.other"}, false},
		{"binary", map[string]string{"user.\xff\xfe": "\x00\x01\x02"}, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			it := item{tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o644, PAXRecords: map[string]string{}}, "body"}
			want := map[string][]byte{}
			for k, v := range c.attrs {
				it.PAXRecords[paxXattr+k] = v
				want[k] = append([]byte(nil), v...)
			}
			for _, k := range c.drop {
				delete(want, k)
			}
			d := it
			d.Typeflag, d.Name, d.body = tar.TypeDir, "d", ""
			f, info := write(t, bytes.NewReader(tarOf(t, it, d)), Options{})
			for _, path := range []string{"f", "d"} {
				if diff := cmp.Diff(want, stat(t, f, path).Xattrs, cmp.Comparer(bytes.Equal)); diff != "" {
					t.Errorf("%s (-want +got):\n%s", path, diff)
				}
			}
			if info.SkippedXattrs != 2*len(c.drop) {
				t.Errorf("got %d skipped, want %d", info.SkippedXattrs, 2*len(c.drop))
			}
			if out := debugfs(t, f, "stat f"); strings.Contains(out, "File ACL: 0\n") == c.inBlock {
				t.Errorf("in a block: %v, want %v", !c.inBlock, c.inBlock)
			}
		})
	}
}
