package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"banger/internal/agentapi"
	"banger/internal/answer"
	"banger/internal/api"
	"banger/internal/session"
)

// The exit statuses that are banger's own, as in docker and env(1).
const (
	exitBanger      = 125 // banger failed
	exitNotExec     = 126 // the command was found and could not be executed
	exitNotFound    = 127 // no such command in the guest
	exitInterrupted = 130 // interrupted before the command ran: 128 + SIGINT
)

// guestExit carries a guest command's own status to the process's. It is the
// only type that does: no other error becomes an exit status by accident.
type guestExit struct{ agentapi.Exit }

// Error is for a bug that prints it: finish never does.
func (g *guestExit) Error() string { return fmt.Sprintf("exit status %d", g.status()) }

func (g *guestExit) status() int {
	if g.Signal != 0 {
		return 128 + g.Signal
	}
	return g.Code
}

// finish reports err and turns it into the exit status.
func (a *app) finish(ctx context.Context, cmd *cobra.Command, err error) int {
	if err == nil {
		return 0
	}
	if g, ok := errors.AsType[*guestExit](err); ok {
		return g.status()
	}
	if errors.Is(err, answer.ErrTold) {
		return exitBanger
	}
	e := api.AsError(err)
	status := exitBanger
	switch {
	case e.Code == api.Interrupted, errors.Is(err, context.Canceled) && ctx.Err() != nil:
		status = exitInterrupted
		if e.Code != api.Interrupted {
			e = &api.Error{Code: api.Interrupted, Msg: "interrupted"}
		}
	case errors.Is(err, session.ErrNotFound):
		status = exitNotFound
	case errors.Is(err, session.ErrNotExecutable):
		status = exitNotExec
	}
	a.printer().Report(e)
	return status
}
