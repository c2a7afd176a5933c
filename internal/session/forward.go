package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"banger/internal/agentapi"
	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/guest"
)

// A Forward carries connections from listen on the host to port of the guest.
type Forward struct {
	Listen string `json:"listen"` // address and port of the host
	Port   int    `json:"guest_port"`
}

// ParseForward reads [ADDRESS:]PORT:PORT, host first.
func ParseForward(text string) (Forward, error) {
	hint := "banger vm forward NAME 8080:80"
	rest, guestPort, ok := cutLast(text)
	if !ok {
		return Forward{}, invalid(hint, "%q is not [ADDRESS:]PORT:PORT", text)
	}
	host, hostPort, ok := cutLast(rest)
	if !ok {
		host, hostPort = "127.0.0.1", rest
	}
	if host = strings.Trim(host, "[]"); host == "localhost" {
		host = "127.0.0.1"
	}
	from, err1 := strconv.ParseUint(hostPort, 10, 16)
	to, err2 := strconv.ParseUint(guestPort, 10, 16)
	if err1 != nil || err2 != nil || to == 0 {
		return Forward{}, invalid(hint, "%q is not [ADDRESS:]PORT:PORT", text)
	}
	if net.ParseIP(host) == nil {
		return Forward{}, invalid(hint, "%q is not an IP address", host)
	}
	return Forward{Listen: net.JoinHostPort(host, strconv.FormatUint(from, 10)), Port: int(to)}, nil
}

func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// Forward listens for each of the forwards, calls ready with the real addresses,
// and carries connections until ctx ends, which is no error, or the VM does.
func (s Session) Forward(ctx context.Context, forwards []Forward, ready func([]Forward) error) error {
	var listeners []net.Listener
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	var open []Forward
	for _, f := range forwards {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", f.Listen)
		if err != nil {
			return unbound(f, err)
		}
		listeners = append(listeners, l)
		open = append(open, Forward{Listen: l.Addr().String(), Port: f.Port})
	}
	if err := ready(open); err != nil {
		return err
	}
	// The VM's end ends the command; so does Ctrl-C, which is how it is used.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	for i, l := range listeners {
		wg.Go(func() { s.accept(ctx, l, open[i].Port) })
	}
	wg.Go(func() {
		<-ctx.Done()
		for _, l := range listeners {
			l.Close()
		}
	})
	err := s.companion().Events(ctx, func(companionapi.Event) {})
	cancel(nil)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	switch {
	case err == nil:
		return &api.Error{Code: api.GuestLost, Msg: s.Machine.Name + " has ended", Hint: "banger vm start " + s.Machine.Name}
	case api.CodeOf(err) == api.GuestLost: // a stop may end the companion before it has told everybody
		return &api.Error{Code: api.GuestLost, Msg: s.Machine.Name + " has ended, or its companion has", Hint: "banger vm show " + s.Machine.Name}
	}
	return err
}

// unbound says why an address cannot be listened on.
func unbound(f Forward, err error) error {
	e := &api.Error{Code: api.Conflict, Msg: "listening on " + f.Listen, Hint: fmt.Sprintf("a free port is taken with: banger vm forward NAME 0:%d", f.Port), Err: err}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		e.Msg, e.Err = f.Listen+" is in use already", nil
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		e.Msg, e.Err = f.Listen+" is no address of this host", nil
	case errors.Is(err, syscall.EACCES):
		e.Msg, e.Err = f.Listen+": this account may not listen on ports below 1024", nil
	}
	return e
}

func (s Session) accept(ctx context.Context, l net.Listener, port int) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return // the listener was closed: the command ends
		}
		wg.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			if err := s.carry(ctx, c, port); err != nil && ctx.Err() == nil {
				s.note("banger: port %d: %v", port, err)
			}
		})
	}
}

// carry connects one connection with the guest's port.
func (s Session) carry(ctx context.Context, c net.Conn, port int) error {
	stream, err := s.stream(ctx)
	if err != nil {
		return err
	}
	raw, err := guest.Dial(ctx, stream, agentapi.Dial{Network: "tcp", Address: net.JoinHostPort("127.0.0.1", strconv.Itoa(port))})
	if err != nil {
		stream.Close()
		return err
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { raw.Close() })()
	var wg sync.WaitGroup
	wg.Go(func() {
		// An end of either side is the end of that direction only.
		_, _ = io.Copy(raw, c)
		_ = raw.CloseWrite()
	})
	_, _ = io.Copy(c, raw)
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.CloseWrite()
	}
	wg.Wait()
	return nil
}
