package agentlink_test

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"banger/internal/agentapi"
	"banger/internal/agentlink"
	"banger/internal/mux"

	"golang.org/x/sys/unix"
)

// guest answers on each connection that dial makes, with what serve does for a
// stream's request.
type guest struct {
	conns chan net.Conn
	serve func(agentapi.Request, *agentapi.Conn)
}

func (g *guest) dial(context.Context) (net.Conn, error) {
	host, port, err := pair()
	if err != nil {
		return nil, err
	}
	go func() {
		defer port.Close()
		s, err := mux.NewListener(port).Accept()
		if err != nil {
			return
		}
		for {
			st, err := s.Accept()
			if err != nil {
				return
			}
			go func() {
				defer st.Close()
				c := agentapi.NewConn(st)
				var q agentapi.Request
				if _, b, err := c.Read(); err == nil && agentapi.Decode(b, &q) == nil {
					g.serve(q, c)
				}
			}()
		}
	}()
	g.conns <- host
	return host, nil
}

// pair is a channel with buffers, as real ones are.
func pair() (a, b net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			return nil, nil, err
		}
		ends[i] = c
	}
	return ends[0], ends[1], nil
}

// proper is what a good agent does; hold keeps a watch open.
func proper(hold <-chan struct{}, events ...agentapi.Event) func(agentapi.Request, *agentapi.Conn) {
	return func(q agentapi.Request, c *agentapi.Conn) {
		_ = c.WriteJSON(agentapi.KindOK, agentapi.Hello{Version: agentapi.Version, Init: "none\x1b[31m"})
		if q.Op != agentapi.OpWatch {
			return
		}
		for _, e := range events {
			_ = c.WriteJSON(agentapi.KindNews, e)
		}
		<-hold
	}
}

func TestConversationSurvivesItsSessions(t *testing.T) {
	hold := make(chan struct{})
	defer close(hold)
	g := &guest{conns: make(chan net.Conn, 10), serve: proper(hold,
		agentapi.Event{Type: agentapi.EventAgent}, agentapi.Event{Type: "cosmic"}, agentapi.Event{Type: agentapi.EventProblem, Text: "\x1b]0;x\a" + strings.Repeat("y", 9999)},
		agentapi.Event{Type: agentapi.EventAgent}, agentapi.Event{Type: agentapi.EventBoot})}
	hellos, events := make(chan agentapi.Hello, 10), make(chan agentapi.Event, 10)
	l := agentlink.New(agentlink.Config{Dial: g.dial,
		Hello: func(h agentapi.Hello) { hellos <- h }, Event: func(e agentapi.Event) { events <- e }})
	if err := l.Shutdown(t.Context()); !errors.Is(err, agentlink.ErrNoAgent) {
		t.Errorf("Shutdown() before any session = %v, want ErrNoAgent", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); l.Run(ctx) }()

	if h := <-hellos; strings.Contains(h.Init, "\x1b") {
		t.Errorf("Hello.Init = %q, want it printable", h.Init)
	}
	for _, want := range []agentapi.EventType{agentapi.EventAgent, agentapi.EventProblem, agentapi.EventBoot} {
		e := <-events
		if e.Type != want || strings.Contains(e.Text, "\x1b") || len(e.Text) > 1000 {
			t.Errorf("event = %+v, want %s with harmless text", e, want)
		}
	}
	st, err := l.Open(t.Context())
	if err != nil {
		t.Fatalf("Open() = %v", err)
	}
	st.Close()
	if err := l.Shutdown(t.Context()); err != nil {
		t.Errorf("Shutdown() = %v", err)
	}
	(<-g.conns).Close()
	<-hellos // a second session
	if len(events) != 0 {
		t.Errorf("the second session told again: %+v", <-events)
	}
	cancel()
	<-ended
}

// Whoever learns that there is an agent may ask it to end at once, and the guest
// may end at once: then somebody must be listening.
func TestEventsAreHeardFromTheFirst(t *testing.T) {
	var watched atomic.Bool
	hold := make(chan struct{})
	defer close(hold)
	answer := proper(hold)
	g := &guest{conns: make(chan net.Conn, 1), serve: func(q agentapi.Request, c *agentapi.Conn) {
		if q.Op == agentapi.OpWatch {
			watched.Store(true)
		}
		answer(q, c)
	}}
	hello := make(chan bool, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go agentlink.New(agentlink.Config{Dial: g.dial, Hello: func(agentapi.Hello) { hello <- watched.Load() }}).Run(ctx)
	if !<-hello {
		t.Error("the agent is announced before its events are listened to")
	}
}

// Where anybody in the guest can call, only the agent is listened to once it has
// its identity: whoever cannot prove to have it neither gets it nor is heard.
func TestImpostor(t *testing.T) {
	secret := []byte("of the identity")
	for name, known := range map[string]bool{"after a session": false, "after another companion's": true} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		hold := make(chan struct{})
		var calls atomic.Int32
		g := &guest{conns: make(chan net.Conn, 10)}
		g.serve = func(q agentapi.Request, c *agentapi.Conn) {
			impostor := calls.Load() == 2
			h := agentapi.Hello{Version: agentapi.Version, Agent: "agent"}
			switch {
			case q.Op == agentapi.OpHello && impostor:
				h.Proof = agentapi.Prove([]byte("a guess"), q.Challenge)
			case q.Op == agentapi.OpHello:
				h.Proof = agentapi.Prove(secret, q.Challenge)
			case q.Op == agentapi.OpIdentify && impostor:
				t.Errorf("%s: the impostor is given the identity", name)
			case q.Op == agentapi.OpWatch:
				defer func() { <-hold }()
			}
			_ = c.WriteJSON(agentapi.KindOK, h)
		}
		hellos := make(chan agentapi.Hello, 10)
		l := agentlink.New(agentlink.Config{Identity: agentapi.Identity{Secret: secret}, Known: known,
			Dial: func(ctx context.Context) (net.Conn, error) {
				calls.Add(1)
				return g.dial(ctx)
			},
			Hello: func(h agentapi.Hello) { hellos <- h }})
		go l.Run(ctx)
		<-hellos
		(<-g.conns).Close()
		select { // of the third, since the second is an impostor
		case <-hellos:
		case <-ctx.Done():
			t.Errorf("%s: the agent is not heard again", name)
		}
		if n := calls.Load(); n != 3 {
			t.Errorf("%s: %d calls were taken, want 3", name, n)
		}
		close(hold)
		cancel()
	}
}

func TestBadAgents(t *testing.T) {
	for name, serve := range map[string]func(agentapi.Request, *agentapi.Conn){
		"another version": func(_ agentapi.Request, c *agentapi.Conn) {
			_ = c.WriteJSON(agentapi.KindOK, agentapi.Hello{Version: 99})
		},
		"a refusal": func(_ agentapi.Request, c *agentapi.Conn) {
			_ = c.WriteJSON(agentapi.KindError, agentapi.Error{Msg: "\x1b no"})
		},
		"another kind": func(_ agentapi.Request, c *agentapi.Conn) { _ = c.Write(agentapi.KindStdout, nil) },
		"no JSON":      func(_ agentapi.Request, c *agentapi.Conn) { _ = c.Write(agentapi.KindOK, []byte("\x00")) },
		"nothing":      func(agentapi.Request, *agentapi.Conn) {},
	} {
		g := &guest{conns: make(chan net.Conn, 100), serve: serve}
		ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
		l := agentlink.New(agentlink.Config{Dial: g.dial, Hello: func(h agentapi.Hello) { t.Errorf("%s: Hello(%+v)", name, h) }})
		go l.Run(ctx)
		if _, err := l.Open(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: Open() = %v, want the deadline", name, err)
		}
		cancel()
		if n := len(g.conns); n < 1 || n > 10 {
			t.Errorf("%s: %d sessions in 150 ms, want some, with pauses", name, n)
		}
	}
}

// stuck is a connection that takes nothing any more once it was to carry word.
type stuck struct {
	net.Conn
	word string
	end  <-chan struct{}
}

func (s *stuck) Write(b []byte) (int, error) {
	if strings.Contains(string(b), s.word) {
		<-s.end
		return 0, net.ErrClosed
	}
	return s.Conn.Write(b)
}

// A guest that reads no more must not hold up who ends it.
func TestShutdownOfAGuestThatReadsNothing(t *testing.T) {
	hold := make(chan struct{})
	defer close(hold)
	g := &guest{conns: make(chan net.Conn, 10), serve: proper(hold, agentapi.Event{Type: agentapi.EventAgent})}
	home := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l := agentlink.New(agentlink.Config{Event: func(agentapi.Event) { close(home) }, Dial: func(ctx context.Context) (net.Conn, error) {
		c, err := g.dial(ctx)
		return &stuck{c, `"shutdown"`, hold}, err
	}})
	go l.Run(ctx)
	<-home
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- l.Shutdown(short) }()
	late, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown() = %v, want the deadline", err)
		}
	case <-late.Done():
		t.Error("Shutdown() goes on although its context has ended")
	}
}
