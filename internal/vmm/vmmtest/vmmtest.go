// Package vmmtest is the contract of vmm.Driver as tests, which every driver
// passes with a real process.
package vmmtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/unixsock"
	"banger/internal/vmm"
)

// A Suite is what to test. All but Limit is required.
type Suite struct {
	Driver vmm.Driver
	// Kernel and Initramfs are paths of files, which are copied.
	Kernel, Initramfs string
	// Marker is what the guest prints.
	Marker string
	// Stays is added to the command line of a guest that runs on after its
	// marker; Ends to one that powers off, Resets to one that resets.
	Stays, Ends, Resets string
	TSCKHz              int64         // of the host
	Limit               time.Duration // for a guest; a minute if 0
}

// A machine is a VMM that a test has started.
type machine struct {
	t       *testing.T
	cmd     *exec.Cmd
	ctx     context.Context
	control vmm.Control
	agent   net.Conn
	console net.Conn
	stderr  bytes.Buffer
	paths   map[string]string // of the sockets
}

// Run runs the suite.
func (s Suite) Run(t *testing.T) {
	if s.Limit == 0 {
		s.Limit = time.Minute
	}
	t.Run("ConsoleHasTheFirstByte", func(t *testing.T) {
		m := s.start(t, s.Stays)
		m.await(s.Marker)
		m.signal(syscall.SIGKILL)
		if why := m.control.Ended(m.ctx); why != "" {
			t.Errorf("Ended() of a killed VMM = %q, want nothing", why)
		}
	})
	t.Run("PowerOffIsTold", func(t *testing.T) { s.ends(t, s.Ends, vmm.EndShutdown) })
	t.Run("ResetIsTold", func(t *testing.T) { s.ends(t, s.Resets, vmm.EndReset) })
	t.Run("ChannelsAreServedAgain", s.again)
	t.Run("EndedKeepsToItsContext", func(t *testing.T) {
		m := s.start(t, s.Stays)
		ctx, cancel := context.WithCancel(m.ctx)
		cancel()
		if why := m.control.Ended(ctx); why != "" {
			t.Errorf("Ended() of a running VMM = %q, want nothing", why)
		}
	})
}

func (s Suite) ends(t *testing.T, words, want string) {
	m := s.start(t, words)
	if why := m.control.Ended(m.ctx); why != want {
		t.Errorf("Ended() = %q, want %q; stderr %q", why, want, m.stderr.String())
	}
	if err := m.cmd.Wait(); err != nil {
		t.Errorf("the VMM ended with %v, want 0; stderr %q", err, m.stderr.String())
	}
}

// again breaks all three connections and makes them anew, as a companion does
// that takes over.
func (s Suite) again(t *testing.T) {
	m := s.start(t, s.Stays)
	m.await(s.Marker)
	for _, err := range []error{m.control.Close(), m.agent.Close(), m.console.Close()} {
		if err != nil {
			t.Error(err)
		}
	}
	for name := range m.paths {
		c, err := unixsock.Dial(m.ctx, m.paths[name])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if name != "control" {
			continue
		}
		if _, err := s.Driver.Attach(m.ctx, c); err != nil {
			t.Errorf("second Attach() = %v", err)
		}
	}
	m.signal(syscall.SIGKILL)
}

// start starts a VMM whose files have no name any more: descriptors are all
// that it has.
func (s Suite) start(t *testing.T, words string) *machine {
	t.Helper()
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), s.Limit)
	t.Cleanup(cancel)
	m := &machine{t: t, ctx: ctx, paths: map[string]string{}}
	c := vmm.Config{ID: "0123456789ab", VCPUs: 1, MemoryMiB: 128, TSCKHz: s.TSCKHz, Cmdline: strings.TrimSpace(vmm.Cmdline + " " + words)}
	var files []*os.File
	pass := func(f *os.File) vmm.File {
		files = append(files, f)
		return vmm.File{Name: f.Name(), FD: 2 + len(files)}
	}
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Kernel, c.Initramfs = pass(nameless(t, s.Kernel, os.O_RDONLY)), pass(nameless(t, s.Initramfs, os.O_RDONLY))
	c.Disks = []vmm.Disk{
		{File: pass(nameless(t, disk, os.O_RDONLY)), Serial: vmm.SerialBase, ReadOnly: true},
		{File: pass(nameless(t, disk, os.O_RDWR)), Serial: vmm.SerialVM},
	}
	dir, err := os.MkdirTemp("", "vt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	conns := map[string]net.Conn{}
	for name, f := range map[string]*vmm.File{"agent": &c.Agent, "console": &c.Console, "control": &c.Control} {
		var file *os.File
		m.paths[name] = filepath.Join(dir, name)
		file, conns[name] = socket(t, m.paths[name])
		*f = pass(file)
	}
	argv, err := s.Driver.Argv(c)
	if err != nil {
		t.Fatal(err)
	}
	m.cmd = exec.CommandContext(ctx, argv[0], argv[1:]...)
	m.cmd.ExtraFiles, m.cmd.Stderr, m.cmd.Dir, m.cmd.Env = files, &m.stderr, "/", []string{"PATH=" + os.Getenv("PATH")}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = m.cmd.Process.Kill() // it may have ended
		_ = m.cmd.Wait()
	})
	for _, f := range files {
		f.Close()
	}
	m.agent, m.console = conns["agent"], conns["console"]
	if m.control, err = s.Driver.Attach(ctx, conns["control"]); err != nil {
		t.Fatalf("Attach() = %v; stderr %q", err, m.stderr.String())
	}
	t.Cleanup(func() { m.control.Close() })
	return m
}

// nameless is an open copy of a file without a name.
func nameless(t *testing.T, name string, flags int) *os.File {
	t.Helper()
	from, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := os.CreateTemp(t.TempDir(), "file")
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if _, err := io.Copy(to, from); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(to.Name(), flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(to.Name()); err != nil {
		t.Fatal(err)
	}
	return f
}

// socket listens, and connects before anybody accepts.
func socket(t *testing.T, path string) (*os.File, net.Conn) {
	t.Helper()
	l, err := unixsock.Bind(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	c, err := unixsock.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return f, c
}

// await reads the console until a text has come.
func (m *machine) await(text string) {
	m.t.Helper()
	deadline, _ := m.ctx.Deadline()
	if err := m.console.SetReadDeadline(deadline); err != nil {
		m.t.Fatal(err)
	}
	var got []byte
	p := make([]byte, 4096)
	for !bytes.Contains(got, []byte(text)) {
		n, err := m.console.Read(p)
		got = append(got, p[:n]...)
		if err != nil {
			m.t.Fatalf("the console ended with %v after %q, without %q; stderr %q", err, got, text, m.stderr.String())
		}
	}
}

func (m *machine) signal(sig syscall.Signal) {
	m.t.Helper()
	if err := m.cmd.Process.Signal(sig); err != nil {
		m.t.Fatal(err)
	}
}
