// Package zone has this host find VMs by their names: it answers for the zone,
// and sees to it that the host's resolver asks there and that the VMs' network
// is as it should be, whatever others do to either.
//
// It keeps no names: what it is asked it asks its caller. How a resolver is told,
// and how a network is mended, is the [Helper]'s to know. Names are a comfort:
// nothing that fails here keeps a VM from running.
package zone

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"banger/internal/api"
	"banger/internal/dns"
)

// Port is where the zone is answered for, on 127.0.0.1: what is configured by
// hand, where systemd-resolved is not there, must go on working.
const Port = 42069

const (
	// every is the time between two looks at what others may have done; who asks
	// for something of VMs causes one besides.
	every = 5 * time.Second
	// apart is the least time between two looks, however many ask.
	apart = 200 * time.Millisecond
	// limit is how long a call of the helper may take.
	limit = 5 * time.Second
	// longest is the longest time between two tries to route the zone, each of
	// which the helper logs. Hosts without systemd-resolved fail for good.
	longest = 10 * time.Minute
)

// A Helper has the rights to change the host's network.
type Helper interface {
	// Resolver routes the zone's names to a port of 127.0.0.1; 0 takes it back.
	Resolver(ctx context.Context, port uint16) error
	// Mend mends what others have done to the VMs' network and says what that was.
	Mend(ctx context.Context) ([]string, error)
}

// Config configures a [Keeper]. Lookup, Reverse and Running must not block.
type Config struct {
	Zone    string         // "vm" if empty
	Prefix  netip.Prefix   // of the VMs' addresses
	Listen  netip.AddrPort // [Port] of 127.0.0.1 if zero
	Lookup  func(name string) (netip.Addr, bool)
	Reverse func(addr netip.Addr) (string, bool)
	Running func() bool // whether any VM runs: without one there is nothing to mend
	Helper  Helper
	// Link is the index of the link that the zone is routed by, 0 if there is none
	// now: the route is gone with the link.
	Link func() int
	Log  *slog.Logger
}

// A Keeper answers and looks around; see [Keeper.Run].
type Keeper struct {
	c    Config
	poke chan struct{}

	// What follows is Run's own.
	server *dns.Server // nil if the port cannot be had
	routed int         // the link that has the route
	tried  int         // the link that may have it, or a part of it
	failed *api.Error  // why it has none
	pause  time.Duration
	next   time.Time  // when it is tried again, unless somebody asks
	ended  chan error // of the server's end

	mu      sync.Mutex // guards what follows
	at      string
	problem *api.Error
	mended  []string // at the last time that something was
	when    time.Time
}

// New returns a keeper, which does nothing yet.
func New(c Config) *Keeper {
	if c.Zone == "" {
		c.Zone = "vm"
	}
	if !c.Listen.IsValid() {
		c.Listen = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), Port)
	}
	return &Keeper{c: c, poke: make(chan struct{}, 1), ended: make(chan error, 1)}
}

// Status is how VMs are found now.
func (k *Keeper) Status() api.Network {
	k.mu.Lock()
	defer k.mu.Unlock()
	return api.Network{Prefix: k.c.Prefix, Zone: k.c.Zone, DNS: k.at, Problem: k.problem, Mended: k.mended, MendedAt: k.when}
}

// Look causes a look soon, and does not wait for it.
func (k *Keeper) Look() {
	select {
	case k.poke <- struct{}{}:
	default: // one is due already
	}
}

// Open binds the port and has the zone routed there, if both can be done now. What
// is asked from then on is answered by Run.
func (k *Keeper) Open(ctx context.Context) { k.look(ctx, true) }

// Run answers and looks around until ctx ends, and then takes the route back. It
// is called once, after Open.
func (k *Keeper) Run(ctx context.Context) {
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		k.withdraw(serving)
		stop()
		if k.server != nil {
			k.report("answering for names", <-k.ended)
		}
	}()
	tick := time.NewTicker(every)
	defer tick.Stop()
	last := time.Now()
	asked := false
	for served := (*dns.Server)(nil); ; {
		if k.server != served {
			served = k.server
			go func() { k.ended <- served.Serve(serving) }()
		}
		select {
		case <-ctx.Done():
			return
		case err := <-k.ended:
			k.server, served = nil, nil
			k.fail(&api.Error{Code: api.Internal, Msg: "answering for names", Err: err})
		case <-tick.C:
		case <-k.poke:
			asked = true
			if wait := apart - time.Since(last); wait > 0 {
				tick.Reset(wait)
				continue
			}
		}
		k.look(ctx, asked)
		last, asked = time.Now(), false
		tick.Reset(every)
	}
}

// look does what is to be done now; asked is whether somebody waits for it.
func (k *Keeper) look(ctx context.Context, asked bool) {
	deaf := k.listen(ctx)
	mended, broken := k.mend(ctx)
	problem := cmp.Or(deaf, broken)
	if deaf == nil {
		problem = cmp.Or(problem, k.route(ctx, mended || asked && k.failed != nil))
	}
	if ctx.Err() == nil { // else nothing is what it seems
		k.fail(problem)
	}
}

// listen binds the port, if it is not bound.
func (k *Keeper) listen(ctx context.Context) *api.Error {
	if k.server != nil {
		return nil
	}
	s, err := dns.Listen(ctx, dns.Config{Zone: k.c.Zone, Listen: k.c.Listen, Lookup: k.c.Lookup, Prefix: k.c.Prefix, Reverse: k.c.Reverse})
	at := ""
	if err == nil {
		k.server, at = s, s.Addr().String()
		k.c.Log.Info("answering for names", "zone", k.c.Zone, "at", at)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.at = at; err != nil {
		return &api.Error{
			Code: api.Conflict, Msg: fmt.Sprintf("names of VMs are not answered for: %v", err),
			Hint: fmt.Sprintf("see who has the port: ss -lntup sport = :%d", k.c.Listen.Port()),
		}
	}
	return nil
}

// mend has the helper look at the network, and reports whether anything was
// amiss.
func (k *Keeper) mend(ctx context.Context) (bool, *api.Error) {
	if !k.c.Running() {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	mended, err := k.c.Helper.Mend(ctx)
	if len(mended) > 0 {
		k.c.Log.Warn("mended the network of VMs, which others had changed", "what", mended)
		k.mu.Lock()
		k.mended, k.when = mended, time.Now()
		k.mu.Unlock()
	}
	if err != nil {
		return len(mended) > 0, &api.Error{
			Code: api.Internal, Msg: fmt.Sprintf("the network of VMs is not looked after: %v", err),
			Hint: "see why with: banger doctor",
		}
	}
	return len(mended) > 0, nil
}

// route has the zone's names asked for here, anew if that is due. Others than we
// make the link anew too, such as a launch: so its index counts, not only what
// was mended. What fails is tried again, but ever more seldom.
func (k *Keeper) route(ctx context.Context, anew bool) *api.Error {
	link := k.c.Link()
	switch {
	case link == 0: // the route is gone with it
		k.routed, k.tried, k.failed = 0, 0, nil
		return nil
	case anew || link != k.tried:
	case link == k.routed:
		return nil
	case time.Now().Before(k.next):
		return k.failed
	}
	if link != k.tried || k.failed == nil {
		k.pause = every
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	k.routed, k.tried, k.failed = 0, link, nil
	if err := k.c.Helper.Resolver(ctx, k.server.Addr().Port()); err != nil {
		k.failed = &api.Error{
			Code: api.Missing, Msg: fmt.Sprintf("the host's resolver is not told of the zone %q: %v", k.c.Zone, err),
			Hint: fmt.Sprintf("without systemd-resolved, have your resolver ask %v for .%s; dnsmasq: server=/%s/127.0.0.1#%d", k.server.Addr(), k.c.Zone, k.c.Zone, k.server.Addr().Port()),
		}
		k.next = time.Now().Add(k.pause)
		if !anew {
			k.pause = min(2*k.pause, longest)
		}
		return k.failed
	}
	k.c.Log.Info("names are routed here", "zone", k.c.Zone, "link", link)
	k.routed = link
	return nil
}

// withdraw takes the route back, or what a try that failed has left of one.
func (k *Keeper) withdraw(ctx context.Context) {
	if k.tried == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	k.report("taking back the route of names", k.c.Helper.Resolver(ctx, 0))
}

func (k *Keeper) report(doing string, err error) {
	if err != nil {
		k.c.Log.Warn(doing, "err", err)
	}
}

// fail notes why names do not work, nil if they do, and says once what is new.
func (k *Keeper) fail(problem *api.Error) {
	k.mu.Lock()
	before := k.problem
	k.problem = problem
	k.mu.Unlock()
	switch {
	case problem != nil && (before == nil || before.Error() != problem.Error()):
		k.c.Log.Error("names of VMs do not work", "why", problem, "hint", problem.Hint)
	case problem == nil && before != nil:
		k.c.Log.Info("names of VMs work again")
	}
}
