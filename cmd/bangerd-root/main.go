// Command bangerd-root does, as root and for one owner, the seven things that
// banger cannot do without: see packages rootapi and rootd. systemd starts it,
// as the helper and as the child that builds a jail; people do not.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"syscall"

	"banger/internal/jail"
	"banger/internal/rootapi"
	"banger/internal/rootd"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bangerd-root:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) == 3 && os.Args[1] == jail.ChildArg {
		return jail.Child(os.Args[2])
	}
	if len(os.Args) == 2 && os.Args[1] == jail.HoldArg {
		return jail.Hold()
	}
	if len(os.Args) != 1 {
		return fmt.Errorf("reading arguments: systemd starts this program, with none")
	}
	l, err := rootd.Activated()
	if err != nil {
		return err
	}
	in, err := rootapi.ReadInstall(rootapi.InstallPath)
	if err != nil {
		return err
	}
	if err := jail.Prepare(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	// systemd's journal adds the time.
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	d := &rootd.Daemon{Install: in, Network: none{}, Log: log}
	return d.Serve(ctx, l)
}

type none struct{}

func (none) Attach(context.Context, string, netip.Addr, uint32, bool) error {
	return errors.New("no network yet")
}
func (none) Detach(context.Context, string) error                   { return nil }
func (none) Policy(context.Context, string, netip.Addr, bool) error { return nil }
func (none) Census(context.Context) ([]string, error)               { return nil, nil }
