package companion

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/confine"
	"banger/internal/crash"
	"banger/internal/procid"
	"banger/internal/vmm"
	"banger/internal/vmm/channel"
)

// running is a VMM and our ends of its channels.
type running struct {
	process  *procid.Process
	cmd      *exec.Cmd // nil if it was adopted or handed over
	channels *channel.Set
	control  vmm.Control
	stderr   *tail

	reaped  chan struct{} // closed when cmd has been waited for
	printed chan struct{} // closed when the console has ended
}

func (c *companion) place() channel.Place {
	return channel.Place{Dir: c.cfg.Dir, UID: c.cfg.UID, GID: c.cfg.GID}
}

// launch starts the VMM. What it inherits is exactly its files, its ends of the
// channels and a pipe for its last words; it lives on when we die.
func (c *companion) launch(ctx context.Context) (_ *running, err error) {
	r := &running{stderr: &tail{}, reaped: make(chan struct{}), printed: make(chan struct{})}
	if r.channels, err = channel.Make(ctx, c.driver.Wiring(), c.place()); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.channels.Close(), r.channels.Remove())
		}
	}()
	if err := companionapi.Save(c.cfg.Dir, companionapi.RecordName, c.record()); err != nil {
		return nil, err
	}
	cfg, err := c.command(ctx, r)
	if err != nil {
		return nil, err
	}
	crash.Point("companion.ready")
	if err := c.exec(r, cfg); err != nil {
		return nil, fmt.Errorf("starting %s: %w", vmm.Label(c.cfg.Driver), err)
	}
	crash.Point("companion.vmm-started")
	go func() {
		defer close(r.reaped)
		_ = r.cmd.Wait() // its state is looked at in the end
	}()
	if r.process, err = hold(r.cmd.Process.Pid); err != nil {
		<-r.reaped
		return nil, c.early(r)
	}
	c.vmm = r
	err = c.attach(ctx, func(ctx context.Context) (vmm.Control, error) {
		if err := r.started(ctx); err != nil {
			return nil, err
		}
		return c.driver.Boot(ctx, r.channels.Control(), cfg)
	})
	if err != nil {
		return nil, c.abandon(err)
	}
	if err := companionapi.Save(c.cfg.Dir, companionapi.RecordName, c.record()); err != nil {
		return nil, c.abandon(err)
	}
	crash.Point("companion.recorded")
	return r, nil
}

// started waits for the channels that the VMM makes, as long as it lives.
func (r *running) started(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-r.process.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	return r.channels.Started(ctx)
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
	return &api.Error{Code: api.Internal, Msg: vmm.Label(c.cfg.Driver) + " ended at once: " + r.cmd.ProcessState.String(),
		Detail: r.stderr.lines(), Hint: "see what this host lacks: banger doctor"}
}

// command makes the VMM's command line, and returns its config with the
// descriptors as it will see them.
func (c *companion) command(ctx context.Context, r *running) (vmm.Config, error) {
	cfg, files := c.cfg.VMM, []*os.File(nil)
	pass := func(file *os.File) vmm.File {
		files = append(files, file)
		return vmm.File{FD: 2 + len(files)} // ExtraFiles begin at 3
	}
	inherit := func(f *vmm.File) {
		if f.FD != 0 {
			syscall.CloseOnExec(f.FD) // or the VMM would see it twice
			*f = pass(os.NewFile(uintptr(f.FD), f.Name))
		}
	}
	inherit(&cfg.Kernel)
	inherit(&cfg.Initramfs)
	cfg.Disks = append([]vmm.Disk(nil), cfg.Disks...)
	for i := range cfg.Disks {
		inherit(&cfg.Disks[i].File)
	}
	r.channels.Hand(&cfg, pass)
	argv, err := c.driver.Argv(cfg)
	if err != nil {
		return cfg, err
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), argv[0], argv[1:]...)
	cmd.ExtraFiles, cmd.Dir, cmd.Stdout, cmd.Stderr = files, "/", r.stderr, r.stderr
	if out := r.channels.Stdout(); out != nil {
		cmd.Stdout = out
	}
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
	r.cmd = cmd
	return cfg, nil
}

// exec starts the command. A VMM that opens things by name is started where it
// can open no others; one that has nothing to open needs no such care.
func (c *companion) exec(r *running, cfg vmm.Config) error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	cmd, opens := r.cmd, c.driver.Wiring().Opens
	cmd.Stdin = null
	defer func() {
		for _, f := range cmd.ExtraFiles {
			f.Close() // the channels' own are closed there once more
		}
	}()
	if opens == nil {
		return cmd.Start()
	}
	rules := confine.Rules{Devices: opens}
	file := func(f vmm.File) *os.File { return cmd.ExtraFiles[f.FD-3] }
	if cfg.Sockets.FD != 0 {
		rules.Sockets = file(cfg.Sockets)
	}
	for _, f := range append([]vmm.Disk{{File: cfg.Kernel}, {File: cfg.Initramfs}}, cfg.Disks...) {
		if f.File.FD != 0 {
			rules.Files = append(rules.Files, file(f.File))
		}
	}
	confined, err := confine.Start(cmd, rules)
	if err == nil && !confined {
		c.log.Warn("this kernel has no Landlock: the VMM is confined by its own seccomp filters only")
	}
	return err
}

// adopt takes over a VMM that runs, through its channels, on which it accepts a
// connection again after the old one broke, or calls again.
func (c *companion) adopt(ctx context.Context) (_ *running, err error) {
	p, err := procid.Open(c.cfg.Adopt.VMM)
	if err != nil {
		return nil, &api.Error{Code: api.GuestLost, Msg: "taking over the VMM", Err: err}
	}
	r := &running{process: p, stderr: &tail{}, printed: make(chan struct{})}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if r.channels, err = channel.Find(ctx, c.driver.Wiring(), c.place()); err != nil {
		if r.ends() {
			return nil, goneError()
		}
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.channels.Close())
		}
	}()
	c.vmm = r
	err = c.attach(ctx, func(ctx context.Context) (vmm.Control, error) {
		return c.driver.Attach(ctx, r.channels.Control())
	})
	if err != nil {
		return nil, err
	}
	return r, companionapi.Save(c.cfg.Dir, companionapi.RecordName, c.record())
}

// attach waits for the VMM's first words and begins to read its console.
func (c *companion) attach(ctx context.Context, begin func(context.Context) (vmm.Control, error)) error {
	r := c.vmm
	go func() {
		defer close(r.printed)
		_, _ = io.Copy(onlyWriter{c.console}, onlyReader{r.channels.Console()}) // the console takes all; the channel ends with the VMM
	}()
	ctx, cancel := context.WithTimeout(ctx, attachLimit)
	defer cancel()
	// A VMM that dies meanwhile closes its end: what it said before still counts.
	var err error
	r.control, err = begin(ctx)
	if err == nil {
		return nil // if it died since, that is for live to tell
	}
	if !r.ends() {
		return fmt.Errorf("reaching %s: %w", vmm.Label(c.cfg.Driver), err)
	}
	if r.cmd != nil {
		<-r.reaped
		return c.early(r)
	}
	if c.cfg.Adopt == nil {
		return c.stillborn()
	}
	return goneError()
}

func goneError() error { return &api.Error{Code: api.GuestLost, Msg: "the VMM has ended"} }

// ends reports whether a VMM that does not answer is about to end: a process
// that dies closes its sockets before it is dead.
func (r *running) ends() bool {
	t := time.NewTimer(dyingLimit)
	defer t.Stop()
	select {
	case <-r.process.Done():
		return true
	case <-t.C:
		return false
	}
}

// onlyWriter hides everything but Write, so that io.Copy uses its own buffer.
type onlyWriter struct{ io.Writer }

// close gives back what is ours of an ended VMM.
func (r *running) close() error {
	return errors.Join(r.control.Close(), r.process.Close(), r.channels.Close(), r.channels.Remove())
}
