package ext4

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/testneed"
)

// hostTree makes a directory for mke2fs to copy.
func hostTree(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	long := filepath.Join(root, "many")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(long, 0o750))
	for i := range 900 {
		must(os.WriteFile(filepath.Join(long, fmt.Sprintf("name-number-%d", i)), []byte(strings.Repeat("c", i*3)), 0o640))
	}
	must(os.Symlink("many", filepath.Join(root, "fast")))
	must(os.Symlink(strings.Repeat("x/", 90), filepath.Join(root, "slow")))
	must(os.WriteFile(filepath.Join(root, "one"), []byte("1"), 0o600))
	must(os.Link(filepath.Join(root, "one"), filepath.Join(root, "uno")))
	must(syscall.Mkfifo(filepath.Join(root, "fifo"), 0o622))
	big, err := os.Create(filepath.Join(root, "holes"))
	must(err)
	for i := range int64(12) {
		_, err = big.WriteAt([]byte("data"), i<<20)
		must(err)
	}
	must(big.Close())
	must(syscall.Setxattr(filepath.Join(root, "one"), "user.k", []byte("v"), 0))
	return root
}

// hostListing describes a directory of the host as listing does an image.
func hostListing(t *testing.T, root string) map[string]string {
	t.Helper()
	got, first := map[string]string{}, map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return err
		}
		if first[st.Ino] == "" {
			first[st.Ino] = rel
		}
		e := Entry{Mode: uint16(st.Mode), UID: st.Uid, GID: st.Gid, Links: int(st.Nlink), Size: st.Size, Xattrs: map[string][]byte{}}
		content := ""
		switch e.Mode & modeType {
		case modeDir:
			e.Links = 2
			subs, _ := os.ReadDir(path)
			for _, s := range subs {
				if s.IsDir() {
					e.Links++
				}
			}
		case modeLink:
			e.Target, _ = os.Readlink(path)
		case modeFile:
			p, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(p)
			content = string(sum[:])
		}
		if rel == "one" || rel == "uno" {
			e.Xattrs["user.k"] = []byte("v")
		}
		got[rel] = describe(e, first[st.Ino], content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// TestReadMke2fs reads what somebody else wrote: without it, Write and Walk
// could share a mistake.
func TestReadMke2fs(t *testing.T) {
	mke2fs := testneed.Tool(t, "mke2fs")
	root := hostTree(t)
	want := hostListing(t, root)
	for _, args := range []string{"-t ext4", "-t ext4 -b 1024", "-t ext4 -I 128 -O ^64bit,^metadata_csum", "-t ext4 -O ^has_journal,^flex_bg"} {
		t.Run(args, func(t *testing.T) {
			f := tempFile(t)
			argv := append(strings.Fields(args), "-q", "-F", "-d", root, f.Name(), "64M")
			if out, err := exec.CommandContext(t.Context(), mke2fs, argv...).CombinedOutput(); err != nil {
				t.Fatalf("mke2fs: %v\n%s", err, out)
			}
			got := listing(t, f)
			delete(got, "lost+found")
			withoutTimes := cmp.Transformer("times", func(m map[string]string) map[string]string {
				out := map[string]string{}
				for k, v := range m {
					if k == "." { // mke2fs -d leaves the root to itself
						continue
					}
					a, rest, _ := strings.Cut(v, " mtime=")
					_, b, _ := strings.Cut(rest, " ")
					out[k] = a + " " + b
				}
				return out
			})
			if diff := cmp.Diff(want, got, cmp.FilterPath(func(p cmp.Path) bool { return len(p) == 1 }, withoutTimes)); diff != "" {
				t.Errorf("tree (-want +got):\n%.3000s", diff)
			}
		})
	}
	t.Run("ext2", func(t *testing.T) {
		f := tempFile(t)
		if out, err := exec.CommandContext(t.Context(), mke2fs, "-t", "ext2", "-q", "-F", f.Name(), "8M").CombinedOutput(); err != nil {
			t.Fatalf("mke2fs: %v\n%s", err, out)
		}
		fs, err := Open(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := fs.Walk(func(string, Entry) error { return nil }); !errors.Is(err, ErrUnsupported) {
			t.Errorf("got error %v, want ErrUnsupported", err)
		}
	})
}

func TestOpenFile(t *testing.T) {
	img, _ := write(t, bytes.NewReader(tarOf(t, file("d/f", "hello, world"), symlink("l", "d"))), Options{})
	f, err := Open(img)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"d/f", "/d/f", "./d//f"} {
		r, err := f.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := io.ReadAll(r); string(p) != "hello, world" || err != nil || r.Size() != 12 {
			t.Errorf("%s: got %q (%v)", path, p, err)
		}
	}
	for _, path := range []string{"x", "d/x", "d/f/x", "l/f"} {
		if _, err := f.Open(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: got error %v, want fs.ErrNotExist", path, err)
		}
	}
	for _, path := range []string{"", "d", "l", "d/../d/f"} {
		if _, err := f.Open(path); err == nil {
			t.Errorf("%s: was opened", path)
		}
	}
	stop := errors.New("stop")
	if err := f.Walk(func(string, Entry) error { return stop }); err != stop {
		t.Errorf("Walk: got error %v, want visit's own", err)
	}
}

// TestReadDamage flips bytes in the metadata of an image, one at a time: reading may
// fail or give other names, but ends and does not panic.
func TestReadDamage(t *testing.T) {
	img, _ := write(t, bytes.NewReader(tarOf(t, randomItems(3, 25)...)), Options{MaxBytes: 64 << 20})
	good, err := os.ReadFile(img.Name())
	if err != nil {
		t.Fatal(err)
	}
	failed := 0
	for i := superOffset; i < len(good); i++ {
		if good[i] == 0 || i > 8192 && i < len(good)-1<<16 {
			continue
		}
		bit := byte(1 << (i % 8))
		good[i] ^= bit
		if exercise(good) != nil {
			failed++
		}
		good[i] ^= bit
		i += i % 13
	}
	if failed == 0 {
		t.Error("no damage was noticed")
	}
	for _, n := range []int{0, 1024, 1500, 2048, 4096, 65536, len(good) - 1} {
		if _, err := Open(bytes.NewReader(good[:n])); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut to %d bytes: got error %v, want ErrCorrupt", n, err)
		}
	}
}

// exercise reads all of an image, up to a limit a file.
func exercise(image []byte) error {
	f, err := Open(bytes.NewReader(image))
	if err != nil {
		return err
	}
	opened := 0
	return f.Walk(func(path string, e Entry) error {
		if e.Mode&modeType != modeFile || opened > 50 {
			return nil
		}
		opened++
		r, err := f.Open(path)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, io.LimitReader(r, 1<<20))
		return err
	})
}
