// Package companion holds what must live exactly as long as one VM: the VMM's
// process, the agent session and its streams, the console, the lease.
//
// A companion is a process of its own, so that a daemon which is killed or
// upgraded interrupts nothing. It starts the VMM or takes over a running one,
// serves one unix socket (package companionapi), and ends when the VMM has
// ended. If it dies itself, the VMM runs on and another companion takes over.
// It knows neither the daemon nor its state. The guest is hostile: it may cost
// what its channel can carry, and nothing more.
package companion

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"banger/internal/agentlink"
	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/console"
	"banger/internal/crash"
	"banger/internal/host"
	"banger/internal/procid"
	"banger/internal/unixsock"
	"banger/internal/vmm"
)

// How long the companion waits for what does not depend on the guest.
const (
	attachLimit = 20 * time.Second // a VMM's first words, on a busy machine
	dyingLimit  = time.Second      // from a VMM's closed socket to its end
	drainLimit  = 2 * time.Second  // what is left in the sockets of an ended VMM
	freezeLimit = 10 * time.Second // from the guest's last word to its power off
	leaseGrace  = 15 * time.Second // a lease to be taken again after the companion before died
)

// Options are what a companion is started with. Drivers, Config and Started
// are required.
type Options struct {
	Drivers []vmm.Driver
	Config  io.Reader      // companionapi.Config as JSON, to the end
	Started io.WriteCloser // gets companionapi.Started as one line, and is closed
	Log     *slog.Logger   // discarded if nil
}

// companion is the running thing.
type companion struct {
	cfg    companionapi.Config
	driver vmm.Driver
	log    *slog.Logger

	self    procid.ID
	listen  *unixsock.Listener
	console *console.Log
	link    *agentlink.Link
	vmm     *running
	state   *state
	doomed  chan struct{} // somebody wants the end of a VMM that is not ours to kill

	saving  sync.Mutex     // held while the config is saved
	clients sync.WaitGroup // and who accepts them
}

// Run is the life of a companion. It returns when the VMM has ended, or an
// error if none was started; whoever reads Started has been told then.
// The end of ctx ends the VMM.
func Run(ctx context.Context, o Options) error {
	c := &companion{log: o.Log, state: newState(), doomed: make(chan struct{}, 1)}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	err := c.start(ctx, o)
	if err != nil {
		tell(o.Started, companionapi.Started{Companion: c.self, Error: api.AsError(err)})
		return err
	}
	return c.live(ctx, o.Started)
}

// tell answers whoever started us, who may be dead.
func tell(w io.WriteCloser, s companionapi.Started) {
	defer w.Close()
	if b, err := json.Marshal(s); err == nil {
		_, _ = w.Write(append(b, '\n'))
	}
}

// start goes from the config to a VMM that runs. On an error nothing is left
// but the directory, which is the host's.
func (c *companion) start(ctx context.Context, o Options) (err error) {
	if err := c.configure(o); err != nil {
		return err
	}
	// Whoever holds this socket is the VM's companion; there is never a second.
	if c.listen, err = unixsock.Listen(c.path(companionapi.SocketName)); err != nil {
		return fmt.Errorf("making the companion's socket: %w", err)
	}
	defer func() {
		if err != nil {
			c.listen.Close()
		}
	}()
	crash.Point("companion.listening")
	c.console, err = console.Open(console.Config{Path: c.cfg.ConsolePath, Append: c.cfg.Adopt != nil})
	if err != nil {
		return err
	}
	if err := c.saveConfig(); err != nil {
		return err
	}
	switch {
	case c.cfg.Handed != nil:
		c.vmm, err = c.take(ctx)
	case c.cfg.Adopt != nil:
		c.vmm, err = c.adopt(ctx)
	default:
		c.vmm, err = c.launch(ctx)
	}
	if err != nil {
		return errors.Join(err, c.console.Close())
	}
	return nil
}

// configure reads the config and finds its driver.
func (c *companion) configure(o Options) error {
	b, err := io.ReadAll(io.LimitReader(o.Config, companionapi.MaxConfig+1))
	if err != nil {
		return fmt.Errorf("reading config: %w", err)
	}
	if len(b) > companionapi.MaxConfig {
		return fmt.Errorf("reading config: it has more than %d bytes", companionapi.MaxConfig)
	}
	if err := json.Unmarshal(b, &c.cfg); err != nil {
		return fmt.Errorf("reading config: %w", err)
	}
	if c.self, err = procid.Self(); err != nil {
		return err
	}
	for _, d := range o.Drivers {
		if d.Name() != c.cfg.Driver {
			continue
		}
		c.driver = d
		if c.cfg.Adopt == nil && d.Wiring().Agent.How == vmm.Called { // any process of the guest can call
			c.cfg.Identity.Secret = []byte(rand.Text())
		}
		return nil
	}
	return &api.Error{Code: api.VersionSkew, Msg: fmt.Sprintf("this companion has no driver %q", c.cfg.Driver)}
}

// saveConfig keeps what the next companion must know, and no secret but that
// which lets it tell the agent from others.
func (c *companion) saveConfig() error {
	c.saving.Lock()
	defer c.saving.Unlock()
	next := c.cfg
	next.Identity.HostKey, next.Identity.Seed, next.Identity.Files = "", nil, nil
	next.Adopt = nil
	_, next.LeaseTaken = c.state.lease()
	next.LeaseTaken = next.LeaseTaken || c.cfg.LeaseTaken
	next.Lease = next.Lease && !c.state.kept()
	next.AgentKnown = next.AgentKnown || c.state.agentKnown()
	return companionapi.Save(c.cfg.Dir, companionapi.ConfigName, next)
}

func (c *companion) path(name string) string { return c.cfg.Dir + "/" + name }

func (c *companion) record() host.Record {
	r := host.Record{ID: c.cfg.ID, Driver: c.cfg.Driver, Companion: c.self}
	if c.vmm != nil {
		r.VMM = c.vmm.process.ID()
	}
	return r
}

// live serves until the VMM has ended, and tells why.
func (c *companion) live(ctx context.Context, started io.WriteCloser) error {
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	c.link = agentlink.New(agentlink.Config{Dial: c.vmm.channels.Agent, Identity: c.cfg.Identity, Known: c.cfg.AgentKnown,
		Hello: c.hello, Event: c.event, Log: c.log})
	var wg sync.WaitGroup
	wg.Go(func() { c.link.Run(serving) })
	wg.Go(func() { c.keepTime(serving) })
	c.clients.Go(func() { c.serve(serving) }) // so that settle also sees who has just come
	if c.cfg.Handed != nil {
		wg.Go(func() { c.executioner(serving) })
	}
	if c.cfg.LeaseTaken && c.cfg.Lease {
		wg.Go(func() { c.awaitLease(serving) })
	}
	tell(started, companionapi.Started{Record: c.record(), Companion: c.self})
	crash.Point("companion.told")

	select {
	case <-c.vmm.process.Done():
	case <-ctx.Done():
		c.end(intent{reason: "its companion was told to end"})
		<-c.vmm.process.Done()
	}
	exit := c.farewell(serving)
	c.log.Info("the VMM has ended", "why", exit.Reason)
	err := companionapi.Save(c.cfg.Dir, companionapi.ExitName, exit)
	c.state.exit(exit)
	err = errors.Join(err, c.listen.Close(), c.vmm.close(), c.console.Close())
	c.settle()
	stop()
	wg.Wait()
	return err
}

// settle gives clients time to read what there is to read.
func (c *companion) settle() {
	done := make(chan struct{})
	go func() {
		c.clients.Wait()
		close(done)
	}()
	t := time.NewTimer(drainLimit)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}

// awaitLease ends a VM whose lease was held by the companion before, if nobody
// takes it again.
func (c *companion) awaitLease(ctx context.Context) {
	t := time.NewTimer(leaseGrace)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return
	}
	if _, taken := c.state.lease(); !taken {
		c.end(intent{reason: leaseEnded})
	}
}

// end kills the VMM. The first reason given is the one that is told.
func (c *companion) end(why intent) {
	c.state.intend(why)
	c.signal(syscall.SIGKILL)
}

func (c *companion) signal(sig syscall.Signal) {
	if c.cfg.Handed != nil {
		c.doom()
		return
	}
	if err := c.vmm.process.Signal(sig); err != nil && !errors.Is(err, procid.ErrDead) {
		c.log.Error("signalling the VMM", "err", err)
	}
}
