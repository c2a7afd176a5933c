package files_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"banger/internal/install/files"
)

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// names lists all below dir.
func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		list = append(list, p[len(dir):])
		return err
	}))
	return list
}

func TestLook(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.WriteFile(at("same"), []byte("new"), 0o644), os.WriteFile(at("older"), []byte("old"), 0o644),
		os.WriteFile(at("changed"), []byte("other"), 0o644), os.WriteFile(at("foreign"), []byte("other"), 0o644),
		os.WriteFile(at("mode"), []byte("new"), 0o600), os.Mkdir(at("dir"), 0o755), os.Symlink("x", at("link")), os.Symlink("y", at("other-link")))
	file := func(name, data string) files.New { return files.New{Path: at(name), Mode: 0o644, Data: []byte(data)} }
	link := func(name string) files.New { return files.New{Path: at(name), Link: "x"} }
	m := files.Manifest{}.With([]files.New{file("older", "old"), file("changed", "old"), file("mode", "new"), file("absent", "old")})
	for _, tt := range []struct {
		n    files.New
		want files.State
	}{
		{file("absent", "new"), files.Absent},
		{file("same", "new"), files.Same},
		{file("older", "new"), files.Older},
		{file("changed", "new"), files.Changed},
		{file("foreign", "new"), files.Foreign},
		{file("mode", "new"), files.Older},
		{file("dir", "new"), files.Foreign},
		{file("link", "new"), files.Foreign},
		{link("link"), files.Same},
		{link("other-link"), files.Foreign},
	} {
		if got, err := m.Look(tt.n); got != tt.want || err != nil {
			t.Errorf("Look(%s) = %q, %v; want %q", filepath.Base(tt.n.Path), got, err, tt.want)
		}
	}
}

// What was put can be taken back until it is tidied, and nothing is left beside.
func TestPutAndBack(t *testing.T) {
	dir := t.TempDir()
	old, fresh, link := filepath.Join(dir, "old"), filepath.Join(dir, "fresh"), filepath.Join(dir, "link")
	must(t, os.WriteFile(old, []byte("before"), 0o600), os.Symlink("a", link))
	list := []files.New{{Path: old, Mode: 0o755, Data: []byte("after")}, {Path: fresh, Mode: 0o644, Data: []byte("x")}, {Path: link, Link: "b"}}
	before := names(t, dir)
	for _, undo := range []bool{true, false} {
		var backs []func() error
		for _, n := range list {
			back, err := n.Put()
			must(t, err)
			backs = append(backs, back)
		}
		b, err := os.ReadFile(old)
		to, err2 := os.Readlink(link)
		if string(b) != "after" || to != "b" || errors.Join(err, err2) != nil {
			t.Errorf("after Put: %q and a link to %q, %v", b, to, errors.Join(err, err2))
		}
		if undo {
			for _, back := range slices.Backward(backs) {
				must(t, back())
			}
			b, err := os.ReadFile(old)
			to, err2 := os.Readlink(link)
			if string(b) != "before" || to != "a" || errors.Join(err, err2) != nil || !slices.Equal(names(t, dir), before) {
				t.Errorf("after back: %q and a link to %q, %v, names %v", b, to, errors.Join(err, err2), names(t, dir))
			}
		}
	}
	must(t, files.Tidy(old, fresh, link))
	if got, want := names(t, dir), []string{"", "/fresh", "/link", "/old"}; !slices.Equal(got, want) {
		t.Errorf("after Tidy: %v, want %v", got, want)
	}
}

// Remove takes what was put there and leaves what somebody else has.
func TestRemove(t *testing.T) {
	dir := t.TempDir()
	ours, theirs, gone := filepath.Join(dir, "ours"), filepath.Join(dir, "theirs"), filepath.Join(dir, "gone")
	list := []files.New{{Path: ours, Mode: 0o644, Data: []byte("1")}, {Path: theirs, Mode: 0o644, Data: []byte("2")}, {Path: gone, Data: []byte("3")}}
	must(t, os.WriteFile(ours, []byte("1"), 0o644), os.WriteFile(theirs, []byte("edited"), 0o644))
	m := files.Manifest{}.Settled(list)
	if drift, err := m.Drift(); err != nil || !slices.Equal(drift, []string{theirs, gone}) {
		t.Errorf("Drift() = %v, %v", drift, err)
	}
	for i, wantLeft := range []bool{false, true, false} {
		if left, err := m.Files[i].Remove(); left != wantLeft || err != nil {
			t.Errorf("Remove(%s) = %v, %v; want left: %v", m.Files[i].Path, left, err, wantLeft)
		}
	}
	if got := names(t, dir); !slices.Equal(got, []string{"", "/theirs"}) {
		t.Errorf("left: %v", got)
	}
}

// While files are replaced the manifest owns both contents, so a death in
// between leaves nothing that is not known.
func TestManifestInBetween(t *testing.T) {
	path := filepath.Join(t.TempDir(), "files.json")
	one := []files.New{{Path: "/a", Data: []byte("1")}, {Path: "/dropped", Data: []byte("d")}}
	two := []files.New{{Path: "/a", Data: []byte("2")}, {Path: "/b", Data: []byte("b")}}
	m := files.Manifest{Version: "v", Dirs: []string{"/x"}}.Settled(one).With(two)
	must(t, m.Write(path))
	m, err := files.Read(path)
	must(t, err)
	if len(m.Files) != 3 || len(m.Files[0].Sums) != 2 || m.Complete {
		t.Errorf("in between: %+v", m)
	}
	if d := m.Dropped(two); len(d) != 1 || d[0].Path != "/dropped" {
		t.Errorf("Dropped() = %v", d)
	}
	if s := m.Settled(two); len(s.Files) != 2 || len(s.Files[0].Sums) != 1 || !slices.Equal(s.Dirs, m.Dirs) || s.Equal(m) {
		t.Errorf("Settled() = %+v", s)
	}
	if m, err := files.Read(filepath.Join(t.TempDir(), "none")); err != nil || len(m.Files) != 0 {
		t.Errorf("Read() of none = %+v, %v", m, err)
	}
	must(t, os.WriteFile(path, []byte("{"), 0o644))
	if _, err := files.Read(path); err == nil {
		t.Error("Read() of half a file = nil")
	}
}

func TestDirs(t *testing.T) {
	dir := t.TempDir()
	list := []files.New{{Path: dir + "/a/b/one"}, {Path: dir + "/a/c/two"}, {Path: dir + "/three"}}
	want := []string{dir + "/a", dir + "/a/b", dir + "/a/c"}
	if got := files.Missing(list); !slices.Equal(got, want) {
		t.Errorf("Missing() = %v, want %v", got, want)
	}
	if got, err := files.MakeDirs(list); err != nil || !slices.Equal(got, want) {
		t.Errorf("MakeDirs() = %v, %v; want %v", got, err, want)
	}
	must(t, os.WriteFile(dir+"/a/c/theirs", nil, 0o644), files.RemoveDirs(want))
	if got := names(t, dir); !slices.Equal(got, []string{"", "/a", "/a/c", "/a/c/theirs"}) {
		t.Errorf("after RemoveDirs: %v", got)
	}
}
