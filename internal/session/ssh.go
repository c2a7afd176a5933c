package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/internal/agentapi"
	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/guest"
	"banger/internal/host"
	"banger/internal/sshconf"
)

// Login is what OpenSSH needs to know.
type Login struct {
	Program    string // path of OpenSSH's client: see OpenSSH
	Self       string // path of the banger program, for ProxyCommand
	Key        string
	KnownHosts string
	// Dir is where an interactive shell begins; the home if empty.
	Dir string
	// Command is for the guest's login shell; none is a shell.
	Command []string
}

// OpenSSH finds the program that interactive sessions run.
func OpenSSH() (string, error) {
	path, err := exec.LookPath("ssh")
	if err != nil {
		return "", &api.Error{Code: api.Missing, Msg: "OpenSSH's client is not installed", Hint: "sudo apt install openssh-client (Fedora: sudo dnf install openssh-clients; Arch: sudo pacman -S openssh)"}
	}
	return path, nil
}

// SSH runs OpenSSH as a child on the user's own terminal and returns its
// status.
func (s Session) SSH(ctx context.Context, l Login) (agentapi.Exit, error) {
	argv := sshconf.Args(sshconf.Target{
		Name: s.Machine.Name, KnownHosts: l.KnownHosts, Key: l.Key,
		ProxyCommand: ShellQuote(l.Self) + " internal ssh-proxy --socket " + ShellQuote(s.Machine.Companion),
	})
	command := l.Command
	if len(command) == 0 && l.Dir != "" && l.Dir != "/root" {
		// A directory that has been deleted is said by the guest's shell, and no
		// reason to stay out.
		command = []string{"cd " + ShellQuote(l.Dir) + "; exec ${SHELL:-/bin/sh} -l"}
	}
	if len(l.Command) == 0 && IsTerminal(s.Stdin) {
		argv = append(argv, "-t")
	}
	argv = append(append(argv, "root@"+sshconf.Host(s.Machine.Name)), command...)
	before, err := s.companion().Status(ctx)
	if err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
		return agentapi.Exit{}, err
	}
	// The terminal's Ctrl-C is ssh's: it must outlive the context that it ends here.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), l.Program, argv...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.Stdin, s.Stdout, s.Stderr
	if in, ok := s.Stdin.(*os.File); ok {
		cmd.Stdin = in
	}
	signals, stop := received()
	defer stop()
	if err := cmd.Start(); err != nil {
		return agentapi.Exit{}, fmt.Errorf("running ssh: %w", err)
	}
	ended, last := make(chan struct{}), make(chan syscall.Signal, 1)
	go func() { last <- pass(signals, cmd.Process, ended) }()
	err = cmd.Wait()
	close(ended)
	sig := <-last
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		if status, ok := e.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return agentapi.Exit{Signal: int(status.Signal())}, nil
		}
		if e.ExitCode() == ConnectionLost && sig != 0 {
			return agentapi.Exit{Signal: int(sig)}, nil
		}
		if e.ExitCode() == ConnectionLost {
			if err := s.since(context.WithoutCancel(ctx), before); err != nil {
				return agentapi.Exit{}, err
			}
		}
		return agentapi.Exit{Code: e.ExitCode()}, nil
	}
	if err != nil {
		return agentapi.Exit{}, fmt.Errorf("running ssh: %w", err)
	}
	return agentapi.Exit{}, nil
}

// received are the signals of the process that are to end it.
func received() (signals <-chan os.Signal, stop func()) {
	in := make(chan os.Signal, 4)
	signal.Notify(in, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	return in, func() { signal.Stop(in) }
}

// pass hands signals on to a child until it has ended, and returns the last one,
// or 0. A terminal tells its foreground itself, which does ssh no harm; but a
// hangup is told to the session's leader alone, and a kill to who is named.
func pass(signals <-chan os.Signal, child *os.Process, ended <-chan struct{}) (last syscall.Signal) {
	for {
		select {
		case s := <-signals:
			if n, ok := s.(syscall.Signal); ok {
				last = n
			}
			_ = child.Signal(s) // it may have ended
		case <-ended:
			return last
		}
	}
}

// ConnectionLost is OpenSSH's status for a connection that broke; a command may
// have it too.
const ConnectionLost = 255

// lossLimit bounds the questions about a lost guest: a companion may take two
// seconds to say why its VMM ended.
const lossLimit = 5 * time.Second

// since says whether the guest has been lost since before, and why. Only an
// answer of its agent proves that it is there.
func (s Session) since(ctx context.Context, before companionapi.Status) error {
	ctx, cancel := context.WithTimeout(ctx, lossLimit)
	defer cancel()
	now, err := s.companion().Status(ctx)
	if err != nil {
		return err
	}
	if now.Record.Companion != before.Record.Companion {
		return &api.Error{Code: api.GuestLost, Msg: "the VM's companion was lost, and with it the connection", Hint: "the VM runs on: banger vm ssh " + s.Machine.Name}
	}
	st, err := s.companion().Stream(ctx, api.StageAgent)
	if err == nil {
		defer st.Close()
		_, err = guest.Hello(ctx, st)
	}
	if err == nil {
		return nil
	}
	var exit *host.Exit
	_ = s.companion().Events(ctx, func(e companionapi.Event) { exit = e.Exit }) // err says it all if this does not
	if exit != nil {
		return &api.Error{Code: api.GuestLost, Msg: "the VM has ended: " + exit.Reason, Hint: "banger vm show " + s.Machine.Name}
	}
	return err
}

// ShellQuote makes s one word of a POSIX shell.
func ShellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Proxy connects stdin and stdout to the guest's ssh server: it is what
// OpenSSH's ProxyCommand runs.
func (s Session) Proxy(ctx context.Context) error {
	stream, err := s.stream(ctx)
	if err != nil {
		return err
	}
	raw, err := guest.SSH(ctx, stream)
	if err != nil {
		return err
	}
	defer raw.Close()
	return splice(raw, s.Stdin, s.Stdout)
}

// splice connects a stream with a reader and a writer until the stream's own
// direction ends.
func splice(s guest.Stream, in io.Reader, out io.Writer) error {
	var wg sync.WaitGroup
	go func() {
		// If the guest has gone, the other direction says so.
		_, _ = io.Copy(s, in)
		_ = s.CloseWrite()
	}()
	var err error
	wg.Go(func() { _, err = io.Copy(out, s) })
	wg.Wait()
	return err
}
