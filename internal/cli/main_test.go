package cli_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"banger/internal/agent"
	"banger/internal/agentapi"
	"banger/internal/api"
	"banger/internal/cli"
	"banger/internal/companion"
	"banger/internal/companionapi"
	"banger/internal/config"
	"banger/internal/daemon"
	"banger/internal/host"
	"banger/internal/machine"
	"banger/internal/paths"
	"banger/internal/userhost"
	"banger/internal/vmm"
	"banger/internal/vmm/fake"
	"banger/internal/zone"
)

// What the tests' daemon is told.
const (
	agentLimitEnv = "BANGER_TEST_AGENT_LIMIT" // how long a guest may be silent
	launchedEnv   = "BANGER_TEST_LAUNCHED"    // a fifo that gets the host.Record of each VM that was launched
	networkEnv    = "BANGER_TEST_NETWORK"     // that VMs have a network, as in system mode
)

// TestMain makes this binary all the programs that banger has. Only the VMM is
// not the real one, and the kernel that it does not boot.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"banger":           func() { os.Exit(bangerMain()) },
		"bangerd":          func() { os.Exit(daemonMain()) },
		"banger-companion": func() { os.Exit(companionMain()) },
	})
}

// bangerMain is cmd/banger.
func bangerMain() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() { <-ctx.Done(); stop() }()
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	return cli.Main(ctx, cli.Env{Args: os.Args[1:], Self: self})
}

// daemonMain is cmd/bangerd with the fake driver.
func daemonMain() int {
	announce := daemon.NewAnnouncer(os.NewFile(api.ReadyFD, "ready"))
	syscall.CloseOnExec(api.ReadyFD)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	signal.Ignore(syscall.SIGHUP)
	syscall.Umask(0o077)
	if err := runDaemon(ctx, announce); err != nil {
		announce.Failed(err)
		return 1
	}
	return 0
}

func runDaemon(ctx context.Context, announce *daemon.Announcer) error {
	l, err := paths.FromEnv(os.Getenv, os.Getuid(), os.Getenv("HOME"))
	if err != nil {
		return err
	}
	user, err := config.Load(l.Config, os.Getenv("HOME"))
	if err != nil {
		return err
	}
	if err := l.Make(); err != nil {
		return err
	}
	out, err := daemon.OpenLog(l.Log, true)
	if err != nil {
		return err
	}
	defer out.Close()
	log := slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: user.LogLevel}))
	self, err := os.Executable()
	if err != nil {
		return err
	}
	h, err := userhost.New(userhost.Config{
		RunDir: l.VMRun, CompanionPath: filepath.Join(filepath.Dir(self), "banger-companion"), Driver: fake.Name, Log: log,
	})
	if err != nil {
		return err
	}
	defer h.Close()
	limits := machine.Limits{}
	if text := os.Getenv(agentLimitEnv); text != "" {
		if limits.Agent, err = time.ParseDuration(text); err != nil {
			return err
		}
	}
	cfg := daemon.Config{
		Layout: l, User: user, Host: moody{h}, Driver: h.Driver, Limits: limits,
		Agent: filepath.Join(l.State, agentName), Log: log, Ready: announce.Ready,
	}
	if os.Getenv(networkEnv) != "" {
		cfg.Net = &machine.Net{Prefix: netip.MustParsePrefix("172.16.0.0/24"), Resolvers: nameServers}
		cfg.Names = &zone.Config{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Helper: noHelper{}, Link: func() int { return 0 }}
	}
	return daemon.Run(ctx, cfg)
}

// nameServers are those of guests with NAT, whatever this host asks.
func nameServers() []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.0.2.53")} }

// noHelper has nothing to mend and nobody to tell.
type noHelper struct{}

func (noHelper) Resolver(context.Context, uint16) error { return nil }
func (noHelper) Mend(context.Context) ([]string, error) { return nil, nil }

// moody is a host on which VMs misbehave as their names say: "silent-1" never
// calls home.
//
// It takes the VMs' places on a network for granted.
type moody struct{ host.Host }

// SetNAT pretends.
func (moody) SetNAT(context.Context, string, bool) error { return nil }

// Launch launches.
func (m moody) Launch(ctx context.Context, s host.Spec) (host.Run, error) {
	for _, word := range []string{fake.Silent, fake.Die, fake.DieHome, fake.Refuse, fake.Hang, fake.Panic, fake.Slow} {
		if strings.HasPrefix(s.Name, strings.TrimPrefix(word, "fake.")+"-") {
			s.Cmdline = word
		}
	}
	s.Net, s.Identity.Net = nil, nil
	r, err := m.Host.Launch(ctx, s)
	if fifo := os.Getenv(launchedEnv); fifo != "" && err == nil {
		b, merr := json.Marshal(r.Record())
		if err := errors.Join(merr, os.WriteFile(fifo, append(b, '\n'), 0)); err != nil {
			return nil, err
		}
	}
	return r, err
}

// companionMain is cmd/banger-companion with the fake driver, and the VMM too.
func companionMain() int {
	ctx := context.Background()
	// The companion ignores these, which the VMM and its guest's commands would
	// inherit, unlike what somebody waits for.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT)
	if code, ours := fake.MainWith(ctx, newGuest); ours {
		return code
	}
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT)
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	syscall.CloseOnExec(companionapi.ConfigFD)
	syscall.CloseOnExec(companionapi.StartedFD)
	err := companion.Run(ctx, companion.Options{
		Drivers: []vmm.Driver{fake.Driver{}},
		Config:  os.NewFile(companionapi.ConfigFD, "config"),
		Started: os.NewFile(companionapi.StartedFD, "started"),
		Log:     slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// guest is a real agent, in a directory instead of a chroot.
type guest struct {
	*agent.Server
	root string
}

func newGuest(dir string, id agentapi.Identity) (fake.Guest, error) {
	c := agent.Config{
		HostKey: filepath.Join(dir, "host_key"), AuthorizedKeys: filepath.Join(dir, "authorized_keys"),
		Sshd: "-", Cgroup: filepath.Join(dir, "no", "cgroup"), Home: filepath.Join(dir, "root"),
	}
	keys := strings.Join(id.AuthorizedKeys, "\n") + "\n"
	for path, text := range map[string]string{c.HostKey: id.HostKey, c.AuthorizedKeys: keys} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	return guest{agent.New(c), dir}, os.Mkdir(c.Home, 0o700)
}

// Serve keeps every path of a request below the guest's directory.
func (g guest) Serve(ctx context.Context, conn *agentapi.Conn, req agentapi.Request, stream io.ReadWriteCloser) {
	below := func(path *string) {
		if filepath.IsAbs(*path) {
			*path = filepath.Join(g.root, *path)
		}
	}
	if x := req.Exec; x != nil {
		if x.Dir == "" {
			x.Dir = "/root"
		}
		below(&x.Dir)
		x.Env = append([]string{"HOME=" + filepath.Join(g.root, "root"), "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, x.Env...)
	}
	if req.Put != nil {
		below(&req.Put.Dir)
	}
	if req.Get != nil {
		below(&req.Get.Path)
	}
	g.Server.Serve(ctx, conn, req, stream)
}
