// Package guest is the host's end of the agent protocol: one function per
// operation, each over one stream that the caller has opened.
//
// It trusts nothing that comes back: frames are bounded, numbers checked, text
// passes printable. An answer that does not come is an [api.Error] with the
// code GuestLost, never a made-up result. What the guest itself refuses keeps
// its [agentapi.Error] in the chain. How streams are opened, and what a VM is,
// it does not know.
package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"unicode/utf8"

	"banger/internal/agentapi"
	"banger/internal/api"
	"banger/internal/printable"
)

// A Stream is one stream of an agent session. Close must end a Read and a
// Write that are under way.
type Stream interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// maxText is how much text of the guest goes into one message.
const maxText = 2000

// call is one operation on a stream.
type call struct {
	cause func() error // why the context has ended, if it has
	s     Stream
	conn  *agentapi.Conn
	doing string // "copying into the guest", for messages
}

// begin sends a request and reads its reply into v. From then on the end of ctx
// closes the stream, until stop is called. On an error the stream is closed.
func begin(ctx context.Context, s Stream, doing string, req agentapi.Request, v any) (c *call, stop func() bool, err error) {
	release := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer func() {
		if err != nil {
			release()
			_ = s.Close()
		}
	}()
	c = &call{cause: func() error { return context.Cause(ctx) }, s: s, conn: agentapi.NewConn(s), doing: doing}
	if err := c.conn.WriteJSON(agentapi.KindRequest, req); err != nil {
		if errors.Is(err, agentapi.ErrFrame) {
			return nil, nil, &api.Error{Code: api.Invalid, Msg: fmt.Sprintf("%s: the request is longer than %d bytes", doing, agentapi.MaxFrame)}
		}
		// The guest may have refused before it had read all.
		if k, b, rerr := c.conn.Read(); rerr == nil && k == agentapi.KindError {
			return nil, nil, c.refused(b)
		}
		return nil, nil, c.lost(err)
	}
	k, b, err := c.conn.Read()
	switch {
	case err != nil:
		return nil, nil, c.lost(err)
	case k == agentapi.KindError:
		return nil, nil, c.refused(b)
	case k != agentapi.KindOK:
		return nil, nil, c.broken(k)
	}
	if err := agentapi.Decode(b, v); err != nil {
		return nil, nil, c.lost(err)
	}
	return c, release, nil
}

// lost says that the stream ended or broke before the operation was over.
func (c *call) lost(err error) error {
	if cause := c.cause(); cause != nil {
		return fmt.Errorf("%s: %w", c.doing, cause)
	}
	if errors.Is(err, agentapi.ErrFrame) {
		return &api.Error{Code: api.GuestFailed, Msg: c.doing + ": the guest's agent does not keep to the protocol", Err: err}
	}
	e := &api.Error{Code: api.GuestLost, Msg: c.doing + ": the connection to the guest was lost"}
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, net.ErrClosed) {
		e.Err = err
	}
	return e
}

// broken says that a frame has no place here.
func (c *call) broken(k agentapi.Kind) error {
	return c.lost(fmt.Errorf("frame of kind %q: %w", byte(k), agentapi.ErrFrame))
}

// refused is what the guest says it cannot do.
func (c *call) refused(payload []byte) error {
	var g agentapi.Error
	if err := agentapi.Decode(payload, &g); err != nil {
		return c.lost(err)
	}
	g.Msg = printable.Line(g.Msg, maxText)
	code := api.GuestFailed
	switch g.Code {
	case agentapi.CodeInvalid, agentapi.CodeNoUser:
		code = api.Invalid
	case agentapi.CodeNoSpace:
		code = api.NoSpace
	case agentapi.CodeNotFound, agentapi.CodeNotExecutable:
	default:
		g.Code = agentapi.CodeFailed
	}
	return &api.Error{Code: code, Msg: c.doing, Err: &g}
}

// ask is an operation of a request and a reply. It closes the stream.
func ask(ctx context.Context, s Stream, doing string, req agentapi.Request, v any) error {
	_, stop, err := begin(ctx, s, doing, req, v)
	if err != nil {
		return err
	}
	stop()
	return s.Close()
}

// Hello asks the agent who it is, and closes the stream. An agent of another
// protocol is an error of code VersionSkew.
func Hello(ctx context.Context, s Stream) (agentapi.Hello, error) {
	return hello(ctx, s, "greeting the guest's agent", agentapi.Request{Op: agentapi.OpHello})
}

// Identify gives the guest its identity and closes the stream.
func Identify(ctx context.Context, s Stream, id agentapi.Identity) (agentapi.Hello, error) {
	return hello(ctx, s, "giving the guest its identity", agentapi.Request{Op: agentapi.OpIdentify, Identity: &id})
}

func hello(ctx context.Context, s Stream, doing string, req agentapi.Request) (agentapi.Hello, error) {
	var h agentapi.Hello
	if err := ask(ctx, s, doing, req, &h); err != nil {
		return agentapi.Hello{}, err
	}
	if h.Version != agentapi.Version {
		return agentapi.Hello{}, &api.Error{
			Code: api.VersionSkew,
			Msg:  fmt.Sprintf("the guest's agent speaks protocol %d, this banger %d", h.Version, agentapi.Version),
			Hint: "restart the VM: banger vm restart NAME",
		}
	}
	const short = 200
	h.Agent, h.Release = printable.Line(h.Agent, short), printable.Line(h.Release, short)
	h.BootID, h.Init = printable.Line(h.BootID, short), printable.Line(h.Init, short)
	return h, nil
}

// Shutdown asks the guest to end, and closes the stream. It returns when the
// shutdown has begun.
func Shutdown(ctx context.Context, s Stream, sd agentapi.Shutdown) error {
	return ask(ctx, s, "shutting the guest down", agentapi.Request{Op: agentapi.OpShutdown, Shutdown: &sd}, &struct{}{})
}

// SetClock sets the guest's clock, in nanoseconds since 1970, and closes the
// stream.
func SetClock(ctx context.Context, s Stream, unixNano int64) error {
	return ask(ctx, s, "setting the guest's clock", agentapi.Request{Op: agentapi.OpClock, UnixNano: unixNano}, &struct{}{})
}

// Watch calls news for each event of the guest, those of the past first, until
// the stream or ctx ends; it always returns an error, which says which. It
// closes the stream.
func Watch(ctx context.Context, s Stream, news func(agentapi.Event)) error {
	c, stop, err := begin(ctx, s, "watching the guest", agentapi.Request{Op: agentapi.OpWatch}, &struct{}{})
	if err != nil {
		return err
	}
	defer s.Close()
	defer stop()
	for {
		k, b, err := c.conn.Read()
		switch {
		case err != nil:
			return c.lost(err)
		case k == agentapi.KindError:
			return c.refused(b)
		case k != agentapi.KindNews:
			return c.broken(k)
		}
		var e agentapi.Event
		if err := agentapi.Decode(b, &e); err != nil {
			return c.lost(err)
		}
		e.Text, e.Uptime = printable.Line(e.Text, maxText), max(e.Uptime, 0)
		e.Type = agentapi.EventType(printable.Line(string(e.Type), 50))
		news(e)
	}
}

// Dial connects to a socket of the guest. The stream it returns is s, which
// carries the connection's bytes from then on and belongs to the caller; ctx
// has no more hold on it.
func Dial(ctx context.Context, s Stream, d agentapi.Dial) (Stream, error) {
	return raw(ctx, s, "connecting to "+d.Address+" in the guest", agentapi.Request{Op: agentapi.OpDial, Dial: &d})
}

// SSH connects to the guest's ssh server. The stream it returns is s, as from
// [Dial].
func SSH(ctx context.Context, s Stream) (Stream, error) {
	return raw(ctx, s, "connecting to the guest's ssh server", agentapi.Request{Op: agentapi.OpSSH})
}

func raw(ctx context.Context, s Stream, doing string, req agentapi.Request) (Stream, error) {
	c, stop, err := begin(ctx, s, doing, req, &struct{}{})
	if err != nil {
		return nil, err
	}
	if !stop() { // ctx ended meanwhile and has closed the stream, or is about to
		_ = s.Close()
		return nil, c.lost(net.ErrClosed)
	}
	return s, nil
}

// exactPath refuses what JSON would change.
func exactPath(doing string, paths ...string) error {
	for _, p := range paths {
		if !utf8.ValidString(p) {
			return &api.Error{Code: api.Invalid, Msg: fmt.Sprintf("%s: the path %q is not UTF-8", doing, p)}
		}
	}
	return nil
}
