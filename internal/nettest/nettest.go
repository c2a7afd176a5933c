// Package nettest gives tests network namespaces of their own, so that none
// ever touches the host's network: one that plays the host, in which the whole
// test binary runs, and more that play guests and the internet.
package nettest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/rtnl"
	"banger/internal/testneed"
)

const inside = "BANGER_NETTEST"

// Main runs the tests in a network namespace that it makes by starting the
// test binary again. Call it from TestMain; without root, [Need] ends the tests.
func Main(m *testing.M) int {
	if os.Getuid() != 0 {
		return m.Run()
	}
	if os.Getenv(inside) != "" {
		if err := loopback(); err != nil {
			os.Stderr.WriteString("nettest: switching on lo: " + err.Error() + "\n")
			return 1
		}
		return m.Run()
	}
	p, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
		Env:   append(os.Environ(), inside+"=1"),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		os.Stderr.WriteString("nettest: " + err.Error() + "\n")
		return 1
	}
	state, err := p.Wait()
	if err != nil || !state.Success() {
		return 1
	}
	return 0
}

// Need ends the test unless it runs in a namespace made by [Main].
func Need(t testing.TB) {
	t.Helper()
	testneed.Root(t)
	if os.Getenv(inside) == "" {
		t.Fatal("TestMain does not call nettest.Main: this test would touch the host's network")
	}
}

func loopback() error {
	c, err := rtnl.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.SetUp(1, true) // lo is the first link of every namespace
}

// Run runs commands, one a line, in the namespace of the calling thread; also
// in a cleanup, when the test's context has ended.
func Run(t testing.TB, script string) string {
	t.Helper()
	out := ""
	for line := range strings.Lines(script) {
		argv := strings.Fields(line)
		if len(argv) == 0 {
			continue
		}
		b, err := exec.CommandContext(context.WithoutCancel(t.Context()), testneed.Tool(t, argv[0]), argv[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", strings.TrimSpace(line), err, b)
		}
		out += string(b)
	}
	return out
}

// A Space is a further network namespace. It goes when the test ends.
type Space struct {
	t  testing.TB
	ns *os.File
}

// NewSpace makes a namespace with lo up and nothing else.
func NewSpace(t testing.TB) *Space {
	t.Helper()
	Need(t)
	s := &Space{t: t}
	errs := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = loopback()
		}
		if err == nil {
			s.ns, err = os.Open("/proc/thread-self/ns/net")
		}
		errs <- err
	}()
	if err := <-errs; err != nil {
		t.Fatalf("making a network namespace: %v", err)
	}
	t.Cleanup(func() { s.ns.Close() })
	return s
}

// Do runs f on a thread that is in the namespace, and waits. Sockets that f
// opens stay in it; goroutines that it starts do not run in it.
func (s *Space) Do(f func()) {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(int(s.ns.Fd()), unix.CLONE_NEWNET)
		defer func() { done <- err }() // also when f ends the test
		if err == nil {
			f()
		}
	}()
	if err := <-done; err != nil {
		s.t.Errorf("entering a network namespace: %v", err)
	}
}

// Run is [Run] in the namespace.
func (s *Space) Run(script string) (out string) {
	s.t.Helper()
	s.Do(func() { out = Run(s.t, script) })
	return out
}

// Take moves a link of the calling thread's namespace into s.
func (s *Space) Take(link string) {
	s.t.Helper()
	Run(s.t, fmt.Sprintf("ip link set %s netns /proc/%d/fd/%d", link, os.Getpid(), s.ns.Fd()))
}

// A Tap is the end of a TAP that a VMM would hold.
type Tap struct{ *os.File }

// header is struct virtio_net_hdr, before each frame.
const header = 10

// OpenTap attaches to a TAP of the calling thread's namespace, or makes it.
func OpenTap(t testing.TB, name string) *Tap {
	t.Helper()
	tap, err := openTap(name)
	if err != nil {
		t.Fatalf("opening the TAP %s: %v", name, err)
	}
	t.Cleanup(func() { tap.Close() })
	return tap
}

func openTap(name string) (*Tap, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &Tap{os.NewFile(uintptr(fd), name)}, nil
}

// Send writes one frame.
func (t *Tap) Send(frame []byte) error {
	_, err := t.Write(append(make([]byte, header), frame...))
	return err
}

// Receive reads one frame.
func (t *Tap) Receive(buf []byte) ([]byte, error) {
	n, err := t.Read(buf)
	if err != nil || n < header {
		return nil, err
	}
	return buf[header:n], nil
}

// Guest makes a namespace play the machine behind a TAP of the calling
// thread's namespace: its link eth0 has the Ethernet address mac, and every
// frame goes through, either way, unchanged.
func Guest(t testing.TB, tap, mac string) *Space {
	t.Helper()
	s := NewSpace(t)
	outer := OpenTap(t, tap)
	var inner *Tap
	s.Do(func() { inner = OpenTap(t, "eth0") })
	s.Run("ip link set eth0 address " + mac + " addrgenmode none up")
	pump := func(to, from *Tap) {
		buf := make([]byte, 1<<17)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			// A link that is down refuses frames, as a cable would lose them.
			_, _ = to.Write(buf[:n])
		}
	}
	go pump(outer, inner)
	go pump(inner, outer)
	return s
}
