package client

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/install/systemctl"
	"banger/internal/paths"
)

// comingLimit is how long a command waits for a daemon that systemd is starting,
// such as after an upgrade.
const comingLimit = 20 * time.Second

// coming waits for the daemon of system mode if systemd is about to start it, and
// greets it. The error is as greet's.
func (c *Client) coming(ctx context.Context, l paths.Layout, state func(context.Context) string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, comingLimit, fmt.Errorf("it has not come within %v: %w", comingLimit, unix.ECONNREFUSED))
	defer cancel()
	// Its socket takes its place by being renamed, which is seen from here on.
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return c.greet(ctx)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	if _, err := unix.InotifyAddWatch(fd, l.Runtime, unix.IN_MOVED_TO|unix.IN_CREATE|unix.IN_ONLYDIR); err != nil {
		return c.greet(ctx)
	}
	defer context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Now()) })()
	for buf := make([]byte, 4096); ; {
		err := c.greet(ctx)
		if !notRunning(err) {
			return err
		}
		switch state(ctx) {
		case "activating", "active", "reloading", "deactivating":
		default:
			return err
		}
		if _, err := events.Read(buf); err != nil {
			return context.Cause(ctx)
		}
	}
}

// unitState is how systemd says the owner daemon is.
func unitState(ctx context.Context) string {
	u, err := systemctl.Show(ctx, "bangerd.service")
	if err != nil {
		return ""
	}
	return u.Active
}
