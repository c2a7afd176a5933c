package workspace_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"banger/internal/testneed"
	"banger/internal/workspace"
)

// A repo is a repository on the host of a test.
type repo struct {
	t   *testing.T
	dir string
}

func newRepo(t *testing.T, args ...string) repo {
	t.Helper()
	testneed.Tool(t, "git")
	r := repo{t, filepath.Join(tempDir(t), "repo")}
	must(t, os.MkdirAll(r.dir, 0o755))
	r.git(append([]string{"init", "-q", "-b", "main"}, args...)...)
	r.git("config", "gc.auto", "0")
	r.git("config", "user.name", `Ada "L" \ Love`)
	r.git("config", "user.email", "ada@example.org")
	return r
}

// tempDir is in memory where there is such a place: these tests make some
// 40,000 files.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "banger-workspace-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// git runs git in the repository as a user would and returns its output.
func (r repo) git(args ...string) string {
	r.t.Helper()
	out, err := r.try(args...)
	if err != nil {
		r.t.Fatalf("git %q in %s: %v\n%s", args, r.dir, err, out)
	}
	return out
}

func (r repo) try(args ...string) (string, error) {
	cmd := exec.CommandContext(context.Background(), "git", args...)
	cmd.Dir = r.dir
	cmd.Env = append(os.Environ(), "GIT_OPTIONAL_LOCKS=0", "LC_ALL=C", "GIT_CONFIG_NOSYSTEM=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return stderr.String(), err
	}
	return string(out), nil
}

func (r repo) write(name, content string) {
	r.t.Helper()
	file := filepath.Join(r.dir, name)
	must(r.t, os.MkdirAll(filepath.Dir(file), 0o755))
	must(r.t, os.WriteFile(file, []byte(content), 0o644))
}

func (r repo) commit(msg string) {
	r.t.Helper()
	r.git("add", "-A")
	r.git("commit", "-q", "--allow-empty", "-m", msg)
}

// pack inspects and packs the repository and unpacks the tar as a guest would.
func (r repo) pack(o workspace.Options) (*workspace.Plan, repo) {
	r.t.Helper()
	scratch := r.t.TempDir()
	o.Scratch = scratch
	plan, err := workspace.Inspect(r.t.Context(), r.dir, o)
	must(r.t, err)
	var b bytes.Buffer
	must(r.t, plan.WriteTar(r.t.Context(), &b, nil))
	left, err := os.ReadDir(scratch)
	must(r.t, err)
	if len(left) != 0 {
		r.t.Errorf("scratch directory holds %v after packing, want nothing", left)
	}
	return plan, unpack(r.t, &b)
}

// unpack restores what the agent restores: names, executable bits, links,
// times of files and links.
func unpack(t *testing.T, from io.Reader) repo {
	t.Helper()
	guest := repo{t, tempDir(t)}
	seen := map[string]bool{}
	var last string
	for tr := tar.NewReader(from); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		name := strings.TrimSuffix(h.Name, "/")
		if seen[name] {
			t.Errorf("tar has %q twice", name)
		}
		seen[name], last = true, name
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "" {
			t.Errorf("tar: %q belongs to %d:%d %q:%q, want 0:0", name, h.Uid, h.Gid, h.Uname, h.Gname)
		}
		file := filepath.Join(guest.dir, name)
		switch h.Typeflag {
		case tar.TypeDir:
			must(t, os.Mkdir(file, os.FileMode(h.Mode)))
			continue
		case tar.TypeSymlink:
			must(t, os.Symlink(h.Linkname, file))
		case tar.TypeReg:
			f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, os.FileMode(h.Mode))
			must(t, err)
			_, err = io.Copy(f, tr)
			must(t, errors.Join(err, f.Close()))
		default:
			t.Fatalf("tar: %q has type %c", name, h.Typeflag)
		}
		ts := []unix.Timespec{unix.NsecToTimespec(h.ModTime.UnixNano()), unix.NsecToTimespec(h.ModTime.UnixNano())}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, file, ts, unix.AT_SYMLINK_NOFOLLOW))
	}
	if last != ".git/index" {
		t.Errorf("last in the tar is %q, want .git/index", last)
	}
	return guest
}

// sameAs checks that the guest's git says what the host's says.
func (guest repo) sameAs(host repo) {
	guest.t.Helper()
	for _, args := range [][]string{
		{"status", "--porcelain=v1", "-z", "--untracked-files=no"},
		{"status", "--porcelain", "--untracked-files=no"},
		{"ls-files", "-s", "-z", "-v"},
		{"diff", "--no-ext-diff"},
		{"diff", "--cached"},
		{"log", "-10", "--format=%H %an %ad %s", "--no-decorate"},
	} {
		want, wantErr := host.try(args...)
		got, gotErr := guest.try(args...)
		if wantErr != nil && gotErr != nil {
			continue // such as log without commits
		}
		if d := cmp.Diff(want, got); d != "" || gotErr != nil {
			guest.t.Errorf("git %q differs in the guest: %v\n%s", args, gotErr, d)
		}
	}
	if out, err := guest.try("fsck", "--full", "--strict"); err != nil {
		guest.t.Errorf("git fsck in the guest: %v\n%s", err, out)
	}
}

// works checks that the guest's repository can be used.
func (guest repo) works() {
	guest.t.Helper()
	guest.git("checkout", "-q", "-b", "further")
	guest.write("new-in-guest", "x")
	guest.git("add", "new-in-guest")
	guest.git("commit", "-q", "-m", "made in the guest", "--", "new-in-guest")
	if got := guest.git("log", "-1", "--format=%an <%ae>"); got != "Ada \"L\" \\ Love <ada@example.org>\n" {
		guest.t.Errorf("a commit in the guest is by %q", got)
	}
}

func TestStates(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(r repo)
	}{
		{"clean", func(r repo) {}},
		{"staged, unstaged, deleted", func(r repo) {
			r.write("a", "staged\n")
			r.git("add", "a")
			r.write("a", "staged, then changed\n")
			must(r.t, os.Remove(filepath.Join(r.dir, "dir/b")))
			r.git("rm", "-q", "--cached", "dir/c")
		}},
		{"renamed and added", func(r repo) {
			r.git("mv", "a", "z")
			r.write("added", "x")
			r.git("add", "added")
		}},
		{"intent to add", func(r repo) { r.write("soon", "x"); r.git("add", "-N", "soon") }},
		{"assume unchanged", func(r repo) {
			r.git("update-index", "--assume-unchanged", "a")
			r.write("a", "changed behind git's back\n")
		}},
		{"skip worktree", func(r repo) {
			r.git("update-index", "--skip-worktree", "a", "dir/b")
			must(r.t, os.Remove(filepath.Join(r.dir, "a")))
			r.write("dir/b", "mine")
		}},
		{"sparse checkout", func(r repo) { r.git("sparse-checkout", "set", "--cone", "dir") }},
		{"mode and type changes", func(r repo) {
			must(r.t, os.Chmod(filepath.Join(r.dir, "a"), 0o755))
			must(r.t, os.Remove(filepath.Join(r.dir, "dir/b")))
			must(r.t, os.Symlink("../a", filepath.Join(r.dir, "dir/b")))
		}},
		{"directory became a link", func(r repo) {
			must(r.t, os.Rename(filepath.Join(r.dir, "dir"), filepath.Join(r.dir, "moved")))
			must(r.t, os.Symlink("moved", filepath.Join(r.dir, "dir")))
		}},
		{"file became a directory", func(r repo) {
			must(r.t, os.Remove(filepath.Join(r.dir, "a")))
			r.write("a/inside", "x")
		}},
		{"touched", func(r repo) {
			must(r.t, os.Chtimes(filepath.Join(r.dir, "a"), time.Now(), time.Unix(1e9, 5)))
		}},
		{"no file mode", func(r repo) {
			r.git("config", "core.fileMode", "false")
			must(r.t, os.Chmod(filepath.Join(r.dir, "a"), 0o755))
		}},
		{"line endings", func(r repo) {
			r.git("config", "core.autocrlf", "true")
			r.write("crlf", "one\r\ntwo\r\n")
			r.write("both", "one\r\ntwo\n")
			r.commit("crlf")
			r.write("crlf", "one\r\ntwo\r\nthree\r\n")
			must(r.t, os.Chtimes(filepath.Join(r.dir, "both"), time.Now(), time.Now().Add(-time.Hour)))
		}},
		{"carriage returns committed before the rule", func(r repo) {
			r.write("crlf", "one\r\ntwo\r\n")
			r.commit("crlf")
			r.write(".git/info/attributes", "crlf text\n")
			must(r.t, os.Chtimes(filepath.Join(r.dir, "crlf"), time.Now(), time.Now().Add(-time.Hour)))
		}},
		{"conflict", func(r repo) {
			r.git("checkout", "-q", "-b", "side")
			r.write("a", "side\n")
			r.commit("side")
			r.git("checkout", "-q", "main")
			r.write("a", "main\n")
			r.commit("main")
			if _, err := r.try("merge", "-q", "side"); err == nil {
				r.t.Fatal("merge: want a conflict")
			}
		}},
		{"detached", func(r repo) { r.git("checkout", "-q", "--detach", "HEAD~1") }},
		{"history with merges", func(r repo) {
			for i := range 12 {
				r.git("checkout", "-q", "-b", fmt.Sprintf("s%d", i))
				r.commit(fmt.Sprintf("side %d", i))
				r.git("checkout", "-q", "main")
				r.write("a", fmt.Sprint("main", i))
				r.commit("main")
				r.git("merge", "-q", "--no-ff", "-m", "merge", fmt.Sprintf("s%d", i))
			}
		}},
		{"index version 4, split", func(r repo) {
			r.git("config", "core.splitIndex", "true")
			r.git("update-index", "--index-version", "4", "--split-index")
			r.write("a", "x")
			r.git("add", "a")
		}},
		{"filter that the guest lacks", func(r repo) {
			r.git("config", "filter.up.clean", "tr a-z A-Z")
			r.git("config", "filter.up.smudge", "tr A-Z a-z")
			r.git("config", "filter.up.required", "true")
			r.write(".gitattributes", "*.up filter=up\n")
			r.write("x.up", "lower case here, upper case in git\n")
			old := time.Now().Add(-time.Hour)
			must(r.t, os.Chtimes(filepath.Join(r.dir, "x.up"), old, old))
			r.commit("filtered")
		}},
		{"quiet status settings", func(r repo) {
			r.git("config", "status.renames", "false")
			r.git("mv", "a", "z")
		}},
		{"names as they are", func(r repo) {
			r.git("config", "core.quotePath", "false")
			r.write("grüße", "x")
			r.git("add", "grüße")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for _, format := range []string{"sha1", "sha256"} {
				r := newRepo(t, "--object-format="+format)
				r.write("a", strings.Repeat("a\n", 50))
				r.write("dir/b", "b\n")
				r.commit("one")
				r.write("dir/c", "c\n")
				r.commit("two")
				tt.make(r)
				before := r.git("status", "--porcelain=v2")
				plan, guest := r.pack(workspace.Options{})
				guest.sameAs(r)
				if want := strings.TrimSpace(r.git("rev-parse", "HEAD")); plan.Head != want || plan.Commit != want {
					t.Errorf("plan: head %s, commit %s, want %s", plan.Head, plan.Commit, want)
				}
				if got := r.git("status", "--porcelain=v2"); got != before {
					t.Errorf("the host's status changed from %q to %q", before, got)
				}
				if tt.name != "conflict" {
					guest.works()
				}
			}
		})
	}
}

func TestWithoutCommits(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	plan, guest := r.pack(workspace.Options{})
	if plan.Head != "" || plan.Branch != "main" || len(plan.Files) != 0 {
		t.Errorf("plan of an empty repository: head %q, branch %q, %d files", plan.Head, plan.Branch, len(plan.Files))
	}
	guest.sameAs(r)
	r.write("a", "x")
	r.git("add", "a")
	_, guest = r.pack(workspace.Options{Branch: "first"})
	guest.sameAs(r)
	guest.git("commit", "-q", "-m", "first")
	if got := guest.git("branch", "--show-current"); got != "first\n" {
		t.Errorf("branch in the guest: %q, want first", got)
	}
}

func TestShapes(t *testing.T) {
	t.Parallel()
	origin := newRepo(t)
	for i := range 15 {
		origin.write("f", fmt.Sprint(i))
		origin.write(fmt.Sprintf("d/%d", i), fmt.Sprint(i))
		origin.commit(fmt.Sprint("c", i))
	}
	clone := func(args ...string) repo {
		r := repo{t, filepath.Join(t.TempDir(), "clone")}
		origin.git(append(append([]string{"clone", "-q"}, args...), "file://"+origin.dir, r.dir)...)
		return r
	}
	tree := repo{t, filepath.Join(t.TempDir(), "tree: \"odd\"")}
	origin.git("worktree", "add", "-q", "-b", "side", tree.dir)
	for name, r := range map[string]repo{
		"plain": origin, "shallow": clone("--depth", "3"), "worktree": tree,
		"alternates": clone("--shared", "--reference", origin.dir), "separate and told": func() repo {
			dir := filepath.Join(t.TempDir(), "git")
			r := clone("--separate-git-dir", dir)
			r.git("config", "core.worktree", r.dir)
			return r
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			r := repo{t, r.dir}
			r.write("f", "changed")
			_, guest := r.pack(workspace.Options{})
			guest.sameAs(r)
			if name != "shallow" {
				if n := len(strings.Fields(guest.git("rev-list", "HEAD"))); n != 10 {
					t.Errorf("%d commits in the guest, want 10", n)
				}
			}
		})
	}
}

func TestBranchAndFrom(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	r.write("a", "one\n")
	must(t, os.Symlink("a", filepath.Join(r.dir, "link")))
	r.write("run", "#!/bin/sh\n")
	must(t, os.Chmod(filepath.Join(r.dir, "run"), 0o755))
	r.commit("one")
	r.git("tag", "-a", "-m", "v1", "v1")
	r.write("a", "two\n")
	r.git("rm", "-q", "run")
	r.commit("two")
	r.write("a", "uncommitted\n")

	_, guest := r.pack(workspace.Options{Branch: "try/it"})
	guest.sameAs(r)
	if got := guest.git("branch", "--show-current"); got != "try/it\n" {
		t.Errorf("branch in the guest: %q, want try/it", got)
	}
	plan, guest := r.pack(workspace.Options{Branch: "old", From: "v1"})
	if !plan.FromCommit || len(plan.Notices()) != 1 {
		t.Errorf("plan from v1: FromCommit %v, notices %q", plan.FromCommit, plan.Notices())
	}
	if got := guest.git("status", "--porcelain", "--branch"); got != "## old\n" {
		t.Errorf("status from v1: %q, want a clean branch old", got)
	}
	if b, _ := os.ReadFile(filepath.Join(guest.dir, "a")); string(b) != "one\n" {
		t.Errorf("a from v1 = %q, want that of v1", b)
	}
	guest.works()
	if plan, _ := r.pack(workspace.Options{Branch: "here", From: "main"}); plan.FromCommit {
		t.Error("--from with HEAD's own commit left the work tree out")
	}
}

func TestUntracked(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	r.write(".gitignore", "*.log\n.env\n")
	r.commit("one")
	r.write("new/file", "x")
	r.write("other", "x")
	r.write("other.d/.GIT/config", "x") // no repository where case counts
	r.write(".env", "SECRET")
	r.write("a.log", "x")
	r.git("init", "-q", "nested")
	r.write("nested/f", "x")

	plan, guest := r.pack(workspace.Options{})
	if plan.SkippedUntracked != 4 {
		t.Errorf("skipped %d, want 4", plan.SkippedUntracked)
	}
	names := func(dir string) (out []string) {
		entries, err := os.ReadDir(dir)
		must(t, err)
		for _, e := range entries {
			out = append(out, e.Name())
		}
		return out
	}
	if d := cmp.Diff([]string{".git", ".gitignore"}, names(guest.dir)); d != "" {
		t.Errorf("guest's files:\n%s", d)
	}
	plan, guest = r.pack(workspace.Options{IncludeUntracked: true})
	if plan.SkippedUntracked != 1 {
		t.Errorf("skipped %d, want 1: the repository inside", plan.SkippedUntracked)
	}
	if d := cmp.Diff([]string{".git", ".gitignore", "new", "other", "other.d"}, names(guest.dir)); d != "" {
		t.Errorf("guest's files with --include-untracked:\n%s", d)
	}
}

func lookGit(t *testing.T) string { return testneed.Tool(t, "git") }

func TestPlan(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	for _, name := range []string{"same", "changed", "deleted", "staged", "d/sub/same"} {
		r.write(name, "12345")
		old := time.Now().Add(-time.Hour)
		must(t, os.Chtimes(filepath.Join(r.dir, name), old, old))
	}
	must(t, os.Chmod(filepath.Join(r.dir, "same"), 0o700))
	r.commit("one")
	r.write("changed", "123456")
	must(t, os.Remove(filepath.Join(r.dir, "deleted")))
	r.write("staged", "1234567")
	r.git("add", "staged")
	r.write("new", "1")

	plan, err := workspace.Inspect(t.Context(), filepath.Join(r.dir, "d/sub"), workspace.Options{IncludeUntracked: true})
	must(t, err)
	want := []workspace.File{
		{Path: "changed", Mode: 0o100644, Size: 6, State: workspace.Changed},
		{Path: "d/sub/same", Mode: 0o100644, Size: 5, State: workspace.Unchanged},
		{Path: "deleted", State: workspace.Deleted},
		{Path: "same", Mode: 0o100755, Size: 5, State: workspace.Unchanged},
		{Path: "staged", Mode: 0o100644, Size: 7, State: workspace.Unchanged, Staged: true},
		{Path: "new", Mode: 0o100644, Size: 1, State: workspace.Untracked},
	}
	for i := range plan.Files { // as young as the index, so git would look
		if plan.Files[i].Path == "staged" {
			plan.Files[i].State = workspace.Unchanged
		}
	}
	if d := cmp.Diff(want, plan.Files); d != "" {
		t.Errorf("files:\n%s", d)
	}
	if plan.Root != r.dir || plan.Subdir != "d/sub" || plan.Bytes != 24 || plan.GuestPath != "/root/repo" || plan.Branch != "main" {
		t.Errorf("plan = %+v", plan)
	}
	plan, err = workspace.Inspect(t.Context(), filepath.Join(r.dir, "d"), workspace.Options{GuestPath: "/srv//app/"})
	must(t, err)
	if plan.GuestPath != "/srv/app" {
		t.Errorf("guest path = %q, want /srv/app", plan.GuestPath)
	}
	notices := []string{
		"taking the whole repository " + r.dir + ", of which d is a part",
		"1 untracked file stays here (--include-untracked takes it)",
	}
	if d := cmp.Diff(notices, plan.Notices()); d != "" {
		t.Errorf("notices:\n%s", d)
	}
}

func TestGuestConfig(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	r.write("a", "x")
	r.commit("one")
	r.git("config", "remote.origin.url", "https://ada:hunter2@example.org/a.git?token=hunter2")
	r.git("config", "core.autocrlf", "input")
	r.git("config", "core.eol", "nonsense\n[alias]")
	r.git("config", "user.signingKey", "hunter2")
	r.write(".git/info/exclude", "*.tmp\n")
	_, guest := r.pack(workspace.Options{})
	got := guest.git("config", "--local", "--list")
	want := `core.repositoryformatversion=0
core.filemode=true
core.bare=false
core.logallrefupdates=true
core.trustctime=false
core.checkstat=minimal
core.autocrlf=input
remote.origin.url=https://example.org/a.git
remote.origin.fetch=+refs/heads/*:refs/remotes/origin/*
user.name=Ada "L" \ Love
user.email=ada@example.org
`
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the guest's settings:\n%s", d)
	}
	if out, err := (repo{t, "/"}).grep("hunter2", guest.dir); err == nil {
		t.Errorf("a credential is in the guest: %s", out)
	}
	guest.write("x.tmp", "x")
	if got := guest.git("status", "--porcelain"); got != "" {
		t.Errorf("status in the guest = %q; info/exclude should hide x.tmp", got)
	}
}
