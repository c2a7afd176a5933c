package agent

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/agentapi"
)

// openPTY returns both ends of a new terminal. The peer is opened through the
// master, so it needs no path: /dev/pts may be another namespace's.
func openPTY(size agentapi.Winsize) (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("opening a terminal: %w", err)
	}
	master = os.NewFile(uintptr(fd), "ptmx")
	defer func() {
		if err != nil {
			_ = master.Close()
		}
	}()
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, fmt.Errorf("unlocking a terminal: %w", err)
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, nil, fmt.Errorf("opening a terminal's other end: %w", errno)
	}
	if size.Rows == 0 && size.Cols == 0 {
		size = agentapi.Winsize{Rows: 24, Cols: 80}
	}
	if err := setSize(master, size); err != nil {
		_ = unix.Close(int(peer))
		return nil, nil, err
	}
	return master, os.NewFile(peer, "pts"), nil
}

// setSize sets a terminal's size; its foreground processes get SIGWINCH.
func setSize(master *os.File, size agentapi.Winsize) error {
	err := withFD(master, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
	if err != nil {
		return fmt.Errorf("setting a terminal's size: %w", err)
	}
	return nil
}

// endOfInput is what must be typed so that a terminal's reader sees the end of
// its input: nothing if the terminal is raw, one end-of-file character at the
// start of a line, two within one.
func endOfInput(master *os.File, last byte) []byte {
	var t *unix.Termios
	err := withFD(master, func(fd int) (err error) {
		t, err = unix.IoctlGetTermios(fd, unix.TCGETS)
		return err
	})
	if err != nil || t.Lflag&unix.ICANON == 0 {
		return nil
	}
	eof := t.Cc[unix.VEOF]
	if last == '\n' || last == '\r' || last == 0 {
		return []byte{eof}
	}
	return []byte{eof, eof}
}

// withFD calls f with the descriptor of a file that is not to become blocking.
func withFD(f *os.File, call func(fd int) error) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := rc.Control(func(fd uintptr) { inner = call(int(fd)) }); err != nil {
		return err
	}
	return inner
}
