package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// maxLinks is how many links a path may lead through, as for the kernel.
const maxLinks = 40

// Guarded is an error if somebody else than root can replace what is at path,
// or put something there: one of the directories that lead to it, links
// followed, is another's or can be written by others; at is which. What is not
// there yet will be made by root.
func Guarded(path string) (at string, err error) {
	at = "/"
	for names, links := strings.Split(filepath.Clean(path), "/"), 0; ; names = names[1:] {
		st, err := os.Lstat(at)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return at, nil
		case err != nil:
			return at, err
		case uidOf(st) != 0:
			return at, fmt.Errorf("%s belongs to uid %d, not to root", at, uidOf(st))
		case st.Mode().Type() == fs.ModeSymlink:
			to, err := os.Readlink(at)
			if links++; err != nil || links > maxLinks {
				return at, errors.Join(err, fmt.Errorf("%s is one link too many", at))
			}
			if !filepath.IsAbs(to) {
				to = filepath.Join(filepath.Dir(at), to)
			}
			// From the top again: the target's directories are looked at too.
			at, names = "/", append(strings.Split(filepath.Clean(to), "/"), names...)
		case st.Mode().Perm()&0o022 != 0:
			return at, fmt.Errorf("%s can be written by others than root (mode %04o)", at, st.Mode().Perm())
		}
		if len(names) == 0 {
			return at, nil
		}
		at = filepath.Join(at, names[0])
	}
}

func uidOf(st fs.FileInfo) uint32 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Uid
	}
	return ^uint32(0)
}
