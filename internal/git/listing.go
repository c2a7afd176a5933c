package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/api"
)

// The modes of an entry that this package lets through.
const (
	ModeFile       = 0o100644
	ModeExecutable = 0o100755
	ModeSymlink    = 0o120000

	modeGitlink = 0o160000
	modeTree    = 0o040000
)

// flags of an entry in git's memory, as ls-files --debug prints them; the
// same since 2008 (read-cache.h).
const (
	flagAssumeValid  = 0x8000
	flagIntentToAdd  = 1 << 29
	flagSkipWorktree = 1 << 30
)

// A Stat is what the index remembers of a file. Git keeps the low 32 bits of
// each number.
type Stat struct {
	Mtime, MtimeNsec uint32
	Ctime, CtimeNsec uint32
	Ino, UID, GID    uint32
	Size             uint32
}

// An Entry is one line of the index.
type Entry struct {
	Path  string // relative to the root, any bytes but NUL
	Mode  uint32 // ModeFile, ModeExecutable or ModeSymlink
	ID    string // the blob, in hexadecimal
	Stage int    // 0, or 1 to 3 for the sides of a conflict
	Stat  Stat

	AssumeValid  bool // git update-index --assume-unchanged
	SkipWorktree bool // left out by a sparse checkout
	IntentToAdd  bool // git add -N
}

// A Listing is what git tracks in a work tree, and what it does not.
type Listing struct {
	Entries []Entry // in index order
	// Untracked are the paths that no ignore rule covers. One that ends in a
	// slash is a repository of its own.
	Untracked []string

	written   unix.Timespec // of the index file, before it was read
	trustTime bool          // compare ctime
	minimal   bool          // compare mtime and size alone
}

// List reads the index and looks for untracked files. It refuses submodules
// and paths that no checkout would write.
func (r *Repo) List(ctx context.Context) (*Listing, error) {
	l := &Listing{
		trustTime: r.On("core.trustctime", true),
		minimal:   strings.EqualFold(r.conf.get("core.checkstat"), "minimal"),
	}
	var st unix.Stat_t
	switch err := unix.Lstat(filepath.Join(r.dir, "index"), &st); {
	case err == nil:
		l.written = st.Mtim
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("looking at the index: %w", err)
	}
	out, err := r.run.output(ctx, "ls-files", "-z", "-t", "--stage", "--debug", "--others", "--exclude-standard")
	if err != nil {
		return nil, err
	}
	if err := l.parse(out); err != nil {
		return nil, err
	}
	for i := range l.Entries {
		if err := r.checkEntry(&l.Entries[i]); err != nil {
			return nil, err
		}
	}
	for _, p := range l.Untracked {
		if !below(strings.TrimSuffix(p, "/")) {
			return nil, fmt.Errorf("listing untracked files: git names %q", p)
		}
	}
	return l, nil
}

// parse reads what ls-files writes: "? path NUL" for each untracked path,
// then, for each entry, "tag mode id stage TAB path NUL" and five lines of
// remembered stat data.
func (l *Listing) parse(out []byte) error {
	odd := func(rest []byte) error {
		return fmt.Errorf("reading git's list of files: not understood at %q", rest[:min(len(rest), 80)])
	}
	l.Entries = make([]Entry, 0, bytes.Count(out, []byte("\x00  ctime: ")))
	for len(out) > 0 {
		record, rest, ok := bytes.Cut(out, []byte{0})
		if !ok || len(record) < 3 || record[1] != ' ' {
			return odd(out)
		}
		if record[0] == '?' {
			l.Untracked = append(l.Untracked, string(record[2:]))
			out = rest
			continue
		}
		e, err := parseStage(string(record[2:]))
		if err != nil {
			return odd(record)
		}
		if rest, err = e.parseDebug(rest); err != nil {
			return odd(rest)
		}
		l.Entries = append(l.Entries, e)
		out = rest
	}
	return nil
}

var errFormat = errors.New("unknown format")

// parseStage reads "mode id stage TAB path".
func parseStage(s string) (Entry, error) {
	head, path, ok := strings.Cut(s, "\t")
	f := strings.Split(head, " ")
	if !ok || len(f) != 3 || !validID(f[1]) {
		return Entry{}, errFormat
	}
	mode, err := strconv.ParseUint(f[0], 8, 32)
	if err != nil {
		return Entry{}, errFormat
	}
	stage, err := strconv.Atoi(f[2])
	if err != nil || stage < 0 || stage > 3 {
		return Entry{}, errFormat
	}
	return Entry{Path: path, Mode: uint32(mode), ID: f[1], Stage: stage}, nil
}

// parseDebug reads the five lines after an entry and returns what follows.
func (e *Entry) parseDebug(b []byte) ([]byte, error) {
	labels := [...]string{"  ctime: ", ":", "\n  mtime: ", ":", "\n  dev: ", "\tino: ", "\n  uid: ", "\tgid: ", "\n  size: "}
	var n [len(labels)]uint32
	var ok bool
	for i, label := range labels {
		if b, ok = bytes.CutPrefix(b, []byte(label)); !ok {
			return b, errFormat
		}
		end := 0
		var v uint64
		for end < len(b) && b[end] >= '0' && b[end] <= '9' && end < 11 {
			v = v*10 + uint64(b[end]-'0')
			end++
		}
		if end == 0 || v > 1<<32-1 {
			return b, errFormat
		}
		n[i], b = uint32(v), b[end:]
	}
	if b, ok = bytes.CutPrefix(b, []byte("\tflags: ")); !ok {
		return b, errFormat
	}
	hex, rest, ok := bytes.Cut(b, []byte{'\n'})
	flags, err := strconv.ParseUint(string(hex), 16, 64)
	if !ok || err != nil {
		return b, errFormat
	}
	e.Stat = Stat{
		Ctime: n[0], CtimeNsec: n[1], Mtime: n[2], MtimeNsec: n[3],
		Ino: n[5], UID: n[6], GID: n[7], Size: n[8],
	}
	e.AssumeValid = flags&flagAssumeValid != 0
	e.IntentToAdd = flags&flagIntentToAdd != 0
	e.SkipWorktree = flags&flagSkipWorktree != 0
	return rest, nil
}

func (r *Repo) checkEntry(e *Entry) error {
	switch {
	case e.Mode == modeGitlink:
		return &api.Error{
			Code: api.Unsupported, Msg: fmt.Sprintf("%s has a submodule, %q, and those are not taken yet", r.Root, e.Path),
			Hint: "run it on the submodule alone: " + quote(filepath.Join(r.Root, e.Path)),
		}
	case e.Mode != ModeFile && e.Mode != ModeExecutable && e.Mode != ModeSymlink:
		return &api.Error{
			Code: api.Invalid, Msg: fmt.Sprintf("the index of %s holds %q with mode %o", r.Root, e.Path, e.Mode),
			Hint: "check it with: git -C " + quote(r.Root) + " fsck",
		}
	case !plainPath(e.Path):
		return &api.Error{
			Code: api.Denied, Msg: fmt.Sprintf("the index of %s names %q, which no checkout would write", r.Root, e.Path),
			Hint: "check it with: git -C " + quote(r.Root) + " fsck",
		}
	}
	return nil
}

// plainPath reports whether a path may be in an index: below the root and out
// of .git, whatever the case of its letters, as git itself has it.
func plainPath(p string) bool {
	for part := range strings.SplitSeq(p, "/") {
		if strings.EqualFold(part, ".git") {
			return false
		}
	}
	return below(p)
}

// below reports whether a path stays below the root and out of .git. An
// untracked .GIT is a file like any other.
func below(p string) bool {
	for part := range strings.SplitSeq(p, "/") {
		if part == "" || part == "." || part == ".." || part == ".git" {
			return false
		}
	}
	return !strings.ContainsRune(p, 0)
}

// validID reports whether s is a full object id of either format.
func validID(s string) bool {
	if len(s) != 40 && len(s) != 64 {
		return false
	}
	return !strings.ContainsFunc(s, func(c rune) bool { return (c < '0' || c > '9') && (c < 'a' || c > 'f') })
}

// Trusts reports whether git itself would take the file that st describes for
// unchanged without reading it. This is git's rule (read-cache.c) with its
// settings core.trustctime and core.checkStat, made stricter where the file
// system has fractions of a second: a file as young as the index may have been
// written after it.
func (l *Listing) Trusts(e *Entry, st *unix.Stat_t) bool {
	s := &e.Stat
	if e.Stage != 0 || e.IntentToAdd || s.Mtime == 0 && s.Size == 0 {
		return false
	}
	link := st.Mode&unix.S_IFMT == unix.S_IFLNK
	if link != (e.Mode == ModeSymlink) || s.Size != uint32(st.Size) {
		return false
	}
	if s.Mtime != uint32(st.Mtim.Sec) || s.MtimeNsec != 0 && s.MtimeNsec != uint32(st.Mtim.Nsec) {
		return false
	}
	if l.trustTime && !l.minimal && s.Ctime != uint32(st.Ctim.Sec) {
		return false
	}
	if !l.minimal && (s.Ino != uint32(st.Ino) || s.UID != st.Uid || s.GID != st.Gid) {
		return false
	}
	if st.Mtim.Nsec != 0 && l.written.Nsec != 0 {
		return st.Mtim.Nano() < l.written.Nano()
	}
	return st.Mtim.Sec < l.written.Sec
}

// emptyTree is the id of the tree without entries, which every repository
// knows.
func (r *Repo) emptyTree() string {
	if r.Format == SHA256 {
		return "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321"
	}
	return "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
}

// Staged lists the paths whose index entry differs from the commit, with the
// blob in the index ("" for a path that the index no longer has). An empty
// commit stands for no files at all.
func (r *Repo) Staged(ctx context.Context, commit string) (map[string]string, error) {
	if commit == "" {
		commit = r.emptyTree()
	}
	out, err := r.run.output(ctx, "diff-index", "--cached", "--raw", "-z", "--no-renames", "--no-abbrev",
		"--no-ext-diff", "--no-textconv", commit, "--")
	if err != nil {
		return nil, err
	}
	staged := map[string]string{}
	parts := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	for i := 0; i+1 < len(parts); i += 2 {
		f := strings.Split(parts[i], " ") // :mode mode id id status
		if len(f) != 5 || !validID(f[3]) {
			return nil, fmt.Errorf("reading staged changes: not understood: %q", parts[i])
		}
		id := f[3]
		if strings.Trim(id, "0") == "" {
			id = ""
		}
		staged[parts[i+1]] = id
	}
	return staged, nil
}

// A TreeFile is one file of a commit.
type TreeFile struct {
	Path string
	Mode uint32
	ID   string
	Size int64
}

// Tree lists the files of a commit in index order, refusing what List refuses.
func (r *Repo) Tree(ctx context.Context, commit string) ([]TreeFile, error) {
	out, err := r.run.output(ctx, "ls-tree", "-r", "-z", "--long", "--full-tree", commit)
	if err != nil {
		return nil, err
	}
	var files []TreeFile
	for record := range strings.SplitSeq(string(out), "\x00") {
		if record == "" {
			continue
		}
		head, path, ok := strings.Cut(record, "\t")
		f := strings.Fields(head) // mode type id size
		if !ok || len(f) != 4 || !validID(f[2]) {
			return nil, fmt.Errorf("reading the tree of %s: not understood: %q", commit, record)
		}
		mode, err := strconv.ParseUint(f[0], 8, 32)
		if err != nil || mode == modeTree {
			return nil, fmt.Errorf("reading the tree of %s: not understood: %q", commit, record)
		}
		if mode == 0o100664 { // written by git before 2005
			mode = ModeFile
		}
		if err := r.checkEntry(&Entry{Path: path, Mode: uint32(mode)}); err != nil {
			return nil, err
		}
		size, err := strconv.ParseInt(f[3], 10, 64)
		if err != nil {
			return nil, missingError(r, f[2])
		}
		files = append(files, TreeFile{Path: path, Mode: uint32(mode), ID: f[2], Size: size})
	}
	return files, nil
}
