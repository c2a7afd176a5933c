package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"syscall"

	"banger/internal/api"
	"banger/internal/config"
	"banger/internal/daemon"
	"banger/internal/machine"
	"banger/internal/paths"
	"banger/internal/procid"
	"banger/internal/resolvconf"
	"banger/internal/rootapi"
	"banger/internal/rootclient"
	"banger/internal/systemhost"
	"banger/internal/zone"
)

// systemMode is the daemon that `banger system install` has set up: a service of
// the owner's, whose log is the journal. It goes by the install record, and asks
// the root helper for what takes root.
func systemMode(ctx context.Context) (err error) {
	syscall.Umask(0o077)
	record, err := rootapi.ReadInstall(rootapi.InstallPath)
	if err != nil {
		return err
	}
	if uid := os.Getuid(); uint32(uid) != record.Owner.UID {
		return &api.Error{Code: api.Denied, Msg: fmt.Sprintf("starting the daemon of system mode as uid %d: its owner is %s (uid %d)", uid, record.Owner.Name, record.Owner.UID),
			Hint: "systemd starts it: sudo banger system restart"}
	}
	layout, err := paths.System(os.Getenv, os.Getuid(), record.Owner.Home)
	if err != nil {
		return err
	}
	user, err := config.Load(layout.Config, record.Owner.Home)
	if err != nil {
		return err
	}
	if err := layout.Make(); err != nil {
		return err
	}
	boot, err := procid.BootID()
	if err != nil {
		return err
	}
	beside, err := neighbours()
	if err != nil {
		return err
	}
	// The journal has the time.
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: user.LogLevel, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey && len(groups) == 0 {
			return slog.Attr{}
		}
		return a
	}}))
	// Nothing is asked of the helper yet: it may be started after us, and VMs that
	// run need it only when something changes.
	defer context.AfterFunc(ctx, func() { notify(log, "STOPPING=1") })()
	helper := rootclient.Client{}
	host, err := systemhost.New(systemhost.Config{
		RunDir: layout.VMRun, CompanionPath: beside("banger-companion"), Helper: helper, Program: user.FirecrackerBin, Log: log,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	return daemon.Run(ctx, daemon.Config{
		Layout: layout, User: user, Host: host, Driver: host.Driver, BootID: boot,
		Check: func() error { return host.Check(ctx) },
		Net:   &machine.Net{Prefix: record.Prefix, Resolvers: resolvers(user)},
		Names: &zone.Config{Zone: record.Zone, Helper: helper, Link: index(record.Bridge)},
		Agent: beside("banger-vsock-agent"), Log: log, Ready: func() { notify(log, "READY=1") },
	})
}

// resolvers are those of guests with NAT: the user's, or else the host's. They
// are looked up anew for each boot of a guest, since a laptop's change with the
// network that it is in.
func resolvers(user config.Config) func() []netip.Addr {
	return func() []netip.Addr {
		if len(user.DefaultDNS) > 0 {
			return user.DefaultDNS
		}
		return resolvconf.Upstreams("/")
	}
}

// index looks for a link. One that was deleted and made again has another index,
// and has lost what systemd-resolved knew of it.
func index(name string) func() int {
	return func() int {
		l, err := net.InterfaceByName(name)
		if err != nil {
			return 0
		}
		return l.Index
	}
}

// notify tells systemd a word, as sd_notify(3) does. What follows such a word
// waits for it: `banger system install` for READY=1, before it says that all is
// well. A daemon that cannot say it goes on, and systemd ends it in a minute.
func notify(log *slog.Logger, word string) {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return // nobody waits for it
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err == nil {
		_, err = c.Write([]byte(word))
		err = errors.Join(err, c.Close())
	}
	if err != nil {
		log.Warn("telling systemd", "word", word, "err", err)
	}
}
