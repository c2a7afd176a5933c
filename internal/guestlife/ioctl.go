package guestlife

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fiFreeze is FIFREEZE of linux/fs.h: _IOWR('X', 119, int).
const fiFreeze = 0xc0045877

// ioctl passes the address of b, which must be as long as request wants.
func ioctl(f *os.File, request uintptr, b []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&b[0])))
	if errno != 0 {
		return errno
	}
	return nil
}
