package companion

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/crash"
	"banger/internal/procid"
	"banger/internal/unixsock"
	"banger/internal/vmm"
)

// running is a VMM and our ends of its channels.
type running struct {
	process *procid.Process
	cmd     *exec.Cmd // nil if it was adopted
	control vmm.Control
	stderr  *tail
	dir     string

	reaped  chan struct{} // closed when cmd has been waited for
	printed chan struct{} // closed when the console has ended

	mu    sync.Mutex
	agent net.Conn // the connection made before the VMM began, for the first session
}

// channels are the sockets of a VMM.
type channels struct {
	listeners            []*os.File
	agent, term, control net.Conn
}

func (ch *channels) close() {
	for _, l := range ch.listeners {
		l.Close()
	}
	for _, c := range []net.Conn{ch.agent, ch.term, ch.control} {
		if c != nil {
			c.Close()
		}
	}
}

// dial connects to a socket of the VMM, in our directory. QEMU listens on what
// it inherits once more, as the uid that it runs as.
func (c *companion) dial(ctx context.Context, name string) (*net.UnixConn, error) {
	return unixsock.Dial(ctx, c.path(name), c.cfg.UID)
}

// connect dials the three sockets of a VMM.
func (ch *channels) connect(ctx context.Context, dial func(context.Context, string) (*net.UnixConn, error)) error {
	for name, c := range map[string]*net.Conn{
		companionapi.AgentSocketName:   &ch.agent,
		companionapi.ConsoleSocketName: &ch.term,
		companionapi.ControlSocketName: &ch.control,
	} {
		conn, err := dial(ctx, name)
		if err != nil {
			return err
		}
		*c = conn
	}
	return nil
}

// sockets makes the VMM's listening sockets and connects to each before anybody
// accepts: so the guest finds a host from its first instruction on.
func (c *companion) sockets(ctx context.Context) (_ *channels, err error) {
	ch := &channels{}
	defer func() {
		if err != nil {
			ch.close()
		}
	}()
	names := []string{companionapi.AgentSocketName, companionapi.ConsoleSocketName, companionapi.ControlSocketName}
	for _, name := range names {
		if err := remove(c.path(name)); err != nil {
			return nil, err
		}
		l, err := unixsock.Bind(c.path(name))
		if err != nil {
			return nil, err
		}
		f, err := l.File()
		l.Close()
		if err != nil {
			return nil, fmt.Errorf("making socket %s: %w", name, err)
		}
		ch.listeners = append(ch.listeners, f)
	}
	return ch, ch.connect(ctx, c.dial)
}

// launch starts the VMM. What it inherits is exactly its files, its sockets and
// a pipe for its last words; it lives on when we die.
func (c *companion) launch(ctx context.Context) (_ *running, err error) {
	ch, err := c.sockets(ctx)
	if err != nil {
		return nil, err
	}
	r := &running{dir: c.cfg.Dir, stderr: &tail{}, reaped: make(chan struct{}), printed: make(chan struct{})}
	defer func() {
		if err != nil {
			ch.close()
			err = errors.Join(err, r.removeSockets())
		}
	}()
	if err := companionapi.Save(c.cfg.Dir, companionapi.RecordName, c.record()); err != nil {
		return nil, err
	}
	if r.cmd, err = c.command(ctx, ch); err != nil {
		return nil, err
	}
	r.cmd.Stdout, r.cmd.Stderr = r.stderr, r.stderr
	crash.Point("companion.ready")
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", c.label(), err)
	}
	crash.Point("companion.vmm-started")
	for _, f := range r.cmd.ExtraFiles {
		f.Close()
	}
	go func() {
		defer close(r.reaped)
		_ = r.cmd.Wait() // its state is looked at in the end
	}()
	if r.process, err = hold(r.cmd.Process.Pid); err != nil {
		<-r.reaped
		return nil, c.early(r)
	}
	c.vmm = r
	if err := c.attach(ctx, ch); err != nil {
		return nil, c.abandon(err)
	}
	if err := companionapi.Save(c.cfg.Dir, companionapi.RecordName, c.record()); err != nil {
		return nil, c.abandon(err)
	}
	crash.Point("companion.recorded")
	return r, nil
}

func hold(pid int) (*procid.Process, error) {
	id, err := procid.Of(pid)
	if err != nil {
		return nil, err
	}
	return procid.Open(id)
}

// abandon ends a VMM that has just been started.
func (c *companion) abandon(err error) error {
	c.signal(syscall.SIGKILL)
	<-c.vmm.reaped
	return err
}

// early is the error of a VMM that ended before it ran.
func (c *companion) early(r *running) error {
	return &api.Error{Code: api.Internal, Msg: c.label() + " ended at once: " + r.cmd.ProcessState.String(),
		Detail: r.stderr.lines(), Hint: "see what this host lacks: banger doctor"}
}

// command is the VMM's command line, with the descriptors as it will see them.
func (c *companion) command(ctx context.Context, ch *channels) (*exec.Cmd, error) {
	cfg, files := c.cfg.VMM, []*os.File(nil)
	pass := func(f *vmm.File, file *os.File) {
		files = append(files, file)
		*f = vmm.File{FD: 2 + len(files)} // ExtraFiles begin at 3
	}
	inherit := func(f *vmm.File) {
		if f.FD != 0 {
			syscall.CloseOnExec(f.FD) // or the VMM would see it twice
			pass(f, os.NewFile(uintptr(f.FD), f.Name))
		}
	}
	inherit(&cfg.Kernel)
	inherit(&cfg.Initramfs)
	cfg.Disks = append([]vmm.Disk(nil), cfg.Disks...)
	for i := range cfg.Disks {
		inherit(&cfg.Disks[i].File)
	}
	pass(&cfg.Agent, ch.listeners[0])
	pass(&cfg.Console, ch.listeners[1])
	pass(&cfg.Control, ch.listeners[2])
	argv, err := c.driver.Argv(cfg)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), argv[0], argv[1:]...)
	cmd.ExtraFiles, cmd.Dir = files, "/"
	cmd.Env = []string{companionapi.DirEnv + "=" + c.cfg.Dir, "LANG=C.UTF-8"}
	for _, name := range []string{"PATH", "TMPDIR"} {
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if os.Geteuid() == 0 && c.cfg.UID != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(c.cfg.UID), Gid: uint32(c.cfg.GID)}
	}
	return cmd, nil
}

// adopt takes over a VMM that runs, through its sockets, on which it accepts a
// connection again after the old one broke.
func (c *companion) adopt(ctx context.Context) (_ *running, err error) {
	p, err := procid.Open(c.cfg.Adopt.VMM)
	if err != nil {
		return nil, &api.Error{Code: api.GuestLost, Msg: "taking over the VMM", Err: err}
	}
	ch := &channels{}
	defer func() {
		if err != nil {
			ch.close()
			p.Close()
		}
	}()
	if err := ch.connect(ctx, c.dial); err != nil {
		return nil, err
	}
	c.vmm = &running{dir: c.cfg.Dir, process: p, stderr: &tail{}, printed: make(chan struct{})}
	if err := c.attach(ctx, ch); err != nil {
		return nil, err
	}
	return c.vmm, companionapi.Save(c.cfg.Dir, companionapi.RecordName, c.record())
}

// attach waits for the VMM's first words and begins to read its console.
func (c *companion) attach(ctx context.Context, ch *channels) error {
	r := c.vmm
	r.agent = ch.agent
	go func() {
		defer close(r.printed)
		defer ch.term.Close()
		_, _ = io.Copy(onlyWriter{c.console}, ch.term) // the console takes all; the channel ends with the VMM
	}()
	ctx, cancel := context.WithTimeout(ctx, attachLimit)
	defer cancel()
	// A VMM that dies meanwhile closes its end: what it said before still counts.
	var err error
	r.control, err = c.driver.Attach(ctx, ch.control)
	if err == nil {
		return nil // if it died since, that is for live to tell
	}
	// A process that dies closes its sockets before it is dead.
	dying := time.NewTimer(dyingLimit)
	defer dying.Stop()
	select {
	case <-r.process.Done():
	case <-dying.C:
		return fmt.Errorf("reaching %s: %w", c.label(), err)
	}
	if r.cmd != nil {
		<-r.reaped
		return c.early(r)
	}
	return &api.Error{Code: api.GuestLost, Msg: "the VMM has ended"}
}

// onlyWriter hides everything but Write, so that io.Copy uses its own buffer.
type onlyWriter struct{ io.Writer }

// dialAgent connects to the agent's channel: with the connection that was made
// before the VMM began, the first time.
func (c *companion) dialAgent(ctx context.Context) (net.Conn, error) {
	r := c.vmm
	r.mu.Lock()
	first := r.agent
	r.agent = nil
	r.mu.Unlock()
	if first != nil {
		return first, nil
	}
	return c.dial(ctx, companionapi.AgentSocketName)
}

func (r *running) removeSockets() error {
	return remove(r.dir+"/"+companionapi.AgentSocketName, r.dir+"/"+companionapi.ConsoleSocketName, r.dir+"/"+companionapi.ControlSocketName)
}

// close gives back what is ours of an ended VMM.
func (r *running) close() error {
	return errors.Join(r.control.Close(), r.process.Close(), r.removeSockets())
}

// label is what people call the VMM.
func (c *companion) label() string {
	if strings.HasPrefix(c.cfg.Driver, "qemu") {
		return "QEMU"
	}
	return "the VMM"
}
