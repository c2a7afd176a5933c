package agent

import (
	"context"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// A Reaper owns all waiting in a process that is PID 1: it takes the exit
// status of every child, hands those of its own to whoever started them, and
// throws those of orphans away. In such a process nobody else may wait, so it
// must not serve commands: those are children of the agent, which is a process
// of its own. The zero Reaper is ready.
type Reaper struct {
	mu  sync.Mutex // held while a child starts, so that its end waits for its entry
	own map[int]chan unix.WaitStatus
}

// Start calls start, which starts a child and returns its pid. The channel gets
// the child's status once, when Run has waited for it.
func (r *Reaper) Start(start func() (pid int, err error)) (<-chan unix.WaitStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := start()
	if err != nil {
		return nil, err
	}
	if r.own == nil {
		r.own = map[int]chan unix.WaitStatus{}
	}
	ch := make(chan unix.WaitStatus, 1)
	r.own[pid] = ch
	return ch, nil
}

// Run waits for children until ctx ends.
func (r *Reaper) Run(ctx context.Context) {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	defer signal.Stop(ended)
	for {
		r.reap()
		select {
		case <-ctx.Done():
			return
		case <-ended: // one for any number of children
		}
	}
}

func (r *Reaper) reap() {
	for {
		r.mu.Lock()
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if ch, ours := r.own[pid]; ours && pid > 0 {
			ch <- ws
			delete(r.own, pid)
		}
		r.mu.Unlock()
		if err == unix.EINTR {
			continue
		}
		if pid <= 0 {
			return
		}
	}
}
