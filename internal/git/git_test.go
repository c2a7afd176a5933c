package git

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"banger/internal/api"
	"banger/internal/testneed"
)

// run is git as a user would call it.
func run(t testing.TB, dir, stdin string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(context.Background(), testneed.Tool(t, "git"), args...)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "GIT_CONFIG_NOSYSTEM=1", "GIT_OPTIONAL_LOCKS=0")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git %q: %v\n%s", args, err, stderr.String())
	}
	return string(out)
}

func initRepo(t testing.TB, format string) string {
	t.Helper()
	dir := t.TempDir()
	run(t, dir, "", "init", "-q", "-b", "main", "--object-format="+format)
	run(t, dir, "", "config", "user.name", "A")
	run(t, dir, "", "config", "user.email", "a@example.org")
	return dir
}

func open(t testing.TB, dir string) *Repo {
	t.Helper()
	r, err := Open(t.Context(), dir)
	if err != nil {
		t.Fatalf("Open(%s): %v", dir, err)
	}
	return r
}

// An index of random entries says to git what was put in, and git finds
// nothing wrong with it.
func TestEncodeIndexAgainstGit(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	for _, format := range []string{SHA1, SHA256} {
		dir := initRepo(t, format)
		blobs := make([]string, 8)
		for i := range blobs {
			blobs[i] = strings.TrimSpace(run(t, dir, fmt.Sprint("blob ", i), "hash-object", "-w", "--stdin"))
			if got := BlobID(format, fmt.Append(nil, "blob ", i)); got != blobs[i] {
				t.Fatalf("BlobID(%s) = %s, want %s", format, got, blobs[i])
			}
		}
		for round := range 12 {
			entries := randomEntries(rnd, blobs)
			index, err := EncodeIndex(format, entries)
			if err != nil {
				t.Fatalf("EncodeIndex: %v", err)
			}
			if version := binary.BigEndian.Uint32(index[4:]); version != 2 && version != 3 {
				t.Fatalf("index version = %d, want 2 or 3", version)
			}
			if err := os.WriteFile(filepath.Join(dir, ".git/index"), index, 0o600); err != nil {
				t.Fatal(err)
			}
			l, err := open(t, dir).List(t.Context())
			if err != nil {
				t.Fatalf("round %d: List: %v", round, err)
			}
			if d := cmp.Diff(entries, l.Entries); d != "" {
				t.Fatalf("round %d: git reads another index:\n%.2000s", round, d)
			}
			run(t, dir, "", "fsck", "--strict")
		}
	}
}

func randomEntries(rnd *rand.Rand, blobs []string) []Entry {
	names := map[string]bool{}
	n := rnd.IntN(60) + 1
	for len(names) < n {
		b := make([]byte, 1+rnd.IntN(12)*rnd.IntN(12))
		for i := range b {
			b[i] = byte(1 + rnd.IntN(255))
		}
		name := strings.ReplaceAll(string(b), "/", "_") + "."
		if rnd.IntN(50) == 0 {
			name += strings.Repeat("n", 0xfff+rnd.IntN(3)-1-len(name)) // around the name mask
		}
		if rnd.IntN(4) == 0 {
			name = "d." + string(rune('a'+rnd.IntN(3))) + "/" + name
		}
		if plainPath(name) {
			names[name] = true
		}
	}
	var out []Entry
	for name := range names {
		e := Entry{Path: name, Mode: []uint32{ModeFile, ModeExecutable, ModeSymlink}[rnd.IntN(3)], ID: blobs[rnd.IntN(len(blobs))]}
		e.Stat = Stat{Mtime: rnd.Uint32(), MtimeNsec: rnd.Uint32N(1e9), Ctime: rnd.Uint32(), Ino: rnd.Uint32(), UID: rnd.Uint32(), GID: 5, Size: rnd.Uint32()}
		switch rnd.IntN(10) {
		case 0:
			e.AssumeValid = true
		case 1:
			e.SkipWorktree = true
		case 2:
			e.IntentToAdd = true
		case 3:
			for s := 1; s <= 3; s++ {
				e.Stage = s
				out = append(out, e)
			}
			continue
		}
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b Entry) int { return strings.Compare(a.Path, b.Path)*10 + a.Stage - b.Stage })
	return out
}

func TestEncodeIndexRefuses(t *testing.T) {
	good := Entry{Path: "a", Mode: ModeFile, ID: strings.Repeat("0", 40)}
	for name, spoil := range map[string]func(*Entry){
		"no path": func(e *Entry) { e.Path = "" }, "NUL": func(e *Entry) { e.Path = "a\x00b" },
		"short id": func(e *Entry) { e.ID = "00" }, "id of the other format": func(e *Entry) { e.ID = strings.Repeat("0", 64) },
		"stage": func(e *Entry) { e.Stage = 4 },
	} {
		e := good
		spoil(&e)
		if _, err := EncodeIndex(SHA1, []Entry{e}); err == nil {
			t.Errorf("EncodeIndex with %s: want an error", name)
		}
	}
}

// An index can name paths that no checkout would write.
func TestListRefusesEscapes(t *testing.T) {
	for _, path := range []string{".git/hooks/post-checkout", "../x", "/etc/passwd", "a/../../x", "a/.GIT/config", "./a", "a//b"} {
		dir := initRepo(t, SHA1)
		id := strings.TrimSpace(run(t, dir, "x", "hash-object", "-w", "--stdin"))
		index, err := EncodeIndex(SHA1, []Entry{{Path: path, Mode: ModeFile, ID: id}})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, ".git/index"), index, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := open(t, dir).List(t.Context()); err == nil {
			t.Errorf("List with %q in the index: want an error", path)
		}
	}
}

func TestParseListing(t *testing.T) {
	debug := "  ctime: 1:2\n  mtime: 3:4\n  dev: 5\tino: 6\n  uid: 7\tgid: 8\n  size: 9\tflags: 40008000\n"
	id := strings.Repeat("a", 40)
	var l Listing
	if err := l.parse([]byte("? H 100644 x\x00? dir/\x00S 100644 " + id + " 0\ta\n\tb\x00" + debug)); err != nil {
		t.Fatal(err)
	}
	want := Listing{
		Untracked: []string{"H 100644 x", "dir/"},
		Entries: []Entry{{
			Path: "a\n\tb", Mode: ModeFile, ID: id, AssumeValid: true, SkipWorktree: true,
			Stat: Stat{Ctime: 1, CtimeNsec: 2, Mtime: 3, MtimeNsec: 4, Ino: 6, UID: 7, GID: 8, Size: 9},
		}},
	}
	if d := cmp.Diff(want, l, cmp.AllowUnexported(Listing{}, unix.Timespec{})); d != "" {
		t.Errorf("parse:\n%s", d)
	}
	for _, bad := range []string{
		"x", "H x\x00", "H 100644 " + id + " 0 a\x00" + debug, "H 100644 " + id + " 4\ta\x00" + debug,
		"H 9 " + id + " 0\ta\x00" + debug, "H 100644 abc 0\ta\x00" + debug, "H 100644 " + id + " 0\ta\x00",
		"H 100644 " + id + " 0\ta\x00" + strings.Replace(debug, "size: 9", "size: ", 1),
		"H 100644 " + id + " 0\ta\x00" + strings.Replace(debug, "1:2", "99999999999:2", 1),
		"H 100644 " + id + " 0\ta\x00" + strings.TrimSuffix(debug, "\n"),
	} {
		if err := new(Listing).parse([]byte(bad)); err == nil {
			t.Errorf("parse(%q): want an error", bad)
		}
	}
}

func FuzzParseListing(f *testing.F) {
	f.Add([]byte("? x\x00H 100644 " + strings.Repeat("a", 40) + " 0\ta\x00  ctime: 1:2\n  mtime: 3:4\n  dev: 5\tino: 6\n  uid: 7\tgid: 8\n  size: 9\tflags: 0\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var l Listing
		if l.parse(b) != nil {
			return
		}
		for _, e := range l.Entries {
			if !validID(e.ID) || strings.ContainsRune(e.Path, 0) {
				t.Errorf("parse let %+v through", e)
			}
		}
	})
}

func TestCleanURL(t *testing.T) {
	for _, tt := range [][2]string{
		{"https://example.org/a/b.git", "https://example.org/a/b.git"},
		{"https://user:secret@example.org/a.git", "https://example.org/a.git"},
		{"https://ghp_token@example.org:8443/a.git?access_token=x#y", "https://example.org:8443/a.git"},
		{"ssh://git:secret@example.org:22/a", "ssh://git@example.org:22/a"},
		{"git@example.org:a/b.git", "git@example.org:a/b.git"},
		{"example.org:b", "example.org:b"},
		{"git://example.org/a", "git://example.org/a"},
		{"", ""}, {"/home/ada/src", ""}, {"../other", ""}, {"file:///home/ada/src", ""},
		{"ext::sh -c x", ""}, {"ext::sh", ""}, {"fd::17", ""}, {"-oProxyCommand=x:y", ""}, {"ssh://-oProxyCommand=x/y", ""},
		{"https://user:se cret@example.org/", ""}, {"https:///nohost", ""}, {"https://exa\nmple.org/", ""},
		{"user:secret@example.org:path", ""}, {"persistent-https://a/b", ""}, {"https://%zz/", ""},
	} {
		if got := CleanURL(tt[0]); got != tt[1] {
			t.Errorf("CleanURL(%q) = %q, want %q", tt[0], got, tt[1])
		}
	}
}

func FuzzCleanURL(f *testing.F) {
	f.Add("https://user:hunter2@example.org/?hunter2#hunter2")
	f.Add("hunter2:hunter2@example.org:x")
	f.Fuzz(func(t *testing.T, raw string) {
		got := CleanURL(raw)
		if again := CleanURL(got); again != got {
			t.Errorf("CleanURL(%q) = %q, and again %q", raw, got, again)
		}
		if strings.ContainsAny(got, " \n\x00?#") {
			t.Errorf("CleanURL(%q) = %q", raw, got)
		}
	})
}

func TestSettings(t *testing.T) {
	r := &Repo{conf: parseConfig([]byte("core.bare\nfalse\x00a.flag\x00filter.o=d.d.clean\nx\ny\x00filter.o=d.d.required\ntrue\x00diff.x.command\nx\x00user.name\nA\x00user.name\nB\n\x00remote.up.promisor\ntrue\x00"))}
	if got := r.Setting("user.name"); got != "B\n" {
		t.Errorf("user.name = %q, want the last value", got)
	}
	if !r.On("a.flag", false) || r.On("core.bare", true) || !r.On("none", true) {
		t.Error("On: a key alone is true, false is false, an absent key is what is asked")
	}
	if got := r.Promisor(); got != "up" {
		t.Errorf("Promisor = %q, want up", got)
	}
	got, err := r.conf.programs()
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	want := [][2]string{{"diff.x.command", ""}, {"filter.o=d.d.clean", ""}, {"filter.o=d.d.required", "false"}, {"remote.up.promisor", "false"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("programs:\n%s", d)
	}
	for i := range maxDrivers + 1 {
		r.conf[fmt.Sprintf("filter.%d.clean", i)] = "x"
	}
	if _, err := r.conf.programs(); api.CodeOf(err) != api.Unsupported {
		t.Errorf("programs with too many = %v, want %s", err, api.Unsupported)
	}
}

func TestTrusts(t *testing.T) {
	dir := initRepo(t, SHA1)
	file := filepath.Join(dir, "f")
	write := func(name string) {
		if err := os.WriteFile(name, []byte("content\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(file)
	old := time.Unix(1_000_000_000, 123_456_789)
	if err := os.Chtimes(file, old, old); err != nil {
		t.Fatal(err)
	}
	run(t, dir, "", "add", "f")
	l, err := open(t, dir).List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(file, &st); err != nil {
		t.Fatal(err)
	}
	e := l.Entries[0]
	if !l.Trusts(&e, &st) {
		t.Fatal("Trusts a file that did not change = false")
	}
	for name, spoil := range map[string]func(*Listing, *Entry, *unix.Stat_t){
		"size":  func(_ *Listing, _ *Entry, st *unix.Stat_t) { st.Size++ },
		"mtime": func(_ *Listing, _ *Entry, st *unix.Stat_t) { st.Mtim.Sec++ },
		"fraction": func(_ *Listing, e *Entry, st *unix.Stat_t) {
			st.Mtim.Nsec = int64(e.Stat.MtimeNsec) + 1
			e.Stat.MtimeNsec |= 1
		},
		"ctime":    func(_ *Listing, _ *Entry, st *unix.Stat_t) { st.Ctim.Sec++ },
		"inode":    func(_ *Listing, _ *Entry, st *unix.Stat_t) { st.Ino++ },
		"owner":    func(_ *Listing, _ *Entry, st *unix.Stat_t) { st.Uid++ },
		"type":     func(_ *Listing, _ *Entry, st *unix.Stat_t) { st.Mode = unix.S_IFLNK | 0o777 },
		"racy":     func(l *Listing, _ *Entry, st *unix.Stat_t) { l.written = st.Mtim },
		"conflict": func(_ *Listing, e *Entry, _ *unix.Stat_t) { e.Stage = 2 },
		"smudged":  func(_ *Listing, e *Entry, _ *unix.Stat_t) { e.Stat = Stat{} },
	} {
		l, e, st := *l, e, st
		if spoil(&l, &e, &st); l.Trusts(&e, &st) {
			t.Errorf("Trusts with another %s = true, want false", name)
		}
	}
	l.minimal = true
	st.Ino, st.Uid, st.Ctim.Sec = 1, 1, 1
	if !l.Trusts(&e, &st) {
		t.Error("Trusts with core.checkStat=minimal compares more than size and time")
	}
}

func TestHistory(t *testing.T) {
	dir := initRepo(t, SHA1)
	for i := range 14 {
		run(t, dir, "", "commit", "-q", "--allow-empty", "-m", fmt.Sprint(i))
	}
	run(t, dir, "", "tag", "-a", "-m", "x", "v1", "HEAD~12")
	r := open(t, dir)
	h, err := r.History(t.Context(), 10, "HEAD", "v1", "HEAD~13")
	if err != nil {
		t.Fatal(err)
	}
	id := func(rev string) string { return strings.TrimSpace(run(t, dir, "", "rev-parse", rev+"^{commit}")) }
	want := []History{
		{Tip: id("HEAD"), Commits: 10, Boundary: []string{id("HEAD~9")}},
		{Tip: id("v1"), Commits: 2},
		{Tip: id("HEAD~13"), Commits: 1},
	}
	if d := cmp.Diff(want, h); d != "" {
		t.Errorf("History:\n%s", d)
	}
	if _, err := r.History(t.Context(), 10, "HEAD:"); api.CodeOf(err) != api.Invalid {
		t.Errorf("History of a tree = %v, want %s", err, api.Invalid)
	}
	// A repository that lacks a commit is refused, not cut.
	lost := id("HEAD~3")
	if err := os.Remove(filepath.Join(dir, ".git/objects", lost[:2], lost[2:])); err != nil {
		t.Fatal(err)
	}
	if _, err := r.History(t.Context(), 10, "HEAD"); api.CodeOf(err) != api.Unsupported || !strings.Contains(err.Error(), lost) {
		t.Errorf("History without %s = %v, want %s", lost, err, api.Unsupported)
	}
}

func TestPackWithoutSpaceOrObjects(t *testing.T) {
	dir := initRepo(t, SHA1)
	r := open(t, dir)
	if p, err := r.Pack(t.Context(), t.TempDir(), History{}, nil); p != nil || err != nil {
		t.Errorf("Pack of nothing = %v, %v, want nil", p, err)
	}
	scratch := t.TempDir()
	if _, err := r.Pack(t.Context(), scratch, History{}, []string{strings.Repeat("1", 40)}); api.CodeOf(err) != api.Unsupported {
		t.Errorf("Pack of a missing object = %v, want %s", err, api.Unsupported)
	}
	if _, err := r.Pack(t.Context(), scratch, History{}, []string{"--all"}); err == nil {
		t.Error("Pack of an option: want an error")
	}
	if _, err := r.Pack(t.Context(), scratch+"/none", History{Tip: strings.Repeat("1", 40)}, nil); err == nil {
		t.Error("Pack into a directory that does not exist: want an error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Pack(ctx, scratch, History{Tip: strings.Repeat("1", 40)}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Pack with an ended context = %v, want %v", err, context.Canceled)
	}
	if left, _ := os.ReadDir(scratch); len(left) != 0 {
		t.Errorf("scratch holds %v, want nothing", left)
	}
}

// A repository may lie at a path that git's lists would take apart.
func TestPackFromOddPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a:b\"c\\d é")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, dir, "", "init", "-q")
	id := strings.TrimSpace(run(t, dir, "x", "hash-object", "-w", "--stdin"))
	before := run(t, dir, "", "count-objects", "-v")
	p, err := open(t, dir).Pack(t.Context(), t.TempDir(), History{}, []string{id})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	b, err := io.ReadAll(p.Data)
	if err != nil || len(b) < 32 || string(b[:4]) != "PACK" {
		t.Errorf("pack of %d bytes, %v", len(b), err)
	}
	if after := run(t, dir, "", "count-objects", "-v"); after != before {
		t.Errorf("packing changed the repository from %s to %s", before, after)
	}
}

func TestBlobsEndsEarly(t *testing.T) {
	dir := initRepo(t, SHA1)
	for i := range 200 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte(strings.Repeat("x", 5000+i)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run(t, dir, "", "add", ".")
	run(t, dir, "", "commit", "-q", "-m", "x")
	r := open(t, dir)
	files, err := r.Tree(t.Context(), "HEAD")
	if err != nil || len(files) != 200 {
		t.Fatalf("Tree = %d files, %v, want 200", len(files), err)
	}
	boom := errors.New("boom")
	if err := r.Blobs(t.Context(), files, func(*TreeFile, io.Reader) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("Blobs = %v, want %v", err, boom)
	}
	if err := r.Blobs(t.Context(), files, func(*TreeFile, io.Reader) error { return nil }); err == nil {
		t.Error("Blobs with a reader that leaves bytes: want an error")
	}
	if err := r.Blobs(t.Context(), []TreeFile{{ID: strings.Repeat("1", 40)}}, nil); api.CodeOf(err) != api.Unsupported {
		t.Errorf("Blobs of a missing object = %v, want %s", err, api.Unsupported)
	}
}

func TestNoGit(t *testing.T) {
	dir := initRepo(t, SHA1)
	t.Setenv("PATH", t.TempDir())
	_, err := Open(t.Context(), dir)
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.Missing || !strings.Contains(e.Hint, "apt install git") {
		t.Errorf("Open without git = %v, want %s", err, api.Missing)
	}
}

// The environment of the caller does not decide which repository is read.
func TestEnvironmentIsCleaned(t *testing.T) {
	dir, other := initRepo(t, SHA1), initRepo(t, SHA1)
	for _, kv := range []string{
		"GIT_DIR=" + other + "/.git", "GIT_WORK_TREE=" + other, "GIT_INDEX_FILE=/dev/null", "GIT_OBJECT_DIRECTORY=/nonexistent",
		"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=core.bare", "GIT_CONFIG_VALUE_0=true", "GIT_CEILING_DIRECTORIES=/", "GIT_TRACE=2",
	} {
		k, v, _ := strings.Cut(kv, "=")
		t.Setenv(k, v)
	}
	if r := open(t, dir); r.Root != dir {
		t.Errorf("Open(%s).Root = %s", dir, r.Root)
	}
}

// git runs in the repository: what a list of directories calls "here" is not
// where its programs and libraries are.
func TestNothingIsLoadedFromTheRepository(t *testing.T) {
	dir := initRepo(t, SHA1)
	for _, lib := range []string{"libz.so.1", "libpcre2-8.so.0", "libc.so.6"} {
		if err := os.WriteFile(filepath.Join(dir, lib), []byte("a stranger's"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, list := range []string{".", ":/usr/lib", "/usr/lib:"} {
		t.Setenv("LD_LIBRARY_PATH", list)
		if _, err := Open(t.Context(), dir); err != nil {
			t.Errorf("Open with LD_LIBRARY_PATH=%s: %v", list, err)
		}
	}
	if got, want := absolute(":/a b:./bin:/c::"), "/a b:/c"; got != want {
		t.Errorf("absolute = %q, want %q", got, want)
	}
}
