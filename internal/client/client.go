// Package client is the Go client of the owner daemon.
//
// It dials the daemon's socket, starts the daemon first if it may and must,
// and has one method for each route of package api. It holds no state: what it
// knows of VMs, images and kernels is what the daemon just said.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"banger/internal/api"
	"banger/internal/paths"
	"banger/internal/unixsock"
)

// ErrNotRunning is in the chain of the error that [Connect] gives when no
// daemon answers and it was not asked to start one.
var ErrNotRunning = errors.New("no daemon answers")

// maxReply is the longest JSON reply or event line that is accepted. A list of
// a thousand VMs takes about 600 KiB.
const maxReply = 16 << 20

// helloLimit is how long a daemon may take to say who it is. Its first answer
// after a restart of the host comes with a look at KVM, of a few seconds.
const helloLimit = 30 * time.Second

// Options say which daemon to talk to. Only Layout is required.
type Options struct {
	Layout paths.Layout
	// DaemonPath is the program to start; "bangerd" beside the running
	// executable if empty.
	DaemonPath string
	// Start makes Connect start a daemon if none answers. In system mode, where
	// systemd does, it makes Connect wait for one that is being started.
	Start bool
	// Env is the environment of a daemon that is started; what a daemon needs of
	// ours if nil. It must lead to Layout.
	Env []string
	// AnyVersion accepts a daemon that speaks another protocol, whose only
	// useful methods are then Hello and Shutdown.
	AnyVersion bool
}

// A Client talks to one daemon. It is safe for concurrent use.
type Client struct {
	http  *http.Client
	hello api.Hello
}

// Connect dials the daemon and asks who it is. With Start it first starts one
// if none answers; however many processes do so at once, one daemon is
// started. A daemon of another protocol is an [api.VersionSkew] error.
func Connect(ctx context.Context, o Options) (*Client, error) {
	c := newClient(o.Layout.Socket)
	err := c.greet(ctx)
	switch {
	case !notRunning(err) || !o.Start:
	case o.Layout.System:
		err = c.coming(ctx, o.Layout, unitState)
	default:
		if err := start(ctx, o, c); err != nil {
			c.Close()
			return nil, err
		}
		err = c.greet(ctx)
	}
	switch {
	case err == nil:
	case notRunning(err):
		err = absent(o.Layout)
	default:
		err = fmt.Errorf("asking the daemon at %s who it is: %w", o.Layout.Socket, err)
	}
	if err == nil && c.hello.Protocol != api.Protocol && !o.AnyVersion {
		err = skew(c.hello, o.Layout.System)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// absent is the error where no daemon answers.
func absent(l paths.Layout) error {
	e := &api.Error{Code: api.NotFound, Msg: "the daemon is not running", Hint: "any command that needs it starts it, such as: banger vm list", Err: ErrNotRunning}
	if l.System {
		e.Msg, e.Hint = "bangerd.service does not answer at "+l.Socket, "sudo banger system restart; what is wrong: banger system status"
	}
	return e
}

func skew(h api.Hello, system bool) error {
	hint := "running VMs go on when you type: banger daemon restart"
	if system {
		hint = "running VMs go on when you type: sudo banger system install"
	}
	return &api.Error{
		Code: api.VersionSkew,
		Msg:  fmt.Sprintf("the running daemon (version %s) speaks protocol %d, this banger speaks %d", h.Version, h.Protocol, api.Protocol),
		Hint: hint,
	}
}

func newClient(socket string) *Client {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return unixsock.Dial(ctx, socket)
		},
		DisableCompression: true,
		// A refusal must be heard although a body is still being sent.
		WriteBufferSize: 64 << 10,
	}
	return &Client{http: &http.Client{Transport: t}}
}

// Close lets go of idle connections. Requests under way go on.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Greeting is what the daemon said of itself when Connect asked.
func (c *Client) Greeting() api.Hello { return c.hello }

// greet asks the daemon who it is; an error for which notRunning is true means
// that there is none.
func (c *Client) greet(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, helloLimit, &api.Error{
		Code: api.Timeout, Msg: fmt.Sprintf("the daemon did not say who it is within %v", helloLimit), Hint: "see what it does with: banger daemon logs",
	})
	defer cancel()
	c.hello, err = c.Hello(ctx)
	if err != nil && ended(err) {
		return fmt.Errorf("%w: %w", syscall.ECONNREFUSED, err)
	}
	return err
}

// notRunning reports whether err says that nobody listens.
func notRunning(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT)
}

// ended reports whether err says that who listened has stopped doing so, with
// our connection in its queue.
func ended(err error) bool {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return true
	}
	// net/http keeps to itself the error of a connection that ended before the
	// request was written; its text is all that there is.
	e, ok := errors.AsType[*url.Error](err)
	return ok && strings.Contains(e.Err.Error(), "server closed idle connection")
}

// send makes a request and returns its reply, whose body the caller closes.
// What the daemon refuses is an *api.Error.
func (c *Client) send(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	if err := named(path); err != nil {
		return nil, err
	}
	if body != nil {
		body = interruptible(ctx, body)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://banger/v1"+path, body)
	if err != nil {
		return nil, fmt.Errorf("making a request: %w", err)
	}
	req.Header.Set(api.ProtocolHeader, strconv.Itoa(api.Protocol))
	res, err := c.http.Do(req)
	if err != nil {
		return nil, lost(ctx, err)
	}
	if res.StatusCode < 300 {
		return res, nil
	}
	defer res.Body.Close()
	e := &api.Error{}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxReply))
	if err != nil || json.Unmarshal(b, e) != nil || e.Code == "" {
		return nil, &api.Error{Code: api.Internal, Msg: fmt.Sprintf("the daemon answered %s to %s %s", res.Status, method, path)}
	}
	return nil, e
}

// named refuses a path whose name is nothing, or would be taken for a step of
// the path.
func named(path string) error {
	for prefix, noun := range map[string]string{"/machines/": "VM", "/images/": "image", "/kernels/": "kernel"} {
		rest, ok := strings.CutPrefix(path, prefix)
		if name, _, _ := strings.Cut(rest, "/"); ok && strings.Trim(name, ".") == "" {
			return &api.Error{Code: api.NotFound, Msg: fmt.Sprintf("no %s %q", noun, name), Hint: "list them with: banger " + strings.ToLower(noun) + " list"}
		}
	}
	return nil
}

// interruptible makes reads from a body end with ctx, even one that blocks on a
// terminal; the transport would wait for it. What is left of it ends with ctx.
func interruptible(ctx context.Context, body io.Reader) io.Reader {
	if _, ok := body.(*bytes.Reader); ok {
		return body // a request of ours, in memory
	}
	r, w := io.Pipe()
	context.AfterFunc(ctx, func() { r.CloseWithError(context.Cause(ctx)) })
	go func() {
		_, err := io.CopyBuffer(w, struct{ io.Reader }{body}, make([]byte, 64<<10))
		w.CloseWithError(err) // nil is io.EOF
	}()
	return r
}

// lost says what a connection that broke means to the user.
func lost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	switch {
	case notRunning(err):
		return &api.Error{Code: api.NotFound, Msg: "the daemon is not running", Err: err}
	case errors.Is(err, fs.ErrPermission):
		return &api.Error{Code: api.Denied, Msg: "the daemon's socket is not ours", Hint: "look whose it is; another place for it: set XDG_RUNTIME_DIR to a directory of yours", Err: err}
	}
	return &api.Error{Code: api.Internal, Msg: "talking to the daemon", Hint: "see why with: banger daemon logs", Err: err}
}

// call sends in, unless it is nil, as JSON and decodes the reply into out,
// unless that is nil.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	body, err := encode(in)
	if err != nil {
		return err
	}
	res, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxReply)).Decode(out); err != nil {
		return lost(ctx, fmt.Errorf("reading the reply to %s %s: %w", method, path, err))
	}
	return nil
}

// encode gives the body of a request; nil stays nil.
func encode(in any) (io.Reader, error) {
	if in == nil {
		return nil, nil
	}
	b, err := json.Marshal(in)
	if err != nil {
		return nil, fmt.Errorf("encoding a request: %w", err)
	}
	return bytes.NewReader(b), nil
}
