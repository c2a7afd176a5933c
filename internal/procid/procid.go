// Package procid identifies a process so that it cannot be confused with its
// successor under the same number: by pid, start time and boot id.
//
// It looks at processes and signals them through descriptors; it starts none,
// and whoever started one also waits for it.
package procid

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrDead is the error for a process that has ended, whether or not its parent
// has taken notice.
var ErrDead = errors.New("the process has ended")

// ID is a process for good: a pid may be used again, the three together not.
// The zero ID is no process.
type ID struct {
	PID    int    `json:"pid"`
	Start  uint64 `json:"start"`   // clock ticks from boot to start: field 22 of /proc/PID/stat
	BootID string `json:"boot_id"` // /proc/sys/kernel/random/boot_id
}

// Of returns the identity of a running process. A zombie has ended: ErrDead.
func Of(pid int) (ID, error) {
	if pid <= 0 {
		return ID{}, fmt.Errorf("identifying process %d: %w", pid, ErrDead)
	}
	boot, err := BootID()
	if err != nil {
		return ID{}, err
	}
	start, err := startOf(pid)
	if err != nil {
		return ID{}, fmt.Errorf("identifying process %d: %w", pid, err)
	}
	return ID{PID: pid, Start: start, BootID: boot}, nil
}

// Self returns the identity of the calling process.
func Self() (ID, error) { return Of(os.Getpid()) }

// BootID is the kernel's name for the time since it started.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("reading boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// startOf returns field 22 of /proc/PID/stat, ErrDead for a process that is
// not there or has ended. Fields are counted from the last parenthesis, since
// the name before it may hold anything (proc(5)).
func startOf(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			return 0, ErrDead
		}
		return 0, err
	}
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return 0, errors.New("its stat line has no name")
	}
	f := bytes.Fields(b[i+1:]) // f[0] is field 3, the state
	const state, threads, start = 0, 20 - 3, 22 - 3
	if len(f) <= start {
		return 0, errors.New("its stat line is short")
	}
	// A killed process is shown as a zombie when its first thread has ended. As
	// long as another has not, its files are open and its locks held.
	others := len(f[threads]) > 1 || f[threads][0] > '1'
	if s := f[state][0]; s == 'X' || s == 'x' || s == 'Z' && !others {
		return 0, ErrDead
	}
	return strconv.ParseUint(string(f[start]), 10, 64)
}

// Alive reports whether this very process still runs. A zombie does not.
func (id ID) Alive() bool {
	now, err := Of(id.PID)
	return err == nil && now == id
}

// String is for messages.
func (id ID) String() string { return strconv.Itoa(id.PID) }

// A Process is a held reference to a running process: signals through it can
// never reach another one. Its methods may be called from several goroutines.
type Process struct {
	id   ID
	file *os.File // a pidfd, non-blocking

	watch sync.Once
	done  chan struct{}
}

// Open takes hold of the process id, or returns ErrDead. The identity is
// compared after the descriptor is there, so a reused pid is found out.
func Open(id ID) (*Process, error) {
	if id.PID <= 0 {
		return nil, fmt.Errorf("opening process %d: %w", id.PID, ErrDead)
	}
	fd, err := unix.PidfdOpen(id.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		if errors.Is(err, unix.ESRCH) {
			err = ErrDead
		}
		return nil, fmt.Errorf("opening process %d: %w", id.PID, err)
	}
	p := &Process{id: id, file: os.NewFile(uintptr(fd), "pidfd"), done: make(chan struct{})}
	if !id.Alive() {
		p.Close()
		return nil, fmt.Errorf("opening process %d: %w", id.PID, ErrDead)
	}
	return p, nil
}

// Held is the process id, whose pidfd f came from somebody who knows that it is
// the process's. f is the Process's from then on.
func Held(id ID, f *os.File) *Process { return &Process{id: id, file: f, done: make(chan struct{})} }

// ID is the process's identity.
func (p *Process) ID() ID { return p.id }

// Signal sends sig to the process, or returns ErrDead.
func (p *Process) Signal(sig unix.Signal) error {
	c, err := p.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("signalling process %d: %w", p.id.PID, err)
	}
	var sent error
	if err := c.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		sent = err
	}
	if errors.Is(sent, unix.ESRCH) {
		sent = ErrDead
	}
	if sent != nil {
		return fmt.Errorf("signalling process %d: %w", p.id.PID, sent)
	}
	return nil
}

// Ended reports whether the process has ended, without waiting.
func (p *Process) Ended() bool {
	c, err := p.file.SyscallConn()
	if err != nil {
		return false
	}
	over := false
	_ = c.Control(func(fd uintptr) { over = readable(fd) }) // a closed one tells nothing
	return over
}

// Done is closed when the process has ended. After [Process.Close] it stays as
// it was.
func (p *Process) Done() <-chan struct{} {
	p.watch.Do(func() {
		go func() {
			if p.await() {
				close(p.done)
			}
		}()
	})
	return p.done
}

// await blocks in the runtime's poller, not in a thread, until the pidfd is
// readable, and reports whether it was.
func (p *Process) await() bool {
	c, err := p.file.SyscallConn()
	if err != nil {
		return false
	}
	return c.Read(readable) == nil
}

// readable is what a pidfd is when its process has ended.
func readable(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&unix.POLLIN != 0
}

// Wait returns nil when the process has ended, or ctx's error.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.Done():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Close lets go of the process, which runs on. It returns nil if it was
// closed before.
func (p *Process) Close() error {
	if err := p.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
