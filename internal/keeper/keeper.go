// Package keeper keeps a companion at each VM: it starts one, watches it and the
// VMM, starts another when it is lost, and finds all of them again.
//
// What is common to the hosts is here. How a VMM is started, looked at and ended
// is the host's, which says so as [VMMs]. There is a directory for each VM, named
// by its id, and no other state: what is not in it can be read from /proc.
package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/host"
	"banger/internal/procid"
	"banger/internal/unixsock"
)

// VMMs are a host's VMMs: processes of our own, or of somebody who is asked.
type VMMs interface {
	// Open takes hold of a recorded VMM; procid.ErrDead if it has ended.
	Open(ctx context.Context, r host.Record) (*procid.Process, error)
	// Ends returns what a companion must inherit to take over a VMM that runs.
	Ends(ctx context.Context, r host.Record) ([]*os.File, error)
	// End ends whatever there is of a VMM, of which perhaps only the id is known,
	// and returns when it is gone. It is idempotent.
	End(ctx context.Context, r host.Record) error
	// Why says why a VMM has ended, if that is known though no companion saw it.
	Why(ctx context.Context, r host.Record) string
	// Census are the pids, 0 for none, of VMs that /proc does not show to be ours.
	Census(ctx context.Context) (map[string]int, error)
}

// Config configures a [Keeper]. RunDir, CompanionPath and VMMs are required.
type Config struct {
	RunDir        string // holds one directory per VM; at most [MaxRunDir] bytes
	CompanionPath string
	VMMs          VMMs
	// UIDs are those that a VM's processes may have besides our own.
	UIDs func(id string) []int
	Env  []string     // added to the companions' environment
	Log  *slog.Logger // discarded if nil
}

// MaxRunDir is the longest RunDir: the sockets' paths below it must fit.
const MaxRunDir = unixsock.MaxPath - len("/0123456789ab/") - len(companionapi.SocketName)

// A Keeper keeps companions.
type Keeper struct {
	cfg Config
	log *slog.Logger

	mu   sync.Mutex
	runs map[string]*run // by id
}

// New checks the config and makes RunDir.
func New(c Config) (*Keeper, error) {
	if len(c.RunDir) > MaxRunDir {
		return nil, &api.Error{Code: api.Invalid,
			Msg:  fmt.Sprintf("using %s for sockets: the path has %d bytes, at most %d fit", c.RunDir, len(c.RunDir), MaxRunDir),
			Hint: "set XDG_RUNTIME_DIR to a directory with a short path"}
	}
	if err := unixsock.Dir(c.RunDir); err != nil {
		return nil, err
	}
	k := &Keeper{cfg: c, log: c.Log, runs: map[string]*run{}}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	return k, nil
}

var idPattern = regexp.MustCompile(`^[0-9a-f]{12}$`)

// Dir is the runtime directory of id, or an error if id is none.
func (k *Keeper) Dir(id string) (string, error) {
	if !idPattern.MatchString(id) {
		return "", &api.Error{Code: api.Invalid, Msg: fmt.Sprintf("%q is not a VM's id", id)}
	}
	return filepath.Join(k.cfg.RunDir, id), nil
}

// Make makes the runtime directory of id, which must not be there.
func (k *Keeper) Make(id string) error {
	dir, err := k.Dir(id)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		if errors.Is(err, os.ErrExist) {
			return &api.Error{Code: api.Conflict, Msg: "starting the VMM: there is something of this VM already in " + dir}
		}
		return fmt.Errorf("making runtime directory: %w", err)
	}
	return nil
}

// Close lets go of all VMs, which run on.
func (k *Keeper) Close() error {
	k.mu.Lock()
	runs := k.runs
	k.runs = map[string]*run{}
	k.mu.Unlock()
	var errs []error
	for _, r := range runs {
		r.leave()
		errs = append(errs, r.process.Close())
	}
	return errors.Join(errs...)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
