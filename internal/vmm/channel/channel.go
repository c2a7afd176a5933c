// Package channel lays the three channels between a host and a VMM: the agent's,
// the console and the VMM's own control.
//
// How each is laid is the driver's word (vmm.Wiring); the four ways are here and
// nowhere else. A [Set] is made before the VMM is started, or found again for one
// that runs. What is said on a channel, and how a VMM is started, are not its
// business.
package channel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/unixsock"
	"banger/internal/vmm"
)

// socketsDir holds, below a Place's Dir, what the VMM must reach by name.
const socketsDir = "s"

// A Place is where the channels of one VM are.
type Place struct {
	Dir string // of ours, mode 0700
	// UID and GID are the VMM's if they are not our own.
	UID, GID int
}

func (p Place) path(c vmm.Channel) string {
	if c.How == vmm.Called || c.How == vmm.Served {
		return filepath.Join(p.Dir, socketsDir, c.Name)
	}
	return filepath.Join(p.Dir, c.Name)
}

// A line is our end of one channel.
type line struct {
	vmm.Channel
	path   string
	give   *os.File           // what the VMM gets
	conn   io.ReadWriteCloser // nil while there is none
	listen *net.UnixListener  // of a channel that is Called
}

func (l *line) close() error {
	var errs []error
	if l.conn != nil {
		errs = append(errs, l.conn.Close())
	}
	if l.listen != nil {
		errs = append(errs, l.listen.Close())
	}
	return errors.Join(errs...)
}

// A Set is our ends of a VMM's channels. Agent may be called by one goroutine,
// the rest by another.
type Set struct {
	place   Place
	handed  bool     // nothing of the channels is ours but these ends
	lines   [3]line  // agent, console, control
	sockets *os.File // the directory, to be given

	mu sync.Mutex // guards conn and listen of the first line
}

const (
	agent = iota
	console
	control
)

func newSet(w vmm.Wiring, p Place) *Set {
	s := &Set{place: p}
	for i, c := range []vmm.Channel{w.Agent, w.Console, w.Control} {
		s.lines[i] = line{Channel: c, path: p.path(c)}
	}
	return s
}

// Make lays the channels for a VMM that is about to be started: so the guest
// finds a host from its first instruction on.
func Make(ctx context.Context, w vmm.Wiring, p Place) (_ *Set, err error) {
	s := newSet(w, p)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close(), s.Remove())
		}
	}()
	for i := range s.lines {
		if err := s.lay(ctx, &s.lines[i]); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// lay makes one channel.
func (s *Set) lay(ctx context.Context, l *line) (err error) {
	if err := remove(l.path); err != nil {
		return err
	}
	switch l.How {
	case vmm.Inherited:
		return s.inherit(ctx, l)
	case vmm.Called:
		if err := s.directory(); err != nil {
			return err
		}
		return s.listen(l)
	case vmm.Served:
		return s.directory()
	case vmm.Printed:
		if err := unix.Mkfifo(l.path, 0o600); err != nil {
			return fmt.Errorf("making %s: %w", l.path, err)
		}
		if err := l.tap(); err != nil {
			return err
		}
		// For reading, too: then it can be written to while nobody reads, as
		// between two companions.
		if l.give, err = os.OpenFile(l.path, os.O_RDWR, 0); err != nil {
			return fmt.Errorf("opening console: %w", err)
		}
		return nil
	}
	return fmt.Errorf("laying channel %s: there is no way %d", l.Name, l.How)
}

// inherit makes a listening socket and connects before anybody accepts.
func (s *Set) inherit(ctx context.Context, l *line) error {
	ls, err := unixsock.Bind(l.path)
	if err != nil {
		return err
	}
	l.give, err = ls.File()
	ls.Close()
	if err != nil {
		return fmt.Errorf("making socket %s: %w", l.Name, err)
	}
	return s.dial(ctx, l)
}

// directory makes the directory in which the VMM, which may have another uid,
// makes sockets and finds ours, and can take nothing of ours away.
func (s *Set) directory() error {
	if s.sockets != nil {
		return nil
	}
	dir := filepath.Join(s.place.Dir, socketsDir)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("making directory for sockets: %w", err)
	}
	if s.place.UID != 0 {
		if err := errors.Join(os.Chown(dir, -1, s.place.GID), os.Chmod(dir, os.ModeSticky|0o770)); err != nil {
			return fmt.Errorf("making directory for sockets: %w", err)
		}
	}
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("opening directory for sockets: %w", err)
	}
	s.sockets = f
	return nil
}

// listen makes the socket to which the VMM connects.
func (s *Set) listen(l *line) (err error) {
	if l.listen, err = unixsock.Bind(l.path); err != nil {
		return err
	}
	if s.place.UID == 0 {
		return nil
	}
	if err := errors.Join(os.Chown(l.path, -1, s.place.GID), os.Chmod(l.path, 0o660)); err != nil {
		return fmt.Errorf("making socket %s: %w", l.Name, err)
	}
	return nil
}

// pipeSize is how much of a console can wait to be read: what a user may ask for.
const pipeSize = 1 << 20

// tap opens our end of what the VMM prints.
func (l *line) tap() error {
	f, err := os.OpenFile(l.path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("opening console: %w", err)
	}
	l.conn = f
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) }) // only smaller without
	}
	return nil
}

// dial connects to the VMM. It listens on what it inherits once more, as the uid
// that it runs as; and what it has made itself may be a link to anything.
func (s *Set) dial(ctx context.Context, l *line) error {
	fd, err := unix.Open(l.path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("looking for socket %s: %w", l.path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return fmt.Errorf("connecting to %s: it is no socket (%v)", l.path, err)
	}
	c, err := unixsock.Dial(ctx, fmt.Sprintf("/proc/self/fd/%d", fd), s.place.UID)
	if err != nil {
		return fmt.Errorf("connecting to %s: %w", l.path, err)
	}
	l.conn = c
	return nil
}

// Hand puts into c what the VMM gets of the channels; pass returns how the VMM
// will see a file, which stays the set's until Started.
func (s *Set) Hand(c *vmm.Config, pass func(*os.File) vmm.File) {
	for i, f := range []*vmm.File{&c.Agent, &c.Console, &c.Control} {
		if s.lines[i].How == vmm.Inherited {
			*f = pass(s.lines[i].give)
		}
	}
	if s.sockets != nil {
		c.Sockets = pass(s.sockets)
	}
}

// Stdout is what the VMM must have as its standard output, nil for no matter
// what.
func (s *Set) Stdout() *os.File {
	for i := range s.lines {
		if s.lines[i].How == vmm.Printed {
			return s.lines[i].give
		}
	}
	return nil
}

// Started closes what was the VMM's, and waits for sockets that it makes.
func (s *Set) Started(ctx context.Context) error {
	if err := s.closeGiven(); err != nil {
		return err
	}
	for i := range s.lines {
		if l := &s.lines[i]; l.How == vmm.Served {
			if err := s.await(ctx, l); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Set) closeGiven() error {
	var errs []error
	for i := range s.lines {
		if g := s.lines[i].give; g != nil {
			errs = append(errs, release(g))
			s.lines[i].give = nil
		}
	}
	if s.sockets != nil {
		errs = append(errs, release(s.sockets))
		s.sockets = nil
	}
	return errors.Join(errs...)
}

// release closes a file that whoever started the VMM may have closed.
func release(f *os.File) error {
	if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Find takes up the channels of a VMM that runs, after whoever made them is dead.
func Find(ctx context.Context, w vmm.Wiring, p Place) (_ *Set, err error) {
	s := newSet(w, p)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	for i := range s.lines {
		l := &s.lines[i]
		switch l.How {
		case vmm.Inherited, vmm.Served:
			err = s.dial(ctx, l)
		case vmm.Called:
			if err = remove(l.path); err == nil {
				err = s.listen(l)
			}
		case vmm.Printed:
			err = l.tap()
		}
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Handed are the ends of channels that somebody else has laid, as Firecracker
// wants them.
type Handed struct {
	Agent   *os.File // a listening socket
	Console *os.File // the reading end of a pipe
	Control *os.File // a connection
	UID     int      // the VMM's
}

// Take makes a set of what was handed over, and closes the files.
func Take(h Handed) (_ *Set, err error) {
	s := &Set{handed: true, place: Place{UID: h.UID}}
	s.lines[agent].How, s.lines[console].How, s.lines[control].How = vmm.Called, vmm.Printed, vmm.Served
	s.lines[console].conn = h.Console
	defer func() {
		if err = errors.Join(err, h.Agent.Close(), h.Control.Close()); err != nil {
			err = errors.Join(fmt.Errorf("taking the channels: %w", err), s.Close())
		}
	}()
	l, err := net.FileListener(h.Agent)
	if err != nil {
		return nil, err
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("the agent's is a %v", l.Addr().Network()), l.Close())
	}
	u.SetUnlinkOnClose(false)
	s.lines[agent].listen = u
	c, err := net.FileConn(h.Control)
	if err != nil {
		return nil, err
	}
	s.lines[control].conn = c
	return s, nil
}

// Console is what the VMM's guest prints. It ends with the VMM.
func (s *Set) Console() io.ReadCloser { return s.lines[console].conn }

// Control returns the connection to the control channel, which is the caller's
// from then on.
func (s *Set) Control() net.Conn {
	c, _ := s.lines[control].conn.(net.Conn)
	s.lines[control].conn = nil
	return c
}

// Agent returns a connection to the guest's agent, which is the caller's. A
// session needs one; when it broke, the next call gives another.
func (s *Set) Agent(ctx context.Context) (net.Conn, error) {
	s.mu.Lock()
	l := &s.lines[agent]
	c, _ := l.conn.(net.Conn)
	ls := l.listen
	l.conn = nil
	s.mu.Unlock()
	switch {
	case c != nil:
		return c, nil
	case l.How == vmm.Called:
		return s.accept(ctx, ls)
	}
	own := line{Channel: l.Channel, path: l.path}
	if err := s.dial(ctx, &own); err != nil {
		return nil, err
	}
	return own.conn.(net.Conn), nil
}

// accept waits for the guest to call.
func (s *Set) accept(ctx context.Context, ls *net.UnixListener) (net.Conn, error) {
	if err := ls.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("waiting for the agent's call: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = ls.SetDeadline(time.Unix(1, 0)) }) // closed is as good
	defer stop()
	for {
		c, err := ls.AcceptUnix()
		if ctx.Err() != nil && err != nil {
			return nil, fmt.Errorf("waiting for the agent's call: %w", context.Cause(ctx))
		}
		if err != nil {
			return nil, fmt.Errorf("waiting for the agent's call: %w", err)
		}
		peer, err := unixsock.Peer(c)
		if err == nil && (unixsock.Trusted(peer) || peer.UID == s.place.UID) {
			return c, nil
		}
		_ = c.Close() // somebody else, who cannot be: the directory is closed
	}
}

// Close closes our ends that nobody was given. The VMM's are not touched.
func (s *Set) Close() error {
	err := s.closeGiven()
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.lines {
		l := &s.lines[i]
		err = errors.Join(err, l.close())
		l.conn, l.listen = nil, nil
	}
	return err
}

// Remove removes the files of an ended VMM's channels.
func (s *Set) Remove() error {
	if s.handed {
		return nil
	}
	var errs []error
	for i := range s.lines {
		errs = append(errs, remove(s.lines[i].path))
	}
	return errors.Join(append(errs, os.RemoveAll(filepath.Join(s.place.Dir, socketsDir)))...)
}

// remove deletes a file that may be gone.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
