package agent

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/agentapi"
)

// ptyRest bounds what can be left in a terminal when its process has ended: the
// line discipline's and the driver's buffers.
const ptyRest = 128 << 10

// An outlet is where a process's output comes out.
type outlet struct {
	f    *os.File // a pipe's end, or a terminal's
	pty  bool
	sink func([]byte)
	open bool // somebody may still write when pump has returned
}

// pump passes output to the sink until its end, or until finish is called.
// Then it takes exactly what was there at that moment: all the process wrote,
// but nothing that a background process may write for ever.
func (o *outlet) pump() {
	buf := make([]byte, agentapi.Chunk)
	for {
		n, err := o.f.Read(buf)
		if n > 0 {
			o.sink(buf[:n])
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			o.rest(buf)
			return
		}
		if err != nil { // the end; of a terminal EIO
			return
		}
	}
}

// finish tells pump that the process has ended.
func (o *outlet) finish() { _ = o.f.SetReadDeadline(time.Unix(1, 0)) }

// rest reads without waiting. A pipe says how much is in it (FIONREAD); a terminal hands
// its buffers on asynchronously, but reading it waits for that.
func (o *outlet) rest(buf []byte) {
	o.open = true
	_ = o.f.SetReadDeadline(time.Time{})
	limit := ptyRest
	if !o.pty {
		_ = withFD(o.f, func(fd int) (err error) {
			limit, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
			return err
		})
	}
	for limit > 0 {
		n, err := readNow(o.f, buf[:min(limit, len(buf))])
		if n <= 0 {
			o.open = errors.Is(err, unix.EAGAIN)
			return
		}
		o.sink(buf[:n])
		limit -= n
	}
}

func readNow(f *os.File, b []byte) (n int, err error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := rc.Read(func(fd uintptr) bool {
		for {
			n, err = unix.Read(int(fd), b)
			if err != unix.EINTR {
				return true
			}
		}
	})
	return n, errors.Join(err, cerr)
}

// discard reads what background processes go on to write, so that a daemon is
// not ended by SIGPIPE for a line that nobody wants. It returns when the last
// of them has closed the pipe.
func (o *outlet) discard() {
	_, _ = io.Copy(io.Discard, o.f)
	_ = o.f.Close()
}
