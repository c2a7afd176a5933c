package ext4

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/internal/testneed"
)

// item is one entry of a test's tar.
type item struct {
	tar.Header
	body string
}

// The shapes that most tests need: root's, made at second 1000.
func dir(name string) item {
	return item{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, ""}
}
func file(name, body string) item {
	return item{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, body}
}
func symlink(name, target string) item {
	return item{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, ""}
}
func hard(name, target string) item {
	return item{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}, ""}
}

func tarOf(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, it := range items {
		hdr := it.Header
		hdr.Size = int64(len(it.body))
		if hdr.ModTime.IsZero() {
			hdr.ModTime = time.Unix(1000, 0)
		}
		if hdr.PAXRecords != nil || hdr.ModTime.Nanosecond() != 0 {
			hdr.Format = tar.FormatPAX
		}
		if err := w.WriteHeader(&hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, it.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// tempFile is an empty file that goes with the test.
func tempFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// write makes a checked image of a tar.
func write(t testing.TB, in io.Reader, o Options) (*os.File, Info) {
	t.Helper()
	f := tempFile(t)
	info, err := Write(t.Context(), in, f, o)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := f.Stat(); err != nil || fi.Size() != info.Bytes {
		t.Fatalf("image has %d bytes (%v), want %d", fi.Size(), err, info.Bytes)
	}
	fsck(t, f)
	return f, info
}

// fsck fails unless e2fsck finds nothing at all to say about an image.
func fsck(t testing.TB, f *os.File) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), testneed.Tool(t, "e2fsck"), "-fn", f.Name()).CombinedOutput()
	if err != nil {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, "Pass ") && !strings.HasPrefix(line, "e2fsck ") && !strings.Contains(line, "% non-contiguous") {
			t.Errorf("e2fsck says: %s", line)
		}
	}
}

// listing describes every name in an image on a line of its own.
func listing(t testing.TB, r io.ReaderAt) map[string]string {
	t.Helper()
	f, err := Open(r)
	if err != nil {
		t.Fatal(err)
	}
	first := map[uint32]string{}
	got := map[string]string{}
	err = f.Walk(func(path string, e Entry) error {
		if first[e.Ino] == "" {
			first[e.Ino] = path
		}
		var content string
		if e.Mode&modeType == modeFile {
			_, p, err := f.entry(e.Ino)
			if err != nil {
				return err
			}
			data, err := f.data(&e, p) // Open would look for each path anew
			if err != nil {
				return err
			}
			h := sha256.New()
			if n, err := io.Copy(h, io.NewSectionReader(data, 0, e.Size)); err != nil || n != e.Size {
				return fmt.Errorf("reading %q: %d bytes of %d: %v", path, n, e.Size, err)
			}
			content = string(h.Sum(nil))
		}
		got[path] = describe(e, first[e.Ino], content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// describe is what two trees are compared by: group is the first name of the
// inode. Sizes of directories are ext4's own affair.
func describe(e Entry, group, content string) string {
	size := e.Size
	if e.Mode&modeType == modeDir {
		size = 0
	}
	var attrs []string
	for _, k := range slices.Sorted(maps.Keys(e.Xattrs)) {
		attrs = append(attrs, fmt.Sprintf("%s=%x", k, e.Xattrs[k]))
	}
	return fmt.Sprintf("%o %d:%d links=%d size=%d mtime=%d dev=%d:%d target=%q group=%q xattrs=%v content=%x",
		e.Mode, e.UID, e.GID, e.Links, size, e.Mtime.UnixNano(), e.Major, e.Minor, e.Target, group, attrs, content)
}

// read returns the content of one file.
func read(t testing.TB, r io.ReaderAt, path string) string {
	t.Helper()
	f, err := Open(r)
	if err != nil {
		t.Fatal(err)
	}
	s, err := f.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	p, err := io.ReadAll(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(p)
}

// debugfs runs one read-only command.
func debugfs(t testing.TB, f *os.File, command string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), testneed.Tool(t, "debugfs"), "-R", command, f.Name()).CombinedOutput()
	if err != nil {
		t.Fatalf("debugfs %s: %v\n%s", command, err, out)
	}
	return string(out)
}

// stat returns one entry of an image.
func stat(t testing.TB, r io.ReaderAt, path string) (found Entry) {
	t.Helper()
	f, err := Open(r)
	if err != nil {
		t.Fatal(err)
	}
	err = f.Walk(func(p string, e Entry) error {
		if p == path {
			found = e
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found.Ino == 0 {
		t.Fatalf("%q is not in the image", path)
	}
	return found
}
