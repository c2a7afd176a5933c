// Command banger-vsock-agent is the program in a guest: its first init, its
// agent, and what stands in for either. Which of them it is, it knows from its
// pid and from argv[0]. It takes no flags and is of no use outside a guest.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"banger/internal/agent"
	"banger/internal/guestinit"
	"banger/internal/guestlife"
	"banger/internal/handover"
	"banger/internal/version"
)

func main() {
	ctx := context.Background()
	var err error
	switch {
	case os.Args[0] == handover.HookRole || filepath.Base(os.Args[0]) == filepath.Base(handover.HookRole):
		verb := "poweroff"
		if len(os.Args) > 1 {
			verb = os.Args[1]
		}
		guestlife.Hook(ctx, verb)
		err = errors.New("the kernel does not end the machine")
	case os.Getpid() == 1:
		err = guestinit.Run(ctx)
		guestinit.Die(err)
	case os.Args[0] == handover.AgentRole:
		err = serve(ctx, len(os.Args) > 1 && os.Args[1] == handover.Restart)
	case os.Args[0] == handover.StandbyRole:
		err = guestlife.Standby()
	default:
		err = errors.New("this program runs in a guest, where banger puts it")
	}
	fmt.Fprintln(os.Stderr, "banger-vsock-agent:", err)
	os.Exit(1)
}

// serve joins the two halves of the agent: the guest's life and the host's wishes.
func serve(ctx context.Context, restart bool) error {
	s := agent.New(agent.Config{})
	return guestlife.Run(ctx, guestlife.Config{Handler: s, OwnSSH: s.OwnSSH, Version: version.Get().Version, Restart: restart})
}
