package cli

import (
	"context"

	"banger/internal/agentapi"
	"banger/internal/api"
	"banger/internal/session"
)

// session is what the user does inside a VM.
func (a *app) session(m api.Machine) session.Session {
	return session.Session{
		Machine: m, Stdin: a.Stdin, Stdout: a.Stdout, Stderr: a.Stderr,
		Term: a.Getenv("TERM"), Note: a.note,
	}
}

// command runs a command in the guest and returns its status as a *guestExit.
// With --json its output is collected and printed as one document. tty is
// whether it gets a terminal: nil means if stdin and stdout are terminals.
func (a *app) command(ctx context.Context, m api.Machine, c session.Command, tty *bool) error {
	c.TTY = session.IsTerminal(a.Stdin) && session.IsTerminal(a.Stdout) && !a.json
	if tty != nil {
		c.TTY = *tty
	}
	s := a.session(m)
	if !a.json {
		return status(s.Exec(ctx, c))
	}
	r, err := s.Collect(ctx, c)
	if err != nil {
		return err
	}
	if err := a.print(r, nil); err != nil {
		return err
	}
	return status(agentapi.Exit{Code: r.ExitCode, Signal: r.Signal}, nil)
}

// status makes the status of a guest's process that of this one.
func status(exit agentapi.Exit, err error) error {
	if err != nil || exit == (agentapi.Exit{}) {
		return err
	}
	return &guestExit{exit}
}
