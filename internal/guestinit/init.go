// Package guestinit is the first process of a guest: it turns an initramfs, a
// read-only image and a VM's own disk into a running machine.
//
// It loads the few modules that reach the host and the disks, starts the agent
// as early as possible, builds the root, waits until the host has said who the
// guest is, and becomes the image's init; in an image without one it stays and
// reaps. The image is never changed: everything is written to the VM's disk or
// to /run. What the agent does meanwhile is not its business.
package guestinit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/handover"
	"banger/internal/initramfs"
	"banger/internal/sysmon"
	"banger/internal/vmm"
)

// self is where the kernel has put this program.
const self = "/init"

// searchPath is PATH where nobody has said otherwise.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// maxRestarts is how many agents may die before the guest gives up.
const maxRestarts = 3

// A boot is the state of PID 1.
type boot struct {
	cmdline  string // the kernel's
	problems []string
	init     string // kind
	initPath string // of the image's init, as a path in the new root
	disk     *os.File

	conn  handover.Conn
	agent int // pid
}

// Run is PID 1. It returns only if it cannot go on, and the guest ends then.
func Run(ctx context.Context) error {
	b := &boot{}
	if err := b.first(); err != nil {
		return err
	}
	if err := b.startAgent(); err != nil {
		return err
	}
	if err := b.root(); err != nil {
		return err
	}
	if err := b.awaitGo(); err != nil {
		return err
	}
	if err := b.switchRoot(); err != nil {
		return err
	}
	if b.init == handover.InitNone {
		return b.stay(ctx)
	}
	env := []string{"TERM=linux", "PATH=" + searchPath}
	if b.init == handover.InitSystemd {
		env = append(env, "NOTIFY_SOCKET="+handover.NotifySocket)
	}
	return fmt.Errorf("running %s: %w", b.initPath, syscall.Exec(b.initPath, []string{b.initPath}, env))
}

// Die says on the console why the guest cannot boot, and ends it.
func Die(err error) {
	for _, p := range []string{"/dev/kmsg", "/dev/console"} {
		if f, openErr := os.OpenFile(p, os.O_WRONLY, 0); openErr == nil {
			_, _ = fmt.Fprintf(f, "<2>banger: the guest cannot start: %v\n", err)
			_ = f.Close()
			break
		}
	}
	unix.Sync()
	cmdline, _ := os.ReadFile("/proc/cmdline") // none of a guest that cannot even mount it
	if vmm.Word(string(cmdline), vmm.WordOff) == vmm.OffReset {
		return // the kernel panics when its first process ends, and resets: that is what is to be seen
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// first mounts what the kernel offers and loads what the agent needs.
func (b *boot) first() error {
	for _, m := range []mount{
		{src: "devtmpfs", dst: "/dev", kind: "devtmpfs", flags: unix.MS_NOSUID, data: "mode=0755"},
		{src: "proc", dst: "/proc", kind: "proc", flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{src: "sysfs", dst: "/sys", kind: "sysfs", flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	} {
		if err := m.do(); err != nil {
			return err
		}
	}
	_ = sysmon.Slow(time.Second) // it has one goroutine; only slower without
	// Modules, mounts and cgroups wait for the kernel's grace periods, and a
	// boot for them. The agent lets them take their time again when it is over.
	_ = os.WriteFile(handover.Expedite, []byte("1"), 0) // only slower without
	cmdline, err := os.ReadFile("/proc/cmdline")
	b.problem(err)
	b.cmdline = string(cmdline)
	b.load(initramfs.ChannelModules(vmm.Word(b.cmdline, vmm.WordChannel) == vmm.ChannelVsock))
	return nil
}

func (b *boot) problem(err error) {
	if err != nil {
		b.problems = append(b.problems, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
}

// startAgent starts the agent in a session of its own, so that nothing meant
// for PID 1 or the console reaches it.
func (b *boot) startAgent() error {
	conn, theirs, err := handover.Pair()
	if err != nil {
		return err
	}
	defer func() { _ = theirs.Close() }()
	files, argv, path := []uintptr{0, 1, 2, theirs.Fd()}, []string{handover.AgentRole}, self
	// The runtime is told to be thrifty before it starts: later costs more.
	env := []string{"PATH=" + searchPath, "GOGC=50", fmt.Sprintf("GOMAXPROCS=%d", min(2, runtime.NumCPU()))}
	if b.disk != nil { // the root is in place: take over
		files, argv, path = append(files, b.disk.Fd()), append(argv, handover.Restart), "/proc/self/exe"
	}
	// Not package os, which first forks a process to see whether it can be held.
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{Dir: "/", Files: files, Env: env, Sys: &syscall.SysProcAttr{Setsid: true}})
	if err != nil {
		return fmt.Errorf("starting the agent: %w", err)
	}
	b.conn, b.agent = conn, pid
	return nil
}

// awaitGo tells the agent of the new root and waits until the host has given
// the guest its identity. An agent that dies before is replaced.
func (b *boot) awaitGo() error {
	for range maxRestarts {
		err := b.conn.SendMounted(handover.Mounted{Init: b.init, Problems: b.problems})
		if err == nil {
			err = b.conn.WaitGo()
		}
		if err == nil {
			return nil
		}
		if !errors.Is(err, io.EOF) && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
			return fmt.Errorf("waiting for the agent: %w", err)
		}
		b.problem(errors.New("the agent ended unexpectedly and was started again"))
		_ = b.conn.Close()
		if err := b.startAgent(); err != nil {
			return err
		}
	}
	return errors.New("the agent ends again and again")
}

// stay is the init of an image that has none: it collects what nobody waits
// for, and keeps an agent alive.
func (b *boot) stay(ctx context.Context) error {
	chld := make(chan os.Signal, 1)
	signal.Notify(chld, unix.SIGCHLD)
	// The kernel keeps from PID 1 what it does not handle, but Go's runtime
	// handles all: a "kill 1" would end it, and the kernel would panic. Handled
	// and not ignored, which an agent started from here would inherit.
	signal.Notify(make(chan os.Signal, 1))
	if err := b.conn.Stayed(); err != nil {
		b.problem(err) // it has died: seen below
	}
	_ = b.conn.Close()
	deaths := 0
	for {
		for {
			var status unix.WaitStatus
			pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if pid <= 0 || err != nil {
				break
			}
			if pid != b.agent {
				continue
			}
			if deaths++; deaths > maxRestarts {
				return errors.New("the agent ends again and again")
			}
			if err := b.startAgent(); err != nil {
				return err
			}
			_ = b.conn.Close()
		}
		select {
		case <-chld:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
