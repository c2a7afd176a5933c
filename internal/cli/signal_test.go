package cli_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/host"
	"banger/internal/procid"
	"banger/internal/testneed"
)

// A process is a banger that runs.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	stderr bytes.Buffer
}

// start starts a banger with pipes. It is killed if the test ends before.
func (w world) start(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: w.banger(t.Context(), args...)}
	in, err1 := p.cmd.StdinPipe()
	out, err2 := p.cmd.StdoutPipe()
	p.cmd.Stderr = &p.stderr
	if err := errors.Join(err1, err2, p.cmd.Start()); err != nil {
		t.Fatal(err)
	}
	p.stdin, p.stdout = in, bufio.NewReader(out)
	return p
}

// await reads stdout up to a line with this text.
func (p *process) await(text string) string {
	p.t.Helper()
	for {
		line, err := p.stdout.ReadString('\n')
		if strings.Contains(line, text) {
			return line
		}
		if err != nil {
			p.t.Fatalf("waiting for %q: %v\n%s", text, err, p.stderr.String())
		}
	}
}

func (p *process) signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

// ends fails the test unless the process ends with this status, -1 if a signal
// ends it. It returns the rest of stdout.
func (p *process) ends(status int) string {
	p.t.Helper()
	rest, rerr := io.ReadAll(p.stdout)
	err := p.cmd.Wait()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		err = nil
		if e.ExitCode() != status {
			p.t.Errorf("exit status %d, want %d\n%s", e.ExitCode(), status, p.stderr.String())
		}
	} else if status != 0 {
		p.t.Errorf("exit status 0, want %d\n%s", status, p.stderr.String())
	}
	if err := errors.Join(rerr, err); err != nil {
		p.t.Fatal(err)
	}
	return string(rest)
}

// nothingLeft fails the test if there is anything of a VM now.
func (w world) nothingLeft(t *testing.T) {
	t.Helper()
	c, err := client.Connect(t.Context(), w.options())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := nothing(t.Context(), c); err != nil {
		t.Error(err)
	}
}

// fifo makes one, and tells the daemon and all commands of this world its name.
func (w *world) fifo(t *testing.T, env string) (path string, r *bufio.Reader) {
	t.Helper()
	path = filepath.Join(w.home, strings.ToLower(env))
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	// Open for writing too: then neither end waits for the other.
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	w.env = append(w.env, env+"="+path)
	return path, bufio.NewReader(f)
}

// launched waits for the next VM to be launched.
func launched(t *testing.T, fifo *bufio.Reader) host.Record {
	t.Helper()
	b, err := fifo.ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var r host.Record
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatalf("%v in %q", err, b)
	}
	return r
}

// gone waits until nobody's doing but its own has ended a VM, and then until
// the daemon has noted that.
func (w world) gone(t *testing.T, r host.Record) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, id := range []procid.ID{r.VMM, r.Companion} {
		p, err := procid.Open(id)
		if errors.Is(err, procid.ErrDead) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Wait(ctx); err != nil {
			t.Fatalf("process %d is still there: %v", id.PID, err)
		}
		p.Close()
	}
	c, err := client.Connect(ctx, w.options())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// It waits its turn behind whatever the daemon does with the VM.
	if _, err := c.DeleteMachine(ctx, r.ID); err != nil {
		t.Logf("deleting what is gone: %v", err)
	}
	if err := nothing(ctx, c); err != nil {
		t.Error(err)
	}
}

// TestSignalInCommand: the first signal is the command's, whatever it makes of it.
func TestSignalInCommand(t *testing.T) {
	t.Parallel()
	w := user(t)
	for _, c := range []struct {
		name, script string
		signal       syscall.Signal
		status       int
	}{
		{"dies of it", "echo here; exec cat", syscall.SIGINT, 130},
		{"of another", "echo here; exec cat", syscall.SIGTERM, 143},
		{"of a lost terminal", "echo here; exec cat", syscall.SIGHUP, 129},
		{"handles it", "trap 'exit 5' INT; echo here; read x", syscall.SIGINT, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := w.start(t, "vm", "run", "--rm", "--image", "small", "--", "sh", "-c", c.script)
			p.await("here")
			p.signal(c.signal)
			p.ends(c.status)
			w.nothingLeft(t)
		})
	}
}

// TestSignalTwice: a second one within a second leaves the command behind, and
// the VM goes with --rm.
func TestSignalTwice(t *testing.T) {
	t.Parallel()
	w := user(t)
	// Here the command is a process of the host: it ends with the fake VMM.
	p := w.start(t, "vm", "run", "--rm", "--image", "small", "--", "sh", "-c", "trap 'echo got it' INT; echo here; while kill -0 $PPID; do read x; done")
	p.await("here")
	p.signal(syscall.SIGINT)
	p.await("got it")
	p.signal(syscall.SIGINT)
	p.ends(130)
	if !strings.Contains(p.stderr.String(), "interrupted twice") {
		t.Errorf("stderr = %q, want a word about the second interrupt", p.stderr.String())
	}
	w.nothingLeft(t)
}

// TestSignalInBoot: nothing is left, and the status is that of an interrupt.
func TestSignalInBoot(t *testing.T) {
	t.Parallel()
	w := user(t)
	_, fifo := w.fifo(t, launchedEnv)
	for _, verb := range [][]string{{"run", "--rm"}, {"run", "--detach"}, {"create"}} {
		args := append(append([]string{"vm"}, verb...), "--image", "small", "--name", "silent-1")
		p := w.start(t, args...)
		r := launched(t, fifo)
		p.signal(syscall.SIGINT)
		p.ends(130)
		w.nothingLeft(t)
		w.gone(t, r)
		if !strings.HasSuffix(p.stderr.String(), "banger: interrupted\n") {
			t.Errorf("%v: stderr = %q", verb, p.stderr.String())
		}
	}
}

// hangingGit is a PATH whose git tells fifo that it runs and hangs.
func hangingGit(t *testing.T, fifo string) string {
	t.Helper()
	dir := t.TempDir()
	script := "#!/bin/sh\necho here >'" + fifo + "'\nexec sleep 60\n"
	if err := os.WriteFile(filepath.Join(dir, "git"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir + ":" + os.Getenv("PATH")
}

// TestSignalBeforeRow: there is nothing yet to be left.
func TestSignalBeforeRow(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			w := user(t)
			testneed.Tool(t, "git")
			init := exec.CommandContext(t.Context(), "git", "init", "-q", w.home)
			init.Env = w.env
			if err := init.Run(); err != nil {
				t.Fatal(err)
			}
			path, fifo := w.fifo(t, "FIFO")
			w.env = append(w.env, "PATH="+hangingGit(t, path))
			p := w.start(t, "vm", "run", "--rm", "--image", "small", ".", "--", "true")
			if _, err := fifo.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			p.signal(sig)
			if sig == syscall.SIGKILL {
				p.ends(-1)
			} else {
				p.ends(130)
			}
			w.nothingLeft(t)
		})
	}
}

// TestKilled: kill -9 of the command line in each phase ends a VM that was to
// end with it.
func TestKilled(t *testing.T) {
	t.Parallel()
	w := user(t)
	_, fifo := w.fifo(t, launchedEnv)
	for _, c := range []struct{ name, vm, script string }{
		{"while it boots", "silent-1", ""},
		{"while a stage is waited for", "slow-1", ""},
		{"during the command", "web", "echo here; exec cat"},
		{"during a command that ignores signals", "web", "trap '' HUP TERM INT; echo here; exec cat"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := w.start(t, "vm", "run", "--rm", "--image", "small", "--name", c.vm, "--", "sh", "-c", c.script)
			r := launched(t, fifo)
			if c.script != "" {
				p.await("here")
			}
			p.signal(syscall.SIGKILL)
			p.ends(-1)
			w.gone(t, r)
		})
	}
}

// TestKilledWithoutRm: a VM that was to stay does.
func TestKilledWithoutRm(t *testing.T) {
	t.Parallel()
	w := user(t)
	p := w.start(t, "vm", "run", "--image", "small", "--name", "web", "--", "sh", "-c", "echo here; exec cat")
	p.await("here")
	p.signal(syscall.SIGKILL)
	p.ends(-1)
	p = w.start(t, "vm", "exec", "web", "--", "echo", "still here")
	p.await("still here")
	p.ends(0)
}

// TestDaemonKilled: a command goes on without the daemon, and the next one
// starts another, which finds the VM again.
func TestDaemonKilled(t *testing.T) {
	t.Parallel()
	w := user(t)
	w.vm(t, "web")
	p := w.start(t, "vm", "exec", "web", "--", "sh", "-c", "echo here; cat; exit 6")
	p.await("here")
	var status struct{ Daemon api.Hello }
	if err := json.Unmarshal([]byte(w.start(t, "--json", "daemon", "status").ends(0)), &status); err != nil {
		t.Fatal(err)
	}
	id, err := procid.Of(status.Daemon.PID)
	if err != nil {
		t.Fatal(err)
	}
	daemon, err := procid.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	defer daemon.Close()
	if err := errors.Join(daemon.Signal(syscall.SIGKILL), daemon.Wait(t.Context())); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(p.stdin, "still carried\n"); err != nil {
		t.Fatal(err)
	}
	p.await("still carried")
	if out := w.start(t, "vm", "list", "--running", "--quiet").ends(0); out != "web\n" {
		t.Errorf("vm list -r -q = %q after the daemon died, want web", out)
	}
	p.stdin.Close()
	p.ends(6)
}

// TestGoneUnderCommand: a lost guest is an error, never a made-up status.
func TestGoneUnderCommand(t *testing.T) {
	t.Parallel()
	w := user(t)
	for _, verb := range []string{"stop", "kill", "delete"} {
		w.vm(t, "web-"+verb)
		p := w.start(t, "vm", "exec", "web-"+verb, "--", "sh", "-c", "echo here; cat; exit 0")
		p.await("here")
		w.start(t, "vm", verb, "web-"+verb).ends(0)
		p.ends(125)
		t.Logf("%s: %s", verb, p.stderr.String())
		if !strings.Contains(p.stderr.String(), "lost") && !strings.Contains(p.stderr.String(), "ended") {
			t.Errorf("%s: stderr = %q, want that the guest was lost", verb, p.stderr.String())
		}
	}
}
