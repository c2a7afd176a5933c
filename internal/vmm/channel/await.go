package channel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// await connects to a socket as soon as the VMM has made it: the directory tells
// of it.
func (s *Set) await(ctx context.Context, l *line) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("waiting for socket %s: %w", l.Name, err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(l.path), unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		return fmt.Errorf("waiting for socket %s: %w", l.Name, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Unix(1, 0)) }) // a closed one ends reads as well
	defer stop()
	b := make([]byte, 4096)
	for {
		err := s.listening(ctx, l)
		if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if _, err := events.Read(b); err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return fmt.Errorf("waiting for socket %s: %w", l.Name, err)
		}
	}
}

// listening dials. Between making a socket and listening on it a VMM takes two
// system calls, of which nothing tells: it is dialled again.
func (s *Set) listening(ctx context.Context, l *line) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		err := s.dial(ctx, l)
		if !errors.Is(err, unix.ECONNREFUSED) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("connecting to %s: %w", l.path, context.Cause(ctx))
		}
	}
}
