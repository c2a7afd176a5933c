package vmtest

import (
	"context"
	"log/slog"
	"strings"
	"testing"
)

// Heard is a log into t's, and a channel that gets a value for each message that
// begins with prefix; up to 16 of them wait to be received.
func Heard(t testing.TB, prefix string) (*slog.Logger, <-chan struct{}) {
	heard := make(chan struct{}, 16)
	return slog.New(listener{slog.NewTextHandler(t.Output(), nil), prefix, heard}), heard
}

type listener struct {
	slog.Handler
	prefix string
	heard  chan<- struct{}
}

func (l listener) Handle(ctx context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, l.prefix) {
		l.heard <- struct{}{}
	}
	return l.Handler.Handle(ctx, r)
}

func (l listener) WithAttrs(attrs []slog.Attr) slog.Handler {
	l.Handler = l.Handler.WithAttrs(attrs)
	return l
}

func (l listener) WithGroup(name string) slog.Handler {
	l.Handler = l.Handler.WithGroup(name)
	return l
}
