// Package unixsock makes unix sockets that only their owner can use, and tells
// who is at the other end.
//
// It owns the rules for the file: a mode of 0600 in a directory of 0700 that
// is ours, one listener at a time, and a stale file of a dead one replaced. It
// knows nothing of what is said on a connection.
package unixsock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// MaxPath is the longest path of a socket in bytes: sun_path of unix(7) has
// 108 with the final zero.
const MaxPath = 107

// ErrInUse is the error of [Listen] where somebody listens already.
var ErrInUse = errors.New("somebody listens there already")

// CheckPath says whether path can be a socket's, before anything is made.
func CheckPath(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("using socket %q: the path is not absolute", path)
	}
	if len(path) > MaxPath {
		return fmt.Errorf("using socket %q: the path has %d bytes, and a unix socket's has at most %d", path, len(path), MaxPath)
	}
	return nil
}

// A Listener accepts connections on a path until it is closed, which removes
// the file.
type Listener struct {
	*net.UnixListener
	path  string
	lock  *os.File
	close sync.Once
	err   error
}

// Listen makes the socket, with mode 0600. Its directory is made if it is not
// there; it must be ours and closed to everybody else. The file of a listener
// that has died is replaced; a living one gives ErrInUse. What decides is a
// lock on path+".lock", held as long as the listener lives, so that two
// who start at once cannot both win, and neither removes the other's socket.
func Listen(path string) (*Listener, error) {
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	if err := Dir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking socket: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("listening on %s: %w", path, ErrInUse)
		}
		return nil, fmt.Errorf("locking socket %s: %w", path, err)
	}
	// We hold the lock, so whoever made what is there is dead. It is replaced in
	// one step: who dials meanwhile is refused, and never finds nothing.
	l, err := bindOver(path)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return &Listener{UnixListener: l, path: path, lock: lock}, nil
}

// bindOver makes the socket under a name as long as its own, which may be as
// long as names can be, and renames it.
func bindOver(path string) (*net.UnixListener, error) {
	dir, name := filepath.Split(path)
	own := dir + "~" + name[1:]
	if err := os.Remove(own); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing stale socket: %w", err)
	}
	l, err := Bind(own)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(own, path); err != nil {
		return nil, errors.Join(fmt.Errorf("listening on %s: %w", path, err), l.Close(), os.Remove(own))
	}
	return l, nil
}

// Close stops listening, removes the file and gives the lock back. The lock's
// file stays: removing it would let two hold locks of the same name.
func (l *Listener) Close() error {
	l.close.Do(func() {
		err := os.Remove(l.path)
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		l.err = errors.Join(err, l.UnixListener.Close(), l.lock.Close())
	})
	return l.err
}

// Bind makes the socket with mode 0600, whose path must be free, without a
// lock and without a look at the directory. Closing the listener leaves the
// file to the caller.
func Bind(path string) (*net.UnixListener, error) {
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	// The directory is closed to others, so nobody connects between bind and this.
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	return l, nil
}

// Dir makes a directory for sockets, mode 0700, its parents with it, or checks
// the one that is there: a real directory, ours, closed to others. It mends the
// mode of a directory of ours, and refuses anybody else's.
func Dir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making directory for sockets: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("looking at directory %s: %w", dir, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("using %s for sockets: it is not a directory", dir)
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("using %s for sockets: it belongs to uid %d, not to %d", dir, st.Uid, os.Geteuid())
	case st.Mode&0o077 != 0:
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("closing %s to others: %w", dir, err)
		}
	}
	return nil
}

// Dial connects to the socket at path, whose listener must be of our own uid,
// root or one of uids: where a directory of ours should be, as in /tmp, somebody
// else may have made one first. Another's listener is an fs.ErrPermission error.
func Dial(ctx context.Context, path string, uids ...int) (*net.UnixConn, error) {
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", path, err)
	}
	u := c.(*net.UnixConn)
	peer, err := Peer(u)
	if err == nil && !Trusted(peer) && !slices.Contains(uids, peer.UID) {
		err = fmt.Errorf("uid %d listens there: %w", peer.UID, fs.ErrPermission)
	}
	if err != nil {
		u.Close()
		return nil, fmt.Errorf("connecting to %s: %w", path, err)
	}
	return u, nil
}

// A Cred is who a peer was when it connected or began to listen.
type Cred struct{ UID, GID, PID int }

// Peer returns the credentials of the process at the other end, as the kernel
// knows them (SO_PEERCRED).
func Peer(c *net.UnixConn) (Cred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Cred{}, fmt.Errorf("asking who is at the other end: %w", err)
	}
	var u *unix.Ucred
	var got error
	if err := raw.Control(func(fd uintptr) {
		u, got = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		got = err
	}
	if got != nil {
		return Cred{}, fmt.Errorf("asking who is at the other end: %w", got)
	}
	return Cred{UID: int(u.Uid), GID: int(u.Gid), PID: int(u.Pid)}, nil
}

// Trusted reports whether a peer may use a socket of ours: the same uid, or root.
func Trusted(c Cred) bool { return c.UID == os.Geteuid() || c.UID == 0 }
