package cli_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"banger/internal/progress"
	"banger/internal/session"
)

// vm makes a VM and returns its name.
func (w world) vm(t *testing.T, name string) string {
	t.Helper()
	w.start(t, "vm", "create", "--image", "small", "--name", name).ends(0)
	return name
}

// A terminal is a banger on one.
type terminal struct {
	t      *testing.T
	cmd    *exec.Cmd
	master *os.File
	out    *bufio.Reader
	before *term.State
}

// onTerminal starts a banger on a terminal of 24 by 80.
func (w world) onTerminal(t *testing.T, args ...string) *terminal {
	t.Helper()
	master, slave := openPTY(t)
	c := &terminal{t: t, cmd: w.banger(t.Context(), args...), master: master, out: bufio.NewReader(master)}
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = slave, slave, slave
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	c.resize(24, 80)
	var err error
	c.before, err = term.GetState(int(slave.Fd()))
	if err := errors.Join(err, c.cmd.Start()); err != nil {
		t.Fatal(err)
	}
	return c
}

func openPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	n, err1 := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	err2 := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	slave, err3 := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

func (c *terminal) resize(rows, cols uint16) {
	c.t.Helper()
	if err := unix.IoctlSetWinsize(int(c.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		c.t.Fatal(err)
	}
}

// await reads what is shown, up to this text.
func (c *terminal) await(text string) string {
	c.t.Helper()
	var seen bytes.Buffer
	for !strings.HasSuffix(seen.String(), text) {
		b, err := c.out.ReadByte()
		if err != nil {
			c.t.Fatalf("waiting for %q: %v after %q", text, err, seen.String())
		}
		seen.WriteByte(b)
	}
	return seen.String()
}

func (c *terminal) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c.master, text); err != nil {
		c.t.Fatal(err)
	}
}

// ends fails the test unless banger ends with this status and leaves the
// terminal as it was.
func (c *terminal) ends(status int) {
	c.t.Helper()
	_ = c.cmd.Wait() // its state tells all
	if got := c.cmd.ProcessState.ExitCode(); got != status {
		c.t.Errorf("exit status %d, want %d", got, status)
	}
	slave := c.cmd.Stdin.(*os.File)
	after, err := term.GetState(int(slave.Fd()))
	if err != nil {
		c.t.Fatal(err)
	}
	if *after != *c.before {
		c.t.Errorf("the terminal's state is %+v, was %+v", after, c.before)
	}
}

// TestTerminal: a command on a terminal has one of its own, whose size follows.
func TestTerminal(t *testing.T) {
	t.Parallel()
	w := user(t)
	name := w.vm(t, "web")
	c := w.onTerminal(t, "vm", "exec", name, "--", "sh", "-c", `trap 'stty size; exit 3' WINCH; stty size; echo $TERM; echo ready; while :; do read x; done`)
	if got := c.await("ready"); !strings.Contains(got, "24 80\r\nxterm\r\n") {
		t.Errorf("shown %q, want the size 24 80 and TERM", got)
	}
	c.resize(50, 132)
	c.await("50 132\r\n")
	c.ends(3)

	// Every byte is the guest's, Ctrl-C and Ctrl-D too.
	c = w.onTerminal(t, "vm", "exec", name, "--", "sh", "-c", "echo ready; exec cat")
	c.await("ready\r\n")
	c.send("\x03")
	c.ends(130)
	c = w.onTerminal(t, "vm", "exec", name, "--", "sh", "-c", "echo ready; cat; echo end of input; exit 4")
	c.await("ready\r\n")
	c.send("\x04")
	c.await("end of input")
	c.ends(4)

	// A lost banger leaves no command behind.
	c = w.onTerminal(t, "vm", "exec", "--tty=false", name, "--", "sh", "-c", "test -t 0 || echo no terminal")
	c.await("no terminal\r\n")
	c.ends(0)
}

// TestTerminalBoot: a boot of one VM shows on a line how far it is, which is
// gone when it is done.
func TestTerminalBoot(t *testing.T) {
	t.Parallel()
	w := user(t)
	w.start(t, "vm", "create", "--no-start", "--image", "small", "--name", "idle").ends(0)
	for _, command := range []string{"start", "restart"} {
		done := "idle " + command + "ed"
		c := w.onTerminal(t, "vm", command, "idle")
		if shown := c.await(done); !strings.HasPrefix(shown, "idle: ") || !strings.HasSuffix(shown, "\x1b[J"+done) {
			t.Errorf("vm %s shows %q, want a line of progress, and the outcome in its place", command, shown)
		}
		c.ends(0)
	}
}

// TestTerminalQuestion: prune asks, and no is the default.
func TestTerminalQuestion(t *testing.T) {
	t.Parallel()
	w := user(t)
	w.start(t, "vm", "create", "--no-start", "--image", "small", "--name", "idle").ends(0)
	for _, q := range []struct {
		answer string
		status int
	}{{"\n", 130}, {"n\n", 130}, {"\x04", 130}, {"\x03", 130}, {"y\n", 0}} {
		c := w.onTerminal(t, "vm", "prune")
		c.await("[y/N] ")
		c.send(q.answer)
		c.ends(q.status)
	}
	if out := w.start(t, "vm", "list", "-q").ends(0); out != "" {
		t.Errorf("vm list -q = %q, want nothing", out)
	}
}

// TestForward: connections go through, and the command ends with Ctrl-C or the
// VM.
func TestForward(t *testing.T) {
	t.Parallel()
	w := user(t)
	name := w.vm(t, "web")
	l, err := net.Listen("tcp", "127.0.0.1:0") // the fake guest's network is the host's
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b, _ := io.ReadAll(c)
				_, _ = c.Write(bytes.ToUpper(b))
			}()
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())

	p := w.start(t, "--json", "vm", "forward", name, "0:"+port, "127.0.0.1:0:"+port)
	var open []session.Forward
	if err := json.NewDecoder(p.stdout).Decode(&open); err != nil || len(open) != 2 {
		t.Fatalf("forward --json printed %v, %v; want two", open, err)
	}
	for _, f := range open {
		c, err := net.Dial("tcp", f.Listen)
		if err != nil {
			t.Fatal(err)
		}
		_, werr := io.WriteString(c, "hello")
		err = errors.Join(werr, c.(*net.TCPConn).CloseWrite())
		got, rerr := io.ReadAll(c)
		if err := errors.Join(err, rerr, c.Close()); err != nil || string(got) != "HELLO" {
			t.Errorf("through %+v came %q, %v; want HELLO", f, got, err)
		}
	}
	p.signal(syscall.SIGINT)
	p.ends(0)

	p = w.start(t, "vm", "forward", name, l.Addr().String()+":80")
	p.ends(125)
	if !strings.Contains(p.stderr.String(), "is in use already") {
		t.Errorf("stderr = %q, want that the port is in use", p.stderr.String())
	}
	p = w.start(t, "vm", "forward", name, "0:"+port)
	p.await("-> web port " + port)
	w.start(t, "vm", "stop", name).ends(0)
	p.ends(125)
	if !strings.Contains(p.stderr.String(), "web has ended") {
		t.Errorf("stderr = %q, want that the VM has ended", p.stderr.String())
	}
}

// TestFollow: logs -f goes on until the VM ends.
func TestFollow(t *testing.T) {
	t.Parallel()
	w := user(t)
	p := w.start(t, "vm", "logs", "--follow", w.vm(t, "web"))
	p.await("here I am")
	w.start(t, "vm", "stop", "web").ends(0)
	p.await("ending")
	p.ends(0)
}

// TestOneDaemon: however many commands start it, there is one.
func TestOneDaemon(t *testing.T) {
	t.Parallel()
	w := user(t)
	before := strings.Count(w.log(), "daemon is ready")
	var all []*process
	for range 10 {
		all = append(all, w.start(t, "vm", "list"))
	}
	for _, p := range all {
		p.ends(0)
	}
	if got := strings.Count(w.log(), "daemon is ready") - before; got != 1 {
		t.Errorf("%d daemons were started, want 1", got)
	}
}

// TestTenAtOnce: ten VMs that come and go leave nothing.
func TestTenAtOnce(t *testing.T) {
	t.Parallel()
	w := user(t)
	var wg sync.WaitGroup
	for range 10 {
		p := w.start(t, "vm", "run", "--rm", "--image", "small", "--", "true")
		wg.Go(func() { p.ends(0) })
	}
	wg.Wait()
	w.nothingLeft(t)
}

// TestTimings: the phases are named, and add up to what was waited for, but for
// the time that any program takes to start on a host as busy as this.
func TestTimings(t *testing.T) {
	t.Parallel()
	w := user(t)
	took := func(args ...string) (float64, string) {
		began := time.Now()
		p := w.start(t, args...)
		p.ends(0)
		return time.Since(began).Seconds(), p.stderr.String()
	}
	var got progress.Timings
	var wall, start float64
	for range 5 { // one undisturbed try is enough
		start, _ = took("--version")
		var stderr string
		wall, stderr = took("vm", "run", "--rm", "--image", "small", "--timings=json", "--", "sleep", "1")
		lines := strings.Split(strings.TrimSpace(stderr), "\n")
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &got); err != nil {
			t.Fatalf("%v in %q", err, stderr)
		}
		if got.Total >= 0.95*(wall-start) {
			break
		}
	}
	sum, names := 0.0, map[string]bool{}
	for _, p := range got.Phases {
		sum += p.Seconds
		names[p.Name] = true
	}
	for _, want := range []string{"check", "daemon", "image", "request", "disk", "launch", "guest", "command", "delete"} {
		if !names[want] {
			t.Errorf("no phase %q in %+v", want, got.Phases)
		}
	}
	if sum < 0.95*(wall-start) || got.Total < sum-0.001 || got.Total > wall {
		t.Errorf("the phases add up to %.3f s, total %.3f s, of %.3f s less %.3f s; want 95 %%", sum, got.Total, wall, start)
	}
}
