package session

import (
	"bytes"
	"context"
	"unicode/utf8"
)

// A Result is how a command ended, and what it printed.
type Result struct {
	VM       string `json:"vm"`
	ExitCode int    `json:"exit_code"`
	Signal   int    `json:"signal,omitempty"`
	Stdout   string `json:"stdout"`
	Stderr   string `json:"stderr"`
	// StdoutBytes and StderrBytes are what is not UTF-8, in base64.
	StdoutBytes []byte `json:"stdout_base64,omitempty"`
	StderrBytes []byte `json:"stderr_base64,omitempty"`
}

// Collect runs a command as Exec does, and keeps its output.
func (s Session) Collect(ctx context.Context, c Command) (Result, error) {
	var stdout, stderr bytes.Buffer
	s.Stdout, s.Stderr = &stdout, &stderr
	exit, err := s.Exec(ctx, c)
	r := Result{VM: s.Machine.Name, ExitCode: exit.Code, Signal: exit.Signal}
	r.Stdout, r.StdoutBytes = text(stdout.Bytes())
	r.Stderr, r.StderrBytes = text(stderr.Bytes())
	return r, err
}

// text gives bytes as a string if they are one.
func text(b []byte) (string, []byte) {
	if utf8.Valid(b) {
		return string(b), nil
	}
	return "", b
}
