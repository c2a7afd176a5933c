// Package hostclock tells when the host's clock has jumped: somebody set it, or
// the host was suspended, while nothing that counts time by itself went on.
package hostclock

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// Watch calls f after each jump, until ctx ends, and returns nil then. Jumps that
// come while f runs are told as one. Nothing is polled: a timer that will never
// expire is cancelled by the kernel when the clock is set (timerfd_create(2),
// TFD_TIMER_CANCEL_ON_SET), which a resume does too.
func Watch(ctx context.Context, f func()) error {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("making a timer: %w", err)
	}
	never := unix.ItimerSpec{Value: unix.Timespec{Sec: math.MaxInt32}}
	if err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &never, nil); err != nil {
		return errors.Join(fmt.Errorf("setting a timer: %w", err), unix.Close(fd))
	}
	timer := os.NewFile(uintptr(fd), "timerfd")
	defer timer.Close()
	defer context.AfterFunc(ctx, func() { timer.Close() })()
	var expirations [8]byte
	for {
		_, err := timer.Read(expirations[:])
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ECANCELED):
			f()
		case err != nil:
			return fmt.Errorf("waiting for the clock to jump: %w", err)
		}
	}
}
