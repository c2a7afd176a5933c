// Package beneath walks paths without following a link, one name at a time.
//
// It exists because openat2, which could do it in one call, fails with ENOSYS
// where systemd's RestrictSUIDSGID=yes is in force. It opens and looks; it
// changes nothing and knows nothing of what the files are for.
package beneath

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Open opens path, which is relative to dir, as an O_PATH descriptor. Only dir
// itself may be reached through links, so it must be root's all the way up;
// every name below it may be anybody's, and a link there is an error.
func Open(dir, path string) (*os.File, error) {
	if !filepath.IsLocal(path) || filepath.Clean(path) != path {
		return nil, fmt.Errorf("walking to %q: it is no plain relative path", path)
	}
	return walk(dir, path, func(string, *unix.Stat_t) error { return nil })
}

// Program proves that nobody but root can replace the executable at an
// absolute path: every directory from / down and the file itself belong to
// root and cannot be written by others, and no name is a link. A group may
// write to a directory that is sticky, as the Nix store is: there it can add
// names, and not replace root's.
func Program(path string) error {
	if filepath.Clean(path) != path || !filepath.IsAbs(path) {
		return fmt.Errorf("trusting %q: it is no plain absolute path", path)
	}
	f, err := walk("/", strings.TrimPrefix(path, "/"), func(at string, st *unix.Stat_t) error {
		kind, sticky := st.Mode&unix.S_IFMT, st.Mode&unix.S_ISVTX != 0
		switch {
		case st.Uid != 0:
			return fmt.Errorf("trusting %s: %s belongs to uid %d, not to root", path, at, st.Uid)
		case kind != unix.S_IFLNK && (st.Mode&unix.S_IWOTH != 0 || st.Mode&unix.S_IWGRP != 0 && !(kind == unix.S_IFDIR && sticky)):
			return fmt.Errorf("trusting %s: %s can be written by others than root (mode %04o)", path, at, st.Mode&0o7777)
		case at == path && (kind != unix.S_IFREG || st.Mode&0o111 == 0):
			return fmt.Errorf("trusting %s: it is no executable file", path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return f.Close()
}

// walk opens dir and then each name of path; check sees each of them.
func walk(dir, path string, check func(at string, st *unix.Stat_t) error) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	at := dir
	for names := strings.Split(path, "/"); ; names = names[1:] {
		if err != nil {
			return nil, fmt.Errorf("walking to %s: %w", at, err)
		}
		var st unix.Stat_t
		if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			err = fmt.Errorf("walking to %s: it is a link", at)
		}
		if err == nil {
			err = check(at, &st)
		}
		if err != nil || len(names) == 0 {
			f := os.NewFile(uintptr(fd), at)
			if err != nil {
				f.Close()
				f = nil
			}
			return f, err
		}
		// O_PATH with O_NOFOLLOW opens a link itself, from which no name can be
		// opened in turn: ENOTDIR.
		parent := fd
		at = filepath.Join(at, names[0])
		fd, err = unix.Openat(parent, names[0], unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		unix.Close(parent)
	}
}
