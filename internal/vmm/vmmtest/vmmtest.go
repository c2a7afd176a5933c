// Package vmmtest is the contract of vmm.Driver as tests, which every driver
// passes with a real process.
package vmmtest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/confine"
	"banger/internal/vmm"
	"banger/internal/vmm/channel"
	"banger/internal/vmm/vmmguest"
)

// A Suite is what to test. Driver, Kernel and Initramfs are required.
type Suite struct {
	Driver vmm.Driver
	// Kernel and Initramfs are paths of files, which are copied.
	Kernel, Initramfs string
	// Marker is what the guest prints; Ends is added to the command line of one
	// that powers off after it, Resets to one that resets, Calls to one that says
	// something on the agent's channel. Those of package vmmguest if they are empty.
	Marker, Ends, Resets, Calls string
	Words                       string        // added to every command line
	TSCKHz                      int64         // of the host
	Limit                       time.Duration // for a guest; a minute if 0
}

// A machine is a VMM that a test has started.
type machine struct {
	t       *testing.T
	cmd     *exec.Cmd
	ctx     context.Context
	control vmm.Control
	place   channel.Place
	set     *channel.Set
	stderr  bytes.Buffer
}

// Run runs the suite.
func (s Suite) Run(t *testing.T) {
	if s.Limit == 0 {
		s.Limit = time.Minute
	}
	s.Marker, s.Calls = cmp.Or(s.Marker, vmmguest.Marker), cmp.Or(s.Calls, vmmguest.Calls)
	s.Ends, s.Resets = cmp.Or(s.Ends, vmmguest.Off), cmp.Or(s.Resets, vmmguest.Reset)
	t.Run("ConsoleHasTheFirstByte", func(t *testing.T) {
		m := s.start(t, "")
		m.await(s.Marker)
		m.signal(syscall.SIGKILL)
		if why := m.control.Ended(m.ctx); why != "" {
			t.Errorf("Ended() of a killed VMM = %q, want nothing", why)
		}
	})
	shutdown, reset := vmm.EndShutdown, vmm.EndReset
	if s.Driver.Wiring().Mute {
		shutdown, reset = "", "" // its status is all it says
	}
	t.Run("PowerOffIsTold", func(t *testing.T) { s.ends(t, s.Ends, shutdown) })
	t.Run("ResetIsTold", func(t *testing.T) { s.ends(t, s.Resets, reset) })
	t.Run("GuestReachesTheHost", s.call)
	t.Run("ChannelsAreServedAgain", s.again)
	t.Run("EndedKeepsToItsContext", func(t *testing.T) {
		m := s.start(t, "")
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
	m := s.start(t, "")
	m.await(s.Marker)
	if err := errors.Join(m.control.Close(), m.set.Close()); err != nil {
		t.Error(err)
	}
	set, err := channel.Find(m.ctx, s.Driver.Wiring(), m.place)
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	c, err := s.Driver.Attach(m.ctx, set.Control())
	if err != nil {
		t.Fatalf("second Attach() = %v", err)
	}
	defer c.Close()
	m.signal(syscall.SIGKILL)
	if why := c.Ended(m.ctx); why != "" {
		t.Errorf("Ended() of a killed VMM = %q, want nothing", why)
	}
}

// call has the guest say something on the agent's channel.
func (s Suite) call(t *testing.T) {
	m := s.start(t, s.Calls)
	c, err := m.set.Agent(m.ctx)
	if err != nil {
		t.Fatalf("the guest does not call: %v; stderr %q", err, m.stderr.String())
	}
	defer c.Close()
	deadline, _ := m.ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		_ = m.cmd.Process.Kill()
		printed, _ := io.ReadAll(m.set.Console())
		t.Errorf("the guest says nothing: %v; console %q, stderr %q", err, printed, m.stderr.String())
	}
}

// start starts a VMM whose files have no name any more: descriptors are all
// that it has.
func (s Suite) start(t *testing.T, words string) *machine {
	t.Helper()
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), s.Limit)
	t.Cleanup(cancel)
	m := &machine{t: t, ctx: ctx}
	c := vmm.Config{ID: "0123456789ab", VCPUs: 1, MemoryMiB: 128, TSCKHz: s.TSCKHz, Cmdline: strings.Join(strings.Fields(vmm.Cmdline+" "+s.Words+" "+words), " ")}
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
	own := len(files)
	dir, err := os.MkdirTemp("", "vt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m.place = channel.Place{Dir: dir}
	w := s.Driver.Wiring()
	if m.set, err = channel.Make(ctx, w, m.place); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.set.Close(); err != nil {
			t.Error(err)
		}
	})
	m.set.Hand(&c, pass)
	m.exec(s.Driver, c, files)
	for _, f := range files[:own] {
		f.Close()
	}
	if err := m.set.Started(ctx); err != nil {
		t.Fatalf("%v; stderr %q", err, m.stderr.String())
	}
	if m.control, err = s.Driver.Boot(ctx, m.set.Control(), c); err != nil {
		t.Fatalf("Boot() = %v; stderr %q", err, m.stderr.String())
	}
	t.Cleanup(func() { m.control.Close() })
	return m
}

// exec starts the VMM's program, confined if it opens things by name.
func (m *machine) exec(d vmm.Driver, c vmm.Config, files []*os.File) {
	m.t.Helper()
	argv, err := d.Argv(c)
	if err != nil {
		m.t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		m.t.Fatal(err)
	}
	defer null.Close()
	m.cmd = exec.CommandContext(m.ctx, argv[0], argv[1:]...)
	m.cmd.ExtraFiles, m.cmd.Stdin, m.cmd.Stderr, m.cmd.Dir, m.cmd.Env = files, null, &m.stderr, "/", []string{"PATH=" + os.Getenv("PATH")}
	if out := m.set.Stdout(); out != nil {
		m.cmd.Stdout = out
	}
	if opens := d.Wiring().Opens; opens != nil {
		_, err = confine.Start(m.cmd, confine.Rules{Files: files[:len(files)-1], Sockets: files[len(files)-1], Devices: opens})
	} else {
		err = m.cmd.Start()
	}
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		_ = m.cmd.Process.Kill() // it may have ended
		_ = m.cmd.Wait()
	})
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

// await reads the console until a text has come.
func (m *machine) await(text string) {
	m.t.Helper()
	console := m.set.Console()
	stop := context.AfterFunc(m.ctx, func() { _ = console.Close() }) // ends the read
	defer stop()
	var got []byte
	p := make([]byte, 4096)
	for !bytes.Contains(got, []byte(text)) {
		n, err := console.Read(p)
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
