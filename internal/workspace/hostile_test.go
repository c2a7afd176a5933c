package workspace_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/api"
	"banger/internal/testneed"
	"banger/internal/workspace"
)

// hostile makes a repository in which every setting that can name a program
// names one that touches the canary.
func hostile(t *testing.T) (r repo, canary string) {
	r = newRepo(t)
	canary = filepath.Join(t.TempDir(), "canary")
	r.write("a.txt", "a\n")
	r.write("b.bin", "b\n")
	r.commit("one")
	r.write("b.bin", "b2\n")
	r.commit("two")
	evil := filepath.Join(t.TempDir(), "evil")
	must(t, os.WriteFile(evil, []byte("#!/bin/sh\necho \"$0 $*\" >> "+canary+"\nexec cat\n"), 0o755))
	hooks := filepath.Join(r.dir, ".git/hooks")
	must(t, os.MkdirAll(hooks, 0o755))
	for _, h := range []string{
		"pre-commit", "post-checkout", "post-index-change", "fsmonitor-watchman", "reference-transaction",
		"pre-auto-gc", "post-rewrite", "pre-push", "query-watchman", "post-merge", "sendemail-validate",
	} {
		must(t, os.Symlink(evil, filepath.Join(hooks, h)))
	}
	for _, c := range [][2]string{
		{"core.fsmonitor", evil}, {"core.hooksPath", hooks}, {"core.untrackedCache", "true"},
		{"core.sshCommand", evil}, {"core.gitProxy", evil}, {"core.askPass", evil}, {"core.pager", evil},
		{"core.editor", evil}, {"core.alternateRefsCommand", evil}, {"sequence.editor", evil},
		{"credential.helper", "!" + evil}, {"gpg.program", evil}, {"gpg.ssh.program", evil},
		{"diff.external", evil}, {"diff.x.textconv", evil}, {"diff.x.command", evil}, {"merge.x.driver", evil},
		{"filter.x.clean", evil}, {"filter.x.smudge", evil}, {"filter.x.required", "true"},
		{"filter.y.process", evil}, {"filter.odd=na.me.clean", evil},
		{"uploadpack.packObjectsHook", evil}, {"log.showSignature", "true"}, {"commit.gpgSign", "true"},
		{"pack.packSizeLimit", "1m"}, {"pack.writeReverseIndex", "true"}, {"pager.ls-files", evil},
		{"alias.ls-files", "!" + evil}, {"alias.pack-objects", "!" + evil}, {"init.templateDir", hooks},
		{"remote.origin.url", "ext::" + evil}, {"remote.origin.promisor", "true"},
		{"remote.origin.partialclonefilter", "blob:none"}, {"remote.origin.uploadpack", evil},
		{"protocol.allow", "always"}, {"protocol.ext.allow", "always"}, {"submodule.recurse", "true"},
		{"trace2.eventTarget", canary}, {"core.excludesFile", "/dev/null"},
	} {
		r.plainGit("config", c[0], c[1])
	}
	must(t, os.WriteFile(filepath.Join(r.dir, ".git/info/attributes"),
		[]byte("*.txt filter=x diff=x merge=x\n*.bin filter=y diff=x\n.* filter=odd=na.me\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(r.dir, ".git/objects/info/alternates"), []byte("/nonexistent\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(r.dir, ".git/info/grafts"), []byte("garbage\n"), 0o644))
	// A file that git would have to hash, and so to filter.
	r.write("a.txt", "b\n")
	must(t, os.Chtimes(filepath.Join(r.dir, "b.bin"), time.Now(), time.Unix(1e9, 0)))
	return r, canary
}

// plainGit sets one value; the repository may be hostile already.
func (r repo) plainGit(args ...string) {
	r.t.Helper()
	r.git(append([]string{"-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"}, args...)...)
}

func TestHostileRepositoryRunsNothing(t *testing.T) {
	t.Parallel()
	r, canary := hostile(t)
	untouched := func(when string) {
		t.Helper()
		if b, err := os.ReadFile(canary); err == nil {
			t.Fatalf("%s: the canary was touched by:\n%s", when, b)
		}
	}
	untouched("before")
	// git itself does run them: the test would notice.
	if _, err := r.try("status", "--porcelain"); err != nil {
		t.Logf("git status in the hostile repository: %v", err)
	}
	if _, err := os.Stat(canary); err != nil {
		t.Fatal("git status did not touch the canary: the repository is not hostile")
	}
	must(t, os.Remove(canary))
	before := snapshot(t, r.dir)

	for _, o := range []workspace.Options{{}, {IncludeUntracked: true}, {Branch: "x", From: "HEAD~1"}} {
		_, guest := r.pack(o)
		untouched(fmt.Sprintf("packing with %+v", o))
		config, err := os.ReadFile(filepath.Join(guest.dir, ".git/config"))
		must(t, err)
		for _, word := range []string{"evil", "ext::", "filter", "hooks", "promisor", "fsmonitor"} {
			if strings.Contains(string(config), word) {
				t.Errorf("the guest's config has %q:\n%s", word, config)
			}
		}
		if _, err := os.Stat(filepath.Join(guest.dir, ".git/hooks")); err == nil {
			t.Error("the guest has hooks")
		}
		guest.git("status", "--porcelain")
	}
	untouched("the guest's own git")
	if after := snapshot(t, r.dir); after != before {
		t.Errorf("the repository was written to:\nbefore %s\nafter %s", before, after)
	}
}

// snapshot lists every file below dir with size and time.
func snapshot(t *testing.T, dir string) string {
	var b strings.Builder
	must(t, filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err == nil {
			fmt.Fprintln(&b, path, fi.Size(), fi.ModTime().UnixNano(), fi.Mode())
		}
		return err
	}))
	return b.String()
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	victim := newRepo(t)
	victim.write("private", "SECRET")
	victim.commit("private")
	victim.git("checkout", "-q", "-b", "other")
	for _, tt := range []struct {
		name string
		make func(r repo) (path string, o workspace.Options)
		code api.Code
		want string
	}{
		{"no path", func(r repo) (string, workspace.Options) { return r.dir + "/none", workspace.Options{} }, api.NotFound, "does not exist"},
		{"a file", func(r repo) (string, workspace.Options) { return r.dir + "/a", workspace.Options{} }, api.Invalid, "not a directory"},
		{"no work tree", func(r repo) (string, workspace.Options) { return filepath.Dir(r.dir), workspace.Options{} }, api.Invalid, "not inside a git work tree"},
		{"inside .git", func(r repo) (string, workspace.Options) { return r.dir + "/.git/refs", workspace.Options{} }, api.Invalid, "inside a .git"},
		{"bare", func(r repo) (string, workspace.Options) {
			r.git("init", "-q", "--bare", r.dir+"/../bare.git")
			return r.dir + "/../bare.git", workspace.Options{}
		}, api.Unsupported, "bare"},
		{"bare by setting", func(r repo) (string, workspace.Options) {
			r.git("config", "core.bare", "true")
			return r.dir, workspace.Options{}
		}, api.Unsupported, "bare"},
		{"submodule", func(r repo) (string, workspace.Options) {
			r.git("update-index", "--add", "--cacheinfo", "160000,"+strings.TrimSpace(r.git("rev-parse", "HEAD"))+",sub")
			return r.dir, workspace.Options{}
		}, api.Unsupported, "submodule"},
		{"submodule in --from", func(r repo) (string, workspace.Options) {
			r.git("update-index", "--add", "--cacheinfo", "160000,"+strings.TrimSpace(r.git("rev-parse", "HEAD"))+",sub")
			r.git("commit", "-q", "-m", "sub")
			r.git("checkout", "-q", "--force", "-b", "plain", "HEAD~1")
			return r.dir, workspace.Options{Branch: "x", From: "main"}
		}, api.Unsupported, "submodule"},
		{"core.worktree", func(r repo) (string, workspace.Options) {
			r.git("config", "core.worktree", victim.dir)
			return r.dir, workspace.Options{}
		}, api.Denied, "another work tree"},
		{"gitfile of another", func(r repo) (string, workspace.Options) {
			must(r.t, os.RemoveAll(r.dir+"/.git"))
			r.write(".git", "gitdir: "+victim.dir+"/.git\n")
			return r.dir, workspace.Options{}
		}, api.Denied, "does not point back"},
		{"commondir of another", func(r repo) (string, workspace.Options) {
			r.write(".git/commondir", victim.dir+"/.git\n")
			return r.dir, workspace.Options{}
		}, api.Denied, "does not point back"},
		{"gitfile to own commondir of another", func(r repo) (string, workspace.Options) {
			must(r.t, os.Rename(r.dir+"/.git", r.dir+"/g"))
			r.write(".git", "gitdir: g\n")
			r.write("g/commondir", victim.dir+"/.git\n")
			r.write("g/gitdir", r.dir+"/.git\n")
			return r.dir, workspace.Options{}
		}, api.Denied, "does not point back"},
		{"linked ref", func(r repo) (string, workspace.Options) {
			must(r.t, os.Remove(r.dir+"/.git/refs/heads/main"))
			must(r.t, os.Symlink(victim.dir+"/.git/refs/heads/main", r.dir+"/.git/refs/heads/main"))
			r.write(".git/objects/info/alternates", victim.dir+"/.git/objects\n")
			return r.dir, workspace.Options{}
		}, api.Denied, "link out of its repository"},
		{"linked index", func(r repo) (string, workspace.Options) {
			must(r.t, os.Remove(r.dir+"/.git/index"))
			must(r.t, os.Symlink(victim.dir+"/.git/index", r.dir+"/.git/index"))
			return r.dir, workspace.Options{}
		}, api.Denied, "link out of its repository"},
		{"fifo", func(r repo) (string, workspace.Options) {
			must(r.t, os.Remove(r.dir+"/a"))
			mkfifo(r.t, r.dir+"/a")
			return r.dir, workspace.Options{}
		}, api.Unsupported, "neither a file"},
		{"from without branch", func(r repo) (string, workspace.Options) { return r.dir, workspace.Options{From: "HEAD"} }, api.Invalid, "--branch"},
		{"unknown from", func(r repo) (string, workspace.Options) {
			return r.dir, workspace.Options{Branch: "x", From: "nothing"}
		}, api.Invalid, "names no commit"},
		{"from like an option", func(r repo) (string, workspace.Options) {
			return r.dir, workspace.Options{Branch: "x", From: "--all"}
		}, api.Invalid, "names no commit"},
		{"from with a line break", func(r repo) (string, workspace.Options) {
			return r.dir, workspace.Options{Branch: "x", From: "HEAD\nHEAD"}
		}, api.Invalid, "names no commit"},
		{"guest path", func(r repo) (string, workspace.Options) {
			return r.dir, workspace.Options{GuestPath: "repo"}
		}, api.Invalid, "guest path"},
		{"guest path that the boot empties", func(r repo) (string, workspace.Options) {
			return r.dir, workspace.Options{GuestPath: "/srv/../tmp/repo"}
		}, api.Invalid, "empties or covers"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRepo(t)
			r.write("a", "a\n")
			r.commit("one")
			path, o := tt.make(r)
			_, err := workspace.Inspect(t.Context(), path, o)
			e, ok := errors.AsType[*api.Error](err)
			if !ok || e.Code != tt.code || !strings.Contains(e.Msg, tt.want) || e.Hint == "" {
				t.Errorf("Inspect = %#v, want code %s, a message with %q and a hint", err, tt.code, tt.want)
			}
		})
	}
	r := newRepo(t)
	for _, name := range []string{
		"", " ", "-x", "-oProxyCommand=x", "--upload-pack=x", "a..b", "a b", "x.lock", "@{-1}", "@", "HEAD~1", "a\nb", "a\x00b", "/a", "a/", "a//b", ".a", "$(x)\\",
	} {
		o := workspace.Options{Branch: name}
		if name == "" {
			o = workspace.Options{From: "HEAD"}
		}
		if _, err := workspace.Inspect(t.Context(), r.dir, o); api.CodeOf(err) != api.Invalid {
			t.Errorf("Inspect with branch %q = %v, want %s", name, err, api.Invalid)
		}
	}
}

func TestAnotherUsersRepository(t *testing.T) {
	testneed.Root(t)
	r := newRepo(t)
	r.write("a", "x")
	r.commit("one")
	must(t, os.Lchown(r.dir, 12345, 12345))
	must(t, os.Lchown(filepath.Join(r.dir, ".git"), 12345, 12345))
	_, err := workspace.Inspect(t.Context(), r.dir, workspace.Options{})
	if api.CodeOf(err) != api.Denied || !strings.Contains(err.Error(), "another user") {
		t.Errorf("Inspect = %v, want %s", err, api.Denied)
	}
}

func TestPartialCloneIsRefusedOrPacked(t *testing.T) {
	t.Parallel()
	origin := newRepo(t)
	for i := range 3 {
		origin.write("a", fmt.Sprint(i))
		origin.commit(fmt.Sprint(i))
	}
	origin.git("config", "uploadpack.allowFilter", "true")
	r := repo{t, filepath.Join(t.TempDir(), "partial")}
	origin.git("clone", "-q", "--filter=blob:none", "file://"+origin.dir, r.dir)
	_, err := workspace.Inspect(t.Context(), r.dir, workspace.Options{})
	e, ok := errors.AsType[*api.Error](err)
	if !ok || e.Code != api.Unsupported || !strings.Contains(e.Msg, "partial clone") || !strings.Contains(e.Hint, "--refetch origin") {
		t.Fatalf("Inspect of a partial clone = %v, want %s", err, api.Unsupported)
	}
	// What the hint says does mend it.
	r.git("config", "--unset-all", "remote.origin.partialclonefilter")
	r.git("fetch", "-q", "--refetch", "origin")
	_, guest := r.pack(workspace.Options{})
	guest.sameAs(r)
}

func TestFilesThatMove(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(r repo)
		want   string
	}{
		{"vanished", func(r repo) { must(r.t, os.Remove(r.dir+"/small")) }, `"small" vanished`},
		{"became a directory", func(r repo) {
			must(r.t, os.Remove(r.dir+"/small"))
			must(r.t, os.Mkdir(r.dir+"/small", 0o755))
		}, `"small" vanished`},
		{"directory became a link", func(r repo) {
			must(r.t, os.Rename(r.dir+"/d", r.dir+"/e"))
			must(r.t, os.Symlink("e", r.dir+"/d"))
		}, `"d/x" vanished`},
		{"grown huge", func(r repo) { must(r.t, os.Truncate(r.dir+"/small", 1<<30)) }, `"small" changed`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRepo(t)
			r.write("small", "x")
			r.write("d/x", "x")
			r.commit("one")
			plan, err := workspace.Inspect(t.Context(), r.dir, workspace.Options{Scratch: t.TempDir()})
			must(t, err)
			tt.change(r)
			err = plan.WriteTar(t.Context(), &bytes.Buffer{}, nil)
			if api.CodeOf(err) != api.Conflict || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("WriteTar = %v, want %s about %s", err, api.Conflict, tt.want)
			}
		})
	}
}

// A large file that shrinks while the writer copies it ends the tar with an
// error that names it.
func TestLargeFileShrinks(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	r.write("large", strings.Repeat("0123456789abcdef", 1<<17))
	r.commit("one")
	plan, err := workspace.Inspect(t.Context(), r.dir, workspace.Options{Scratch: t.TempDir()})
	must(t, err)
	cut := false
	err = plan.WriteTar(t.Context(), writerFunc(func(p []byte) (int, error) {
		if !cut {
			cut = true
			must(t, os.Truncate(r.dir+"/large", 600<<10))
		}
		return len(p), nil
	}), nil)
	if api.CodeOf(err) != api.Conflict || !strings.Contains(err.Error(), `"large" changed`) {
		t.Errorf("WriteTar = %v, want %s about large", err, api.Conflict)
	}
}

// A reader that goes away ends WriteTar, and nothing of it stays.
func TestReaderGoesAway(t *testing.T) {
	t.Parallel()
	r := newRepo(t)
	for i := range 300 {
		r.write(fmt.Sprint("f", i), strings.Repeat("x", 20000))
	}
	r.commit("one")
	scratch := t.TempDir()
	plan, err := workspace.Inspect(t.Context(), r.dir, workspace.Options{Scratch: scratch})
	must(t, err)
	gone := errors.New("gone")
	if err := plan.WriteTar(t.Context(), writerFunc(func([]byte) (int, error) { return 0, gone }), nil); !errors.Is(err, gone) {
		t.Errorf("WriteTar = %v, want %v", err, gone)
	}
	if left, _ := os.ReadDir(scratch); len(left) != 0 {
		t.Errorf("scratch holds %v, want nothing", left)
	}
	// What a killed process left is swept by the next.
	must(t, os.MkdirAll(scratch+"/git-pack-stale/pack", 0o700))
	must(t, plan.WriteTar(t.Context(), writerFunc(func(p []byte) (int, error) { return len(p), nil }), nil))
	if left, _ := os.ReadDir(scratch); len(left) != 0 {
		t.Errorf("scratch holds %v after the next one, want nothing", left)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
