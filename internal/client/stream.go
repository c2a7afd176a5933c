package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"banger/internal/api"
)

// A BuildFunc writes the root tar that a pull asked for to w. It returns when
// the tar is complete, or with an error, which ends the pull: the daemon then
// keeps nothing of it, and lets somebody else build who waits. Its ctx ends
// with the pull. It may run while events are delivered.
type BuildFunc func(ctx context.Context, w io.Writer) error

// stream makes a request that is answered by events and returns the result.
// The body is a reader, or a value to send as JSON.
func (c *Client) stream(ctx context.Context, method, path string, in any, on func(api.Event) error) (api.Event, error) {
	body, ok := in.(io.Reader)
	if !ok {
		var err error
		if body, err = encode(in); err != nil {
			return api.Event{}, err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	res, err := c.send(ctx, method, path, body)
	if err != nil {
		return api.Event{}, err
	}
	defer res.Body.Close()
	ev, err := events(res.Body, func(ev api.Event) error {
		if on == nil {
			return nil
		}
		if err := on(ev); err != nil {
			cancel(err)
			return err
		}
		return nil
	})
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return ev, err
}

// errCut is a stream that ended without a result: the daemon died.
var errCut = &api.Error{Code: api.Internal, Msg: "the daemon ended in the middle of the request", Hint: "see why with: banger daemon logs"}

// events hands each event but the last to on, and returns the result.
func events(r io.Reader, on func(api.Event) error) (api.Event, error) {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 4<<10), maxReply)
	for sc.Scan() {
		if len(bytes.TrimSpace(sc.Bytes())) == 0 {
			continue // keeps a connection alive
		}
		var ev api.Event
		if err := json.Unmarshal(sc.Bytes(), &ev); err != nil {
			return api.Event{}, fmt.Errorf("reading an event: %w", err)
		}
		switch {
		case ev.Type == api.EventResult:
			return ev, nil
		case ev.Type == api.EventError && ev.Error != nil:
			return ev, ev.Error
		}
		if err := on(ev); err != nil {
			return api.Event{}, err
		}
	}
	return api.Event{}, errCut
}

// pull asks for an image or kernel, builds it if told to, and returns the
// result event.
func (c *Client) pull(ctx context.Context, path string, req api.PullRequest, build BuildFunc, on func(api.Event) error) (api.Event, error) {
	// The pull is the claim: a build that fails ends it, so that the daemon
	// does not wait for a tar that will never come.
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	building := make(chan struct{})
	started := false
	var broke error // what the build did wrong, once building is closed
	ev, err := c.stream(ctx, http.MethodPost, path+"/pull", req, func(ev api.Event) error {
		if ev.Type == api.EventBuild && ev.Build != nil && !started {
			started = true
			go func() {
				defer close(building)
				if broke = c.build(ctx, path+"/build/"+url.PathEscape(ev.Build.Ticket), build); broke != nil {
					fail(broke)
				}
			}()
		}
		if on == nil {
			return nil
		}
		return on(ev)
	})
	fail(err) // a refusal or result ends a build that still runs
	if started {
		<-building
	}
	// The daemon may be quicker to say that the build was cut off than we are to
	// say why. A build that was ended by us has nothing to say.
	if err != nil && broke != nil && !errors.Is(broke, context.Canceled) {
		return ev, broke
	}
	return ev, err
}

// build runs f and sends what it writes. It reports only what f itself did
// wrong: a refusal of the daemon is told by the stream of the pull.
func (c *Client) build(ctx context.Context, path string, f BuildFunc) error {
	if f == nil {
		return &api.Error{Code: api.Unsupported, Msg: "this pull would have to build, and cannot"}
	}
	r, w := io.Pipe()
	made := make(chan error, 1)
	go func() {
		err := f(ctx, w)
		w.CloseWithError(err) // nil is io.EOF: the tar is whole
		made <- err
	}()
	res, err := c.send(ctx, http.MethodPut, path, r)
	if err == nil {
		err = res.Body.Close()
	}
	// Whatever f is told from here on is a consequence.
	r.CloseWithError(io.ErrClosedPipe)
	if cause := <-made; cause != nil && errors.Is(err, cause) {
		return cause
	}
	return nil
}

func machineOf(ev api.Event, err error) (api.Machine, error) {
	if err == nil && ev.Machine == nil {
		err = errCut
	}
	if err != nil {
		return api.Machine{}, err
	}
	return *ev.Machine, nil
}

func imageOf(ev api.Event, err error) (api.Image, error) {
	if err == nil && ev.Image == nil {
		err = errCut
	}
	if err != nil {
		return api.Image{}, err
	}
	return *ev.Image, nil
}

func kernelOf(ev api.Event, err error) (api.Kernel, error) {
	if err == nil && ev.Kernel == nil {
		err = errCut
	}
	if err != nil {
		return api.Kernel{}, err
	}
	return *ev.Kernel, nil
}
