package cli

import (
	"context"

	"banger/internal/api"
	"banger/internal/session"
)

// live is whether a line on stderr can be redrawn.
func (a *app) live() bool {
	return session.IsTerminal(a.Stderr) && a.Getenv("TERM") != "dumb" && !a.json
}

// watch shows on a terminal how far a boot is. Elsewhere a boot is silent: it
// takes seconds, and its end is said.
func (r *run) watch(ctx context.Context, ev api.Event) {
	if r.bar == nil && ev.Machine != nil && r.live() {
		r.bar = r.progress(ctx, ev.Machine.Name)
	}
	switch {
	case r.bar != nil:
		// A line of progress has no failure to tell.
		_ = r.bar.Boot(ev)
	case ev.Type == api.EventNotice:
		r.note("banger: %s", ev.Text)
	}
}

// unwatch takes the line away, for what is written next.
func (r *run) unwatch() {
	if r.bar != nil {
		r.bar.End()
		r.bar = nil
	}
}
