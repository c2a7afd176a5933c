package e2e

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/testneed"
)

// A repo is a git repository on the host.
type repo struct {
	t   *testing.T
	dir string
}

// newRepo makes a repository with nobody's configuration.
func newRepo(t *testing.T, args ...string) repo {
	t.Helper()
	testneed.Tool(t, "git")
	r := repo{t, filepath.Join(t.TempDir(), "repo")}
	if err := os.Mkdir(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r.git(append([]string{"init", "-q", "-b", "main"}, args...)...)
	return r
}

// git runs git without the configuration of this machine, and with none of
// what the repository's own could start.
func (r repo) git(args ...string) string {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), "git", append([]string{"-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"}, args...)...)
	cmd.Dir = r.dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "HOME="+r.dir,
		"GIT_AUTHOR_NAME=A", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=A", "GIT_COMMITTER_EMAIL=a@example.com")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		r.t.Fatalf("git %q: %v\n%s", args, err, stderr.String())
	}
	return string(out)
}

func (r repo) write(name, body string) {
	r.t.Helper()
	write(r.t, r.dir, map[string]string{name: body}, 0o644)
}

// do fails the test if one of the errors is not nil.
func (r repo) do(errs ...error) {
	r.t.Helper()
	if err := errors.Join(errs...); err != nil {
		r.t.Fatal(err)
	}
}

func (r repo) path(name string) string { return filepath.Join(r.dir, name) }

func (r repo) commit(msg string) {
	r.t.Helper()
	r.git("add", "-A")
	r.git("commit", "-q", "-m", msg)
}

// tracked is the manifest of what git tracks and the work tree has.
func (r repo) tracked() map[string]string {
	r.t.Helper()
	m := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(r.git("ls-files", "-z"), "\x00"), "\x00") {
		path := r.path(name)
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		r.do(err)
		key := fmt.Sprintf("%x", name)
		if info.Mode()&fs.ModeSymlink != 0 {
			to, err := os.Readlink(path)
			r.do(err)
			m[key] = fmt.Sprintf("link %x", to)
			continue
		}
		b, err := os.ReadFile(path)
		r.do(err)
		m[key] = fmt.Sprintf("file %o %x", info.Mode().Perm(), sha256.Sum256(b))
	}
	return m
}

// look is the same in a guest, for everything but .git.
const look = `
import hashlib, os, stat, sys
top = os.fsencode(sys.argv[1])
for dir, dirs, files in os.walk(top):
    if dir == top:
        dirs.remove(b".git")
    for name in files + [d for d in dirs if os.path.islink(os.path.join(dir, d))]:
        path = os.path.join(dir, name)
        st = os.lstat(path)
        key = os.path.relpath(path, top).hex()
        if stat.S_ISLNK(st.st_mode):
            print(key, "link", os.readlink(path).hex())
        else:
            print(key, "file", "%o" % stat.S_IMODE(st.st_mode), hashlib.sha256(open(path, "rb").read()).hexdigest())
`

// manyFiles makes a repository of more than 10,000 files with all kinds of
// names and changes, and files that must not leave the host.
func manyFiles(t *testing.T) repo {
	r := newRepo(t)
	name := func(i int) string { return fmt.Sprintf("pkg%02d/sub%d/file%d.go", i%40, i%7, i) }
	for i := range 10_000 {
		r.write(name(i), strings.Repeat(fmt.Sprintf("line %d\n", i), i%60))
		if i%100 == 0 {
			r.do(os.Chmod(r.path(name(i)), 0o755))
		}
	}
	for _, n := range []string{"line\nbreak", "quote\"d", "it's", "-leading-dash", "--", "grüße", "日本 😀", "\xff\xfe not utf-8", "back\\slash",
		" space ", "*", "$(x)", "a:b", ".gitx", strings.Repeat("long", 60)} {
		r.write(n, "odd\n")
		r.write("odd dir/"+n+"/"+n, "odd\n")
		r.do(os.Symlink(n, r.path("link to "+n[:min(len(n), 200)])))
	}
	r.do(os.Symlink("/nowhere", r.path("dangling")), os.Symlink("pkg00", r.path("link to a directory")))
	r.write("large", strings.Repeat("0123456789abcde\n", 1<<16)+"tail")
	r.write("empty", "")
	r.write(".gitignore", "ignored/\n.env\n")
	r.commit("commit 0")
	for i := range 12 {
		r.write("changing", fmt.Sprintf("version %d\n", i))
		r.commit(fmt.Sprint("commit ", i+1))
	}
	r.git("remote", "add", "origin", "https://me:PASSWORD@example.com/repo.git")
	staged := []string{"add", "-A", "--"}
	for i := range 200 {
		switch i % 5 {
		case 0:
			r.write(name(i), "unstaged\n")
		case 1:
			r.write(name(i), "staged\n")
			staged = append(staged, name(i))
		case 2:
			r.do(os.Remove(r.path(name(i))))
		case 3:
			r.do(os.Rename(r.path(name(i)), r.path(name(i)+".renamed")))
			staged = append(staged, name(i), name(i)+".renamed")
		case 4:
			r.do(os.Chmod(r.path(name(i)), 0o755))
		}
	}
	r.git(staged...)
	r.write("line\nbreak", "changed\n")
	r.write(name(1), "staged, and changed again\n")
	r.git("rm", "-q", "--cached", "--", "-leading-dash")
	r.write(".env", "CANARY")
	r.write("untracked.txt", "CANARY")
	r.write("ignored/x", "CANARY")
	return r
}

// A repository of many files and all kinds of changes is in the guest what it
// is on the host, as git tells it.
func TestWorkspace(t *testing.T) {
	t.Parallel()
	w := shared
	w.useGolden(t)
	r := manyFiles(t)
	run := w.banger(t, "vm", "run", "--name", "workspace", "--memory", "1G", r.dir, "--", "sh", "-c", "pwd; git status --porcelain -z >/tmp/status; exit 9")
	if run.code != 9 || run.stdout != "/root/repo\n" {
		t.Fatalf("vm run = %+v, want 9 and the workspace", run)
	}
	if !strings.Contains(run.stderr, "2 untracked files") {
		t.Errorf("stderr does not tell of the untracked files: %s", run.stderr)
	}
	const vm = "workspace"
	t.Cleanup(func() { w.banger(t, "vm", "delete", vm) })
	git := func(args ...string) string {
		t.Helper()
		return w.must(t, append([]string{"vm", "exec", vm, "--", "git"}, args...)...)
	}

	status := w.must(t, "vm", "exec", vm, "--", "cat", "/tmp/status")
	if diff := cmp.Diff(strings.Split(r.git("status", "--porcelain", "-z", "-uno"), "\x00"), strings.Split(status, "\x00")); diff != "" {
		t.Errorf("git status differs (-host +guest):\n%.2000s", diff)
	}
	got := map[string]string{}
	for line := range strings.Lines(w.must(t, "vm", "exec", vm, "--", "python3", "-c", look, "/root/repo")) {
		name, what, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		got[name] = what
	}
	want := r.tracked()
	if len(want) < 10_000 {
		t.Fatalf("the repository has %d files, want 10,000", len(want))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the trees differ (-host +guest):\n%.2000s", diff)
	}
	if out := w.exec(t, vm, "grep", "-rl", "CANARY", "/root", "/tmp"); out.stdout != "" {
		t.Errorf("what is not tracked is in the guest: %s", out.stdout)
	}
	if out := w.exec(t, vm, "grep", "-r", "PASSWORD", "/root/repo/.git"); out.stdout != "" {
		t.Errorf("the guest knows a password: %s", out.stdout)
	}
	if got := git("remote", "get-url", "origin"); got != "https://example.com/repo.git\n" {
		t.Errorf("origin is %q", got)
	}
	if got, want := git("log", "--format=%H %s"), strings.Join(strings.SplitAfter(r.git("log", "--format=%H %s"), "\n")[:10], ""); got != want {
		t.Errorf("the history is\n%swant\n%s", got, want)
	}
	git("fsck", "--no-progress")
	git("-c", "user.name=G", "-c", "user.email=g@example.com", "commit", "-qam", "in the guest")
	if got := git("status", "--porcelain"); got != "" {
		t.Errorf("after a commit in the guest, status says %q", got)
	}
	t.Run("ssh begins in the workspace", func(t *testing.T) {
		m := w.terminal(t, "vm", "ssh", vm)
		m.expect("# ")
		m.typed("pwd | tr a-z A-Z; exit 4\r")
		m.expect("/ROOT/REPO\r\n")
		if r := m.wait(); r.code != 4 {
			t.Errorf("got %+v, want 4", r)
		}
	})
}

// A repository whose every setting names a program of its own runs none of
// them, and nothing of it comes into the guest.
func TestHostileWorkspace(t *testing.T) {
	t.Parallel()
	w := shared
	w.start(t)
	r := newRepo(t)
	r.write("a.txt", "a\n")
	r.write("b.bin", "b\n")
	r.commit("one")
	canary, evil := filepath.Join(t.TempDir(), "canary"), filepath.Join(t.TempDir(), "evil")
	r.do(os.WriteFile(evil, []byte("#!/bin/sh\necho \"$0 $*\" >>"+canary+"\nexec cat\n"), 0o755))
	for _, hook := range []string{"pre-commit", "post-checkout", "post-index-change", "fsmonitor-watchman", "reference-transaction", "pre-auto-gc"} {
		r.do(os.MkdirAll(r.path(".git/hooks"), 0o755), os.Symlink(evil, r.path(".git/hooks/"+hook)))
	}
	for _, c := range [][2]string{{"core.fsmonitor", evil}, {"core.hooksPath", r.path(".git/hooks")}, {"core.sshCommand", evil}, {"core.pager", evil},
		{"core.askPass", evil}, {"core.gitProxy", evil}, {"core.alternateRefsCommand", evil}, {"credential.helper", "!" + evil},
		{"filter.x.clean", evil}, {"filter.x.smudge", evil}, {"filter.x.required", "true"}, {"filter.y.process", evil}, {"diff.x.textconv", evil},
		{"diff.external", evil}, {"uploadpack.packObjectsHook", evil}, {"alias.ls-files", "!" + evil}, {"pager.ls-files", evil},
		{"remote.origin.url", "ext::" + evil}, {"remote.origin.uploadpack", evil}, {"protocol.ext.allow", "always"}} {
		r.git("config", c[0], c[1])
	}
	r.write(".git/info/attributes", "*.txt filter=x diff=x\n*.bin filter=y diff=x\n")
	r.write("a.txt", "b\n")
	r.do(os.Chtimes(r.path("b.bin"), time.Now(), time.Unix(1e9, 0)))
	status := exec.CommandContext(t.Context(), "git", "status")
	status.Dir = r.dir
	_ = status.Run()
	if err := os.Remove(canary); err != nil {
		t.Fatalf("git status touched no canary, so the repository is not hostile: %v", err)
	}
	for _, flags := range [][]string{nil, {"--include-untracked"}, {"--branch", "b"}, {"--dry-run"}} {
		args := append([]string{"vm", "run", "--rm", "--image", "small", "--memory", "256M"}, flags...)
		args = append(args, r.dir, "--", "sh", "-c", "cat a.txt b.bin .git/config; ls .git/hooks 2>/dev/null; true")
		out := w.must(t, args...)
		for _, word := range []string{"evil", "ext::", "filter", "hooks", "fsmonitor", "pre-commit"} {
			if strings.Contains(out, word) {
				t.Errorf("%q: the guest has %q:\n%s", flags, word, out)
			}
		}
		if b, err := os.ReadFile(canary); err == nil {
			t.Fatalf("%q: the canary was touched by:\n%s", flags, b)
		}
	}
}

// Options of a workspace, and what they say about it.
func TestWorkspaceOptions(t *testing.T) {
	t.Parallel()
	w := shared
	w.start(t)
	r := newRepo(t)
	r.write("sub/a", "one\n")
	r.write(".gitignore", "ignored\n")
	r.commit("one")
	r.write("sub/a", "two\n")
	r.commit("two")
	r.write("sub/a", "three, not committed\n")
	r.write("new", "untracked\n")
	r.write("ignored", "never\n")
	first := strings.TrimSpace(r.git("rev-parse", "HEAD~1"))
	small := []string{"vm", "run", "--rm", "--image", "small", "--memory", "256M"}
	for _, tt := range []struct {
		name           string
		args           []string
		script, stdout string
	}{
		{"the tree as it is", []string{r.dir}, "pwd; cat .git/HEAD sub/a; ls -A", "/root/repo\nref: refs/heads/main\nthree, not committed\n.git\n.gitignore\nsub\n"},
		{"a part of it", []string{r.path("sub")}, "pwd; ls -A /root/repo", "/root/repo\n.git\n.gitignore\nsub\n"},
		{"untracked files", []string{"--include-untracked", r.dir}, "cat new; ls -A", "untracked\n.git\n.gitignore\nnew\nsub\n"},
		{"a branch", []string{"--branch", "work", r.dir}, "cat .git/HEAD sub/a", "ref: refs/heads/work\nthree, not committed\n"},
		{"a branch from a commit", []string{"--branch", "work", "--from", "HEAD~1", r.dir}, "cat .git/HEAD sub/a; cat .git/refs/heads/work .git/packed-refs 2>/dev/null | grep -o " + first,
			"ref: refs/heads/work\none\n" + first + "\n"},
		{"another place", []string{"--guest-path", "/srv/my work", r.dir}, "pwd; cat sub/a", "/srv/my work\nthree, not committed\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := w.must(t, append(append(append([]string{}, small...), tt.args...), "--", "sh", "-c", tt.script)...)
			if got != tt.stdout {
				t.Errorf("the guest has %q, want %q", got, tt.stdout)
			}
		})
	}
	t.Run("a dry run makes nothing", func(t *testing.T) {
		got := w.banger(t, "vm", "run", "--name", "dry", "--image", "small", "--dry-run", "--include-untracked", r.dir)
		for _, name := range []string{" sub/a\n", " new\n", " .gitignore\n"} {
			if !strings.Contains(got.stdout, name) {
				t.Errorf("the list lacks %q:\n%s", name, got.stdout)
			}
		}
		if got.code != 0 || strings.Contains(got.stdout, "ignored\n") && !strings.Contains(got.stdout, ".gitignore") || !strings.Contains(got.stderr, "nothing was made") {
			t.Errorf("the dry run = %+v", got)
		}
		w.absent(t, "dry")
	})
	if got := r.git("branch", "--format=%(refname:short)"); got != "main\n" {
		t.Errorf("the host's repository has the branches %q", got)
	}
}

// absent fails the test if there is a VM of that name.
func (w *world) absent(t *testing.T, name string) {
	t.Helper()
	if r := w.banger(t, "vm", "show", name); r.code != 125 || !strings.Contains(r.stderr, name) {
		t.Errorf("there is a VM %s: %+v", name, r)
	}
}

// What cannot be brought is refused before there is a VM.
func TestWorkspaceRefusals(t *testing.T) {
	t.Parallel()
	w := shared
	w.start(t)
	plain, modules, bare := newRepo(t), newRepo(t), newRepo(t, "--bare")
	plain.write("a", "a")
	plain.commit("one")
	modules.write("a", "a")
	modules.commit("one")
	modules.git("update-index", "--add", "--cacheinfo", "160000,"+strings.TrimSpace(modules.git("rev-parse", "HEAD"))+",sub")
	for _, tt := range []struct {
		name, stderr string
		args         []string
	}{
		{"submodule", "submodule", []string{modules.dir}},
		{"bare", "bare", []string{bare.dir}},
		{"outside", "not inside a git work tree", []string{t.TempDir()}},
		{"no path", "does not exist", []string{plain.path("nowhere")}},
		{"a file", "not a directory", []string{plain.path("a")}},
		{"unknown commit", "names no commit", []string{"--branch", "b", "--from", "nothing", plain.dir}},
		{"from without a branch", "--branch", []string{"--from", "HEAD", plain.dir}},
		{"a bad branch", "branch", []string{"--branch", "a..b", plain.dir}},
		{"options without a path", "needs the path of a repository", []string{"--include-untracked"}},
		{"detached and gone", "--rm", []string{"-d", "--rm", plain.dir}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{"vm", "run", "--name", "refused", "--image", "small"}, tt.args...)
			r := w.banger(t, append(args, "--", "true")...)
			if r.code != 125 || !strings.Contains(r.stderr, tt.stderr) || !strings.Contains(r.stderr, "banger: hint: ") {
				t.Errorf("vm run = %+v, want 125, %q and a hint", r, tt.stderr)
			}
			w.absent(t, "refused")
		})
	}
}
