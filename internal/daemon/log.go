package daemon

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxLog is how long the log gets before it becomes its own predecessor,
// ".1": 16 MiB in all, whatever happens.
const maxLog = 8 << 20

// A Log is the daemon's log file, with a bound. Writes may come from many
// goroutines.
type Log struct {
	path   string
	stderr bool
	max    int64

	mu sync.Mutex
	f  *os.File
	n  int64
}

// OpenLog opens the log for appending. With stderr set, the process's standard
// error goes to it as well: the Go runtime writes there when it dies.
func OpenLog(path string, stderr bool) (*Log, error) {
	l := &Log{path: path, stderr: stderr, max: maxLog}
	return l, l.open()
}

func (l *Log) open() (err error) {
	l.f, err = os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	st, err := l.f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("opening the log: %w", err), l.f.Close())
	}
	l.n = st.Size()
	if l.stderr {
		if err := unix.Dup3(int(l.f.Fd()), 2, 0); err != nil {
			return errors.Join(fmt.Errorf("joining stderr to the log: %w", err), l.f.Close())
		}
	}
	return nil
}

// Write appends one record, which stays in one file.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n > 0 && l.n+int64(len(p)) > l.max {
		if err := l.turn(); err != nil {
			return 0, err
		}
	}
	n, err := l.f.Write(p)
	l.n += int64(n)
	return n, err
}

// turn begins a new file.
func (l *Log) turn() error {
	if err := os.Rename(l.path, l.path+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("turning the log over: %w", err)
	}
	old := l.f
	if err := l.open(); err != nil {
		l.f = old // better the old file than none
		return err
	}
	return old.Close()
}

// Close closes the file.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}
