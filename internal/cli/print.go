package cli

import (
	"context"
	"io"

	"banger/internal/answer"
	"banger/internal/progress"
	"banger/internal/session"
)

// printer is how this run speaks.
func (a *app) printer() answer.Printer {
	return answer.Printer{Out: a.Stdout, Err: a.Stderr, JSON: a.json, Quiet: a.quiet,
		Colour: session.IsTerminal(a.Stderr) && a.Getenv("NO_COLOR") == "" && a.Getenv("TERM") != "dumb"}
}

// print writes an answer: v as JSON with --json, else what text writes.
func (a *app) print(v any, text func(w io.Writer)) error { return a.printer().Print(v, text) }

// note writes a line of the conversation, and dim one that matters less.
func (a *app) note(format string, args ...any) { a.printer().Note(format, args...) }
func (a *app) dim(format string, args ...any)  { a.printer().Dim(format, args...) }

// progress tells how a long piece of work goes; the caller ends it.
func (a *app) progress(ctx context.Context, title string) *progress.Bar {
	p := progress.New(progress.Config{Title: title, Out: a.Stderr, Terminal: a.live(), Silent: a.json})
	context.AfterFunc(ctx, p.Stop)
	return p
}
