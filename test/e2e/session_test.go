package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/testneed"
)

// A terminal is a command with a terminal of its own, as a user has it.
type terminal struct {
	*job
	f    *os.File // what the user types into and reads from
	seen int      // how much of the output has been expected
}

// terminal starts a command of banger in a terminal of 100 by 30 characters.
func (w *world) terminal(t *testing.T, args ...string) *terminal {
	t.Helper()
	return w.terminalOf(t, filepath.Join(w.bin, "banger"), args...)
}

// terminalOf is terminal for any program.
func (w *world) terminalOf(t *testing.T, program string, args ...string) *terminal {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), limit)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(slices.Clone(w.env), "TERM=vt220", "NO_COLOR=1")
	f, tty, err := openTerminal()
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	defer tty.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	j := &job{t: t, name: strings.Join(args, " "), cmd: cmd, in: f, done: make(chan struct{}),
		out: &output{changed: make(chan struct{})}, err: &output{changed: make(chan struct{})}}
	m := &terminal{job: j, f: f}
	m.resize(100, 30)
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	go func() {
		defer cancel()
		// Ends with EIO when nobody has the terminal any more: whatever the
		// command leaves behind must not keep it.
		_, _ = io.Copy(j.out, f)
		j.failure = cmd.Wait()
		close(j.done)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it has ended, unless the test failed
		_ = f.Close()
		<-j.done
	})
	return m
}

// openTerminal returns both ends of a new terminal: the user's and the command's.
func openTerminal() (user, command *os.File, err error) {
	user, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	err = control(user, func(fd int) error {
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		other, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
		if errno != 0 {
			return errno
		}
		command = os.NewFile(other, "tty")
		return nil
	})
	if err != nil {
		_ = user.Close()
		return nil, nil, fmt.Errorf("opening a terminal: %w", err)
	}
	return user, command, nil
}

// control calls f with a descriptor that goes on to be the runtime's.
func control(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	return errors.Join(raw.Control(func(fd uintptr) { inner = f(int(fd)) }), inner)
}

// expect waits until text is on the screen after what was expected before, and
// returns what came before it.
func (m *terminal) expect(text string) string {
	m.t.Helper()
	limit := time.NewTimer(limit)
	defer limit.Stop()
	for {
		out, more := m.out.look()
		if before, _, ok := strings.Cut(out[m.seen:], text); ok {
			m.seen += len(before) + len(text)
			return before
		}
		select {
		case <-more:
		case <-m.done:
			if out, _ := m.out.look(); !strings.Contains(out[m.seen:], text) {
				m.t.Fatalf("banger %s ended without %q:\n%s", m.name, text, out)
			}
		case <-limit.C:
			m.t.Fatalf("banger %s does not show %q:\n%q", m.name, text, out[m.seen:])
		}
	}
}

// typed types.
func (m *terminal) typed(keys string) {
	m.t.Helper()
	if _, err := io.WriteString(m.f, keys); err != nil {
		m.t.Fatalf("typing: %v", err)
	}
}

func (m *terminal) resize(cols, rows uint16) {
	m.t.Helper()
	if err := control(m.f, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	}); err != nil {
		m.t.Fatal(err)
	}
}

// modes are the terminal's settings.
func (m *terminal) modes() (got unix.Termios) {
	m.t.Helper()
	if err := control(m.f, func(fd int) error {
		modes, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err == nil {
			got = *modes
		}
		return err
	}); err != nil {
		m.t.Fatal(err)
	}
	return got
}

// sizes says the size of the terminal, and again whenever it has changed.
const sizes = `trap 'echo winch' WINCH; o=; while :; do s=$(stty size); [ "$s" = "$o" ] || echo "size $s"; o=$s; sleep 0.1; done`

func TestTerminalOfExec(t *testing.T) {
	t.Parallel()
	w := shared
	vm := w.small(t)
	t.Run("size", func(t *testing.T) {
		m := w.terminal(t, "vm", "exec", vm, "--", "sh", "-c", sizes)
		m.expect("size 30 100\r\n")
		for _, size := range [][2]uint16{{132, 50}, {40, 10}, {200, 66}} {
			m.resize(size[0], size[1])
			m.expect("winch\r\n")
		}
		m.expect("size 66 200\r\n")
		m.typed("\x03")
		if r := m.wait(); r.code != 130 {
			t.Errorf("Ctrl-C gave %+v, want 130", r)
		}
	})
	t.Run("a shell", func(t *testing.T) {
		m := w.terminal(t, "vm", "exec", vm, "--", "sh")
		m.expect("# ")
		before := m.modes()
		m.typed("echo $TERM; tty; echo $((6*7))\r")
		if got := m.expect("42\r\n"); !strings.Contains(got, "\nvt220\r\n/dev/pts/") {
			t.Errorf("the shell says %q", got)
		}
		// The child speaks for itself: a Ctrl-C between its fork and its being
		// the foreground would reach the shell, which then waits for it.
		m.typed("sh -c 'echo sleeping; exec sleep 1000'\r")
		m.expect("\nsleeping\r\n")
		m.typed("\x03")
		m.expect("# ")
		m.typed("echo got $?\r")
		m.expect("got 130\r\n")
		if before.Lflag&(unix.ECHO|unix.ICANON|unix.ISIG) != 0 {
			t.Error("the host's terminal is not raw")
		}
		m.typed("exit 5\r")
		if r := m.wait(); r.code != 5 {
			t.Errorf("got %+v, want 5", r)
		}
	})
	t.Run("the end of the input", func(t *testing.T) {
		m := w.terminal(t, "vm", "exec", vm, "--", "cat")
		m.typed("a line\r")
		m.expect("a line\r\na line\r\n")
		m.typed("\x04")
		if r := m.wait(); r.code != 0 {
			t.Errorf("got %+v, want 0", r)
		}
	})
	t.Run("the terminal is as it was", func(t *testing.T) {
		// A shell on the host, to look at the terminal afterwards.
		self := filepath.Join(w.bin, "banger")
		m := w.terminalOf(t, "/bin/sh", "-c", `stty -g; "$0" vm exec "$1" -- sh -c 'kill -9 $$'; echo "code $?"; stty -g`, self, vm)
		m.expect("code 137\r\n")
		before, after, _ := strings.Cut(m.wait().stdout, "code 137\r\n")
		if strings.TrimSpace(before) != strings.TrimSpace(after) {
			t.Errorf("modes %q became %q", before, after)
		}
	})
	t.Run("the terminal goes away", func(t *testing.T) {
		m := w.terminal(t, "vm", "exec", vm, "--", "sh", "-c", "echo $$ >/run/hung; echo ready; exec sleep 1000")
		m.expect("ready")
		_ = m.f.Close()
		<-m.done
		until(t, "the command in the guest has ended", func() bool {
			return w.exec(t, vm, "sh", "-c", "kill -0 $(cat /run/hung) 2>/dev/null").code != 0
		})
	})
}

// ssh works in an image without an ssh server as in one that has one.
func TestSSH(t *testing.T) {
	t.Parallel()
	testneed.Tool(t, "ssh")
	w := shared
	vm := w.small(t)
	w.sshWorks(t, vm)
	t.Run("a shell that leaves", func(t *testing.T) {
		m := w.terminal(t, "vm", "ssh", vm)
		m.expect("# ")
		m.typed("exit 6\r")
		if r := m.wait(); r.code != 6 || !strings.Contains(r.stdout, vm+" is still running") {
			t.Errorf("got %+v, want 6 and a reminder", r)
		}
	})
}

// sshWorks tries what ssh is used for in a running VM.
func (w *world) sshWorks(t *testing.T, vm string) {
	t.Helper()
	for _, tt := range []struct {
		command string
		code    int
		stdout  string
	}{
		{"true", 0, ""},
		{"exit 7", 7, ""},
		{"exit 255", 255, ""},
		{"echo $((6*7)); pwd; id -un", 0, "42\n/root\nroot\n"},
		{"cat; echo end", 0, "a line\nend\n"},
	} {
		if r := w.with(t, []byte("a line\n"), "vm", "ssh", vm, "--", tt.command); r.code != tt.code || r.stdout != tt.stdout || r.stderr != "" {
			t.Errorf("vm ssh -- %s = %+v, want %d and %q", tt.command, r, tt.code, tt.stdout)
		}
	}
	m := w.terminal(t, "vm", "ssh", vm)
	m.expect("# ")
	// A shell of its own dies of Ctrl-C; an interactive one that is just between
	// two commands of a loop may go on with it.
	m.typed("clear; sh -c '" + strings.ReplaceAll(sizes, "'", `'\''`) + "'\r")
	m.expect("size 30 100\r\n")
	m.resize(132, 50)
	m.expect("size 50 132\r\n")
	m.typed("\x03")
	m.expect("# ")
	m.typed("exit 0\r")
	if r := m.wait(); r.code != 0 {
		t.Errorf("leaving the shell gave %+v, want 0", r)
	}
}

// `ssh NAME.vm` works from any terminal once ssh-config is installed.
func TestSSHConfig(t *testing.T) {
	t.Parallel()
	ssh := testneed.Tool(t, "ssh")
	w := shared
	vm := w.small(t)
	config := filepath.Join(w.getenv("HOME"), ".ssh", "config")
	const own = "Host elsewhere\n    User me\n"
	if err := errors.Join(os.MkdirAll(filepath.Dir(config), 0o700), os.WriteFile(config, []byte(own), 0o600)); err != nil {
		t.Fatal(err)
	}
	w.must(t, "ssh-config", "--install")
	run := func(program string, args ...string) (string, int) {
		cmd := exec.CommandContext(t.Context(), program, append([]string{"-F", config, "-o", "BatchMode=yes"}, args...)...)
		cmd.Env = w.env
		out, err := cmd.CombinedOutput()
		return string(out), exitCode(t, err)
	}
	if out, code := run(ssh, "-o", "StrictHostKeyChecking=yes", vm+".vm", "echo in; hostname; exit 3"); code != 3 || out != "in\n"+vm+"\n" {
		t.Errorf("ssh %s.vm = %d, %q; want 3 and its name", vm, code, out)
	}
	if out, code := run(ssh, "-o", "UserKnownHostsFile=/dev/null", vm+".vm", "true"); code != 255 || !strings.Contains(out, "verification failed") {
		t.Errorf("ssh without the known key = %d, %q; want a refusal", code, out)
	}
	if out, code := run(ssh, "nobody-here.vm", "true"); code != 255 || !strings.Contains(out, `banger: `) {
		t.Errorf("ssh to no VM = %d, %q; want banger's reason", code, out)
	}
	if scp, err := exec.LookPath("scp"); err == nil { // the agent has an sftp server of its own
		to := filepath.Join(t.TempDir(), "passwd")
		if out, code := run(scp, "-q", vm+".vm:/etc/passwd", to); code != 0 {
			t.Errorf("scp = %d, %q", code, out)
		} else if b, err := os.ReadFile(to); err != nil || !strings.HasPrefix(string(b), "root:") {
			t.Errorf("scp brought %q, %v", b, err)
		}
	}
	w.must(t, "ssh-config", "--uninstall")
	if b, err := os.ReadFile(config); err != nil || string(b) != own {
		t.Errorf("after --uninstall the configuration is %q, %v; want %q", b, err, own)
	}
}

// What a user sees of `vm run` in a terminal: a shell, and what stays.
func TestRunInTerminal(t *testing.T) {
	t.Parallel()
	testneed.Tool(t, "ssh")
	w := shared
	w.start(t)
	size := []string{"--image", "small", "--memory", "256M"}
	gone := func(t *testing.T, name string) {
		t.Helper()
		until(t, name+" is gone", func() bool { return w.banger(t, "vm", "show", name).code != 0 })
	}
	t.Run("it stays", func(t *testing.T) {
		m := w.terminal(t, append([]string{"vm", "run", "--name", "stays"}, size...)...)
		m.expect("spec: 1 vCPU | 256MiB memory | ")
		m.expect("ready in ")
		m.expect("# ")
		m.typed("echo here >/root/mark; exit 3\r")
		if r := m.wait(); r.code != 3 || !strings.Contains(r.stdout, "stays is still running") {
			t.Errorf("got %+v, want 3 and a reminder", r)
		}
		if got := w.must(t, "vm", "exec", "stays", "--", "cat", "mark"); got != "here\n" {
			t.Errorf("the file is %q", got)
		}
		if r := w.banger(t, append([]string{"vm", "run", "--name", "stays"}, size...)...); r.code != 125 || !strings.Contains(r.stderr, "banger vm ssh stays") {
			t.Errorf("a second one of that name: %+v, want a hint", r)
		}
		w.must(t, "vm", "delete", "stays")
	})
	t.Run("it goes", func(t *testing.T) {
		m := w.terminal(t, append([]string{"vm", "run", "--rm", "--name", "goes"}, size...)...)
		m.expect("# ")
		m.typed("exit\r")
		if r := m.wait(); r.code != 0 || strings.Contains(r.stdout, "still running") {
			t.Errorf("got %+v, want 0 and no reminder", r)
		}
		if r := w.banger(t, "vm", "show", "goes"); r.code != 125 {
			t.Errorf("it is still there: %+v", r)
		}
	})
	t.Run("the terminal goes away", func(t *testing.T) {
		m := w.terminal(t, append([]string{"vm", "run", "--rm", "--name", "left"}, size...)...)
		m.expect("# ")
		_ = m.f.Close()
		<-m.done
		gone(t, "left")
	})
	t.Run("Ctrl-C at the boot", func(t *testing.T) {
		m := w.terminal(t, append([]string{"vm", "run", "--name", "stopped-early"}, size...)...)
		m.expect("spec: ")
		until(t, "there is a VM", func() bool { return w.banger(t, "vm", "show", "stopped-early").code == 0 })
		m.typed("\x03")
		if r := m.wait(); r.code != 130 {
			t.Errorf("got %+v, want 130", r)
		}
		gone(t, "stopped-early")
	})
}
