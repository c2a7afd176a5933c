package recipe

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"banger/internal/api"
	"banger/internal/bzimage"
	"banger/internal/testneed"
)

// fakeMmdebstrap puts a shell script of that name first in PATH.
func fakeMmdebstrap(t *testing.T, script string) {
	t.Helper()
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "mmdebstrap"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	if _, err := Check(Recipe{}, Options{}); api.CodeOf(err) == api.Missing {
		testneed.Missing(t, err.Error())
	}
}

// wholeTar gives fakes a tar to print: the file named by WHOLE.
func wholeTar(t *testing.T) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "whole.tar")
	b, err := io.ReadAll(tarOf(t, dir("."), file("./etc/os-release", "ID=debian\n"), file("./var/cache/apt/archives/a_1.deb", "pkg")))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("WHOLE", name)
}

// nothingIn fails unless dir is empty.
func nothingIn(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("%s holds %v (%v), want nothing", dir, left, err)
	}
}

func TestRunWithAFake(t *testing.T) {
	wholeTar(t)
	r := Recipe{Name: "thing", Suite: "bookworm", Packages: []string{"a", "b"}, Files: []File{{Path: "etc/hostname", Mode: 0o644, Body: "x\n"}}}
	cases := []struct {
		name, script string
		code         api.Code // empty: it succeeds
		msg, hint    string
	}{
		{"succeeds", `ls debs; case "$*" in *--include=a,b\ bookworm\ -\ http://m*) ;; *) exit 3; esac; exec cat "$WHOLE"`, "", "", ""},
		{"no network", `echo "Err:1 http://m bookworm InRelease" >&2; echo "E: Failed to fetch http://m" >&2; exit 1`, api.Internal, "Err:1 http://m", "set mirror"},
		{"no keys", `echo "W: GPG error: NO_PUBKEY 123" >&2; exit 1`, api.Missing, "mmdebstrap failed", "debian-archive-keyring"},
		{"no room", `cat "$WHOLE"; echo "E: tar: write: No space left on device" >&2; exit 1`, api.NoSpace, "No space left", "free 0 MiB"},
		{"whole tar, bad end", `cat "$WHOLE"; exit 25`, api.Internal, "exit status 25", ""},
		{"cut off", `head -c 700 "$WHOLE"`, api.Internal, "holds no Debian system", ""},
		{"killed", `kill -9 $$`, api.Internal, "exit status 137", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			fakeMmdebstrap(t, strings.Replace(c.script, "ls debs;", "[ -d debs ] || exit 4;", 1))
			o := Options{Mirror: "http://m", CacheDir: t.TempDir(), WorkDir: t.TempDir()}
			var out bytes.Buffer
			o.Out = &out
			err := Run(t.Context(), r, o)
			nothingIn(t, o.WorkDir)
			if c.code == "" {
				if err != nil {
					t.Fatal(err)
				}
				if got := membersOf(t, &out); len(got) != 4 || got[1].Body != "ID=debian\n" || got[3].Body != "x\n" {
					t.Errorf("got %+v, want the system with our file", got)
				}
				if b, err := os.ReadFile(filepath.Join(o.CacheDir, "packages/thing/a_1.deb")); err != nil || string(b) != "pkg" {
					t.Errorf("the cached package: got %q, %v, want it there", b, err)
				}
				return
			}
			if api.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.msg) || !strings.Contains(err.Error(), "building thing") {
				t.Errorf("got error %v (%s), want %s with %q", err, api.CodeOf(err), c.code, c.msg)
			}
			if e, ok := errors.AsType[*api.Error](err); c.hint != "" && (!ok || !strings.Contains(e.Hint, c.hint)) {
				t.Errorf("got %#v, want a hint with %q", err, c.hint)
			}
			if end := make([]byte, 1024); bytes.HasSuffix(out.Bytes(), end) {
				t.Error("a failed build has a whole tar, want one without an end")
			}
		})
	}
}

func TestRunCancelled(t *testing.T) {
	// It says that it has begun, then waits like a dpkg that takes its time,
	// with a child of its own that must end too.
	fakeMmdebstrap(t, `mkdir "$TMPDIR/mmdebstrap.x"; trap 'rmdir "$TMPDIR/mmdebstrap.x"; exit 1' TERM
echo "I: running apt-get update..." >&2
sleep 600 & wait $!`)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := Options{CacheDir: t.TempDir(), WorkDir: t.TempDir(), Out: io.Discard, Progress: func(Progress) { cancel() }}
	if err := Run(ctx, Recipe{Name: "thing", Suite: "bookworm"}, o); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want %v", err, context.Canceled)
	}
	nothingIn(t, o.WorkDir)
}

func TestRunReaderGoesAway(t *testing.T) {
	wholeTar(t)
	fakeMmdebstrap(t, `exec cat "$WHOLE"`)
	gone := errors.New("gone")
	pr, pw := io.Pipe()
	pr.CloseWithError(gone)
	o := Options{CacheDir: t.TempDir(), WorkDir: t.TempDir(), Out: pw}
	if err := Run(t.Context(), Recipe{Name: "thing", Suite: "bookworm"}, o); !errors.Is(err, gone) {
		t.Errorf("got error %v, want %v", err, gone)
	}
	nothingIn(t, o.WorkDir)
}

// TestRunReaderGoesAwayEarly has a writer that fails while there is much to come.
func TestRunReaderGoesAwayEarly(t *testing.T) {
	wholeTar(t)
	fakeMmdebstrap(t, `trap 'exit 1' TERM; while :; do head -c -1024 "$WHOLE"; done`)
	gone := errors.New("gone")
	pr, pw := io.Pipe()
	pr.CloseWithError(gone)
	o := Options{CacheDir: t.TempDir(), WorkDir: t.TempDir(), Out: pw}
	if err := Run(t.Context(), Recipe{Name: "thing", Suite: "bookworm"}, o); !errors.Is(err, gone) {
		t.Errorf("got error %v, want %v", err, gone)
	}
	nothingIn(t, o.WorkDir)
}

func TestSweep(t *testing.T) {
	fakeMmdebstrap(t, `exec cat "$WHOLE"`)
	wholeTar(t)
	o := Options{CacheDir: t.TempDir(), WorkDir: t.TempDir(), Out: io.Discard}
	b1 := &build{options: o, debs: filepath.Join(o.CacheDir, "p")}
	b2 := &build{options: o, debs: filepath.Join(o.CacheDir, "p")}
	for _, b := range []*build{b1, b2} {
		if err := b.prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	b1.lock.Close() // as if its process had been killed
	if err := Run(t.Context(), Recipe{Name: "thing", Suite: "bookworm"}, o); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(b1.work); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the dead build's directory: got %v, want it gone", err)
	}
	if _, err := os.Stat(b2.work); err != nil {
		t.Errorf("the living build's directory: %v, want it there", err)
	}
	b2.clean(t.Context())
	nothingIn(t, o.WorkDir)
}

// What another user calls like a work directory of ours is not ours to remove.
func TestSweepLeavesOthersAlone(t *testing.T) {
	testneed.Root(t)
	work := t.TempDir()
	theirs, link := filepath.Join(work, "banger-build-0-x"), filepath.Join(work, "banger-build-0-y")
	if err := errors.Join(os.Mkdir(theirs, 0o700), os.Chown(theirs, 4242, 4242), os.Symlink(t.TempDir(), link)); err != nil {
		t.Fatal(err)
	}
	(&build{options: Options{WorkDir: work}}).sweep(t.Context())
	for _, path := range []string{theirs, link} {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("sweep removed %s: %v", path, err)
		}
	}
}

func TestCheck(t *testing.T) {
	t.Run("no mmdebstrap", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		_, err := Check(Recipe{Name: "thing"}, Options{})
		e, ok := errors.AsType[*api.Error](err)
		if !ok || e.Code != api.Missing || !strings.Contains(e.Hint, "install mmdebstrap") {
			t.Errorf("got %#v, want mmdebstrap missing", err)
		}
	})
	t.Run("no room", func(t *testing.T) {
		fakeMmdebstrap(t, "")
		dir := t.TempDir()
		_, err := Check(Recipe{Name: "thing", Room: 1 << 60}, Options{WorkDir: dir})
		if api.CodeOf(err) != api.NoSpace || !strings.Contains(err.Error(), dir) {
			t.Errorf("got %v, want %s with the directory", err, api.NoSpace)
		}
	})
}

func TestCheckNamespaces(t *testing.T) {
	bin := t.TempDir()
	for _, p := range []string{"newuidmap", "newgidmap"} {
		if err := os.WriteFile(filepath.Join(bin, p), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin)
	id := strconv.Itoa(os.Getuid())
	good := id + ":100000:65536\n"
	cases := []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"good", map[string]string{"etc/subuid": "other:1:65536\n" + good, "etc/subgid": good}, ""},
		{"no subuid", map[string]string{"etc/subgid": good}, "no range of ids in /etc/subuid"},
		{"small subgid", map[string]string{"etc/subuid": good, "etc/subgid": id + ":100000:1000\n"}, "no range of ids in /etc/subgid"},
		{"switched off", map[string]string{"etc/subuid": good, "etc/subgid": good, "proc/sys/kernel/unprivileged_userns_clone": "0\n"}, "no user namespaces"},
		{"none left", map[string]string{"etc/subuid": good, "etc/subgid": good, "proc/sys/user/max_user_namespaces": "0\n"}, "no user namespaces"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := checkNamespaces(Recipe{Name: "thing"}, hostWith(t, c.files)+"/")
			e, ok := errors.AsType[*api.Error](err)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("got %v, want no error", err)
			case c.want != "" && (!ok || e.Code != api.Missing || !strings.Contains(e.Msg, c.want) || !strings.HasPrefix(e.Hint, "sudo ")):
				t.Errorf("got %#v, want %s with %q and its fix", err, api.Missing, c.want)
			}
		})
	}
	t.Run("no uidmap", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		if err := checkNamespaces(Recipe{}, "/"); err == nil || !strings.Contains(err.Error(), "newuidmap is not installed") {
			t.Errorf("got %v, want newuidmap missing", err)
		}
	})
}

// TestKernelForReal builds the default kernel from this host's archive and
// looks inside. It takes some ten seconds and 40 MB of packages.
func TestKernelForReal(t *testing.T) {
	testneed.Tool(t, "mmdebstrap")
	r, err := Kernel(DefaultKernel)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Check(r, Options{}); api.CodeOf(err) == api.Missing {
		testneed.Missing(t, err.Error())
	}
	// Another account must pass through the work directory: not below t.TempDir.
	work, err := os.MkdirTemp("/var/tmp", "recipe-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(work)
	if err := os.Chmod(work, 0o711); err != nil {
		t.Fatal(err)
	}
	phases := map[Phase]bool{}
	o := Options{CacheDir: t.TempDir(), WorkDir: work, Progress: func(p Progress) { phases[p.Phase] = true }}
	pr, pw := io.Pipe()
	o.Out = pw
	var wg sync.WaitGroup
	var runErr error
	wg.Go(func() { runErr = Run(t.Context(), r, o); pw.CloseWithError(runErr) })
	var tree bytes.Buffer
	_, readErr := io.Copy(&tree, pr)
	wg.Wait()
	if e, ok := errors.AsType[*api.Error](runErr); ok && strings.Contains(e.Hint, "reaches its Debian archive") {
		testneed.Missing(t, "the network: "+runErr.Error())
	}
	if err := errors.Join(runErr, readErr); err != nil {
		t.Fatalf("%v\n%#v", err, runErr)
	}
	nothingIn(t, work)
	looksLikeAKernel(t, &tree)
	for _, p := range []Phase{PhaseIndex, PhaseDownload, PhaseBase, PhaseCustomise, PhasePack, PhaseEnd} {
		if !phases[p] {
			t.Errorf("no progress was reported for %s", p)
		}
	}
	if kept, _ := filepath.Glob(filepath.Join(o.CacheDir, "packages", r.Name, "linux-image-*.deb")); len(kept) < 2 {
		t.Errorf("the cache has %v, want the kernel's packages", kept)
	}
}

func looksLikeAKernel(t *testing.T, tree io.Reader) {
	t.Helper()
	indexes := 0
	var kernel []byte
	for _, m := range membersOf(t, tree) {
		switch base := filepath.Base(m.Name); {
		case strings.HasPrefix(m.Name, "./boot/vmlinuz-"):
			elf, err := bzimage.Extract([]byte(m.Body))
			if err != nil {
				t.Error(err)
			}
			kernel = elf
		case base == "modules.dep.bin" || base == "modules.alias.bin" || base == "modules.builtin.bin" || base == "virtio_blk.ko" || base == "overlay.ko":
			indexes++
		case !strings.HasPrefix(m.Name, "./boot/") && !strings.HasPrefix(m.Name, "./lib/") && m.Name != "./":
			t.Errorf("%s is in the kernel's tar, want the kernel alone", m.Name)
		}
	}
	if len(kernel) < 20<<20 || indexes != 5 {
		t.Errorf("got a kernel of %d bytes and %d of 5 files, want them all", len(kernel), indexes)
	}
}

// The lock of a work directory must not pass to mmdebstrap: a killed build
// would look alive as long as a leftover of it runs.
func TestLockIsOurs(t *testing.T) {
	dir := t.TempDir()
	f, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, f.Fd(), syscall.F_GETFD, 0)
	if errno != 0 || flags&syscall.FD_CLOEXEC == 0 {
		t.Errorf("got flags %#x (%v), want close-on-exec", flags, errno)
	}
	if g, err := lockDir(dir); err == nil {
		g.Close()
		t.Error("the directory was locked twice, want once")
	}
}
