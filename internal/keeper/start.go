package keeper

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/crash"
)

// inherited are the variables that companions get; daemon and shell may have
// others that are nobody's business.
var inherited = [...]string{"PATH", "TMPDIR", "LANG", "GOCOVERDIR", crash.Env}

// Start starts a companion, with files as its descriptors from
// companionapi.FilesFD on, and returns when it holds a running VMM. On an error
// the companion has ended or ends by itself: its pipes are closed. It does not
// end with ctx once it has started well.
func (k *Keeper) Start(ctx context.Context, c companionapi.Config, files []*os.File) (companionapi.Started, error) {
	var none companionapi.Started
	configR, configW, err := os.Pipe()
	if err != nil {
		return none, fmt.Errorf("starting companion: %w", err)
	}
	defer configW.Close()
	startedR, startedW, err := os.Pipe()
	if err != nil {
		configR.Close()
		return none, fmt.Errorf("starting companion: %w", err)
	}
	defer startedR.Close()
	err = k.exec(ctx, c, append([]*os.File{configR, startedW}, files...))
	configR.Close()
	startedW.Close()
	if err != nil {
		return none, err
	}
	crash.Point("launch.companion-started")
	// A write or read that waits is ended by a deadline, never by a close that
	// another descriptor of the same number could suffer from.
	stop := context.AfterFunc(ctx, func() {
		now := time.Now()
		_ = errors.Join(configW.SetDeadline(now), startedR.SetDeadline(now)) // pipes have deadlines
	})
	defer stop()
	if err := json.NewEncoder(configW).Encode(c); err != nil {
		return none, k.lost(ctx, c.Dir, err)
	}
	configW.Close()
	crash.Point("launch.config-sent")
	line, err := bufio.NewReader(io.LimitReader(startedR, companionapi.MaxLine)).ReadBytes('\n')
	if err != nil {
		return none, k.lost(ctx, c.Dir, err)
	}
	var s companionapi.Started
	if err := json.Unmarshal(line, &s); err != nil {
		return none, fmt.Errorf("starting companion: reading its answer: %w", err)
	}
	if s.Error != nil {
		return none, s.Error
	}
	return s, nil
}

// exec starts the process, in a session of its own, with fds as its descriptors
// from 3 on, and reaps it whenever it ends.
func (k *Keeper) exec(ctx context.Context, c companionapi.Config, fds []*os.File) error {
	log, err := os.OpenFile(filepath.Join(c.Dir, companionapi.LogName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("starting companion: %w", err)
	}
	defer log.Close()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), k.cfg.CompanionPath, "banger-"+c.ID)
	cmd.Dir, cmd.Stderr, cmd.ExtraFiles = "/", log, fds
	cmd.Env = append([]string{companionapi.DirEnv + "=" + c.Dir}, k.cfg.Env...)
	for _, name := range inherited {
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return &api.Error{Code: api.Missing, Msg: "starting companion: " + k.cfg.CompanionPath + " is not there",
				Hint: "build all binaries into one directory: make build"}
		}
		return fmt.Errorf("starting companion: %w", err)
	}
	go func() { _ = cmd.Wait() }() // how it ended is told by what it left
	return nil
}

// lost is the error of a companion that ended before it answered, or of a ctx
// that ended first.
func (k *Keeper) lost(ctx context.Context, dir string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	const last = 2 << 10
	detail := ""
	if f, err := os.Open(filepath.Join(dir, companionapi.LogName)); err == nil {
		defer f.Close()
		if st, err := f.Stat(); err == nil {
			b := make([]byte, min(last, st.Size()))
			if n, err := f.ReadAt(b, max(0, st.Size()-last)); err == nil {
				detail = string(b[:n])
			}
		}
	}
	return &api.Error{Code: api.Internal, Msg: "starting companion: it ended at once", Detail: detail, Err: err}
}
