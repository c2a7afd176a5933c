package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"banger/internal/api"
)

// startLockName is the file in the runtime directory that those lock who start
// a daemon.
const startLockName = "start.lock"

// startLimit bounds the wait for a starting daemon. It opens its state file
// and listens, some 30 ms; a predecessor that is ending has 20 s to do so.
const startLimit = 40 * time.Second

// start makes sure that a daemon listens. A lock lets one process at a time
// do so; the others find the daemon running when it is their turn.
func start(ctx context.Context, o Options, c *Client) error {
	if err := o.Layout.Make(); err != nil {
		return err
	}
	unlock, err := lock(ctx, filepath.Join(o.Layout.Runtime, startLockName))
	if err != nil {
		return fmt.Errorf("waiting for another banger that starts the daemon: %w", err)
	}
	defer unlock()
	if err := c.greet(ctx); !notRunning(err) {
		return nil // Connect asks again and tells what is wrong, if anything is
	}
	err = spawn(ctx, o)
	if err != nil && api.CodeOf(err) == api.Conflict && !notRunning(c.greet(ctx)) {
		return nil // somebody started one by hand just now
	}
	return err
}

// spawn starts a daemon that outlives this process, and waits for its word.
func spawn(ctx context.Context, o Options) error {
	program, err := daemonPath(o.DaemonPath)
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("starting the daemon: %w", err)
	}
	defer r.Close()
	// What the Go runtime prints when it dies belongs in the log.
	log, err := os.OpenFile(o.Layout.Log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		w.Close()
		return fmt.Errorf("starting the daemon: opening its log: %w", err)
	}
	defer log.Close()
	// The daemon must outlive ctx, which the command would otherwise be bound to.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), program, "--ready-fd", strconv.Itoa(api.ReadyFD))
	cmd.Dir = "/"
	if cmd.Env = o.Env; cmd.Env == nil {
		cmd.Env = environment(os.Environ())
	}
	cmd.Stderr = log
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return &api.Error{Code: api.Missing, Msg: "starting the daemon", Hint: "is banger installed whole? bangerd belongs beside it", Err: err}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, &api.Error{
		Code: api.Timeout, Msg: fmt.Sprintf("the daemon did not become ready within %v", startLimit), Hint: "see why with: banger daemon logs",
	})
	defer cancel()
	if err := awaitReady(ctx, r); err != nil {
		// It said why, or died, or is no use: either way it must not stay.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return err
	}
	return cmd.Process.Release()
}

// environment is what a daemon gets of ours: where things are, and how Go and
// tests steer a process. The rest may hold secrets of one command, which a daemon
// would keep for weeks.
func environment(ours []string) []string {
	prefixes := []string{"XDG_", "LC_", "BANGER_"}
	names := []string{"HOME", "USER", "LOGNAME", "PATH", "TMPDIR", "TZ", "LANG", "GOCOVERDIR", "GODEBUG", "GOTRACEBACK", "GOMAXPROCS", "GOMEMLIMIT", "GOGC"}
	return slices.DeleteFunc(ours, func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return !slices.Contains(names, name) && !slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
	})
}

// awaitReady reads the daemon's one line from r.
func awaitReady(ctx context.Context, r *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Now()) })
	defer stop()
	line, err := bufio.NewReader(r).ReadBytes('\n')
	switch e := (&api.Error{}); {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return &api.Error{Code: api.Internal, Msg: "the daemon ended before it was ready", Hint: "see why with: banger daemon logs"}
	case string(line) == api.ReadyLine+"\n":
		return nil
	case json.Unmarshal(line, e) == nil && e.Code != "":
		return e
	}
	return &api.Error{Code: api.VersionSkew, Msg: fmt.Sprintf("the daemon said %.80q when it started", line), Hint: "banger and bangerd must come from the same build"}
}

// daemonPath is the program to start.
func daemonPath(path string) (string, error) {
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("looking for bangerd: %w", err)
		}
		path = filepath.Join(filepath.Dir(self), "bangerd")
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return "", &api.Error{Code: api.Missing, Msg: fmt.Sprintf("there is no %s", path), Hint: "bangerd belongs beside banger: build or install both"}
	}
	return path, nil
}

// lock takes an exclusive lock on the file at path, which it makes.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	taken := make(chan error, 1)
	// flock cannot be told to stop. If ctx ends first, the goroutine gives the
	// lock back as soon as it has it.
	go func() {
		for {
			err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
			if !errors.Is(err, syscall.EINTR) {
				taken <- err
				return
			}
		}
	}()
	select {
	case err := <-taken:
		if err != nil {
			f.Close()
			return nil, err
		}
		return func() { f.Close() }, nil
	case <-ctx.Done():
		go func() { <-taken; f.Close() }()
		return nil, context.Cause(ctx)
	}
}
