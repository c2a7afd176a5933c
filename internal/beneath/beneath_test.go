package beneath_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"banger/internal/beneath"
	"banger/internal/testneed"

	"golang.org/x/sys/unix"
)

// tree makes dir/a/b/file, and links of every kind beside it.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, err := range []error{
		os.MkdirAll(dir+"/a/b", 0o755),
		os.WriteFile(dir+"/a/b/file", []byte("right"), 0o644),
		os.WriteFile(dir+"/outside", []byte("wrong"), 0o644),
		os.Symlink("file", dir+"/a/b/link"),
		os.Symlink("b", dir+"/a/dirlink"),
		os.Symlink(dir, dir+"/a/b/up"),
		os.Symlink("/proc/self/fd/0", dir+"/a/magic"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestOpen(t *testing.T) {
	dir := tree(t)
	for _, path := range []string{"a/b/file", "outside", "a"} {
		f, err := beneath.Open(dir, path)
		if err != nil {
			t.Errorf("Open(%q) = %v", path, err)
			continue
		}
		got, err1 := f.Stat()
		want, err2 := os.Lstat(filepath.Join(dir, path))
		if err := errors.Join(err1, err2); err != nil || !os.SameFile(got, want) {
			t.Errorf("Open(%q) opened another file (%v)", path, err)
		}
		f.Close()
	}
	for path, want := range map[string]string{
		"a/b/link":       "it is a link",
		"a/dirlink":      "it is a link",
		"a/magic":        "it is a link",
		"a/dirlink/file": "it is a link",
		"a/b/up/outside": "it is a link",
		"a/b/file/x":     "not a directory",
		"a/none":         "no such file",
		"":               "no plain",
		"..":             "no plain",
		"a/../outside":   "no plain",
		"/etc/passwd":    "no plain",
		"a//b/file":      "no plain",
		"a/./b":          "no plain",
		"a/":             "no plain",
	} {
		if f, err := beneath.Open(dir, path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open(%q) = %v, %v; want %q", path, f, err, want)
		}
	}
	if _, err := beneath.Open(dir+"/none", "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open() below nothing = %v", err)
	}
}

// A walk leaves no descriptor behind, whether it ends well or not.
func TestOpenLeaksNothing(t *testing.T) {
	dir := tree(t)
	before := fds(t)
	for range 100 {
		for _, path := range []string{"a/b/file", "a/b/link", "a/none", "a/dirlink/file"} {
			if f, err := beneath.Open(dir, path); err == nil {
				f.Close()
			}
		}
		_ = beneath.Program(dir + "/a/b/file")
	}
	if after := fds(t); after != before {
		t.Errorf("%d descriptors are open, %d were before", after, before)
	}
}

func fds(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// While somebody swaps a directory and a file for links as fast as can be, a
// walk arrives at the right file or at an error, never elsewhere.
func TestOpenAgainstSwaps(t *testing.T) {
	dir := tree(t)
	if err := os.MkdirAll(dir+"/evil", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/evil/file", []byte("wrong"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir+"/evil", dir+"/bad"); err != nil {
		t.Fatal(err)
	}
	want, err := os.Lstat(dir + "/a/b/file")
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var swapper sync.WaitGroup
	swapper.Go(func() {
		for {
			select {
			case <-stop:
				return
			default: // a/b and the link to evil change places, in one step
				_ = unix.Renameat2(unix.AT_FDCWD, dir+"/a/b", unix.AT_FDCWD, dir+"/bad", unix.RENAME_EXCHANGE)
			}
		}
	})
	right, refused := 0, 0
	for range 20_000 {
		f, err := beneath.Open(dir, "a/b/file")
		if err != nil {
			refused++
			continue
		}
		if got, err := f.Stat(); err != nil || !os.SameFile(got, want) {
			t.Fatalf("a walk arrived at another file (%v)", err)
		}
		f.Close()
		right++
	}
	close(stop)
	swapper.Wait()
	if right == 0 || refused == 0 {
		t.Errorf("%d walks arrived and %d were refused: the race was not run", right, refused)
	}
}

func TestProgram(t *testing.T) {
	testneed.Root(t)
	// Below / itself: a temporary directory has sticky, writable parents.
	top, err := os.MkdirTemp("/opt", "beneath")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	at := top + "/d/program"
	fresh := func(t *testing.T) {
		t.Helper()
		err := errors.Join(os.Chmod(top, 0o755), os.RemoveAll(top+"/d"), os.Mkdir(top+"/d", 0o755), os.WriteFile(at, []byte("x"), 0o755))
		if err != nil {
			t.Fatal(err)
		}
	}
	fresh(t)
	if err := beneath.Program(at); err != nil {
		t.Fatalf("Program() of root's own = %v", err)
	}
	for name, tt := range map[string]struct {
		spoil func() error
		want  string
	}{
		"the file is another's":     {func() error { return os.Chown(at, 1000, 0) }, "belongs to uid 1000"},
		"its directory is":          {func() error { return os.Chown(top+"/d", 1000, 0) }, "d belongs to uid 1000"},
		"a group may write it":      {func() error { return os.Chmod(at, 0o775) }, "mode 0775"},
		"all may write it":          {func() error { return os.Chmod(at, 0o757) }, "mode 0757"},
		"all may add names":         {func() error { return os.Chmod(top+"/d", 0o777) }, "d can be written"},
		"all may, and it is sticky": {func() error { return os.Chmod(top+"/d", 0o777|os.ModeSticky) }, "d can be written"},
		"a group may add names":     {func() error { return os.Chmod(top+"/d", 0o775) }, "d can be written"},
		"nobody may execute it":     {func() error { return os.Chmod(at, 0o644) }, "no executable"},
		"it is a link": {func() error {
			return errors.Join(os.Rename(at, at+"2"), os.Symlink(at+"2", at))
		}, "it is a link"},
		"its directory is a link": {func() error {
			return errors.Join(os.Rename(top+"/d", top+"/e"), os.Symlink("e", top+"/d"))
		}, "it is a link"},
		"it is a directory": {func() error { return errors.Join(os.Remove(at), os.Mkdir(at, 0o755)) }, "no executable"},
		"it is not there":   {func() error { return os.Remove(at) }, "no such file"},
	} {
		fresh(t)
		if err := tt.spoil(); err != nil {
			t.Fatal(err)
		}
		if err := beneath.Program(at); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Program() = %v, want %q", name, err, tt.want)
		}
		os.RemoveAll(top + "/e")
	}
	fresh(t)
	if err := os.Chmod(top+"/d", 0o775|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if err := beneath.Program(at); err != nil {
		t.Errorf("Program() in a sticky directory of a group's = %v", err)
	}
	for _, path := range []string{"opt/x", "/opt/../bin/sh", "/opt//x", "/", ""} {
		if err := beneath.Program(path); err == nil {
			t.Errorf("Program(%q) = nil", path)
		}
	}
}
