package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"banger/internal/config"
	"banger/internal/daemon"
	"banger/internal/paths"
	"banger/internal/procid"
	"banger/internal/userhost"
)

// user is the daemon of an account in user mode.
type user struct {
	announce *daemon.Announcer
	byHand   bool // it logs to stderr too
}

// run wires it and returns when it has ended. It is one of many users' daemons,
// so what it holds is below the account's own directories.
func (u user) run(ctx context.Context) (err error) {
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
	out, err := daemon.OpenLog(layout.Log, !u.byHand)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	// Whoever reads it may have no other clock: lines have the time.
	log := slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: user.LogLevel}))
	beside, err := neighbours()
	if err != nil {
		return err
	}
	boot, err := procid.BootID()
	if err != nil {
		return err
	}
	host, err := userhost.New(userhost.Config{
		RunDir: layout.VMRun, CompanionPath: beside("banger-companion"),
		KVMCache: filepath.Join(layout.Cache, "kvm.json"), Firecracker: user.FirecrackerBin, Log: log,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	return daemon.Run(ctx, daemon.Config{
		Layout: layout, User: user, Host: host, Driver: host.Driver, Check: host.Check, BootID: boot,
		Agent: beside("banger-vsock-agent"), Log: log, Ready: u.announce.Ready,
	})
}

// neighbours finds the programs beside this one.
func neighbours() (func(name string) string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("looking for the programs beside this one: %w", err)
	}
	return func(name string) string { return filepath.Join(filepath.Dir(self), name) }, nil
}
