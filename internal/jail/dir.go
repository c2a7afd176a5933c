package jail

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"banger/internal/beneath"
	"banger/internal/rootapi"

	"golang.org/x/sys/unix"
)

// runDir has a directory for each VM; jailDir is where the children mount
// their jails, empty for everybody else.
const runDir, jailDir = "/run/banger-root/vm", "/run/banger-root/jail"

// agentSocket is what Firecracker dials when the guest calls port 1024.
const apiSocket, agentSocket = "api.sock", "v.sock_1024"

// Prepare makes what all VMs share.
func Prepare() error {
	return errors.Join(os.MkdirAll(runDir, 0o711), os.Chmod(runDir, 0o711), os.MkdirAll(jailDir, 0o711))
}

// A Dir is a VM's directory, by its id. It is there as long as anything of the
// VM may be.
type Dir string

func (d Dir) path(name string) string { return filepath.Join(runDir, string(d), name) }

// Claim makes the directory, which must not be there. The group of "s" says
// which uid the VM has, so that nothing must be remembered.
func (d Dir) Claim(uid uint32) error {
	if err := os.Mkdir(d.path(""), 0o711); err != nil {
		return err
	}
	// Sticky: the VMM adds its own sockets, and cannot remove or replace ours.
	return errors.Join(os.Chmod(d.path(""), 0o711), unix.Mkfifo(d.path("console"), 0o600), os.Mkdir(d.path("s"), 0o700),
		os.Chown(d.path("s"), 0, int(uid)), os.Chmod(d.path("s"), 0o770|os.ModeSticky))
}

// UID returns the uid of the VM, 0 if its directory is not there or not whole.
func (d Dir) UID() uint32 {
	var st unix.Stat_t
	_ = unix.Lstat(d.path("s"), &st) // it stays zero
	return st.Gid
}

// Remove removes the directory, if it is there.
func (d Dir) Remove() error { return os.RemoveAll(d.path("")) }

// Dirs returns all that are there.
func Dirs() (dirs []Dir, err error) {
	entries, err := os.ReadDir(runDir)
	for _, e := range entries {
		if rootapi.ValidID(e.Name()) {
			dirs = append(dirs, Dir(e.Name()))
		}
	}
	return dirs, err
}

// Agent makes the socket that the guest's calls arrive on, in the place of any
// that is there: who held the old one hears nothing more. It is made where the
// VMM cannot interfere, and renamed.
func (d Dir) Agent() (*os.File, error) {
	made := d.path("agent")
	_ = os.Remove(made) // of a helper that was killed; else the next line fails
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listening for the agent: %w", err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chown(made, 0, int(d.UID())), os.Chmod(made, 0o660), os.Rename(made, d.path("s/"+agentSocket))); err != nil {
		return nil, fmt.Errorf("listening for the agent: %w", err)
	}
	return l.File()
}

// Console opens the reading end of the VM's output, without waiting for a
// writer.
func (d Dir) Console() (*os.File, error) {
	fd, err := unix.Open(d.path("console"), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the console: %w", err)
	}
	// Room for what a guest prints while its reader is being replaced; it does
	// with less where there is none.
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, 1<<20)
	return os.NewFile(uintptr(fd), "console"), nil
}

// ErrEnded is why there is no API.
var ErrEnded = errors.New("the VMM has ended")

// API connects to the VMM's API, as soon as that listens and as long as the
// process behind pidfd lives.
func (d Dir) API(ctx context.Context, pidfd int) (*os.File, error) {
	in, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watching for the API: %w", err)
	}
	defer unix.Close(in)
	_, err = unix.InotifyAddWatch(in, d.path("s"), unix.IN_CREATE)
	for err == nil {
		var c *os.File
		wait := 1000 // ms, to look at ctx
		switch c, err = d.connect(ctx); {
		case err == nil:
			return c, nil
		case errors.Is(err, unix.ECONNREFUSED):
			wait = 1 // bound, and about to listen, of which nothing tells
		case !errors.Is(err, os.ErrNotExist):
			return nil, err
		}
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}, {Fd: int32(in), Events: unix.POLLIN}}
		if _, err = unix.Poll(fds, wait); errors.Is(err, unix.EINTR) {
			err = nil
		}
		_, _ = unix.Read(in, make([]byte, 4096)) // that something was made is all there is to know
		if fds[0].Revents != 0 {
			return nil, ErrEnded
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
	}
	return nil, fmt.Errorf("waiting for the API: %w", err)
}

// connect follows nothing that the VMM may have put in the socket's place.
func (d Dir) connect(ctx context.Context) (*os.File, error) {
	f, err := beneath.Open(runDir, string(d)+"/s/"+apiSocket)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK || st.Uid != d.UID() {
		return nil, fmt.Errorf("connecting to the API: %s is not the VMM's socket (%v)", f.Name(), err)
	}
	var dial net.Dialer
	c, err := dial.DialContext(ctx, "unix", "/proc/self/fd/"+strconv.Itoa(int(f.Fd())))
	if err != nil {
		return nil, fmt.Errorf("connecting to the API: %w", err)
	}
	defer c.Close()
	return c.(*net.UnixConn).File()
}
