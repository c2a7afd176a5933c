package cli

import (
	"context"

	"banger/internal/api"
	"banger/internal/progress"
	"banger/internal/session"
)

// live is whether a line on stderr can be redrawn.
func (a *app) live() bool {
	return session.IsTerminal(a.Stderr) && a.Getenv("TERM") != "dumb" && !a.json
}

// A bootLine shows on a terminal how far a boot is. Elsewhere a boot is silent:
// it takes seconds, and its end is said. The zero value of bar is one that shows
// nothing yet.
type bootLine struct {
	*app
	bar *progress.Bar
}

// watch shows an event of the boot of the VM name, "" for one that has none yet.
func (b *bootLine) watch(ctx context.Context, name string, ev api.Event) {
	if b.bar == nil && name != "" && b.live() {
		b.bar = b.progress(ctx, name)
	}
	switch {
	case b.bar != nil:
		// A line of progress has no failure to tell.
		_ = b.bar.Boot(ev)
	case ev.Type == api.EventNotice:
		b.note("banger: %s", ev.Text)
	}
}

// unwatch takes the line away, for what is written next.
func (b *bootLine) unwatch() {
	if b.bar != nil {
		b.bar.End()
		b.bar = nil
	}
}
