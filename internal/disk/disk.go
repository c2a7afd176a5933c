// Package disk makes, grows and measures VM disks: sparse files that begin as
// an empty ext4 file system and cost what has been written to them.
//
// A new disk takes under a megabyte of the host, whatever its size, and no
// process to make. The package never looks into a disk that a guest has had.
package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"banger/internal/api"
	"banger/internal/ext4"
	"banger/internal/size"
)

const (
	// Min is the smallest VM disk.
	Min = size.Bytes(ext4.MinFormat)
	// Max is the largest.
	Max = size.Bytes(ext4.MaxFormat)
	// Room is what must be free to make a disk: the little that an empty one
	// takes, and enough for a guest to boot and log.
	Room = 64 * size.MiB
)

// Create makes a disk of that many bytes at path, with mode 0600. It is not synced: a
// disk that the host's power takes away had nothing in it. On an error, or if
// ctx ends first, it leaves nothing; a file that is there already is replaced.
func Create(ctx context.Context, path string, bytes int64) (err error) {
	if err := checkSize(size.Bytes(bytes)); err != nil {
		return err
	}
	if err := CheckRoom(filepath.Dir(path), Room); err != nil {
		return err
	}
	if err := Remove(path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("making disk: %w", err)
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, Remove(path))
		}
	}()
	if err := ext4.Format(f, bytes, ext4.FormatOptions{Label: "vm"}); err != nil {
		return full(path, Room, fmt.Errorf("formatting disk %s: %w", path, err))
	}
	return ctx.Err()
}

func checkSize(n size.Bytes) error {
	if n < Min || n > Max {
		return &api.Error{
			Code: api.Invalid,
			Msg:  fmt.Sprintf("disk size %v is not between %v and %v", n, Min, Max),
			Hint: "use for example: --disk-size 8G",
		}
	}
	return nil
}

// Open opens an existing disk for a VMM, for reading and writing. It refuses
// what is not a regular file of our own, so that nothing that a link points to
// is ever given to a guest.
func Open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening disk: %w", err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("opening disk %s: it is not a regular file", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Grow makes the disk that many bytes long: the guest enlarges its file system at the
// next boot. A disk never shrinks, for that would cut off the guest's data.
func Grow(path string, bytes int64) (err error) {
	n := size.Bytes(bytes)
	if err := checkSize(n); err != nil {
		return err
	}
	f, err := Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	fi, err := f.Stat()
	if err != nil {
		return fmt.Errorf("measuring disk: %w", err)
	}
	if now := size.Bytes(fi.Size()); n < now {
		return &api.Error{
			Code: api.Invalid,
			Msg:  fmt.Sprintf("the disk has %v and cannot shrink to %v", now, n),
			Hint: "give a size of more than " + now.String(),
		}
	}
	if err := f.Truncate(bytes); err != nil {
		return full(path, Room, fmt.Errorf("growing disk: %w", err))
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("growing disk: %w", err)
	}
	return nil
}

// Used is how many bytes the disk takes on the host, 0 if there is none.
func Used(path string) size.Bytes {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return 0
	}
	return size.Bytes(st.Blocks * 512) // the unit of st_blocks, whatever the file system
}

// Remove removes the disk; without one it does nothing.
func Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing disk: %w", err)
	}
	return nil
}

// CheckRoom returns a NoSpace error unless need bytes are free below dir for
// this user.
func CheckRoom(dir string, need size.Bytes) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return fmt.Errorf("measuring free space of %s: %w", dir, err)
	}
	free := size.Bytes(min(st.Bavail, uint64(1)<<42)) * size.Bytes(st.Bsize)
	if free >= need {
		return nil
	}
	return noSpace(dir, need, fmt.Errorf("%s are free", free.Short()))
}

// full turns err into a NoSpace error if it is one.
func full(path string, need size.Bytes, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return noSpace(filepath.Dir(path), need, err)
	}
	return err
}

func noSpace(dir string, need size.Bytes, cause error) error {
	return &api.Error{
		Code: api.NoSpace,
		Msg:  fmt.Sprintf("%s needs %v of free space", dir, need),
		Hint: "make room there, for example with: banger vm prune",
		Err:  cause,
	}
}
