package tartree_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/tartree"
)

// Who copies one thing into a directory gets that thing, and nothing beside it,
// whatever the other end sends.
func TestTopIsTheOnlyTopEntry(t *testing.T) {
	for _, tt := range []struct {
		name string
		tar  []byte
		as   string
		ok   bool
	}{
		{"what was asked for", pack(t, dir("log"), file("log/a", "x")), "", true},
		{"and renamed", pack(t, dir("log"), file("log/a", "x")), "logs", true},
		{"without an entry of its own", pack(t, file("./log/a", "x")), "", true},
		{"into a directory that is there", pack(t, file("log", "x")), "there", true},
		{"something else", pack(t, file(".bashrc", "evil")), "", false},
		{"something else, renamed", pack(t, file(".bashrc", "evil")), "logs", false},
		{"something else, into a directory", pack(t, file(".bashrc", "evil")), "there", false},
		{"something beside it", pack(t, dir("log"), file("x/y", "evil")), "", false},
		{"the directory itself", pack(t, dir("./"), file("log", "x")), "", false},
		{"a link to what is there", pack(t, file("log", "x"), hardlink("log", ".profile")), "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := t.TempDir()
			if err := os.Mkdir(filepath.Join(in, "there"), 0o755); err != nil {
				t.Fatal(err)
			}
			_, err := tartree.Unpack(t.Context(), in, bytes.NewReader(tt.tar), tartree.Options{Foreign: true, Top: "log", As: tt.as})
			if tt.ok != (err == nil) || err != nil && !errors.Is(err, tartree.ErrUnsafe) {
				t.Errorf("Unpack() = %v, want success %v", err, tt.ok)
			}
			for _, name := range []string{".bashrc", "there/.bashrc", "x"} {
				if _, err := os.Lstat(filepath.Join(in, name)); err == nil {
					t.Errorf("there is a %s now", name)
				}
			}
		})
	}
	for path, want := range map[string]string{"/var/log": "log", "/var/log/": "log", "/": "rootfs", ".": "rootfs", "a": "a"} {
		if got := tartree.NameOf(path); got != want {
			t.Errorf("NameOf(%q) = %q, want %q", path, got, want)
		}
	}
}

// An old GNU header of a file that is one hole of 4 EiB.
func TestHolesEndWithTheContext(t *testing.T) {
	bomb := pack(t, file("bomb", ""))
	header(bomb, 156, "S")
	header(bomb, 257, "ustar  \x00")
	bomb = header(bomb, 483, "\x80\x00\x00\x00\x40\x00\x00\x00\x00\x00\x00\x00")
	in := t.TempDir()
	if _, err := tartree.Unpack(t.Context(), in, bytes.NewReader(bomb), tartree.Options{Foreign: true, MaxBytes: 1 << 40}); !errors.Is(err, tartree.ErrLimit) {
		t.Errorf("Unpack() of it with a limit = %v, want ErrLimit", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := tartree.Unpack(ctx, in, bytes.NewReader(bomb), tartree.Options{Foreign: true})
		ended <- err
	}()
	late, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Unpack() = %v, want the context's error", err)
		}
	case <-late.Done():
		t.Fatal("Unpack() goes on although its context has ended")
	}
	if _, err := os.Lstat(filepath.Join(in, "bomb")); err == nil {
		t.Error("half of the file was left")
	}
}

// What a guest sends is not to be written by others on the host, unless the
// user's umask says so.
func TestForeignKeepsToTheUmask(t *testing.T) {
	old := syscall.Umask(0o027)
	defer syscall.Umask(old)
	in := t.TempDir()
	b := pack(t, e{name: "d", kind: '5', mode: 0o777}, e{name: "d/f", kind: '0', body: "x", mode: 0o4777})
	if _, err := tartree.Unpack(t.Context(), in, bytes.NewReader(b), tartree.Options{Foreign: true}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"d", "d/f"} {
		if st, err := os.Stat(filepath.Join(in, name)); err != nil || st.Mode()&^os.ModeDir != 0o750 {
			t.Errorf("mode of %s = %v, %v; want 0750", name, st.Mode(), err)
		}
	}
}

// A tar of many directories with the longest of paths takes memory for their
// names, not for their paths: those of this one have 60 MB.
func TestLongPathsTakeLittleMemory(t *testing.T) {
	r, w := io.Pipe()
	deep := strings.Repeat(strings.Repeat("d", 250)+"/", 240)
	const many = 1000
	go func() {
		tw := tar.NewWriter(w)
		var err error
		for i := 0; i < many && err == nil; i++ {
			err = tw.WriteHeader(&tar.Header{Name: fmt.Sprint(deep, i, "/"), Typeflag: tar.TypeDir, Mode: 0o755, Format: tar.FormatPAX})
		}
		w.CloseWithError(errors.Join(err, tw.Close()))
	}()
	var most uint64
	counted := tartree.Options{Foreign: true, MaxEntries: many}
	stats, err := tartree.Unpack(t.Context(), t.TempDir(), &measured{Reader: r, most: &most}, counted)
	if err != nil || stats.Files != many {
		t.Fatalf("Unpack() = %+v, %v; want %d directories", stats, err, many)
	}
	if limit := uint64(32 << 20); most > limit {
		t.Errorf("unpacking took %d bytes of memory, want at most %d", most, limit)
	}
}

// measured notes how much memory is in use, every few megabytes.
type measured struct {
	io.Reader
	most *uint64
	n    int
}

func (m *measured) Read(b []byte) (int, error) {
	if m.n++; m.n%200 == 0 {
		var s runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&s)
		*m.most = max(*m.most, s.HeapAlloc)
	}
	return m.Reader.Read(b)
}
