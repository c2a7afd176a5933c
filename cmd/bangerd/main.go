// Command bangerd is the owner daemon: see package daemon. The CLI starts it on
// first use; people need not.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"banger/internal/config"
	"banger/internal/daemon"
	"banger/internal/paths"
	"banger/internal/userhost"
	"banger/internal/version"
)

func main() {
	ready := flag.Int("ready-fd", -1, "say on this descriptor when the socket accepts connections, or why it will not")
	showVersion := flag.Bool("version", false, "print the version")
	flag.Parse()
	if *showVersion {
		fmt.Println("bangerd", version.Get())
		return
	}
	var f *os.File
	if *ready > 2 {
		syscall.CloseOnExec(*ready)
		f = os.NewFile(uintptr(*ready), "ready")
	}
	announce := daemon.NewAnnouncer(f)
	inherited := daemon.CloseInherited(*ready)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The CLI's terminal may go away; the daemon does not.
	signal.Ignore(syscall.SIGHUP)
	if err := errors.Join(inherited, run(ctx, announce, f == nil)); err != nil {
		announce.Failed(err)
		if f == nil {
			fmt.Fprintln(os.Stderr, "bangerd:", err)
		}
		os.Exit(1)
	}
}

// run wires the daemon of this user. Started by hand it logs to stderr too.
func run(ctx context.Context, announce *daemon.Announcer, byHand bool) (err error) {
	syscall.Umask(0o077)
	home, err := os.UserHomeDir()
	if err != nil {
		home = "" // the XDG variables may do without
	}
	layout, err := paths.FromEnv(os.Getenv, os.Getuid(), home)
	if err != nil {
		return err
	}
	user, err := config.Load(layout.Config, home)
	if err != nil {
		return err
	}
	if err := layout.Make(); err != nil {
		return err
	}
	out, err := daemon.OpenLog(layout.Log, !byHand)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	log := slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: user.LogLevel}))
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("looking for the programs beside this one: %w", err)
	}
	beside := func(name string) string { return filepath.Join(filepath.Dir(self), name) }
	host, err := userhost.New(userhost.Config{
		RunDir: layout.VMRun, CompanionPath: beside("banger-companion"),
		KVMCache: filepath.Join(layout.Cache, "kvm.json"), Log: log,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	return daemon.Run(ctx, daemon.Config{
		Layout: layout, User: user, Host: host, Driver: host.Driver, Check: host.Check,
		Agent: beside("banger-vsock-agent"), Log: log, Ready: announce.Ready,
	})
}
