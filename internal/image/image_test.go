package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"database/sql"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"banger/internal/api"
	"banger/internal/image"
	"banger/internal/store"
	"banger/internal/testneed"
)

// world is a state file, a directory for images, and who uses which.
type world struct {
	dir   string
	db    *store.Store
	users map[string][]string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{dir: t.TempDir(), users: map[string][]string{}}
	w.openDB(t)
	return w
}

func (w *world) openDB(t *testing.T) {
	t.Helper()
	db, err := store.Open(t.Context(), store.Config{Path: filepath.Join(w.dir, "state.db"), Migrations: image.Migrations(1)})
	if err != nil {
		t.Fatalf("opening the state file: %v", err)
	}
	t.Cleanup(func() { db.Close() })
	w.db = db
}

func (w *world) open(t *testing.T) *image.Store {
	t.Helper()
	s, err := image.Open(t.Context(), image.Config{
		Store: w.db, Dir: w.images(), Rebuild: w.db.Fresh(),
		Users: func(_ context.Context, _ *sql.Tx, id string) ([]string, error) { return w.users[id], nil },
	})
	if err != nil {
		t.Fatalf("Open() = %v", err)
	}
	return s
}

func (w *world) images() string { return filepath.Join(w.dir, "images") }

// clean fails the test if anything lies around but the images with these ids.
func (w *world) clean(t *testing.T, s *image.Store, ids ...string) {
	t.Helper()
	entries, err := os.ReadDir(w.images())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		if e.Name() != ".staging" {
			got = append(got, e.Name())
		}
	}
	slices.Sort(ids)
	if !slices.Equal(got, ids) {
		t.Errorf("there are %v, want %v", got, ids)
	}
	if staged, err := s.Staging(); err != nil || len(staged) != 0 {
		t.Errorf("Staging() = %v, %v; want none", staged, err)
	}
	if leaks, err := s.Leaks(t.Context()); err != nil || len(leaks) != 0 {
		t.Errorf("Leaks() = %v, %v; want none", leaks, err)
	}
}

// rootTar is a tar with these files; a name that ends in a slash is a
// directory.
func rootTar(t *testing.T, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, n := range names {
		h := &tar.Header{Name: n, Mode: 0o755, Typeflag: tar.TypeDir}
		if !strings.HasSuffix(n, "/") {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(n))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, n); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestImport(t *testing.T) {
	for name, tt := range map[string]struct {
		names []string
		init  string
	}{
		"systemd":  {[]string{"./", "usr/", "./usr/lib/systemd/systemd", "usr/sbin/init"}, "systemd"},
		"other":    {[]string{"sbin/", "sbin/init"}, "other"},
		"none":     {[]string{"bin/", "bin/sh", "sbin/init/"}, "none"},
		"dot-name": {[]string{"./lib/systemd/systemd"}, "systemd"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s := w.open(t)
			var last int64
			got, err := s.Import(t.Context(), image.Import{Name: name, Source: "import", Progress: func(n int64) { last = n }}, iotest.DataErrReader(bytes.NewReader(rootTar(t, tt.names...))))
			if err != nil {
				t.Fatalf("Import() = %v", err)
			}
			if got.Init != tt.init || got.Name != name || len(got.ID) != 64 || got.Bytes == 0 || got.Created.IsZero() {
				t.Errorf("Import() = %+v, want init %q", got, tt.init)
			}
			if last == 0 {
				t.Log("no progress was told of so small a tar")
			}
			found, err := s.Find(t.Context(), got.ID[:6])
			if err != nil || found.ID != got.ID || found.Name != got.Name {
				t.Errorf("Find(%q) = %+v, %v", got.ID[:6], found, err)
			}
			f, err := s.OpenFile(got.ID)
			if err != nil {
				t.Fatalf("OpenFile() = %v", err)
			}
			defer f.Close()
			if out, err := exec.CommandContext(t.Context(), testneed.Tool(t, "e2fsck"), "-fn", f.Name()).CombinedOutput(); err != nil {
				t.Errorf("e2fsck: %v\n%s", err, out)
			}
			w.clean(t, s, got.ID)
		})
	}
}

func TestImportRefusesAndLeavesNothing(t *testing.T) {
	whole := rootTar(t, "bin/", "bin/sh")
	cut := errors.New("connection cut")
	for name, tt := range map[string]struct {
		imp  image.Import
		r    io.Reader
		code api.Code
		say  string
	}{
		"a bad name":              {image.Import{Name: "../x"}, bytes.NewReader(whole), api.Invalid, "name"},
		"no tar":                  {image.Import{Name: "a"}, strings.NewReader(strings.Repeat("no tar ", 1000)), api.Invalid, "not a tar"},
		"nothing":                 {image.Import{Name: "a"}, strings.NewReader(""), api.Invalid, "not whole"},
		"an empty tar":            {image.Import{Name: "a"}, bytes.NewReader(rootTar(t)), api.Invalid, "empty"},
		"a tar cut off":           {image.Import{Name: "a"}, bytes.NewReader(whole[:700]), api.Invalid, "not whole"},
		"no end marker":           {image.Import{Name: "a"}, bytes.NewReader(whole[:len(whole)-1024]), api.Invalid, "not whole"},
		"a sender that dies late": {image.Import{Name: "a"}, io.MultiReader(bytes.NewReader(whole), iotest.ErrReader(cut)), api.Internal, "connection cut"},
		"more than the disk has":  {image.Import{Name: "a", Need: 1 << 60}, bytes.NewReader(whole), api.NoSpace, "images has no room"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s := w.open(t)
			_, err := s.Import(t.Context(), tt.imp, tt.r)
			if err == nil || api.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("Import() = %v (%s), want %s and %q", err, api.CodeOf(err), tt.code, tt.say)
			}
			if is, err := s.List(t.Context()); err != nil || len(is) != 0 {
				t.Errorf("List() = %v, %v; want none", is, err)
			}
			w.clean(t, s)
		})
	}
}

func TestImportEndsWithItsContext(t *testing.T) {
	w := newWorld(t)
	s := w.open(t)
	gone := errors.New("the sender has gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	r := io.MultiReader(bytes.NewReader(rootTar(t, "a", "b")), readFunc(func([]byte) (int, error) { cancel(gone); return 0, io.EOF }))
	if _, err := s.Import(ctx, image.Import{Name: "a"}, r); !errors.Is(err, gone) {
		t.Errorf("Import() = %v, want %v", err, gone)
	}
	w.clean(t, s)
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

func mustImport(t *testing.T, s *image.Store, imp image.Import, names ...string) api.Image {
	t.Helper()
	im, err := s.Import(t.Context(), imp, bytes.NewReader(rootTar(t, names...)))
	if err != nil {
		t.Fatalf("Import(%+v) = %v", imp, err)
	}
	return im
}

func TestNameMovesOnWhileVMsUseTheOldImage(t *testing.T) {
	w := newWorld(t)
	s := w.open(t)
	old := mustImport(t, s, image.Import{Name: "deb"}, "old")
	if _, err := s.Import(t.Context(), image.Import{Name: "deb"}, bytes.NewReader(rootTar(t, "new"))); api.CodeOf(err) != api.Exists {
		t.Errorf("Import() over a name = %v, want exists", err)
	}
	w.clean(t, s, old.ID)
	w.users[old.ID] = []string{"web"}
	now := mustImport(t, s, image.Import{Name: "deb", Replace: true}, "new")
	w.clean(t, s, old.ID, now.ID)
	f, err := s.OpenFile(old.ID)
	if err != nil {
		t.Fatalf("OpenFile() of the image that web uses = %v", err)
	}
	f.Close()
	err = w.db.Tx(t.Context(), func(tx *sql.Tx) error {
		if err := s.Claim(t.Context(), tx, now.ID); err != nil {
			t.Errorf("Claim() of the new image = %v", err)
		}
		return s.Claim(t.Context(), tx, old.ID)
	})
	if api.CodeOf(err) != api.Conflict {
		t.Errorf("Claim() of the old image = %v, want conflict: it may go any time", err)
	}
	delete(w.users, old.ID)
	if err := s.Sweep(t.Context()); err != nil {
		t.Errorf("Sweep() = %v", err)
	}
	w.clean(t, s, now.ID)
	if _, err := s.OpenFile(old.ID); api.CodeOf(err) != api.NotFound {
		t.Errorf("OpenFile() of a swept image = %v, want not_found", err)
	}
}

func TestDelete(t *testing.T) {
	w := newWorld(t)
	s := w.open(t)
	im := mustImport(t, s, image.Import{Name: "deb"}, "x")
	mustImport(t, s, image.Import{Name: "same"}, "x") // the same tar under two names
	w.users[im.ID] = []string{"db", "web"}
	if _, err := s.Delete(t.Context(), "same"); err != nil {
		t.Errorf("Delete() of one of two names = %v", err)
	}
	_, err := s.Delete(t.Context(), "deb")
	if api.CodeOf(err) != api.Conflict || !strings.Contains(err.Error(), "db, web") {
		t.Errorf("Delete() of an image in use = %v, want a conflict that names db and web", err)
	}
	w.clean(t, s, im.ID)
	w.users = map[string][]string{}
	if got, err := s.Delete(t.Context(), im.ID[:8]); err != nil || got.Name != "deb" {
		t.Errorf("Delete() by id = %+v, %v", got, err)
	}
	if _, err := s.Delete(t.Context(), "deb"); api.CodeOf(err) != api.NotFound {
		t.Errorf("second Delete() = %v, want not_found", err)
	}
	w.clean(t, s)
}

func TestStateFileIsMadeAgain(t *testing.T) {
	w := newWorld(t)
	s := w.open(t)
	im := mustImport(t, s, image.Import{Name: "deb", Source: "import"}, "x")
	w.db.Close()
	if err := os.Remove(filepath.Join(w.dir, "state.db")); err != nil {
		t.Fatal(err)
	}
	w.openDB(t)
	s = w.open(t)
	if got, err := s.Find(t.Context(), "deb"); err != nil || got.ID != im.ID || got.Source != "import" {
		t.Errorf("Find() after the state file was lost = %+v, %v", got, err)
	}
	w.clean(t, s, im.ID)
}

// A disk that fills up in the middle.
func TestFullDisk(t *testing.T) {
	testneed.Root(t)
	w := newWorld(t)
	mount := testneed.Tool(t, "mount")
	if err := os.Mkdir(w.images(), 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), mount, "-t", "tmpfs", "-o", "size=80m", "banger-test", w.images()).CombinedOutput(); err != nil {
		testneed.Missing(t, "the right to mount a tmpfs ("+strings.TrimSpace(string(out))+")")
	}
	t.Cleanup(func() {
		if out, err := exec.CommandContext(context.WithoutCancel(t.Context()), "umount", w.images()).CombinedOutput(); err != nil {
			t.Errorf("umount: %v %s", err, out)
		}
	})
	s := w.open(t)
	var sent atomic.Int64
	r, p := io.Pipe()
	go func() {
		tw := tar.NewWriter(p)
		err := tw.WriteHeader(&tar.Header{Name: "big", Mode: 0o644, Size: 100 << 20})
		block := bytes.Repeat([]byte("x"), 1<<20)
		for i := 0; err == nil && i < 100; i++ {
			_, err = tw.Write(block)
			sent.Add(1 << 20)
		}
		p.CloseWithError(errors.Join(err, tw.Close()))
	}()
	_, err := s.Import(t.Context(), image.Import{Name: "big"}, r)
	r.Close()
	if sent.Load() > 40<<20 {
		t.Errorf("the import took %d MiB of 80: nothing was left for VMs that run", sent.Load()>>20)
	}
	if api.CodeOf(err) != api.NoSpace || !strings.Contains(err.Error(), w.images()) {
		t.Errorf("Import() onto a full disk = %v (%s), want no_space that names %s", err, api.CodeOf(err), w.images())
	}
	w.clean(t, s)
	mustImport(t, s, image.Import{Name: "small"}, "x")
}
