package guestlife

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/agentapi"
	"banger/internal/handover"
	"banger/internal/vmm"
)

// The real-time signals with which systemd is told to power off or reboot,
// systemd(1): SIGRTMIN+4 and SIGRTMIN+5, SIGRTMIN being 34 for every libc.
const (
	systemdPowerOff = unix.Signal(34 + 4)
	systemdReboot   = unix.Signal(34 + 5)
)

// lastWords bounds how long the end waits for the host to hear of it.
const lastWords = 2 * time.Second

// termGrace is how long processes have to end when they are asked to, in a
// guest without an init of its own.
const termGrace = 5 * time.Second

// end begins a shutdown. What follows is seen as events.
func (l *life) end(ctx context.Context, conn *agentapi.Conn, s *agentapi.Shutdown) error {
	if s == nil {
		s = &agentapi.Shutdown{}
	}
	var err error
	l.shutdown.Do(func() { err = l.begin(context.WithoutCancel(ctx), s.Reboot) })
	if err != nil {
		return err
	}
	return conn.Write(agentapi.KindOK, []byte("{}"))
}

func (l *life) begin(ctx context.Context, reboot bool) error {
	verb, sig := "poweroff", systemdPowerOff
	if reboot {
		verb, sig = "reboot", systemdReboot
	}
	select {
	case <-l.gone:
	default:
		go l.endAlone(ctx, verb) // there is no init yet
		return nil
	}
	switch l.init {
	case handover.InitSystemd:
		if err := unix.Kill(1, sig); err != nil {
			return fmt.Errorf("telling systemd to %s: %w", verb, err)
		}
		go l.tellAgain(ctx, sig)
	case handover.InitOther:
		l.note(agentapi.EventEnding, verb)
		word := verb
		if onlyResets() { // this init knows no better than to power off
			word = "reboot"
		}
		if err := exec.CommandContext(ctx, "/bin/sh", "-c", "exec "+word).Run(); err != nil {
			go l.endAlone(ctx, verb)
		}
	default:
		go l.endAlone(ctx, verb)
	}
	return nil
}

// errTold ends a follow.
var errTold = errors.New("told")

// tellAgain repeats a signal to systemd, which loses signals until it has begun
// to listen: the first stage that it reports comes after that.
func (l *life) tellAgain(ctx context.Context, sig unix.Signal) {
	_ = l.news.follow(ctx, func(e agentapi.Event) error {
		switch e.Type {
		case agentapi.EventSockets, agentapi.EventBoot:
			_ = unix.Kill(1, sig) // PID 1 is always there
			return errTold
		case agentapi.EventEnding:
			return errTold
		}
		return nil
	})
}

// endAlone ends a guest without the help of an init.
func (l *life) endAlone(ctx context.Context, verb string) {
	l.note(agentapi.EventEnding, verb)
	killAll(ctx)
	l.freeze(ctx)
	PowerOff(verb)
}

// killAll ends every process but PID 1 and the agent's own: first it asks.
func killAll(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, termGrace)
	defer cancel()
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		others, err := others()
		if err != nil || len(others) == 0 {
			return
		}
		for _, p := range others {
			_ = unix.PidfdSendSignal(p.fd, sig, nil, 0)
			if sig == unix.SIGTERM { // a stopped process must run to take it
				_ = unix.PidfdSendSignal(p.fd, unix.SIGCONT, nil, 0)
			}
		}
		wait := ctx
		if sig == unix.SIGKILL {
			var cancel context.CancelFunc
			wait, cancel = context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
		}
		for _, p := range others {
			p.wait(wait)
		}
	}
}

// A process is another one, held by a descriptor.
type process struct{ fd int }

// wait waits until the process has ended or ctx is done, and closes it.
func (p process) wait(ctx context.Context) {
	defer func() { _ = unix.Close(p.fd) }()
	until, _ := ctx.Deadline()
	for {
		left := max(0, 1+int(time.Until(until).Milliseconds()))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, left)
		if !errors.Is(err, unix.EINTR) || n > 0 {
			return
		}
	}
}

// others are all processes but PID 1, kernel threads and those whose argv[0]
// begins with @, which are ours.
func others() ([]process, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []process
	for _, d := range dirs {
		var pid int
		if _, err := fmt.Sscanf(d.Name(), "%d", &pid); err != nil || pid == 1 || pid == os.Getpid() {
			continue
		}
		b, err := os.ReadFile("/proc/" + d.Name() + "/cmdline")
		if err != nil || strings.HasPrefix(string(b), "@") {
			continue
		}
		if exe, err := os.Readlink("/proc/" + d.Name() + "/exe"); exe == "" && err != nil {
			continue // a kernel thread, or ended already
		}
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			out = append(out, process{fd})
		}
	}
	return out, nil
}

// freeze makes the VM disk as clean as an unmount would, which needs everybody
// to let go of it. It is the last thing done to it.
func (l *life) freeze(ctx context.Context) {
	l.freezing.Do(func() {
		unix.Sync()
		if err := ioctl(l.disk, fiFreeze, make([]byte, 4)); err != nil {
			l.news.add(agentapi.EventProblem, "freezing the disk: "+err.Error())
		} else {
			l.news.add(agentapi.EventFrozen, "") // not saved: nothing can be written any more
		}
		ctx, cancel := context.WithTimeout(ctx, lastWords)
		defer cancel()
		l.news.flush(ctx)
	})
}

// serveFinal serves the hook that systemd-shutdown runs last, in which all that
// is left to do is to freeze the disk.
func (l *life) serveFinal(ctx context.Context) error {
	ls, err := net.Listen("unix", handover.FinalSocket)
	if err != nil {
		return fmt.Errorf("listening for the last hook: %w", err)
	}
	go func() {
		for {
			c, err := ls.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				verb, _ := io.ReadAll(io.LimitReader(c, 64))
				kind := strings.TrimSpace(string(verb))
				if !isRoot(c) || kind == "" {
					return
				}
				if kind = kindOf(kind); !l.knowsKind(kind) {
					l.news.add(agentapi.EventEnding, kind)
				}
				l.freeze(ctx)
			}()
		}
	}()
	return nil
}

// isRoot says whether the other end of c is root: in an abstract name anybody
// may knock.
func isRoot(c net.Conn) bool {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return false
	}
	root := false
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		root = err == nil && cred.Uid == 0
	})
	return err == nil && root
}

// Hook is the program's role as /run/initramfs/shutdown, which systemd-shutdown
// runs as PID 1 after all else: argv[1] is its verb. It has the agent freeze the
// disk and ends the machine. It does not unmount: the agent lives in the old
// root, and the VM disk has no path.
func Hook(ctx context.Context, verb string) {
	unix.Sync()
	var d net.Dialer
	if c, err := d.DialContext(ctx, "unix", handover.FinalSocket); err == nil {
		_, _ = io.WriteString(c, verb)
		_ = c.(*net.UnixConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c) // until the agent has done
	}
	PowerOff(verb)
}

// onlyResets says whether a reset is all that ends this machine. What it was
// meant as, the host has been told.
func onlyResets() bool {
	cmdline, _ := os.ReadFile("/proc/cmdline") // "" where there is no /proc
	return vmm.Word(string(cmdline), vmm.WordOff) == vmm.OffReset
}

// PowerOff ends the machine at once: a reboot if the verb says so. It returns
// only if the kernel refuses.
func PowerOff(verb string) {
	cmd := unix.LINUX_REBOOT_CMD_POWER_OFF
	if kindOf(verb) == "reboot" || onlyResets() {
		cmd = unix.LINUX_REBOOT_CMD_RESTART
	}
	_ = unix.Reboot(cmd)
}
