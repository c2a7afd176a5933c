package guestinit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// copyTree copies the tree at from, with modes, owners, times and extended
// attributes, to to, which must not exist. A missing from is fs.ErrNotExist.
func copyTree(from, to string) error {
	var dirs []string // attributes of a directory come after its content
	err := filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		dst := filepath.Join(to, strings.TrimPrefix(p, from))
		if d.IsDir() {
			dirs = append(dirs, p)
			return os.Mkdir(dst, 0o700)
		}
		if err := copyFile(p, dst, d); err != nil {
			return err
		}
		return copyAttributes(p, dst)
	})
	if err != nil {
		return err
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := copyAttributes(dirs[i], filepath.Join(to, strings.TrimPrefix(dirs[i], from))); err != nil {
			return err
		}
	}
	return nil
}

// copyFile makes dst what src is, without its attributes.
func copyFile(src, dst string, d fs.DirEntry) error {
	switch d.Type() {
	case 0:
		return copyData(src, dst)
	case fs.ModeSymlink:
		target, err := os.Readlink(src)
		if err != nil {
			return err
		}
		return os.Symlink(target, dst)
	}
	var st unix.Stat_t
	if err := unix.Lstat(src, &st); err != nil {
		return fmt.Errorf("copying %s: %w", src, err)
	}
	if err := unix.Mknod(dst, st.Mode, int(st.Rdev)); err != nil {
		return fmt.Errorf("copying %s: %w", src, err)
	}
	return nil
}

func copyData(src, dst string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// copyAttributes gives dst the owner, mode, extended attributes and times of src.
func copyAttributes(src, dst string) error {
	var st unix.Stat_t
	if err := unix.Lstat(src, &st); err != nil {
		return fmt.Errorf("copying the attributes of %s: %w", src, err)
	}
	errs := []error{unix.Lchown(dst, int(st.Uid), int(st.Gid))}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK { // after the owner, whose change takes setuid away
		errs = append(errs, unix.Chmod(dst, st.Mode&0o7777))
	}
	errs = append(errs, copyXattrs(src, dst),
		unix.UtimesNanoAt(unix.AT_FDCWD, dst, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("copying the attributes of %s: %w", src, err)
	}
	return nil
}

func copyXattrs(src, dst string) error {
	n, err := unix.Llistxattr(src, nil)
	if n == 0 || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	list := make([]byte, 64<<10) // the kernel's limit
	if n, err = unix.Llistxattr(src, list); err != nil {
		return err
	}
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		n, err := unix.Lgetxattr(src, name, value)
		if err != nil {
			return err
		}
		if err := unix.Lsetxattr(dst, name, value[:n], 0); err != nil {
			return err
		}
	}
	return nil
}
