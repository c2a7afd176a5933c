package agent_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/agent"
	"banger/internal/agentapi"
	"banger/internal/api"
	"banger/internal/guest"
)

func TestTerminal(t *testing.T) {
	t.Parallel()
	sizes := make(chan agentapi.Winsize, 1)
	var out bytes.Buffer
	stdout := writerFunc(func(b []byte) (int, error) {
		if out.Len() == 0 {
			sizes <- agentapi.Winsize{Rows: 51, Cols: 132}
		}
		return out.Write(b)
	})
	e := sh(`trap 'stty size; tty >/dev/null && exit 9' WINCH; stty size; while :; do sleep 0.05; done`)
	e.TTY, e.Size = true, agentapi.Winsize{Rows: 24, Cols: 80}
	exit, err := guest.Exec(t.Context(), open(t, agent.Config{}), e, guest.IO{Stdout: stdout, Resize: sizes})
	if got, want := out.String(), "24 80\r\n51 132\r\n"; err != nil || exit.Code != 9 || got != want {
		t.Errorf("%q, %+v, %v; want %q and 9", got, exit, err, want)
	}
}

func TestTerminalInputAndDrain(t *testing.T) {
	t.Parallel()
	for range 20 {
		e := sh(`stty -echo -onlcr; echo ready; cat; head -c 30000 /dev/zero | tr '\0' x; echo $TERM`)
		e.TTY = true
		exit, out, _, err := run(t, e, "typed\nhalf")
		i := strings.Index(out, "ready")
		if err != nil || exit.Code != 0 || i < 0 || !strings.HasSuffix(out, strings.Repeat("x", 30_000)+"xterm-256color\n") {
			t.Fatalf("%d bytes %.100q, %+v, %v", len(out), out, exit, err)
		}
	}
	// Ctrl-C is typed.
	e := agentapi.Exec{Argv: []string{"cat"}, TTY: true, Dir: "/"}
	pr, pw := io.Pipe()
	defer pw.Close()
	go pw.Write([]byte("x\n"))
	sent := false
	stdout := writerFunc(func(b []byte) (int, error) {
		if !sent { // the echo: cat's terminal is there
			sent = true
			go pw.Write([]byte{3})
		}
		return len(b), nil
	})
	exit, err := guest.Exec(t.Context(), open(t, agent.Config{}), e, guest.IO{Stdin: pr, Stdout: stdout})
	if err != nil || exit.Signal != 2 {
		t.Errorf("after ^C: %+v, %v; want signal 2", exit, err)
	}
}

func TestLostClientEndsTheCommand(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"obeys SIGHUP":         `echo; sleep 1000 & wait`,
		"ignores SIGHUP":       `trap '' HUP; echo; sleep 1000; sleep 1000`,
		"leaves a child":       `(trap '' HUP; sleep 1000) & echo; wait`,
		"child in another job": `set -m; (trap '' HUP; sleep 1000) & echo; wait`,
		"waits for its stdin":  `echo; cat`,
		"writes without pause": `echo; yes`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, agent.Config{Grace: 50 * time.Millisecond})
			first := make(chan bool, 1)
			stdout := writerFunc(func(b []byte) (int, error) {
				select {
				case first <- true:
				default:
				}
				return len(b), nil
			})
			ended := make(chan error, 1)
			pr, pw := io.Pipe()
			defer pw.Close()
			held := filepath.Join(t.TempDir(), "held")
			if err := unix.Mkfifo(held, 0o600); err != nil {
				t.Fatal(err)
			}
			e := sh(`exec 9>"$1"; `+script, held)
			go func() {
				_, err := guest.Exec(context.WithoutCancel(t.Context()), s, e, guest.IO{Stdin: pr, Stdout: stdout})
				ended <- err
			}()
			f, err := os.Open(held)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			<-first
			s.Close()
			if err := <-ended; api.CodeOf(err) != api.GuestLost {
				t.Errorf("Exec on a stream that was closed: %v, want code guest_lost", err)
			}
			// All that the command has started holds the fifo.
			if err := f.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, f); err != nil {
				t.Errorf("something of the command is alive: %v", err)
			}
		})
	}
}
