// Package agent performs what the host asks of a guest: commands, file
// transfer, connections, ssh sessions, the clock.
//
// It runs as root, chrooted into the guest's root, in a process that lives as
// long as the guest. Each operation has a stream and ends with it; a panic in
// one ends that one alone. The host is trusted, the guest's users need not be
// kept out of anything. How the guest was booted, and how streams come about,
// it does not know: see packages guestinit and mux.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/agentapi"
	"banger/internal/tartree"
)

// A Stream is one stream of a session with the host. Close ends a Read and a
// Write that are under way.
type Stream interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Config says where things are in the guest. The zero Config is right there.
type Config struct {
	// HostKey and AuthorizedKeys are files that the identity brought;
	// /run/banger/ssh/host_key and /run/banger/ssh/authorized_keys.
	HostKey, AuthorizedKeys string
	// Sshd is the image's ssh server; empty: looked for where distributions
	// have it; "-": never used.
	Sshd string
	// Cgroup is the directory below which each command gets a cgroup;
	// /sys/fs/cgroup/banger. Where its parent is no cgroup v2 there are none.
	Cgroup string
	// Grace is what a command has between SIGHUP and SIGKILL when its client
	// is gone; 2 s.
	Grace time.Duration
	// Home is where relative paths of put and get begin; /root.
	Home string
	// Log, if set, gets a line for what no client can be told.
	Log func(string)
}

// A Server serves streams. Its methods may be called concurrently.
type Server struct {
	Config
	groups *cgroups
}

// New makes a server. It touches nothing before the first stream.
func New(c Config) *Server {
	for _, d := range []struct {
		field *string
		value string
	}{
		{&c.HostKey, "/run/banger/ssh/host_key"},
		{&c.AuthorizedKeys, "/run/banger/ssh/authorized_keys"},
		{&c.Cgroup, "/sys/fs/cgroup/banger"},
		{&c.Home, "/root"},
	} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if c.Grace == 0 {
		c.Grace = 2 * time.Second
	}
	if c.Log == nil {
		c.Log = func(string) {}
	}
	return &Server{Config: c, groups: &cgroups{dir: c.Cgroup}}
}

// Serve performs req, which was read from conn, on conn's own stream, which is
// a [Stream], and returns when nothing of it uses the stream any more. It closes
// the stream. The end of ctx is the client's end. Operations that are not the
// agent's, such as hello, are refused.
func (s *Server) Serve(ctx context.Context, conn *agentapi.Conn, req agentapi.Request, stream io.ReadWriteCloser) {
	defer stream.Close()
	st, isStream := stream.(Stream)
	if !isStream {
		_ = conn.WriteJSON(agentapi.KindError, refuse(agentapi.CodeFailed, "a %T cannot be half-closed", stream))
		return
	}
	err := func() (err error) {
		defer s.recovered(&err)
		return s.dispatch(ctx, st, conn, req)
	}()
	if err == nil {
		return
	}
	if errors.Is(err, errGone) || conn.WriteJSON(agentapi.KindError, wireError(err)) != nil || st.CloseWrite() != nil {
		return
	}
	// What the client still sends is read, so that it sees the error and not a
	// broken stream; its answer to the error is to close.
	_, _ = io.Copy(io.Discard, st)
}

// errGone is the error of an operation whose client cannot be told any more.
var errGone = errors.New("the client is gone")

// dispatch performs req. An error is the client's answer.
func (s *Server) dispatch(ctx context.Context, st Stream, conn *agentapi.Conn, req agentapi.Request) error {
	switch {
	case req.Op == agentapi.OpExec && req.Exec != nil:
		return s.exec(ctx, st, conn, *req.Exec)
	case req.Op == agentapi.OpPut && req.Put != nil:
		return s.put(ctx, conn, *req.Put)
	case req.Op == agentapi.OpGet && req.Get != nil:
		return s.get(ctx, conn, *req.Get)
	case req.Op == agentapi.OpDial && req.Dial != nil:
		return s.dial(ctx, st, conn, *req.Dial)
	case req.Op == agentapi.OpSSH:
		return s.ssh(ctx, st, conn)
	case req.Op == agentapi.OpClock:
		return setClock(conn, req.UnixNano)
	}
	return refuse(agentapi.CodeInvalid, "the agent has no operation %q, or it lacks its arguments", req.Op)
}

// recovered, deferred, turns a panic into an error of its operation.
func (s *Server) recovered(err *error) {
	if r := recover(); r != nil {
		s.Log(fmt.Sprintf("panic: %v\n%s", r, debug.Stack()))
		*err = refuse(agentapi.CodeFailed, "a bug in the agent ended this operation: %v", r)
	}
}

// guarded is f, which may panic without harm to other operations.
func (s *Server) guarded(f func()) func() {
	return func() {
		var err error
		defer s.recovered(&err)
		f()
	}
}

func setClock(conn *agentapi.Conn, unixNano int64) error {
	ts := unix.NsecToTimespec(unixNano)
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("setting the clock: %w", err)
	}
	return ok(conn, struct{}{})
}

// ok answers that an operation goes on, or is done.
func ok(conn *agentapi.Conn, reply any) error {
	if err := conn.WriteJSON(agentapi.KindOK, reply); err != nil {
		return errGone
	}
	return nil
}

// refuse is an answer with a code.
func refuse(code agentapi.ErrorCode, format string, args ...any) *agentapi.Error {
	return &agentapi.Error{Code: code, Msg: fmt.Sprintf(format, args...)}
}

// wireError gives any error a code.
func wireError(err error) *agentapi.Error {
	if e, ok := errors.AsType[*agentapi.Error](err); ok {
		return e
	}
	code := agentapi.CodeFailed
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		code = agentapi.CodeNoSpace
	case errors.Is(err, fs.ErrNotExist):
		code = agentapi.CodeNotFound
	case errors.Is(err, tartree.ErrUnsafe), errors.Is(err, tartree.ErrLimit),
		errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR):
		code = agentapi.CodeInvalid
	}
	return refuse(code, "%s", err)
}

// at makes a path absolute, as seen from the home directory.
func (s *Server) at(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(s.Home, path)
}
