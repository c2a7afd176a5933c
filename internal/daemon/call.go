package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"banger/internal/api"
	"banger/internal/unixsock"
)

const (
	// maxBody is the longest JSON request. The longest field of one is a path.
	maxBody = 1 << 20
	// patience is how long a client may take to send a JSON request, or to read
	// what it was sent.
	patience = 30 * time.Second
	// requestHeader tells the client under which id the log knows its request.
	requestHeader = "Banger-Request"
)

// A call is one request.
type call struct {
	w   http.ResponseWriter
	r   *http.Request
	ctl *http.ResponseController
	log *slog.Logger

	answered bool    // the status has been sent
	events   *stream // of an answer in events
}

type peerKey struct{}

// peer is who is at the other end of a connection, asked once when it came.
type peer struct {
	cred unixsock.Cred
	err  error
}

func withPeer(ctx context.Context, c net.Conn) context.Context {
	p := peer{err: fmt.Errorf("%T is no unix socket", c)}
	if u, ok := c.(*net.UnixConn); ok {
		p.cred, p.err = unixsock.Peer(u)
	}
	return context.WithValue(ctx, peerKey{}, p)
}

// handler serves the table of routes.
func (d *Daemon) handler() http.Handler {
	mux := http.NewServeMux()
	for _, rt := range routes() {
		mux.HandleFunc(rt.method+" "+rt.path, func(w http.ResponseWriter, r *http.Request) { d.answer(rt, w, r) })
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { d.answer(route{access: owner, serve: noRoute}, w, r) })
	return mux
}

func noRoute(_ *Daemon, c *call) error {
	return &api.Error{Code: api.NotFound, Msg: fmt.Sprintf("there is no %s %s", c.r.Method, c.r.URL.Path)}
}

// answer checks who asks, serves the request, and logs it.
func (d *Daemon) answer(rt route, w http.ResponseWriter, r *http.Request) {
	begun := time.Now()
	id := rand.Text()[:10]
	c := &call{w: w, r: r, ctl: http.NewResponseController(w), log: d.log.With("request", id)}
	w.Header().Set(requestHeader, id)
	err := c.admit(rt)
	if err == nil {
		err = d.guarded(rt, c)
	}
	// Nobody may be left to read it; the log has it all the same.
	_ = c.finish(err)
	level := slog.LevelInfo
	if r.Method == http.MethodGet {
		level = slog.LevelDebug
	}
	if !rt.anyVersion { // each client says hello first
		d.look()
	}
	attrs := []any{"method", r.Method, "path", r.URL.Path, "took", time.Since(begun).Round(time.Microsecond)}
	if err != nil {
		level = slog.LevelWarn
		attrs = append(attrs, "code", api.CodeOf(err), "err", err)
	}
	c.log.Log(r.Context(), level, "request", attrs...)
}

// admit checks who is at the other end and what it speaks.
func (c *call) admit(rt route) error {
	p, ok := c.r.Context().Value(peerKey{}).(peer)
	switch {
	case !ok || p.err != nil:
		return &api.Error{Code: api.Denied, Msg: "it is not known who asks", Err: p.err}
	case rt.access != owner || !unixsock.Trusted(p.cred):
		return &api.Error{Code: api.Denied, Msg: fmt.Sprintf("this daemon does not serve uid %d", p.cred.UID)}
	}
	// A program that does not say, such as curl, knows what it does.
	if v := c.r.Header.Get(api.ProtocolHeader); v != "" && v != strconv.Itoa(api.Protocol) && !rt.anyVersion {
		return &api.Error{
			Code: api.VersionSkew, Msg: fmt.Sprintf("the daemon speaks protocol %d, the client %.10q", api.Protocol, v),
			Hint: "running VMs go on when you type: banger daemon restart",
		}
	}
	return nil
}

// guarded serves a request; a panic ends that request only.
func (d *Daemon) guarded(rt route, c *call) (err error) {
	defer func() {
		if p := recover(); p != nil {
			c.log.Error("a request panicked", "panic", p, "stack", string(debug.Stack()))
			err = &api.Error{Code: api.Internal, Msg: fmt.Sprintf("the daemon met a bug: %v", p), Hint: "what happened is in: banger daemon logs"}
		}
	}()
	return rt.serve(d, c)
}

// finish sends err, if there is one, and what is left of the events.
func (c *call) finish(err error) error {
	if cause := context.Cause(c.r.Context()); err != nil && errors.Is(cause, errEnding) {
		err = errEnding
	}
	if c.events != nil && c.events.begun() {
		if err != nil {
			c.events.emit(api.Event{Type: api.EventError, Error: api.AsError(err)})
		}
		return c.events.close()
	}
	if err != nil && !c.answered {
		e := api.AsError(err)
		return c.send(statusOf(e.Code), e)
	}
	return nil
}

// statusOf maps codes to HTTP, for those who look at the status only.
func statusOf(code api.Code) int {
	switch code {
	case api.Invalid:
		return http.StatusBadRequest
	case api.Denied:
		return http.StatusForbidden
	case api.NotFound:
		return http.StatusNotFound
	case api.Ambiguous, api.Exists, api.Conflict:
		return http.StatusConflict
	case api.VersionSkew:
		return http.StatusUpgradeRequired
	case api.Timeout:
		return http.StatusGatewayTimeout
	case api.NoSpace:
		return http.StatusInsufficientStorage
	case api.Unsupported:
		return http.StatusNotImplemented
	case api.Interrupted:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// json answers with v.
func (c *call) json(v any, err error) error {
	if err != nil {
		return err
	}
	return c.send(http.StatusOK, v)
}

func (c *call) send(status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding an answer: %w", err)
	}
	c.answered = true
	c.hurry()
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(status)
	_, err = c.w.Write(append(b, '\n'))
	return err
}

// empty answers that all is well.
func (c *call) empty() error {
	c.answered = true
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

// hurry gives the client so long to read the next piece.
func (c *call) hurry() {
	// The connection of a server always has deadlines; one that has broken
	// shows in the write.
	_ = c.ctl.SetWriteDeadline(time.Now().Add(patience))
}

// Write sends a piece of an answer that is not JSON.
func (c *call) Write(p []byte) (int, error) {
	c.answered = true
	c.hurry()
	return c.w.Write(p)
}

// decode reads the body, which is one JSON object with known fields, or empty.
func (c *call) decode(v any) error {
	if err := c.ctl.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return fmt.Errorf("reading a request: %w", err)
	}
	b, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, maxBody))
	// Without a deadline again: from here on a read waits for the client to go.
	if derr := c.ctl.SetReadDeadline(time.Time{}); err == nil {
		err = derr
	}
	if err != nil {
		if tooLong, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return &api.Error{Code: api.Invalid, Msg: fmt.Sprintf("the request has more than %d bytes", tooLong.Limit)}
		}
		return &api.Error{Code: api.Invalid, Msg: "reading the request", Err: err}
	}
	if len(b) == 0 {
		return nil
	}
	return strict(b, v)
}

// strict decodes one JSON value and refuses unknown fields and what follows.
func strict(b []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	if err == nil {
		if _, more := dec.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows the object")
		}
	}
	if err != nil {
		return &api.Error{Code: api.Invalid, Msg: "the request is not what was expected", Err: err}
	}
	return nil
}
