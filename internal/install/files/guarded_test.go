package files_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/install/files"
	"banger/internal/testneed"
)

func TestGuarded(t *testing.T) {
	testneed.Root(t)
	// Below / itself: a temporary directory has parents that all can write.
	top, err := os.MkdirTemp("/opt", "guarded")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(top) })
	at := func(name string) string { return filepath.Join(top, name) }
	must(t, os.Chmod(top, 0o755))
	for _, dir := range []string{"good/bin", "owners/bin", "groups/bin", "elsewhere"} {
		must(t, os.MkdirAll(at(dir), 0o755))
	}
	must(t, os.Chown(at("owners"), 1000, 0), os.Chmod(at("groups"), 0o775|os.ModeSetgid))
	must(t, os.Symlink(at("good"), at("to-good")), os.Symlink("owners/bin", at("to-owners")), os.Symlink("loop", at("loop")),
		os.Symlink(at("to-good"), at("owners/link")), os.Symlink("owners/link", at("by-owners")))
	must(t, os.WriteFile(at("good/file"), nil, 0o755), os.WriteFile(at("good/theirs"), nil, 0o755), os.Chown(at("good/theirs"), 1000, 0))
	for name, want := range map[string]string{
		"good/bin": "", "good/file": "", "good/none/of/it": "", "to-good/bin": "", "owners": "belongs to uid 1000",
		"owners/bin": "owners belongs to uid 1000", "groups/bin/x": "groups can be written by others", "groups/none": "mode 0775",
		"to-owners": "owners belongs to uid 1000", "by-owners/bin": "owners belongs to uid 1000", "loop/x": "too many",
		"good/theirs": "theirs belongs to uid 1000",
	} {
		if _, err := files.Guarded(at(name)); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("Guarded(%s) = %v, want %q", name, err, want)
		}
	}
}

// A file of the right text is not the same if its owner could change it.
func TestLookAtAnothersFile(t *testing.T) {
	testneed.Root(t)
	n := files.New{Path: filepath.Join(t.TempDir(), "file"), Mode: 0o644, Data: []byte("text")}
	must(t, os.WriteFile(n.Path, n.Data, n.Mode))
	m := files.Manifest{}.With([]files.New{n})
	if got, err := m.Look(n); got != files.Same || err != nil {
		t.Fatalf("Look() of ours = %q, %v", got, err)
	}
	must(t, os.Chown(n.Path, 1000, 1000))
	if got, err := m.Look(n); got != files.Older || err != nil {
		t.Errorf("Look() of another's = %q, %v; want it replaced", got, err)
	}
}
