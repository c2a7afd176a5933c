package guestlife

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A port is the guest's end of the channel to the host: a virtio-serial port.
// read(2) returns 0 while no host is connected, and says nothing of a host that
// was away only shortly; both mean only that there is nothing to read yet. The
// runtime waits edge-triggered, so the hang-up that poll(2) reports all the time
// that no host is there costs nothing.
type port struct {
	f   *os.File
	raw syscall.RawConn
}

// openPort waits for the port of this name to appear, and opens it.
func openPort(name string) (*port, error) {
	dev, err := findPort(name)
	if err != nil {
		return nil, fmt.Errorf("finding port %s: %w", name, err)
	}
	fd, err := unix.Open(dev, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening port %s: %w", dev, err)
	}
	return newPort(os.NewFile(uintptr(fd), dev))
}

func newPort(f *os.File) (*port, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("opening port %s: %w", f.Name(), err)
	}
	return &port{f, raw}, nil
}

// findPort returns the port's device, waiting for the kernel to announce it: it
// asks to be told of devices before it looks again, so the port cannot appear
// unseen.
func findPort(name string) (string, error) {
	if dev, err := lookForPort(name); dev != "" || err != nil {
		return dev, err
	}
	nl, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(nl) }()
	if err := unix.Bind(nl, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return "", err
	}
	b := make([]byte, 8<<10)
	for {
		if dev, err := lookForPort(name); dev != "" || err != nil {
			return dev, err
		}
		// Too many events to keep are as good as one.
		if _, err := unix.Read(nl, b); err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS) {
			return "", err
		}
	}
}

// lookForPort returns "" if there is no such port yet. No process but this one
// and the kernel is needed: the kernel itself makes the node.
func lookForPort(name string) (string, error) {
	const class = "/sys/class/virtio-ports"
	dir, err := os.Open(class)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = dir.Close() }()
	ports, err := dir.Readdirnames(-1)
	if err != nil {
		return "", err
	}
	for _, p := range ports {
		if b, err := os.ReadFile(class + "/" + p + "/name"); err == nil && strings.TrimSpace(string(b)) == name {
			return "/dev/" + p, nil
		}
	}
	return "", nil
}

// Read waits until the host has sent something.
func (p *port) Read(b []byte) (n int, err error) {
	waitErr := p.raw.Read(func(fd uintptr) bool {
		n, err = unix.Read(int(fd), b)
		return !again(err) && (n != 0 || err != nil)
	})
	return result(n, errors.Join(waitErr, err))
}

// pieceSize is what the kernel takes of a write at most.
const pieceSize = 32 << 10

// Write waits until the kernel has taken all of b.
func (p *port) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		var n int
		var err error
		waitErr := p.raw.Write(func(fd uintptr) bool {
			n, err = unix.Write(int(fd), b[done:min(len(b), done+pieceSize)])
			return !again(err)
		})
		if n, err = result(n, errors.Join(waitErr, err)); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

func again(err error) bool { return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) }

func result(n int, err error) (int, error) {
	if err != nil {
		return 0, err
	}
	return n, nil
}

func (p *port) SetDeadline(t time.Time) error { return p.f.SetDeadline(t) }

func (p *port) Close() error { return p.f.Close() }
