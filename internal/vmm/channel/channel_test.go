package channel_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/vmm"
	"banger/internal/vmm/channel"
)

var calling = vmm.Wiring{
	Agent:   vmm.Channel{How: vmm.Called, Name: "v.sock_1024"},
	Console: vmm.Channel{How: vmm.Printed, Name: "console.fifo"},
	Control: vmm.Channel{How: vmm.Served, Name: "api.sock"},
}

// shortDir is a directory for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "ch")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(d); err != nil {
			t.Error(err)
		}
	})
	return d
}

// A fake VMM has its own descriptors of what it is handed.
type fakeVMM struct {
	dir    string
	stdout *os.File
	api    net.Listener
}

func newVMM(t *testing.T, s *channel.Set) *fakeVMM {
	t.Helper()
	v := &fakeVMM{}
	own := func(f *os.File) *os.File {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return os.NewFile(uintptr(fd), f.Name())
	}
	var c vmm.Config
	s.Hand(&c, func(f *os.File) vmm.File {
		v.dir = f.Name()
		return vmm.File{Name: f.Name(), FD: 3}
	})
	if c.Sockets.FD != 3 || c.Agent != (vmm.File{}) || c.Control != (vmm.File{}) {
		t.Errorf("the VMM is handed %+v, want the directory alone", c)
	}
	v.stdout = own(s.Stdout())
	t.Cleanup(func() { v.stdout.Close() })
	return v
}

func (v *fakeVMM) serve(t *testing.T) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(v.dir, "api.sock"))
	if err != nil {
		t.Error(err)
		return
	}
	v.api = l
	t.Cleanup(func() { l.Close() })
}

// What happens between the host and a VMM that calls, prints and serves, twice:
// the second time the host has died meanwhile.
func TestCallingVMM(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	p := channel.Place{Dir: shortDir(t)}
	s, err := channel.Make(ctx, calling, p)
	if err != nil {
		t.Fatal(err)
	}
	v := newVMM(t, s)
	go v.serve(t) // while it is waited for
	if err := s.Started(ctx); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"first", "second"} {
		if _, err := v.stdout.WriteString(text); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, len(text))
		if _, err := io.ReadFull(s.Console(), b); err != nil || string(b) != text {
			t.Errorf("the console has %q, %v; want %q", b, err, text)
		}
		guest, err := net.Dial("unix", filepath.Join(v.dir, "v.sock_1024"))
		if err != nil {
			t.Fatal(err)
		}
		host, err := s.Agent(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(guest.Close(), host.Close(), s.Control().Close(), s.Close()); err != nil {
			t.Error(err)
		}
		if text == "first" {
			if s, err = channel.Find(ctx, calling, p); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Remove(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(p.Dir); err != nil || len(left) > 0 {
		t.Errorf("%v, %v are left", left, err)
	}
}

// What a VMM prints while there is no host is not lost, and does not stop it.
func TestPrintedBetweenTwoHosts(t *testing.T) {
	p := channel.Place{Dir: shortDir(t)}
	w := vmm.Wiring{Agent: calling.Agent, Console: calling.Console, Control: vmm.Channel{How: vmm.Called, Name: "x"}}
	s, err := channel.Make(t.Context(), w, p)
	if err != nil {
		t.Fatal(err)
	}
	v := newVMM(t, s)
	if err := errors.Join(s.Started(t.Context()), s.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := v.stdout.WriteString("alone"); err != nil {
		t.Fatal(err)
	}
	if s, err = channel.Find(t.Context(), w, p); err != nil {
		t.Fatal(err)
	}
	v.stdout.Close()
	if b, err := io.ReadAll(s.Console()); err != nil || string(b) != "alone" {
		t.Errorf("the console has %q, %v; want what was printed, and its end", b, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// A VMM may have replaced its socket by a link to somebody else's.
func TestLinkInPlaceOfASocket(t *testing.T) {
	p := channel.Place{Dir: shortDir(t)}
	other := filepath.Join(p.Dir, "other")
	l, err := net.Listen("unix", other)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, err := channel.Make(t.Context(), calling, p)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	v := newVMM(t, s)
	if err := os.Symlink(other, filepath.Join(v.dir, "api.sock")); err != nil {
		t.Fatal(err)
	}
	if err := s.Started(t.Context()); err == nil {
		t.Error("Started() with a link for a socket = nil, want an error")
	}
}

func TestWaitsEndWithTheirContext(t *testing.T) {
	p := channel.Place{Dir: shortDir(t)}
	s, err := channel.Make(t.Context(), calling, p)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if err := s.Started(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Started() = %v, want Canceled", err)
	}
	if _, err := s.Agent(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Agent() = %v, want Canceled", err)
	}
}

// Ends that somebody else has made are used, and their files left alone.
func TestTake(t *testing.T) {
	dir := shortDir(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/agent", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	vmmEnd := os.NewFile(uintptr(pair[1]), "vmm")
	defer vmmEnd.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	agent, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	s, err := channel.Take(channel.Handed{Agent: agent, Console: r, Control: os.NewFile(uintptr(pair[0]), "control"), UID: 4242})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the guest calls again
		call, err := net.Dial("unix", dir+"/agent")
		if err != nil {
			t.Fatal(err)
		}
		defer call.Close()
		c, err := s.Agent(t.Context())
		if err != nil {
			t.Fatalf("Agent() = %v", err)
		}
		defer c.Close()
	}
	control := s.Control()
	defer control.Close()
	if _, err := control.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(vmmEnd, make([]byte, 1)); err != nil {
		t.Error(err)
	}
	if _, err := w.Write([]byte("printed")); err != nil {
		t.Error(err)
	}
	w.Close()
	if b, err := io.ReadAll(s.Console()); string(b) != "printed" || err != nil {
		t.Errorf("the console has %q, %v", b, err)
	}
	if err := errors.Join(s.Close(), s.Remove()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir + "/agent"); err != nil {
		t.Errorf("the socket is gone, which is not ours: %v", err)
	}
}

// What is no listening unix socket is refused.
func TestTakeRefuses(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := channel.Take(channel.Handed{Agent: null, Console: r, Control: w}); err == nil {
		t.Error("Take() of /dev/null = nil")
	}
}
