package workspace

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/api"
	"banger/internal/git"
)

// A walker reaches files below a root and never follows a symbolic link on
// the way: a tracked path whose directory became a link is not there, as git
// sees it too. It remembers the last directory, since paths come sorted. Not
// safe for concurrent use.
type walker struct {
	root int
	name string // of the open directory, with its slash
	dir  int    // the open directory; the root for ""
	buf  []byte // see readStill
}

func openWalker(root string) (*walker, error) {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", root, err)
	}
	return &walker{root: fd, dir: fd}, nil
}

func (w *walker) close() {
	w.leave()
	unix.Close(w.root)
}

func (w *walker) leave() {
	if w.dir != w.root {
		unix.Close(w.dir)
	}
	w.dir, w.name = w.root, ""
}

// enter opens the directory of path and returns path's last element.
func (w *walker) enter(path string) (base string, err error) {
	cut := strings.LastIndexByte(path, '/') + 1
	if path[:cut] == w.name {
		return path[cut:], nil
	}
	w.leave()
	at := w.root
	for part := range strings.SplitSeq(path[:max(cut-1, 0)], "/") {
		if part == "" && cut == 0 {
			break
		}
		if part == "" || part == "." || part == ".." {
			return "", unix.EINVAL
		}
		fd, err := ignoringEINTR(func() (int, error) {
			return unix.Openat(at, part, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		})
		if at != w.root {
			unix.Close(at)
		}
		if err != nil {
			return "", err
		}
		at = fd
	}
	w.dir, w.name = at, path[:cut]
	return path[cut:], nil
}

// stat describes what is at path itself, a link included.
func (w *walker) stat(path string) (*unix.Stat_t, error) {
	base, err := w.enter(path)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	_, err = ignoringEINTR(func() (int, error) {
		return 0, unix.Fstatat(w.dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	return &st, err
}

// open opens a regular file for reading. Should something else have taken
// its place, opening it has no effect and the caller's Fstat tells.
//
// It is a plain descriptor: an *os.File would cost three more system calls
// for each of many small files.
func (w *walker) open(path string) (fd int, err error) {
	base, err := w.enter(path)
	if err != nil {
		return -1, err
	}
	return ignoringEINTR(func() (int, error) {
		return unix.Openat(w.dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	})
}

// readlink returns the text of a symbolic link.
func (w *walker) readlink(path string) (string, error) {
	base, err := w.enter(path)
	if err != nil {
		return "", err
	}
	buf := make([]byte, unix.PathMax)
	n, err := ignoringEINTR(func() (int, error) { return unix.Readlinkat(w.dir, base, buf) })
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// checkReadable refuses a file that this account may not read, as far as that
// can be told before.
func (w *walker) checkReadable(path string, st *unix.Stat_t) error {
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o444 == 0o444 {
		return nil
	}
	base, err := w.enter(path)
	if err == nil {
		err = unix.Faccessat(w.dir, base, unix.R_OK, unix.AT_EACCESS)
	}
	if err != nil {
		return fileError(path, err)
	}
	return nil
}

// absent reports whether an error means that there is nothing at a path, or
// that a file or link stands where a directory should be.
func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR { //nolint:errorlint // a plain errno
			return n, err
		}
	}
}

// gitMode is the mode that git would write for a file. A fixed mode, from the
// index of a repository that does not trust the executable bit, wins.
func gitMode(st *unix.Stat_t, fixed uint32) uint32 {
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return git.ModeSymlink
	case fixed == git.ModeFile || fixed == git.ModeExecutable:
		return fixed
	case fixed == 0 && st.Mode&0o100 != 0:
		return git.ModeExecutable
	}
	return git.ModeFile
}

// fileError names the file that could not be read.
func fileError(path string, err error) error {
	e := &api.Error{Code: api.Internal, Msg: fmt.Sprintf("reading %q", path), Err: err}
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		e.Code, e.Hint = api.Denied, "let your account read it with: chmod u+r FILE"
	}
	return e
}

// changedError is the answer to a file that does not hold still.
func changedError(path string, err error) error {
	e := &api.Error{
		Code: api.Conflict, Msg: fmt.Sprintf("%q changed while it was being packed", path),
		Hint: "run the command again when nothing writes to the work tree", Err: err,
	}
	if absent(err) {
		e.Msg, e.Err = fmt.Sprintf("%q vanished while it was being packed", path), nil
	}
	return e
}
