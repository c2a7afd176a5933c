package companion

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/unixsock"
)

// Limits of what clients, all of the owner's uid, can make us hold.
const (
	maxClients   = 512
	maxStreams   = 256
	requestLimit = 10 * time.Second // for the first line
	streamLimit  = 30 * time.Second // for a stream, once the agent has called home
)

// serve accepts clients until the listener is closed.
func (c *companion) serve(ctx context.Context) {
	slots := make(chan struct{}, maxClients)
	for {
		conn, err := c.listen.AcceptUnix()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				c.log.Error("accepting a client", "err", err)
			}
			return
		}
		select {
		case slots <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		c.clients.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			c.client(ctx, conn)
		})
	}
}

// client is one connection.
type client struct {
	*companion
	conn *net.UnixConn
	r    *bufio.Reader
	q    companionapi.Request
}

func (c *companion) client(ctx context.Context, conn *net.UnixConn) {
	cl := client{companion: c, conn: conn, r: bufio.NewReaderSize(conn, 32<<10)}
	peer, err := unixsock.Peer(conn)
	if err == nil && !unixsock.Trusted(peer) {
		err = &api.Error{Code: api.Denied, Msg: fmt.Sprintf("uid %d may not use this VM", peer.UID)}
	}
	if err == nil {
		_ = conn.SetReadDeadline(time.Now().Add(requestLimit)) // an error comes again at the read
		cl.q, err = companionapi.ReadRequest(cl.r)
		_ = conn.SetReadDeadline(time.Time{})
	}
	if err == nil {
		err = cl.handle(ctx)
	}
	if err != nil {
		cl.reply(companionapi.Reply{Error: api.AsError(err)})
	}
}

// reply answers; a client that has left is no error.
func (c client) reply(r companionapi.Reply) {
	if b, err := json.Marshal(r); err == nil {
		_, _ = c.conn.Write(append(b, '\n'))
	}
}

// handle does what is asked. An error is one that was not answered yet.
func (c client) handle(ctx context.Context) error {
	switch c.q.Op {
	case companionapi.OpStatus:
		c.reply(companionapi.Reply{Status: c.status()})
	case companionapi.OpEvents:
		c.reply(companionapi.Reply{})
		c.events(ctx)
	case companionapi.OpStream:
		return c.stream(ctx)
	case companionapi.OpLease:
		return c.lease(ctx)
	case companionapi.OpConsole:
		c.reply(companionapi.Reply{})
		c.printed(ctx)
	case companionapi.OpStop:
		killed := c.stop(context.WithoutCancel(ctx), c.q.Timeout)
		return c.ended(ctx, killed)
	case companionapi.OpKill:
		return c.kill(ctx)
	default:
		return &api.Error{Code: api.VersionSkew, Msg: fmt.Sprintf("this companion knows no operation %q", c.q.Op)}
	}
	return nil
}

func (c *companion) status() *companionapi.Status {
	r := c.record()
	s := c.state
	s.mu.Lock()
	defer s.mu.Unlock()
	return &companionapi.Status{ID: c.cfg.ID, Record: r, Stage: s.stage, Agent: s.agent,
		LeaseTaken: s.leaseTaken, LeaseHeld: s.leaseHeld, Streams: s.streams, Exit: s.ended}
}

// ended waits for the VMM's end and tells it.
func (c client) ended(ctx context.Context, killed bool) error {
	if err := c.state.await(ctx, func() bool { return c.state.ended != nil }); err != nil {
		return err
	}
	c.reply(companionapi.Reply{Killed: killed, Exit: c.state.exited()})
	return nil
}

func (c client) kill(ctx context.Context) error {
	sig := syscall.Signal(c.q.Signal)
	switch {
	case sig == 0:
		sig = syscall.SIGKILL
	case sig < 0 || sig > 64:
		return &api.Error{Code: api.Invalid, Msg: fmt.Sprintf("%d is not a signal", c.q.Signal)}
	}
	fatal := sig == syscall.SIGKILL || sig == syscall.SIGTERM
	if !fatal && c.cfg.Handed != nil {
		return &api.Error{Code: api.Unsupported, Msg: fmt.Sprintf("sending signal %d: in system mode the VMM is not yours to signal, only to end, with KILL or TERM", c.q.Signal),
			Hint: "banger vm kill NAME"}
	}
	if fatal {
		c.state.intend(intent{reason: "it was killed (vm kill)"})
	}
	c.signal(sig)
	if fatal {
		return c.ended(ctx, false)
	}
	c.reply(companionapi.Reply{})
	return nil
}

// events writes all events, and those to come, until the last.
func (c client) events(ctx context.Context) {
	gone := c.watchLeaving()
	enc := json.NewEncoder(c.conn)
	s := c.state
	for sent := 0; ; {
		s.mu.Lock()
		news, over, changed := s.events[sent:], s.ended != nil, s.changed
		s.mu.Unlock()
		for _, e := range news {
			if enc.Encode(e) != nil {
				return
			}
		}
		sent += len(news)
		if over {
			return
		}
		select {
		case <-changed:
		case <-gone:
			return
		case <-ctx.Done():
			return
		}
	}
}

// watchLeaving closes its channel when the client closes its end. What it sends
// is thrown away.
func (c client) watchLeaving() <-chan struct{} {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, c.r)
	}()
	return gone
}

// printed writes the console.
func (c client) printed(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if c.q.Follow {
		gone := c.watchLeaving()
		go func() {
			select {
			case <-gone:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	r, p := c.console.Reader(c.q.Tail, c.q.Follow), make([]byte, 32<<10)
	for {
		n, err := r.Next(ctx, p)
		if err != nil {
			return
		}
		if _, err := c.conn.Write(p[:n]); err != nil {
			return
		}
	}
}

// lease holds the VM's life for the client.
func (c client) lease(ctx context.Context) error {
	s := c.state
	var refused error
	s.update(func() {
		switch {
		case !c.cfg.Lease || s.leaseKept:
			refused = &api.Error{Code: api.Conflict, Msg: "this VM lives without a lease"}
		case s.leaseHeld:
			refused = &api.Error{Code: api.Conflict, Msg: "this VM's lease is held by somebody else"}
		default:
			s.leaseHeld, s.leaseTaken = true, true
		}
	})
	if refused != nil {
		return refused
	}
	if err := c.saveConfig(); err != nil {
		c.log.Error("saving the lease", "err", err)
	}
	c.reply(companionapi.Reply{})
	go func() { // the VM's end ends the lease; so does ctx, when we return
		_ = s.await(ctx, func() bool { return s.ended != nil })
		c.conn.Close()
	}()
	b, err := c.r.ReadByte()
	keep := err == nil && b == companionapi.KeepByte
	s.update(func() { s.leaseHeld, s.leaseKept = false, s.leaseKept || keep })
	if !keep {
		c.end(intent{reason: leaseEnded})
		return nil
	}
	if err := c.saveConfig(); err != nil {
		c.log.Error("saving the lease", "err", err)
	}
	_, _ = c.conn.Write([]byte{'\n'}) // who has left does not need it
	return nil
}

// stream joins the client to a new stream of the agent session, when the guest
// has come far enough. A client that leaves before is not waited for.
func (c client) stream(ctx context.Context) error {
	want := c.q.After
	if want == api.StageNone {
		want = api.StageAgent
	}
	if !want.Valid() {
		return &api.Error{Code: api.Invalid, Msg: fmt.Sprintf("%q is not a stage", want)}
	}
	waiting, left := context.WithCancel(ctx)
	defer left()
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		if _, err := c.r.Peek(1); err != nil {
			left()
		}
	}()
	s := c.state
	var gone bool
	err := s.await(waiting, func() bool {
		gone = s.ended != nil
		return gone || s.stage.Reached(want)
	})
	if err != nil || gone {
		return c.noStream()
	}
	over := false
	s.update(func() {
		if over = s.streams >= maxStreams; !over {
			s.streams++
		}
	})
	if over {
		return &api.Error{Code: api.Conflict, Msg: fmt.Sprintf("this VM has %d open streams, which is the limit", maxStreams)}
	}
	defer s.update(func() { s.streams-- })
	open, cancel := context.WithTimeout(waiting, streamLimit)
	defer cancel()
	st, err := c.link.Open(open)
	if err != nil {
		return c.noStream()
	}
	defer st.Close()
	c.reply(companionapi.Reply{})
	c.relay(st, heard)
	return nil
}

// noStream says why there is none.
func (c client) noStream() error {
	if e := c.state.exited(); e != nil {
		return &api.Error{Code: api.GuestLost, Msg: "the VM has ended: " + e.Reason}
	}
	return &api.Error{Code: api.GuestLost, Msg: "the VM's agent does not answer"}
}

// halves is a stream whose directions end one by one.
type halves interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// relay copies both ways until both have ended. An end of one direction is
// passed on as such; a broken one ends both, so that nobody takes what came so
// far for all there was.
// Reading the client begins when heard is closed.
func (c client) relay(st halves, heard <-chan struct{}) {
	up := make(chan struct{})
	go func() {
		defer close(up)
		<-heard
		_, err := io.Copy(st, onlyReader{c.r})
		go func() { // ends with the connection at the latest
			if c.hungUp() {
				st.Close() // nobody waits for an answer, and the guest may never end it
			}
		}()
		if err != nil || st.CloseWrite() != nil {
			st.Close()
		}
	}()
	if _, err := io.Copy(onlyWriter{c.conn}, onlyReader{st}); err != nil || c.conn.CloseWrite() != nil {
		st.Close()
		c.conn.Close()
	}
	<-up
}

// hungUp waits until the client has closed its connection altogether, not only
// its direction, and reports that; or until we have. Nobody may read meanwhile.
func (c client) hungUp() bool {
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return false
	}
	return raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(fds, 0)
		return err == nil && n > 0 && fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	}) == nil
}

type onlyReader struct{ io.Reader }
