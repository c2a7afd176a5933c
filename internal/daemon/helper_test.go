package daemon_test

import (
	"archive/tar"
	"bytes"
	"context"
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

	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/config"
	"banger/internal/daemon"
	"banger/internal/host/fakehost"
	"banger/internal/machine"
	"banger/internal/paths"
	"banger/internal/recipe"
	"banger/internal/zone"
)

// daemonEnv makes this test binary be bangerd.
const daemonEnv = "BANGER_TEST_DAEMON"

// TestMain is also the daemon that tests start, and the stranger that asks it
// something under another uid.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(daemonEnv) != "":
		os.Exit(beDaemon())
	case os.Getenv(strangerEnv) != "":
		os.Exit(beStranger(os.Getenv(strangerEnv)))
	}
	os.Exit(m.Run())
}

// beDaemon is what cmd/bangerd does, with a host that pretends.
func beDaemon() int {
	a := daemon.NewAnnouncer(os.NewFile(api.ReadyFD, "ready"))
	if err := daemon.CloseInherited(api.ReadyFD); err != nil {
		a.Failed(err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	l, err := paths.FromEnv(os.Getenv, os.Getuid(), os.Getenv("HOME"))
	if err == nil {
		var user config.Config
		user, err = config.Load(l.Config, os.Getenv("HOME"))
		if err == nil {
			cfg := daemon.Config{Layout: l, User: user, Ready: a.Ready, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
			pretend(&cfg)
			cfg.Layout.System = os.Getenv(systemEnv) != ""
			if at := os.Getenv(networkEnv); at != "" {
				cfg.Net = &machine.Net{Prefix: netip.MustParsePrefix("172.16.0.0/24")}
				cfg.Names = &zone.Config{Listen: netip.MustParseAddrPort(at), Helper: routes(l.State + ".routes"), Link: func() int { return 1 }}
			}
			err = daemon.Run(ctx, cfg)
		}
	}
	if err != nil {
		a.Failed(err)
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// networkEnv gives VMs of the test's daemon a network, and says where their names
// are answered for.
const networkEnv = "BANGER_TEST_NETWORK"

// systemEnv has the test's daemon believe that systemd started it.
const systemEnv = "BANGER_TEST_SYSTEM"

// routes is a root helper that writes down, in a file, where names are routed.
type routes string

func (r routes) Resolver(_ context.Context, port uint16) error {
	return os.WriteFile(string(r), fmt.Append(nil, port), 0o600)
}

func (routes) Mend(context.Context) ([]string, error) { return nil, nil }

// pretend gives a daemon a host whose VMs are files beside the state, and an
// agent that only looks like one.
func pretend(cfg *daemon.Config) *fakehost.Host {
	dir := cfg.Layout.State + ".fake"
	cfg.Agent = filepath.Join(dir, "agent")
	// What goes wrong here shows in the first launch.
	_ = os.MkdirAll(dir, 0o700)
	if _, err := os.Stat(cfg.Agent); err != nil {
		_ = os.WriteFile(cfg.Agent, []byte("\x7fELF agent"), 0o700)
	}
	vms := filepath.Join(dir, "vms")
	_ = os.MkdirAll(vms, 0o700)
	h := fakehost.New(vms)
	cfg.Host = h
	cfg.Companion = func(socket string) machine.Companion { return h.Companion(socket) }
	return h
}

// world is a set of XDG directories of its own, and the environment that leads
// to them.
type world struct {
	layout paths.Layout
	env    []string
}

func newWorld(t *testing.T) world {
	t.Helper()
	dir := t.TempDir()
	run, err := os.MkdirTemp("", "bd") // short: it holds sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	vars := map[string]string{
		"HOME": dir, "XDG_RUNTIME_DIR": run, "XDG_STATE_HOME": filepath.Join(dir, "state"),
		"XDG_CACHE_HOME": filepath.Join(dir, "cache"), "XDG_CONFIG_HOME": filepath.Join(dir, "config"),
	}
	l, err := paths.FromEnv(func(k string) string { return vars[k] }, os.Getuid(), dir)
	if err != nil {
		t.Fatal(err)
	}
	w := world{layout: l, env: []string{daemonEnv + "=1", "PATH=" + os.Getenv("PATH")}}
	for k, v := range vars {
		w.env = append(w.env, k+"="+v)
	}
	return w
}

// options are how a client of this world starts a daemon.
func (w world) options() client.Options {
	return client.Options{Layout: w.layout, DaemonPath: os.Args[0], Start: true, Env: w.env}
}

// connect is a client of the world's daemon, which it starts.
func (w world) connect(t *testing.T) *client.Client {
	t.Helper()
	c, err := client.Connect(t.Context(), w.options())
	if err != nil {
		t.Fatalf("Connect() = %v\n%s", err, w.log())
	}
	t.Cleanup(c.Close)
	return c
}

// end ends the daemon, if there is one, and waits until it is gone.
func (w world) end(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
	defer cancel()
	c, err := client.Connect(ctx, client.Options{Layout: w.layout, AnyVersion: true})
	if errors.Is(err, client.ErrNotRunning) {
		return
	}
	if err != nil {
		t.Errorf("Connect() = %v", err)
		return
	}
	defer c.Close()
	if err := c.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown() = %v", err)
	}
	w.waitUnlocked(t)
}

// waitUnlocked waits until no daemon holds the state directory.
func (w world) waitUnlocked(t *testing.T) {
	t.Helper()
	f, err := os.Open(w.layout.Lock)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
}

func (w world) log() string {
	b, err := os.ReadFile(w.layout.Log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// serve runs a daemon in this process until the test ends, and returns a
// client of it. change may be nil.
func (w world) serve(t *testing.T, change func(*daemon.Config)) *client.Client {
	t.Helper()
	ready := make(chan struct{})
	done := make(chan error, 1)
	cfg := daemon.Config{
		Layout: w.layout, Ready: func() { close(ready) },
		Log: slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	pretend(&cfg)
	if change != nil {
		change(&cfg)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	go func() { done <- daemon.Run(ctx, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		done <- nil
		t.Fatalf("Run() = %v", err)
	}
	c, err := client.Connect(t.Context(), client.Options{Layout: w.layout})
	if err != nil {
		t.Fatalf("Connect() = %v", err)
	}
	t.Cleanup(c.Close)
	return c
}

// testLog shows the daemon's log with the test that failed. A panic that is in
// it is a failure.
type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	if bytes.Contains(p, []byte("panic serving")) {
		l.t.Error("the server has panicked")
	}
	return len(p), nil
}

// smallTar is a root tar with one file of that name.
func smallTar(t *testing.T, name string) []byte {
	t.Helper()
	var b bytes.Buffer
	writeTar(t, &b, map[string]string{name: "content"})
	return b.Bytes()
}

func writeTar(t *testing.T, w io.Writer, files map[string]string) {
	t.Helper()
	tw := tar.NewWriter(w)
	for name, body := range files {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(body))}); err != nil {
			t.Error(err)
		}
		if _, err := io.WriteString(tw, body); err != nil {
			t.Error(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Error(err)
	}
}

// release is what the test kernel calls itself.
const release = "6.1.0-test"

// writeKernel writes the tar of a kernel that passes the import's checks.
func writeKernel(t *testing.T, w io.Writer) {
	t.Helper()
	var options strings.Builder
	for o := range strings.FieldsSeq("BLK_DEV_INITRD DEVTMPFS TMPFS PROC_FS SYSFS UNIX INET CGROUPS INOTIFY_USER EXT4_FS SERIAL_8250_CONSOLE MODULES VIRTIO VIRTIO_MMIO VIRTIO_CONSOLE VIRTIO_BLK OVERLAY_FS") {
		fmt.Fprintf(&options, "CONFIG_%s=y\n", o)
	}
	elf := "\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9) + "\x02\x00\x3e\x00" + strings.Repeat("\x00", 100)
	writeTar(t, w, map[string]string{
		"boot/vmlinuz-" + release: elf, "boot/config-" + release: options.String(),
		"lib/modules/" + release + "/modules.dep.bin": "index",
	})
}

// stock puts the kernel that VMs boot, and a small image, into the stores.
func stock(t *testing.T, c *client.Client) (api.Image, api.Kernel) {
	t.Helper()
	k, err := c.PullKernel(t.Context(), recipe.DefaultKernel, api.PullRequest{}, func(_ context.Context, w io.Writer) error {
		writeKernel(t, w)
		return nil
	}, nil)
	if err != nil {
		t.Fatalf("PullKernel() = %v", err)
	}
	im, err := c.ImportImage(t.Context(), "small", bytes.NewReader(smallTar(t, "bin/sh")), nil)
	if err != nil {
		t.Fatalf("ImportImage() = %v", err)
	}
	return im, k
}

// clean fails the test if the daemon finds anything that nothing explains.
func clean(t *testing.T, c *client.Client) {
	t.Helper()
	s, err := c.Census(t.Context())
	if err != nil || len(s.Leaks) != 0 || len(s.Staging) != 0 {
		t.Errorf("Census() = %+v, %v; want no leak and nothing half-made", s, err)
	}
}
