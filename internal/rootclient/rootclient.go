// Package rootclient asks the root helper, in the words of package rootapi.
//
// It is apart from them so that the helper does not link it.
package rootclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"banger/internal/rootapi"
)

// A Client knows where the helper listens. The zero Client uses its usual
// socket.
type Client struct {
	Socket string
}

// VM is a running VMM and the ends that came with it, which are the caller's
// to close.
type VM struct {
	rootapi.VM
	Pidfd   *os.File
	Agent   *os.File // a listening socket
	API     *os.File // a connected socket
	Console *os.File // the reading end of a pipe
}

// Hello asks who answers, and refuses a helper of another protocol.
func (c Client) Hello(ctx context.Context) (rootapi.Version, error) {
	r, _, err := c.call(ctx, rootapi.Request{Verb: rootapi.Hello}, 0)
	if err != nil {
		return rootapi.Version{}, err
	}
	if r.Version == nil || r.Version.Protocol != rootapi.Protocol {
		return rootapi.Version{}, rootapi.Errorf(rootapi.Invalid, "the helper speaks another protocol than %d", rootapi.Protocol)
	}
	return *r.Version, nil
}

// Launch starts a VMM with the files, which stay the caller's. On an error
// nothing is left, unless it is that the answer did not come.
func (c Client) Launch(ctx context.Context, id string, l rootapi.Launch, files ...*os.File) (*VM, error) {
	return c.vm(c.call(ctx, rootapi.Request{Verb: rootapi.Start, ID: id, Launch: &l}, rootapi.VMFiles, files...))
}

// Adopt gives again what Launch gave.
func (c Client) Adopt(ctx context.Context, id string) (*VM, error) {
	return c.vm(c.call(ctx, rootapi.Request{Verb: rootapi.Adopt, ID: id}, rootapi.VMFiles))
}

// Release ends whatever there is of a VM.
func (c Client) Release(ctx context.Context, id string) error {
	_, _, err := c.call(ctx, rootapi.Request{Verb: rootapi.Release, ID: id}, 0)
	return err
}

// Policy lets a VM out of the host, or keeps it in.
func (c Client) Policy(ctx context.Context, id string, nat bool) error {
	_, _, err := c.call(ctx, rootapi.Request{Verb: rootapi.SetPolicy, ID: id, NAT: nat}, 0)
	return err
}

// Resolver routes the zone's names to a port of 127.0.0.1, or nowhere if it is 0.
func (c Client) Resolver(ctx context.Context, port uint16) error {
	_, _, err := c.call(ctx, rootapi.Request{Verb: rootapi.Resolve, Port: port}, 0)
	return err
}

// Census lists what there is of every VM. What others have done to the network
// is mended on the way; see [Client.Mend].
func (c Client) Census(ctx context.Context) ([]rootapi.Held, error) {
	r, _, err := c.call(ctx, rootapi.Request{Verb: rootapi.Census}, 0)
	return r.Held, err
}

// Mend is Census for who wants to know what was mended: after a new bridge the
// resolver must be told again.
func (c Client) Mend(ctx context.Context) ([]string, error) {
	r, _, err := c.call(ctx, rootapi.Request{Verb: rootapi.Census}, 0)
	return r.Mended, err
}

// vm takes the reply to launch and adopt.
func (c Client) vm(r rootapi.Reply, files []*os.File, err error) (*VM, error) {
	if err != nil {
		return nil, err
	}
	if r.VM == nil {
		rootapi.CloseAll(files)
		return nil, errors.New("asking the helper: the reply describes no VM")
	}
	return &VM{VM: *r.VM, Pidfd: files[rootapi.FilePidfd], Agent: files[rootapi.FileAgent],
		API: files[rootapi.FileAPI], Console: files[rootapi.FileConsole]}, nil
}

// tries are how often a request is made whose reply was lost.
const tries = 3

// call asks for one thing, which must come with want descriptors. A refusal is
// a *rootapi.Error. A helper that dies, or is replaced, before it has replied is
// asked again: all verbs but launch may be repeated.
func (c Client) call(ctx context.Context, q rootapi.Request, want int, files ...*os.File) (r rootapi.Reply, got []*os.File, err error) {
	for range tries {
		r, got, err = c.once(ctx, q, want, files...)
		if q.Verb == rootapi.Start || !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			break
		}
	}
	return r, got, err
}

// once is one try.
func (c Client) once(ctx context.Context, q rootapi.Request, want int, files ...*os.File) (rootapi.Reply, []*os.File, error) {
	socket := c.Socket
	if socket == "" {
		socket = rootapi.Socket
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixpacket", socket)
	if err != nil {
		return rootapi.Reply{}, nil, fmt.Errorf("connecting to the root helper: %w", err)
	}
	defer conn.Close()
	u := conn.(*net.UnixConn)
	defer context.AfterFunc(ctx, func() { u.SetDeadline(time.Unix(1, 0)) })()
	// A helper that refuses who connects says so and closes before it has read.
	// The sending may then fail, and the first receiving too, for the request
	// was lost; the reason is there all the same.
	sent := rootapi.Send(u, q, files...)
	var r rootapi.Reply
	got, err := rootapi.Receive(u, &r)
	if errors.Is(err, syscall.ECONNRESET) {
		got, err = rootapi.Receive(u, &r)
	}
	switch {
	case err == nil && r.Error != nil:
		err = r.Error
	case err != nil && ctx.Err() != nil:
		err = context.Cause(ctx)
	case err != nil && sent != nil:
		err = sent
	case err == nil && len(got) != want:
		err = fmt.Errorf("the reply came with %d descriptors, want %d", len(got), want)
	}
	if err != nil {
		rootapi.CloseAll(got)
		return rootapi.Reply{}, nil, fmt.Errorf("asking the root helper: %w", err)
	}
	return r, got, nil
}
