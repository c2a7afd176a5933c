// Package agentlink keeps a conversation with the agent of one guest for as
// long as the VM lives.
//
// It dials the channel, says hello, gives the agent its identity, listens to
// its events, and does so again whenever the session breaks: an agent may be
// restarted. What the guest says is checked for size and number here and made
// printable, so that whoever gets it need not fear it. It does not know what a
// VM or a stage is.
package agentlink

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"banger/internal/agentapi"
	"banger/internal/mux"
	"banger/internal/printable"
)

// Limits of what a guest can make the host keep.
const (
	maxEvents = 256 // of one guest; further ones are dropped, but for those in vital
	maxText   = 500 // bytes of an event's text
)

// ErrNoAgent is returned where there is no session and none can be waited for.
var ErrNoAgent = errors.New("the agent has not called home")

// Config configures a [Link]. Dial is required.
type Config struct {
	// Dial connects to the channel. It is called again after a session broke.
	Dial     func(ctx context.Context) (net.Conn, error)
	Identity agentapi.Identity
	// Known says that an agent has the identity already. If that has a secret,
	// only who proves to have it is listened to, as after each session here.
	Known bool
	// Hello is called when the agent has got its identity, in each session.
	// Event is called for each thing that happened, once; its text is a
	// printable line. Both are called by one goroutine and may be nil.
	Hello func(agentapi.Hello)
	Event func(agentapi.Event)
	Log   *slog.Logger // discarded if nil
}

// A Link is the conversation. Run leads it; the other methods may be called
// from several goroutines.
type Link struct {
	cfg  Config
	seen map[agentapi.Event]bool // of the goroutine in Run
	told map[agentapi.EventType]bool

	mu      sync.Mutex
	session *mux.Session // nil while there is none
	changed chan struct{}
	ever    bool
}

// New prepares a link.
func New(c Config) *Link {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Hello == nil {
		c.Hello = func(agentapi.Hello) {}
	}
	if c.Event == nil {
		c.Event = func(agentapi.Event) {}
	}
	return &Link{cfg: c, seen: map[agentapi.Event]bool{}, told: map[agentapi.EventType]bool{}, changed: make(chan struct{})}
}

// Pauses between sessions: a guest that breaks each one at once gets no more
// of the host's time than this.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = 2 * time.Second
	longEnough = 5 * time.Second // a session that begins the pauses anew
	proofLimit = 5 * time.Second // for a proof, from a guest that has long booted
)

// Run keeps the conversation until ctx ends.
func (l *Link) Run(ctx context.Context) {
	pause := firstPause
	for ctx.Err() == nil {
		begin := time.Now()
		if err := l.converse(ctx); ctx.Err() == nil {
			l.cfg.Log.Info("the agent session ended", "why", printable.Line(err.Error(), maxText))
		}
		if time.Since(begin) > longEnough {
			pause = firstPause
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
		pause = min(2*pause, lastPause)
	}
}

// converse is one session from its beginning to its end.
func (l *Link) converse(ctx context.Context) error {
	conn, err := l.cfg.Dial(ctx)
	if err != nil {
		return err
	}
	greeting, cancel := ctx, context.CancelFunc(func() {})
	if l.proves() { // perhaps somebody else, who means to keep the agent out
		greeting, cancel = context.WithTimeout(ctx, proofLimit)
	}
	defer cancel()
	s, err := mux.Dial(greeting, conn)
	if err != nil {
		return err
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	h, err := l.greet(greeting, s)
	if err != nil {
		return err
	}
	// Before anybody can use the session: a guest that is asked to end at once
	// has its last words heard.
	events, err := watch(greeting, s)
	if err != nil {
		return err
	}
	defer events.Close()
	l.set(s)
	defer l.set(nil)
	l.cfg.Hello(h)
	return l.listen(agentapi.NewConn(events))
}

// greet says hello and gives the identity, with the clock of now. The first
// agent gets the seed it was promised; every later one a new seed.
func (l *Link) greet(ctx context.Context, s *mux.Session) (agentapi.Hello, error) {
	challenge := rand.Text()
	h, err := l.call(ctx, s, agentapi.Request{Op: agentapi.OpHello, Challenge: challenge})
	if err != nil {
		return h, fmt.Errorf("saying hello: %w", err)
	}
	if l.proves() && !hmac.Equal(h.Proof, agentapi.Prove(l.cfg.Identity.Secret, challenge)) {
		return h, errors.New("saying hello: who answers is not the agent that has the identity")
	}
	if h.Version != agentapi.Version {
		return h, fmt.Errorf("saying hello: the agent speaks version %d, not %d", h.Version, agentapi.Version)
	}
	id := l.cfg.Identity
	id.UnixNano = time.Now().UnixNano()
	if l.hadSession() || len(id.Seed) == 0 {
		id.Seed = make([]byte, 32)
		if _, err := rand.Read(id.Seed); err != nil {
			return h, fmt.Errorf("making a seed: %w", err)
		}
	}
	h, err = l.call(ctx, s, agentapi.Request{Op: agentapi.OpIdentify, Identity: &id})
	if err != nil {
		return h, fmt.Errorf("giving the identity: %w", err)
	}
	const word = 100
	h.Agent, h.Release = printable.Line(h.Agent, word), printable.Line(h.Release, word)
	h.BootID, h.Init = printable.Line(h.BootID, word), printable.Line(h.Init, word)
	return h, nil
}

// call is an operation whose reply is a Hello or nothing.
func (l *Link) call(ctx context.Context, s *mux.Session, q agentapi.Request) (agentapi.Hello, error) {
	var h agentapi.Hello
	st, err := s.Open(ctx)
	if err != nil {
		return h, err
	}
	defer st.Close()
	stop := context.AfterFunc(ctx, func() { st.Close() })
	defer stop()
	c := agentapi.NewConn(st)
	if err := ask(c, q, &h); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return h, err
	}
	return h, nil
}

// ask sends a request and reads its reply.
func ask(c *agentapi.Conn, q agentapi.Request, reply any) error {
	if err := c.WriteJSON(agentapi.KindRequest, q); err != nil {
		return err
	}
	k, b, err := c.Read()
	if err != nil {
		return err
	}
	switch k {
	case agentapi.KindOK:
		return agentapi.Decode(b, reply)
	case agentapi.KindError:
		var e agentapi.Error
		if err := agentapi.Decode(b, &e); err != nil {
			return err
		}
		e.Msg = printable.Line(e.Msg, maxText)
		return &e
	}
	return fmt.Errorf("reading a reply: a frame of kind %q: %w", k, agentapi.ErrFrame)
}

// watch opens the stream of events.
func watch(ctx context.Context, s *mux.Session) (*mux.Stream, error) {
	st, err := s.Open(ctx)
	if err != nil {
		return nil, fmt.Errorf("watching: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { st.Close() })
	defer stop()
	if err := ask(agentapi.NewConn(st), agentapi.Request{Op: agentapi.OpWatch}, &struct{}{}); err != nil {
		st.Close()
		return nil, fmt.Errorf("watching: %w", err)
	}
	return st, nil
}

// listen hears events until the session ends.
func (l *Link) listen(c *agentapi.Conn) error {
	for {
		k, b, err := c.Read()
		if err != nil {
			return err
		}
		var e agentapi.Event
		if k != agentapi.KindNews {
			return fmt.Errorf("watching: a frame of kind %q: %w", k, agentapi.ErrFrame)
		}
		if err := agentapi.Decode(b, &e); err != nil {
			return err
		}
		l.note(e)
	}
}

// note passes an event on that was not known: each session begins with all
// that has happened. Only problems can be many; the others are told once,
// but for an end whose kind is known later.
func (l *Link) note(e agentapi.Event) {
	switch e.Type {
	case agentapi.EventProblem:
		e.Text = printable.Line(e.Text, maxText)
		if l.seen[e] || len(l.seen) >= maxEvents {
			return
		}
		l.seen[e] = true
	case agentapi.EventAgent, agentapi.EventSockets, agentapi.EventBoot, agentapi.EventHandover, agentapi.EventEnding, agentapi.EventFrozen:
		e.Text = printable.Line(e.Text, maxText)
		key := e.Type
		if e.Type == agentapi.EventEnding && e.Text != "" {
			key += " of a kind" // which may be known later than that it ends
		}
		if l.told[key] {
			return
		}
		l.told[key] = true
	default: // a word of a later version, or of nobody's
		return
	}
	l.cfg.Event(e)
}

func (l *Link) set(s *mux.Session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.session = s
	l.ever = l.ever || s != nil
	close(l.changed)
	l.changed = make(chan struct{})
}

// proves says whether who calls must prove to be the agent.
func (l *Link) proves() bool {
	return len(l.cfg.Identity.Secret) > 0 && (l.cfg.Known || l.hadSession())
}

func (l *Link) hadSession() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ever
}

// Open opens a stream for one operation. If the session is just broken, it
// waits for the next one until ctx ends.
func (l *Link) Open(ctx context.Context) (*mux.Stream, error) {
	for {
		l.mu.Lock()
		s, changed := l.session, l.changed
		l.mu.Unlock()
		if s != nil {
			st, err := s.Open(ctx)
			if err == nil || !errors.Is(err, mux.ErrEnded) {
				return st, err
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("opening a stream: %w", context.Cause(ctx))
		}
	}
}

// Drained waits until there is no session, because what it had to say has been
// heard, or until ctx ends. It is for a channel whose other end is dead.
func (l *Link) Drained(ctx context.Context) {
	for {
		l.mu.Lock()
		s, changed := l.session, l.changed
		l.mu.Unlock()
		if s == nil {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// Shutdown asks the guest to end, and returns when it has begun to, ErrNoAgent
// if no agent ever called home.
func (l *Link) Shutdown(ctx context.Context) error {
	if !l.hadSession() {
		return ErrNoAgent
	}
	st, err := l.Open(ctx)
	if err != nil {
		return err
	}
	defer st.Close()
	// Not waited for: a guest that reads nothing lets a write wait until the
	// session ends, closed or not.
	asked := make(chan error, 1)
	go func() {
		asked <- ask(agentapi.NewConn(st), agentapi.Request{Op: agentapi.OpShutdown, Shutdown: &agentapi.Shutdown{}}, &struct{}{})
	}()
	select {
	case err = <-asked:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("asking the guest to shut down: %w", err)
	}
	return nil
}
