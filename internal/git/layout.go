package git

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/api"
)

// A place is a path and the work tree above it that has the .git.
type place struct {
	path string // absolute, symbolic links resolved
	root string // holds .git
}

// find walks from path upwards to the first directory with a .git entry.
func find(path string) (place, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return place{}, fmt.Errorf("resolving %s: %w", path, err)
	}
	real, err := filepath.EvalSymlinks(abs)
	if errors.Is(err, fs.ErrNotExist) {
		return place{}, &api.Error{
			Code: api.NotFound, Msg: fmt.Sprintf("the path %s does not exist", path),
			Hint: "name a directory of a git work tree, such as: ./repo",
		}
	}
	if err != nil {
		return place{}, fmt.Errorf("resolving %s: %w", path, err)
	}
	if fi, err := os.Stat(real); err != nil {
		return place{}, fmt.Errorf("looking at %s: %w", path, err)
	} else if !fi.IsDir() {
		return place{}, &api.Error{
			Code: api.Invalid, Msg: fmt.Sprintf("%s is not a directory", path),
			Hint: "name the directory: " + quote(filepath.Dir(path)),
		}
	}
	for d := real; ; d = filepath.Dir(d) {
		switch {
		case exists(filepath.Join(d, ".git")):
			return place{path: real, root: d}, nil
		case filepath.Base(d) == ".git":
			return place{}, insideError(path, filepath.Dir(d))
		case exists(filepath.Join(d, "HEAD")) && exists(filepath.Join(d, "objects")) && exists(filepath.Join(d, "refs")):
			return place{}, bareError(d)
		case d == filepath.Dir(d):
			return place{}, &api.Error{
				Code: api.Invalid, Msg: fmt.Sprintf("%s is not inside a git work tree", path),
				Hint: "make it one with: git init " + quote(path),
			}
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// checkOwn refuses a repository that would hand over what is not its own: a
// work tree elsewhere (core.worktree), or a git directory, refs or index that
// belong to another repository. An unpacked archive of a stranger could name
// the user's private repositories in any of these.
func (r *Repo) checkOwn(p place, top string) error {
	if !same(top, p.root) {
		return &api.Error{
			Code: api.Denied, Msg: fmt.Sprintf("the repository in %s claims another work tree: %s", p.root, top),
			Hint: "if it is yours: git -C " + quote(p.root) + " config --unset core.worktree",
		}
	}
	fi, err := os.Lstat(filepath.Join(p.root, ".git"))
	if err != nil {
		return fmt.Errorf("looking at .git: %w", err)
	}
	named := r.conf.get("core.worktree") != "" && same(r.dir, r.common) // a submodule's, or --separate-git-dir told so
	switch {
	case fi.IsDir() && same(r.dir, filepath.Join(p.root, ".git")) && same(r.dir, r.common):
	case within(p.root, r.dir) && within(p.root, r.common):
	case r.linked(p.root):
	case named:
	default:
		return &api.Error{
			Code: api.Denied,
			Msg:  fmt.Sprintf("the git directory of %s is %s, which does not point back", p.root, r.common),
			Hint: "if they belong together: git -C " + quote(p.root) + " config core.worktree " + quote(p.root),
		}
	}
	return r.checkLinks()
}

// linked reports whether the git directory is that of a linked work tree at
// root: it lies in the repository's worktrees directory and names root/.git.
func (r *Repo) linked(root string) bool {
	if !same(filepath.Dir(r.dir), filepath.Join(r.common, "worktrees")) {
		return false
	}
	back, err := os.ReadFile(filepath.Join(r.dir, "gitdir"))
	if err != nil {
		return false
	}
	target := strings.TrimSpace(string(back))
	if !filepath.IsAbs(target) {
		target = filepath.Join(r.dir, target)
	}
	return same(target, filepath.Join(root, ".git"))
}

// freeLinks may be links to anywhere: none of them says which commits or
// files the repository has. Objects are harmless without an id that names
// them, and ids come from refs and the index.
var freeLinks = map[string]bool{
	"objects": true, "hooks": true, "logs": true, "rr-cache": true, "lfs": true,
	"modules": true, "svn": true, "info": true, "config": true, "description": true,
}

// checkLinks refuses symbolic links that lead refs or the index out of the
// repository.
func (r *Repo) checkLinks() error {
	for _, d := range []string{r.dir, r.common} {
		entries, err := os.ReadDir(d)
		if err != nil {
			return fmt.Errorf("reading %s: %w", d, err)
		}
		for _, e := range entries {
			if e.Type()&fs.ModeSymlink == 0 || freeLinks[e.Name()] {
				continue
			}
			if err := r.checkLink(filepath.Join(d, e.Name())); err != nil {
				return err
			}
		}
		for _, sub := range []string{"refs", "reftable"} {
			if err := r.checkTree(filepath.Join(d, sub)); err != nil {
				return err
			}
		}
		if r.dir == r.common {
			break
		}
	}
	return nil
}

func (r *Repo) checkTree(dir string) error {
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.Type()&fs.ModeSymlink != 0 {
			return r.checkLink(path)
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("checking refs: %w", err)
	}
	return nil
}

func (r *Repo) checkLink(path string) error {
	target, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // git finds nothing there either
	}
	if err == nil && (within(r.dir, target) || within(r.common, target)) {
		return nil
	}
	return &api.Error{
		Code: api.Denied, Msg: fmt.Sprintf("%s is a link out of its repository", path),
		Hint: "replace it by a real file, or use: git worktree add", Err: err,
	}
}

func same(a, b string) bool {
	fa, err := os.Stat(a)
	if err != nil {
		return false
	}
	fb, err := os.Stat(b)
	return err == nil && os.SameFile(fa, fb)
}

// within reports whether path, links resolved, is dir or below it.
func within(dir, path string) bool {
	d, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false
	}
	p, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false
	}
	rel, err := filepath.Rel(d, p)
	return err == nil && filepath.IsLocal(rel)
}
