package tartree

import (
	"bytes"
	"os"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// openat is openat(2) with O_CLOEXEC, repeated when a signal interrupts it.
func openat(dir int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// pwrite writes all of b at an offset.
func pwrite(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// read is read(2), repeated when a signal interrupts it.
func read(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Read(fd, b)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// mtimes is the argument that sets a modification time and leaves the time of
// access alone.
func mtimes(t time.Time) [2]unix.Timespec {
	return [2]unix.Timespec{
		{Nsec: unix.UTIME_OMIT},
		{Sec: t.Unix(), Nsec: int64(t.Nanosecond())},
	}
}

// futimens sets the modification time of an open file. x/sys has only the form
// with a path, which costs another lookup per file.
func futimens(fd int, t time.Time) error {
	ts := mtimes(t)
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// lutimes sets the modification time of a name that may be a link.
func lutimes(dir int, name string, t time.Time) error {
	ts := mtimes(t)
	return unix.UtimesNanoAt(dir, name, ts[:], unix.AT_SYMLINK_NOFOLLOW)
}

// umask is the mask of this process, or 0077 if it is not known. Reading it by
// umask(2) would change it for other threads for a moment.
func umask() uint32 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0o077
	}
	_, rest, ok := bytes.Cut(b, []byte("\nUmask:\t"))
	if !ok {
		return 0o077
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	m, err := strconv.ParseUint(string(line), 8, 32)
	if err != nil {
		return 0o077
	}
	return uint32(m)
}

// isZero reports whether b holds only zeros.
func isZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}
