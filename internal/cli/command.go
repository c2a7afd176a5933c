package cli

import (
	"bytes"
	"context"
	"unicode/utf8"

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

// result is the JSON of a command.
type result struct {
	VM       string `json:"vm"`
	ExitCode int    `json:"exit_code"`
	Signal   int    `json:"signal,omitempty"`
	Stdout   string `json:"stdout"`
	Stderr   string `json:"stderr"`
	// Binary says that stdout or stderr is not UTF-8: it is in base64 then.
	StdoutBytes []byte `json:"stdout_base64,omitempty"`
	StderrBytes []byte `json:"stderr_base64,omitempty"`
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
	var stdout, stderr bytes.Buffer
	s.Stdout, s.Stderr = &stdout, &stderr
	exit, err := s.Exec(ctx, c)
	if err != nil {
		return err
	}
	r := result{VM: m.Name, ExitCode: exit.Code, Signal: exit.Signal}
	r.Stdout, r.StdoutBytes = text(stdout.Bytes())
	r.Stderr, r.StderrBytes = text(stderr.Bytes())
	if err := a.print(r, nil); err != nil {
		return err
	}
	return status(exit, nil)
}

// status makes the status of a guest's process that of this one.
func status(exit agentapi.Exit, err error) error {
	if err != nil || exit == (agentapi.Exit{}) {
		return err
	}
	return &guestExit{exit}
}

// text gives bytes as a string if they are one.
func text(b []byte) (string, []byte) {
	if utf8.Valid(b) {
		return string(b), nil
	}
	return "", b
}
