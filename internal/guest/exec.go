package guest

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"banger/internal/agentapi"
)

// IO connects a command with its caller.
type IO struct {
	// Stdin is read until its end or the command's. Exec does not wait for a
	// Read under way, which may take what comes after the command. Nil is an
	// empty stdin.
	Stdin io.Reader
	// Stdout and Stderr are written one at a time; nil throws output away. An
	// error ends the command. With a TTY all output is Stdout's.
	Stdout, Stderr io.Writer
	Resize         <-chan agentapi.Winsize // of the TTY; may be nil
	Signals        <-chan int              // for the command's process group; may be nil
}

// Exec runs a command in the guest and returns how it ended, after all its
// output has been written. A stream that ends before is an error of code
// GuestLost. If ctx ends, so does the command. Exec closes the stream.
func Exec(ctx context.Context, s Stream, e agentapi.Exec, std IO) (agentapi.Exit, error) {
	doing := "running a command in the guest"
	if len(e.Argv) > 0 {
		doing = fmt.Sprintf("running %.200q in the guest", e.Argv[0])
	}
	c, stop, err := begin(ctx, s, doing, agentapi.Request{Op: agentapi.OpExec, Exec: &e}, &agentapi.Started{})
	if err != nil {
		return agentapi.Exit{}, err
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(done)
	defer s.Close()
	defer stop()
	w := &window{free: agentapi.StdinWindow, more: make(chan struct{}, 1), done: done}
	go feed(c.conn, std.Stdin, w) // not waited for: a terminal's Read has no end of its own
	wg.Go(func() { control(c.conn, std, done) })
	return c.output(std, w)
}

// output passes the guest's frames on until the command has ended.
func (c *call) output(std IO, w *window) (agentapi.Exit, error) {
	for {
		k, b, err := c.conn.Read()
		if err != nil {
			return agentapi.Exit{}, c.lost(err)
		}
		switch k {
		case agentapi.KindStdout:
			err = write(std.Stdout, b)
		case agentapi.KindStderr:
			err = write(std.Stderr, b)
		case agentapi.KindWindow:
			if len(b) != 4 {
				return agentapi.Exit{}, c.broken(k)
			}
			w.give(int(binary.BigEndian.Uint32(b)))
		case agentapi.KindExit:
			var exit agentapi.Exit
			if err := agentapi.Decode(b, &exit); err != nil {
				return agentapi.Exit{}, c.lost(err)
			}
			if exit.Code < 0 || exit.Code > 255 || exit.Signal < 0 || exit.Signal > 64 {
				return agentapi.Exit{}, c.broken(k)
			}
			return exit, nil
		case agentapi.KindError:
			return agentapi.Exit{}, c.refused(b)
		default:
			return agentapi.Exit{}, c.broken(k)
		}
		if err != nil {
			return agentapi.Exit{}, fmt.Errorf("writing the command's output: %w", err)
		}
	}
}

func write(w io.Writer, b []byte) error {
	if w == nil {
		return nil
	}
	_, err := w.Write(b)
	return err
}

// control passes signals and sizes on. When a write fails, the reader learns
// why.
func control(conn *agentapi.Conn, std IO, done <-chan struct{}) {
	for {
		var err error
		select {
		case <-done:
			return
		case size, ok := <-std.Resize:
			if !ok {
				std.Resize = nil
				continue
			}
			err = conn.WriteJSON(agentapi.KindResize, size)
		case n, ok := <-std.Signals:
			if !ok {
				std.Signals = nil
				continue
			}
			err = conn.WriteJSON(agentapi.KindSignal, agentapi.Signal{Number: n})
		}
		if err != nil {
			return
		}
	}
}

// feed sends stdin, never more than the guest has room for, and its end.
func feed(conn *agentapi.Conn, stdin io.Reader, w *window) {
	buf := make([]byte, agentapi.Chunk)
	for stdin != nil {
		n, rerr := stdin.Read(buf)
		for b := buf[:n]; len(b) > 0; {
			k := w.take(len(b))
			if k == 0 || conn.Write(agentapi.KindStdin, b[:k]) != nil {
				return
			}
			b = b[k:]
		}
		if rerr != nil {
			break
		}
	}
	_ = conn.Write(agentapi.KindStdin, nil) // if this fails, so does the reader, which says why
}

// A window is how much stdin the guest has room for.
type window struct {
	mu   sync.Mutex // guards free
	free int
	more chan struct{} // holds a token after free has grown
	done <-chan struct{}
}

// take waits for room and takes up to n bytes of it; 0 if the command ended.
func (w *window) take(n int) int {
	for {
		w.mu.Lock()
		got := min(n, w.free)
		w.free -= got
		w.mu.Unlock()
		if got > 0 {
			return got
		}
		select {
		case <-w.more:
		case <-w.done:
			return 0
		}
	}
}

// give adds room. A guest that gives more than it took gains nothing.
func (w *window) give(n int) {
	w.mu.Lock()
	w.free = min(w.free+n, agentapi.StdinWindow)
	w.mu.Unlock()
	select {
	case w.more <- struct{}{}:
	default:
	}
}
