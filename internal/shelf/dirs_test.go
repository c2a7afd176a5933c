package shelf_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"banger/internal/api"
	"banger/internal/shelf"
)

var (
	idA = strings.Repeat("a", 64)
	idB = strings.Repeat("b", 64)
)

func openDirs(t *testing.T) *shelf.Dirs {
	t.Helper()
	s, err := shelf.OpenDirs(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatalf("Open() = %v", err)
	}
	return s
}

// put stages a directory with one file and puts it in place.
func put(t *testing.T, s *shelf.Dirs, id, content string) {
	t.Helper()
	g, err := s.Stage()
	if err != nil {
		t.Fatalf("Stage() = %v", err)
	}
	f, err := g.Create("file")
	if err != nil {
		t.Fatalf("Create() = %v", err)
	}
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if ids, _ := s.IDs(); slices.Contains(ids, id) && content != "again" {
		t.Errorf("IDs() = %v before Put", ids)
	}
	if _, err := g.Put(id); err != nil {
		t.Fatalf("Put() = %v", err)
	}
	if err := g.Discard(); err != nil {
		t.Fatalf("Discard() = %v", err)
	}
}

func TestPutAndRemove(t *testing.T) {
	s := openDirs(t)
	put(t, s, idA, "first")
	put(t, s, idA, "again") // the same digest: the first one stays
	put(t, s, idB, "second")
	if b, err := os.ReadFile(s.Path(idA, "file")); string(b) != "first" {
		t.Errorf("content of the first = %q, %v", b, err)
	}
	if got, err := s.IDs(); err != nil || !slices.Equal(got, []string{idA, idB}) {
		t.Errorf("IDs() = %v, %v", got, err)
	}
	if used, err := s.Used(idA); err != nil || used != 4096 {
		t.Errorf("Used() = %d, %v; want a block", used, err)
	}
	for range 2 {
		if err := s.Remove(idA); err != nil {
			t.Errorf("Remove() = %v", err)
		}
	}
	if s.Has(idA) || !s.Has(idB) {
		t.Errorf("Has() = %t, %t after removing the first", s.Has(idA), s.Has(idB))
	}
	if got, err := s.Staged(); err != nil || len(got) != 0 {
		t.Errorf("Staged() = %v, %v; want none", got, err)
	}
}

func TestOpenRemovesWhatACrashLeft(t *testing.T) {
	s := openDirs(t)
	put(t, s, idA, "kept")
	g, err := s.Stage()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(g.Path("half"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Staged(); err != nil || len(got) != 1 {
		t.Errorf("Staged() = %v, %v; want one", got, err)
	}
	again, err := shelf.OpenDirs(s.Dir())
	if err != nil {
		t.Fatalf("Open() = %v", err)
	}
	if got, err := again.Staged(); err != nil || len(got) != 0 {
		t.Errorf("Staged() = %v, %v after Open; want none", got, err)
	}
	if !again.Has(idA) {
		t.Error("Open() removed what was complete")
	}
}

func TestNamesAreDigests(t *testing.T) {
	s := openDirs(t)
	for _, id := range []string{"", "..", "x", strings.Repeat("A", 64), ".staging", "../" + idA[3:]} {
		g, err := s.Stage()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.Put(id); err == nil {
			t.Errorf("Put(%q) succeeded", id)
		}
		if err := g.Discard(); err != nil {
			t.Error(err)
		}
		if err := s.Remove(id); err == nil {
			t.Errorf("Remove(%q) succeeded", id)
		}
		if s.Has(id) {
			t.Errorf("Has(%q)", id)
		}
	}
	if err := os.Mkdir(filepath.Join(s.Dir(), "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Strays(); err != nil || !slices.Equal(got, []string{filepath.Join(s.Dir(), "lost+found")}) {
		t.Errorf("Strays() = %v, %v", got, err)
	}
}

func TestRoomNamesTheDirectory(t *testing.T) {
	s := openDirs(t)
	if err := s.Room(1); err != nil {
		t.Errorf("Room(1) = %v", err)
	}
	for _, err := range []error{s.Room(1 << 60), s.Explain(&os.PathError{Op: "write", Err: syscall.ENOSPC}, 5<<30)} {
		if api.CodeOf(err) != api.NoSpace || !strings.Contains(err.Error(), s.Dir()) || !strings.Contains(err.Error(), "needed") {
			t.Errorf("a full disk is told as %q (%s)", err, api.CodeOf(err))
		}
	}
	if err := s.Explain(os.ErrPermission, 1); err != os.ErrPermission {
		t.Errorf("Explain() of another error = %v", err)
	}
}

func TestRacingPutsAndRemoves(t *testing.T) {
	s := openDirs(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				put(t, s, idA, "again")
				if err := s.Remove(idA); err != nil {
					t.Errorf("Remove() = %v", err)
				}
			}
		})
	}
	wg.Wait()
	if got, err := s.Staged(); err != nil || len(got) != 0 {
		t.Errorf("Staged() = %v, %v; want none", got, err)
	}
}
