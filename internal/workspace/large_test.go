package workspace_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"banger/internal/api"
	"banger/internal/workspace"
)

func mkfifo(t *testing.T, path string) { must(t, unix.Mkfifo(path, 0o600)) }

// oddNames are what a file system of Linux lets pass.
var oddNames = []string{
	"line\nbreak", "quote\"d", "it's", "-leading-dash", "--", "grüße", "日本", "\xff\xfe not utf-8", "back\\slash",
	"tab\there", " space ", "*", "$(x)", "a:b", "100644 e69de29bb2d1d6434b8b29ae775ad8c2e48c5391 0\tx", "? x", ".gitx", "…",
	strings.Repeat("long", 60), "pax=30 path=x",
}

// largeRepo makes a repository of more than 10,000 files with all kinds of
// names and changes.
func largeRepo(t *testing.T) repo {
	r := newRepo(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 10_000 {
		r.write(fmt.Sprintf("pkg%02d/sub%d/file%d.go", i%40, i%7, i), strings.Repeat(fmt.Sprintf("line %d\n", i), rnd.IntN(200)))
		if i%100 == 0 {
			must(t, os.Chmod(filepath.Join(r.dir, fmt.Sprintf("pkg%02d/sub%d/file%d.go", i%40, i%7, i)), 0o755))
		}
	}
	for _, n := range oddNames {
		r.write(n, "odd\n")
		r.write("odd dir/"+n+"/"+n, "odd\n")
		must(t, os.Symlink(n, filepath.Join(r.dir, "link to "+n)))
	}
	must(t, os.Symlink("/nowhere/"+strings.Repeat("x/", 300), filepath.Join(r.dir, "dangling")))
	r.write("large", strings.Repeat("0123456789abcde\n", 1<<16+1)+"tail")
	r.write("empty", "")
	r.write(".gitignore", "ignored/\n")
	r.commit("one")
	for i := range 12 {
		r.write("large", strings.Repeat(fmt.Sprint(i), 700_000))
		r.commit(fmt.Sprint("more ", i))
	}
	staged := []string{"add", "-A", "--"}
	for i := range 300 {
		name := fmt.Sprintf("pkg%02d/sub%d/file%d.go", i%40, i%7, i)
		switch i % 5 {
		case 0:
			r.write(name, "unstaged\n")
		case 1:
			r.write(name, "staged\n")
			staged = append(staged, name)
		case 2:
			must(t, os.Remove(filepath.Join(r.dir, name)))
		case 3:
			must(t, os.Rename(filepath.Join(r.dir, name), filepath.Join(r.dir, name+".renamed")))
			staged = append(staged, name, name+".renamed")
		case 4:
			must(t, os.Chmod(filepath.Join(r.dir, name), 0o755))
		}
	}
	r.git(staged...)
	r.write("line\nbreak", "changed\n")
	r.write("\xff\xfe not utf-8", "changed\n")
	r.git("rm", "-q", "--cached", "--", "-leading-dash")
	r.write(".env", "CANARY")
	r.write("ignored/x", "CANARY")
	return r
}

func TestLargeRepository(t *testing.T) {
	t.Parallel()
	r := largeRepo(t)
	plan, guest := r.pack(workspace.Options{})
	if len(plan.Files) < 10_000 {
		t.Errorf("plan has %d files, want at least 10000", len(plan.Files))
	}
	guest.sameAs(r)
	want, got := content(t, r.dir), content(t, guest.dir)
	delete(want, ".env")
	delete(want, "ignored/x")
	delete(want, "-leading-dash") // untracked by now
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("work tree differs:\n%.3000s", d)
	}
	if grepped, err := (repo{t, "/"}).grep("CANARY", guest.dir); err == nil {
		t.Errorf("the canary is in the guest: %s", grepped)
	}
	guest.works()
}

func (r repo) grep(word, dir string) (string, error) {
	return r.try("grep", "--no-index", "-l", word, "--", dir)
}

// content is the kind, executable bit, time and text of each file.
func content(t *testing.T, root string) map[string]string {
	out := map[string]string{}
	must(t, filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			if d != nil && d.Name() == ".git" {
				return filepath.SkipDir
			}
			return err
		}
		fi, err := d.Info()
		must(t, err)
		rel, err := filepath.Rel(root, path)
		must(t, err)
		if fi.Mode()&os.ModeSymlink != 0 {
			target, err := os.Readlink(path)
			must(t, err)
			out[rel] = fmt.Sprint("link ", fi.ModTime().UnixNano(), " ", target)
			return nil
		}
		b, err := os.ReadFile(path)
		must(t, err)
		out[rel] = fmt.Sprint("file ", fi.Mode()&0o100, " ", fi.ModTime().UnixNano(), " ", string(b))
		return nil
	}))
	return out
}

// The guest's git must not read what the host's index vouches for.
func TestIndexIsTrusted(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	old := time.Now().Add(-time.Hour)
	for i := range 50 {
		name := fmt.Sprint("f", i)
		r.write(name, "content\n")
		must(t, os.Chtimes(filepath.Join(r.dir, name), old, old.Add(time.Duration(i)*time.Millisecond)))
	}
	r.commit("one")
	_, guest := r.pack(workspace.Options{})
	// Other content of the same size and time: who reads it calls it changed.
	for i := range 50 {
		file := filepath.Join(guest.dir, fmt.Sprint("f", i))
		fi, err := os.Stat(file)
		must(t, err)
		must(t, os.WriteFile(file, []byte("Content\n"), 0o644))
		must(t, os.Chtimes(file, fi.ModTime(), fi.ModTime()))
	}
	if got := guest.git("status", "--porcelain"); got != "" {
		t.Errorf("git status in the guest read files that did not change:\n%s", got)
	}
	guest.git("update-index", "--really-refresh", "-q")
}

// wrapGit puts a git in front of the real one that counts its calls.
func wrapGit(t *testing.T) (count func() int) {
	dir := t.TempDir()
	calls := filepath.Join(dir, "calls")
	real := strings.TrimSpace(lookGit(t))
	must(t, os.WriteFile(filepath.Join(dir, "git"), []byte("#!/bin/sh\necho x >> "+calls+"\nexec "+real+" \"$@\"\n"), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return func() int {
		b, _ := os.ReadFile(calls)
		os.Remove(calls)
		return strings.Count(string(b), "\n")
	}
}

func TestNumberOfProcesses(t *testing.T) {
	r := newRepo(t)
	for i := range 20 {
		r.write(fmt.Sprint("f", i), "x")
		r.commit(fmt.Sprint(i))
	}
	r.write("f1", "y")
	count := wrapGit(t)
	for _, tt := range []struct {
		o    workspace.Options
		want int
	}{
		{workspace.Options{}, 6},
		{workspace.Options{Branch: "x"}, 7},
		{workspace.Options{Branch: "x", From: "HEAD~3"}, 8},
	} {
		plan, err := workspace.Inspect(t.Context(), r.dir, tt.o)
		must(t, err)
		must(t, plan.WriteTar(t.Context(), io.Discard, nil))
		if got := count(); got > tt.want {
			t.Errorf("packing with %+v ran git %d times, want at most %d", tt.o, got, tt.want)
		}
	}
}

// A history that does not fit into Scratch goes through Spill.
func TestSpill(t *testing.T) {
	r := newRepo(t)
	r.write("a", "x")
	r.commit("one")
	dir, scratch, spill := t.TempDir(), t.TempDir(), t.TempDir()
	script := "#!/bin/sh\ncase $GIT_OBJECT_DIRECTORY in " + scratch + "/*)\n" +
		"echo \"fatal: sha1 file 'tmp_pack' write error. Out of diskspace\" >&2; exit 128 ;;\nesac\nexec " + lookGit(t) + " \"$@\"\n"
	must(t, os.WriteFile(filepath.Join(dir, "git"), []byte(script), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for _, tt := range []struct {
		spill string
		want  api.Code
	}{{spill, ""}, {"", api.NoSpace}} {
		plan, err := workspace.Inspect(t.Context(), r.dir, workspace.Options{Scratch: scratch, Spill: tt.spill})
		must(t, err)
		var b bytes.Buffer
		if err := plan.WriteTar(t.Context(), &b, nil); (err != nil || tt.want != "") && api.CodeOf(err) != tt.want {
			t.Fatalf("WriteTar with Spill %q = %v, want %q", tt.spill, err, tt.want)
		}
		if tt.want == "" {
			unpack(t, &b).sameAs(r)
		}
		for _, d := range []string{scratch, spill} {
			if left, _ := os.ReadDir(d); len(left) != 0 {
				t.Errorf("%s holds %v, want nothing", d, left)
			}
		}
	}
}

// BenchmarkWorkspace packs the tree named by BANGER_BENCH_REPO.
func BenchmarkWorkspace(b *testing.B) {
	dir := os.Getenv("BANGER_BENCH_REPO")
	if dir == "" {
		b.Skip("this benchmark needs BANGER_BENCH_REPO, the path of a repository")
	}
	b.Run("inspect", func(b *testing.B) {
		for b.Loop() {
			_, err := workspace.Inspect(b.Context(), dir, workspace.Options{})
			must(b, err)
		}
	})
	b.Run("tar", func(b *testing.B) {
		plan, err := workspace.Inspect(b.Context(), dir, workspace.Options{Scratch: "/dev/shm"})
		must(b, err)
		for b.Loop() {
			var n int64
			must(b, plan.WriteTar(b.Context(), io.Discard, func(w int64) { n = w }))
			b.SetBytes(n)
		}
	})
}
