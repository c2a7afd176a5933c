package git

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"banger/internal/api"
)

// The object formats that git knows.
const (
	SHA1   = "sha1"
	SHA256 = "sha256"
)

// A Repo is a checked repository with a work tree. It holds no descriptors
// and is safe for concurrent use.
type Repo struct {
	// Root is the top of the work tree, absolute, without symbolic links.
	Root string
	// Format is SHA1 or SHA256.
	Format string

	dir    string // this work tree's git directory
	common string // the repository's git directory; differs in linked work trees
	conf   config
	run    *runner
}

// Open finds the repository whose work tree holds path and refuses what must
// not be read: no repository, a bare one, one of another user, one whose work
// tree, refs or git directory are not its own. Refusals are *api.Error with a
// hint. It runs git twice.
func Open(ctx context.Context, path string) (*Repo, error) {
	place, err := find(path)
	if err != nil {
		return nil, err
	}
	run, err := newRunner(place.path)
	if err != nil {
		return nil, err
	}
	r := &Repo{Root: place.root, run: run}
	top, err := r.locate(ctx, place)
	if err != nil {
		return nil, err
	}
	list, err := run.output(ctx, "config", "--null", "--list")
	if err != nil {
		return nil, err
	}
	r.conf = parseConfig(list)
	if err := r.checkOwn(place, top); err != nil {
		return nil, err
	}
	quiet, err := r.conf.programs()
	if err != nil {
		return nil, err
	}
	run.silence(quiet)
	run.dir = r.Root
	return r, nil
}

// locate asks git itself where it sees the repository; find's view alone
// would miss its ownership check. It returns the work tree that git would use.
func (r *Repo) locate(ctx context.Context, p place) (top string, err error) {
	out, err := r.run.output(ctx, "rev-parse", "--path-format=absolute", "--is-bare-repository",
		"--is-inside-git-dir", "--show-object-format", "--git-dir", "--git-common-dir", "--show-toplevel")
	switch {
	case says(err, "dubious ownership", "unsafe repository"):
		return "", &api.Error{
			Code: api.Denied, Msg: fmt.Sprintf("the repository %s belongs to another user", p.root),
			Hint: "if you trust it: git config --global --add safe.directory " + quote(p.root), Err: err,
		}
	case says(err, "must be run in a work tree"):
		return "", bareError(p.root)
	case err != nil:
		return "", &api.Error{
			Code: api.Invalid, Msg: fmt.Sprintf("git cannot use the repository %s", p.root),
			Hint: "see what git says with: git -C " + quote(p.root) + " status", Err: err,
		}
	}
	// A path may hold newlines, so the fixed words come first and the three
	// paths are told apart by being absolute.
	words := strings.SplitN(string(out), "\n", 4)
	if len(words) < 4 || words[2] != SHA1 && words[2] != SHA256 {
		return "", &api.Error{
			Code: api.Missing, Msg: "git on this machine is too old: 2.31 or newer is needed",
			Hint: "see its version with: git --version",
		}
	}
	paths := strings.Split(strings.TrimSuffix(words[3], "\n"), "\n/")
	if len(paths) != 3 {
		return "", &api.Error{
			Code: api.Unsupported, Msg: fmt.Sprintf("the repository %q has a line break in its path", p.root),
			Hint: "move it to a path without one",
		}
	}
	for i := range paths[1:] {
		paths[i+1] = "/" + paths[i+1]
	}
	if words[0] == "true" {
		return "", bareError(p.root)
	}
	if words[1] == "true" {
		return "", insideError(p.path, p.root)
	}
	r.Format, r.dir, r.common = words[2], filepath.Clean(paths[0]), filepath.Clean(paths[1])
	return filepath.Clean(paths[2]), nil
}

// CheckBranch refuses what cannot be the name of a new branch.
func (r *Repo) CheckBranch(ctx context.Context, name string) error {
	bad := &api.Error{
		Code: api.Invalid, Msg: fmt.Sprintf("%q cannot be the name of a branch", name),
		Hint: "use letters, digits, '-', '_' and '/', such as: --branch fix/login",
	}
	// git takes "-x" for an option and expands "@{-1}" to an earlier branch.
	if name == "" || name == "@" || name == "HEAD" || strings.HasPrefix(name, "-") || strings.ContainsAny(name, "\x00\n") || strings.Contains(name, "@{") {
		return bad
	}
	out, err := r.run.output(ctx, "check-ref-format", "--branch", name)
	if err != nil || strings.TrimSuffix(string(out), "\n") != name {
		bad.Err = err
		return bad
	}
	return nil
}

// Branch returns the full name of the ref that HEAD stands on, such as
// "refs/heads/main", or "" for a detached HEAD. The ref need not exist yet.
func (r *Repo) Branch(ctx context.Context) (string, error) {
	head, err := os.ReadFile(filepath.Join(r.dir, "HEAD"))
	if err != nil {
		return "", fmt.Errorf("reading HEAD: %w", err)
	}
	name, symbolic := strings.CutPrefix(strings.TrimRight(string(head), "\n"), "ref: ")
	if !symbolic {
		return "", nil
	}
	if name == "refs/heads/.invalid" { // what reftable repositories say
		out, err := r.run.output(ctx, "symbolic-ref", "--quiet", "HEAD")
		if err != nil {
			return "", nil //nolint:nilerr // a detached HEAD is an exit status of 1
		}
		name = strings.TrimSuffix(string(out), "\n")
	}
	name = strings.TrimSpace(name)
	plain := func(c rune) bool { return c > ' ' && c != 0x7f }
	if !strings.HasPrefix(name, "refs/") || strings.Contains(name, "..") ||
		strings.ContainsFunc(name, func(c rune) bool { return !plain(c) }) {
		return "", &api.Error{
			Code: api.Invalid, Msg: fmt.Sprintf("HEAD of %s names %q, which is no branch", r.Root, name),
			Hint: "switch to a branch with: git switch NAME",
		}
	}
	return name, nil
}

// Note returns the content of a small file below the git directory, such as
// "info/exclude", or nothing if it is absent, is no regular file or is larger
// than 1 MiB. The linked work tree's own file wins over the repository's.
func (r *Repo) Note(name string) []byte {
	const limit = 1 << 20
	for _, d := range slices.Compact([]string{r.dir, r.common}) {
		file := filepath.Join(d, name)
		if fi, err := os.Lstat(file); err != nil || !fi.Mode().IsRegular() || fi.Size() > limit {
			continue
		}
		if b, err := os.ReadFile(file); err == nil {
			return b
		}
	}
	return nil
}

func bareError(root string) error {
	return &api.Error{
		Code: api.Unsupported, Msg: fmt.Sprintf("%s is a bare repository: it has no work tree to take", root),
		Hint: "clone it first: git clone " + quote(root) + " DIR",
	}
}

func insideError(path, root string) error {
	return &api.Error{
		Code: api.Invalid, Msg: fmt.Sprintf("%s is inside a .git directory", path),
		Hint: "name the work tree: " + quote(root),
	}
}

// quote makes a path fit to be pasted into a shell.
func quote(path string) string {
	safe := func(c rune) bool {
		return c < 0x80 && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("/._-+,@%", c))
	}
	if path != "" && !strings.ContainsFunc(path, func(c rune) bool { return !safe(c) }) {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
