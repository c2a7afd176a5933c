// Command bangerd-root does, as root and for one owner, the seven things that
// banger cannot do without: see packages rootapi and rootd. systemd starts it;
// people do not.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"banger/internal/hostnet"
	"banger/internal/jail"
	"banger/internal/resolved"
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
	bridge, err := hostnet.Open(in.Bridge, in.Prefix)
	if err != nil {
		return err
	}
	d := &rootd.Daemon{Install: in, Network: bridge, Resolver: resolved.Resolver{Bridge: in.Bridge, Zone: in.Zone}, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	return d.Serve(ctx, l)
}
