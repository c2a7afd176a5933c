package guestlife

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/agentapi"
	"banger/internal/handover"
)

// Self is the running program, also after its file was deleted and the root
// changed.
const Self = "/proc/self/exe"

// holdSignals takes the signals with which inits end the world, and does
// nothing. They are handled rather than ignored, since a child would inherit
// that.
func holdSignals() {
	c := make(chan os.Signal, 8)
	signal.Notify(c, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	go func() {
		for range c {
		}
	}()
}

// keepStandby keeps a process alive that takes the agent's place if that dies:
// PID 1 is the image's init, to which the agent is a stranger. It costs a few
// MiB of memory, and nothing of the boot, which is over when it starts.
func (l *life) keepStandby(ctx context.Context) {
	for ctx.Err() == nil {
		if err := l.standby(); err != nil {
			l.note(agentapi.EventProblem, err.Error())
			return
		}
	}
}

func (l *life) standby() error {
	r, w, err := os.Pipe() // w is ours alone: its end is the end of the agent
	if err != nil {
		return fmt.Errorf("starting the standby: %w", err)
	}
	defer func() { _ = w.Close() }()
	p, err := os.StartProcess(Self, []string{handover.StandbyRole}, &os.ProcAttr{
		Env:   append(os.Environ(), "GOMAXPROCS=1"),
		Files: []*os.File{nil, nil, nil, r, l.disk},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	_ = r.Close()
	if err != nil {
		return fmt.Errorf("starting the standby: %w", err)
	}
	if _, err := p.Wait(); err != nil {
		return fmt.Errorf("waiting for the standby: %w", err)
	}
	return nil
}

// Standby is the program's role as [handover.StandbyRole]. It returns only if
// it cannot become the agent.
func Standby() error {
	protect()
	pipe := os.NewFile(handover.StandbyFD, "agent")
	for {
		if n, err := pipe.Read(make([]byte, 1)); err != nil || n == 0 {
			break
		}
	}
	if err := syscall.Exec(Self, []string{handover.AgentRole, handover.Restart}, os.Environ()); err != nil {
		return fmt.Errorf("taking the agent's place: %w", err)
	}
	return nil
}
