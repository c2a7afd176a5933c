package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/api"
	"banger/internal/paths"
	"banger/internal/unixsock"
)

// lockWait is how long a new daemon waits for one that is ending.
const lockWait = graceRequests + graceRelease + 4*time.Second

// lockState makes this process the only daemon of its state directory. If
// another one serves it, or begins to, that is a Conflict error; one that is
// ending is waited for.
func lockState(ctx context.Context, l paths.Layout) (unlock func(), err error) {
	f, err := os.OpenFile(l.Lock, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the state directory: %w", err)
	}
	unlock = func() { f.Close() }
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return unlock, nil
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		unlock()
		return nil, fmt.Errorf("locking %s: %w", l.Lock, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, lockWait, errTaken(l))
	defer cancel()
	serves, stop, err := served(ctx, l.Runtime, l.Socket)
	if err != nil {
		unlock()
		return nil, err
	}
	defer stop()
	taken := make(chan error, 1)
	// flock cannot be told to stop: if ctx ends first, the goroutine gives the
	// lock back as soon as it has it, or ends with the process.
	go func() {
		for {
			err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
			if !errors.Is(err, unix.EINTR) {
				taken <- err
				return
			}
		}
	}()
	select {
	case err = <-taken:
		if err == nil {
			return unlock, nil
		}
		unlock()
		return nil, fmt.Errorf("locking %s: %w", l.Lock, err)
	case <-serves:
		err = errTaken(l)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	go func() { <-taken; unlock() }()
	return nil, err
}

// served returns a channel that is closed when somebody listens on socket, now
// or later. Stop ends the watch.
func served(ctx context.Context, dir, socket string) (_ <-chan struct{}, stop func(), err error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, nil, fmt.Errorf("watching the socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	// The socket's mode changes when it listens: see [unixsock.Bind].
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_ATTRIB); err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("watching %s: %w", dir, err)
	}
	ch := make(chan struct{})
	go func() {
		buf := make([]byte, 4096)
		for {
			if c, err := unixsock.Dial(ctx, socket); err == nil {
				c.Close()
				close(ch)
				return
			}
			if _, err := f.Read(buf); err != nil {
				return // stopped
			}
		}
	}()
	return ch, func() { f.Close() }, nil
}

func errTaken(l paths.Layout) error {
	return &api.Error{Code: api.Conflict, Msg: "another daemon serves " + l.State, Hint: "see which: banger daemon status"}
}
