// Package session is what a user does inside one running VM: commands, ssh,
// copies, forwarded ports, a workspace brought in.
//
// Everything goes over streams of the VM's companion; the daemon has no part in
// it, so a session outlives it. The package runs in the CLI, as the user, and
// knows terminals and signals. It prints nothing of its own but through Note.
package session

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"banger/internal/agentapi"
	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/guest"
)

// A Session is one user's dealings with one running VM. Its methods may be
// called one after the other.
type Session struct {
	Machine api.Machine // as the daemon told it, with the companion's socket
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	// Term is the TERM of the user's terminal.
	Term string
	// Note tells the user a sentence; nil drops it.
	Note func(format string, args ...any)
}

var (
	// ErrNotFound is in the chain of the error of a command that the guest
	// does not have: exit status 127.
	ErrNotFound = errors.New("no such command in the guest")
	// ErrNotExecutable is in the chain of the error of a command that the guest
	// cannot execute: exit status 126.
	ErrNotExecutable = errors.New("not executable in the guest")
)

// Command is what to run.
type Command struct {
	Argv, Env []string
	Dir, User string
	// TTY gives the command a terminal, connected to the user's. Its Stdout
	// carries stderr as well.
	TTY bool
}

// IsTerminal reports whether f is a file and a terminal.
func IsTerminal(f any) bool {
	file, ok := f.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

func (s Session) companion() companionapi.Client { return companionapi.New(s.Machine.Companion) }

// successorLimit is how long a companion that has just died is given to be
// replaced by the daemon, and successorTick how often that is looked at. It
// takes a tenth of a second.
const (
	successorLimit = 10 * time.Second
	successorTick  = 25 * time.Millisecond
)

// stream opens a stream to the agent, as soon as that answers. A socket that is
// there without anybody behind it belongs to a companion that died, while its
// VM has not been given up: the next one is waited for.
func (s Session) stream(ctx context.Context) (*companionapi.Stream, error) {
	limit := time.NewTimer(successorLimit)
	defer limit.Stop()
	again := time.NewTicker(successorTick)
	defer again.Stop()
	for {
		st, err := s.companion().Stream(ctx, api.StageAgent)
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return st, err
		}
		select {
		case <-again.C:
		case <-limit.C:
			return nil, err
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (s Session) note(format string, args ...any) {
	if s.Note != nil {
		s.Note(format, args...)
	}
}

// Exec runs a command, connected to the session's stdin, stdout and stderr, and
// returns how it ended. From the moment it starts, signals are the guest's: the
// first goes to its process; a second of the same within a second ends the
// call. A lost guest is an error, never a made-up status.
func (s Session) Exec(ctx context.Context, c Command) (agentapi.Exit, error) {
	e := agentapi.Exec{Argv: c.Argv, Env: c.Env, Dir: c.Dir, User: c.User, TTY: c.TTY}
	std := guest.IO{Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr}
	stream, err := s.stream(ctx)
	if err != nil {
		return agentapi.Exit{}, err
	}
	defer stream.Close()
	if e.TTY {
		restore, err := s.rawTerminal(&e, &std)
		if err != nil {
			return agentapi.Exit{}, err
		}
		defer restore()
	}
	outer := ctx
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	signals, stop := passSignals(cancel)
	defer stop()
	if outer.Err() != nil { // a signal that came before ours were passed on
		return agentapi.Exit{}, context.Cause(outer)
	}
	std.Signals = signals
	exit, err := guest.Exec(ctx, stream, e, std)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return exit, cause
	}
	return exit, s.refused(c, err)
}

// refused makes a guest's refusal to run a command its own word, which names
// the command already, and adds what to type.
func (s Session) refused(c Command, err error) error {
	g, ok := errors.AsType[*agentapi.Error](err)
	if !ok {
		return err
	}
	vm := s.Machine.Name
	if s.Machine.Ephemeral { // it will be gone
		vm = "NAME"
	}
	e := &api.Error{Code: api.CodeOf(err), Msg: g.Msg}
	switch program := c.Argv[0]; g.Code {
	case agentapi.CodeNotFound:
		e.Hint = absent(c, vm)
		return fmt.Errorf("%w%.0w", e, ErrNotFound)
	case agentapi.CodeNotExecutable:
		e.Hint = "see what it is: banger vm exec " + vm + " -- ls -ld " + ShellQuote(program)
		return fmt.Errorf("%w%.0w", e, ErrNotExecutable)
	case agentapi.CodeNoUser:
		e.Hint = "see who there is: banger vm exec " + vm + " -- cut -d: -f1 /etc/passwd"
	case agentapi.CodeInvalid:
		if c.Dir != "" {
			e.Hint = "begin somewhere else: banger vm exec " + vm + " --workdir / -- " + program
		}
	}
	return e
}

// absent is what to do about a program that the guest does not have.
func absent(c Command, vm string) string {
	program := c.Argv[0]
	switch {
	case len(c.Argv) == 1 && strings.ContainsAny(program, " |&;<>$*"):
		// The commonest mistake: a line for a shell as one argument.
		return "a line for a shell needs one: -- sh -c " + ShellQuote(program)
	case strings.HasPrefix(program, "./") && c.Dir == "":
		return "only a repository brings files of this host: banger vm run PATH -- " + program
	case strings.Contains(program, "/"):
		return "see what is there: banger vm exec " + vm + " -- ls -l " + ShellQuote(path.Dir(program))
	}
	return "bring a program along: banger vm cp FILE " + vm + ":/usr/local/bin/"
}

// twice is how soon a second interrupt must follow to mean "at once".
const twice = time.Second

// passSignals turns the process's signals into numbers for the guest until
// stop is called; a repeated one calls end.
func passSignals(end context.CancelCauseFunc) (numbers <-chan int, stop func()) {
	in := make(chan os.Signal, 4)
	out := make(chan int, 4)
	done := make(chan struct{})
	signal.Notify(in, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	go func() {
		var last os.Signal
		var at time.Time
		for {
			select {
			case <-done:
				return
			case sig := <-in:
				if sig == last && time.Since(at) < twice {
					end(&api.Error{Code: api.Interrupted, Msg: "interrupted twice: leaving the command behind"})
					return
				}
				last, at = sig, time.Now()
				n, _ := sig.(syscall.Signal)
				select {
				case out <- int(n):
				case <-done:
					return
				}
			}
		}
	}()
	return out, func() { signal.Stop(in); close(done) }
}

// rawTerminal prepares a TTY session: the terminal passes every byte, and its
// size follows.
func (s Session) rawTerminal(e *agentapi.Exec, std *guest.IO) (restore func(), err error) {
	in, ok := s.Stdin.(*os.File)
	if !ok || !IsTerminal(in) {
		return func() {}, nil // a TTY in the guest for a script: the default size will do
	}
	fd := int(in.Fd())
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("setting the terminal to raw: %w", err)
	}
	size := func() agentapi.Winsize {
		cols, rows, err := term.GetSize(fd)
		if err != nil {
			return agentapi.Winsize{Rows: 24, Cols: 80}
		}
		return agentapi.Winsize{Rows: uint16(rows), Cols: uint16(cols)}
	}
	e.Env = append([]string{"TERM=" + cmp.Or(s.Term, "xterm-256color")}, e.Env...)
	changed := make(chan os.Signal, 1)
	resize := make(chan agentapi.Winsize, 1)
	done := make(chan struct{})
	signal.Notify(changed, syscall.SIGWINCH) // before the first look, lest a change falls between
	e.Size = size()
	go func() {
		for {
			select {
			case <-done:
				return
			case <-changed:
				select {
				case resize <- size():
				case <-done:
					return
				}
			}
		}
	}()
	std.Resize = resize
	return func() {
		signal.Stop(changed)
		close(done)
		// The terminal may be gone; then it needs no restoring.
		_ = term.Restore(fd, old)
	}, nil
}
