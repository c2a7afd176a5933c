package doctor

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/testneed"
)

// Root asks only a Firecracker of root's: what is in an account's PATH may be
// anything, and would run as root under sudo.
func TestAskAsRoot(t *testing.T) {
	testneed.Root(t)
	dir := t.TempDir()
	ran, path := filepath.Join(dir, "ran"), filepath.Join(dir, "bin", "firecracker")
	script := "#!/bin/sh\n: >" + ran + "\necho Firecracker v1.14.1\n"
	if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(script), 0o755), os.Symlink(path, dir+"/link")); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, dir + "/link"} {
		if v, err := ask(t.Context(), p); err != nil || v.String() != "1.14.1" {
			t.Errorf("ask(%s) of root's = %v, %v", p, v, err)
		}
	}
	for name, spoil := range map[string]func() error{
		"another's file":      func() error { return os.Chown(path, 1000, 0) },
		"another's directory": func() error { return os.Chown(filepath.Dir(path), 1000, 0) },
		"all may write it":    func() error { return os.Chmod(path, 0o777) },
		"a group may add":     func() error { return os.Chmod(filepath.Dir(path), 0o775) },
	} {
		err := errors.Join(os.RemoveAll(ran), os.Chown(path, 0, 0), os.Chown(filepath.Dir(path), 0, 0), os.Chmod(path, 0o755), os.Chmod(filepath.Dir(path), 0o755), spoil())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{path, dir + "/link"} {
			if _, err := ask(t.Context(), p); err == nil || !strings.Contains(err.Error(), "others than root") {
				t.Errorf("%s: ask(%s) = %v, want a refusal", name, p, err)
			}
		}
		if _, err := os.Lstat(ran); err == nil {
			t.Errorf("%s: it was run as root", name)
		}
	}
}
