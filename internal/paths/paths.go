// Package paths says where banger's state, cache and runtime files live, by
// the XDG base directory rules.
//
// Two users, or one user with two sets of XDG directories, never meet: the
// runtime directory carries a hash of the state directory. It knows the names
// of what lies below, and nothing of their content.
package paths

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"banger/internal/api"
	"banger/internal/atomicfile"
)

const (
	// maxSocket is the longest path of a unix socket: sun_path has 108 bytes,
	// one of them the NUL (unix(7)).
	maxSocket = 107
	// longestSocket is the longest name of a socket below the runtime directory.
	longestSocket = "/vm/0123456789ab/companion.sock"
	// pointerName is the file in the state directory that says where the
	// runtime directory of this state was last: a session with another
	// environment (cron, su) must find the same daemon.
	pointerName = "runtime"
)

// A Layout is where things are; all paths are absolute.
type Layout struct {
	State   string // what must not be lost
	Cache   string // what can be made again
	Runtime string // sockets; gone after a restart of the host
	Config  string // directory of the configuration

	ConfigFile string
	Socket     string // the owner daemon's
	Lock       string // held by the owner daemon while it runs
	Log        string // the owner daemon's
	DB         string // the state file
	VMs        string // a directory per VM: disk, console, vm.json
	VMRun      string // a runtime directory per VM, by id
	Images     string
	Kernels    string
	SSH        string // directory of the following two
	Key        string // the user's private key for VMs
	KnownHosts string
	Initramfs  string
	Downloads  string // downloaded files, named by their sha256

	// System is set if `banger system install` made the directories: what starts
	// the daemon is then systemd.
	System bool

	uid int
}

// FromEnv finds the layout of a user: getenv is os.Getenv, uid is the
// effective one, home is the home directory. It creates nothing.
func FromEnv(getenv func(string) string, uid int, home string) (Layout, error) {
	return roots{runUser: "/run/user", tmp: "/tmp"}.layout(getenv, uid, home)
}

// roots are where runtime directories may be; tests have their own.
type roots struct{ runUser, tmp string }

func (r roots) layout(getenv func(string) string, uid int, home string) (Layout, error) {
	if !filepath.IsAbs(home) {
		return Layout{}, &api.Error{Code: api.Invalid, Msg: "finding the home directory: HOME is not an absolute path", Hint: "export HOME=/home/NAME"}
	}
	// The specification wants relative paths ignored.
	base := func(variable, fallback string) string {
		if dir := getenv(variable); filepath.IsAbs(dir) {
			return filepath.Join(dir, "banger")
		}
		return filepath.Join(home, fallback, "banger")
	}
	l := Layout{
		State:  base("XDG_STATE_HOME", ".local/state"),
		Cache:  base("XDG_CACHE_HOME", ".cache"),
		Config: base("XDG_CONFIG_HOME", ".config"),
		uid:    uid,
	}
	l.Runtime = r.runtime(l.State, getenv("XDG_RUNTIME_DIR"), uid)
	l.name()
	return l, nil
}

// System is the layout of system mode, for a daemon or a client that runs as
// the owner. Its configuration is the owner's own, below home.
func System(getenv func(string) string, uid int, home string) (Layout, error) {
	l, err := FromEnv(getenv, uid, home)
	if err != nil {
		return Layout{}, err
	}
	l.State, l.Cache, l.Runtime = "/var/lib/banger", "/var/cache/banger", "/run/banger"
	l.System = true
	key := l.Key
	l.name()
	l.Key = key // the user's; install and uninstall leave it alone
	l.Socket = filepath.Join(l.Runtime, "bangerd.sock")
	return l, nil
}

// name fills in what follows from the four directories.
func (l *Layout) name() {
	l.ConfigFile = filepath.Join(l.Config, "config.toml")
	l.Socket = filepath.Join(l.Runtime, "daemon.sock")
	l.Lock = filepath.Join(l.State, "daemon.lock")
	l.Log = filepath.Join(l.State, "daemon.log")
	l.DB = filepath.Join(l.State, "state.db")
	l.VMs = filepath.Join(l.State, "vms")
	l.VMRun = filepath.Join(l.Runtime, "vm")
	l.Images = filepath.Join(l.State, "images")
	l.Kernels = filepath.Join(l.State, "kernels")
	l.SSH = filepath.Join(l.State, "ssh")
	l.Key = filepath.Join(l.SSH, "id_ed25519")
	l.KnownHosts = filepath.Join(l.SSH, "known_hosts")
	l.Initramfs = filepath.Join(l.Cache, "initramfs")
	l.Downloads = filepath.Join(l.Cache, "downloads")
}

// runtime picks the runtime directory of state: where it was before, if that
// is still there; else below XDG_RUNTIME_DIR or the session's directory, if
// they are the user's and leave room for socket names; else in /tmp.
func (r roots) runtime(state, xdg string, uid int) string {
	sum := sha256.Sum256([]byte(state))
	hash := hex.EncodeToString(sum[:4])
	fallback := filepath.Join(r.tmp, "banger-"+strconv.Itoa(uid)+"-"+hash)
	var candidates []string
	for _, dir := range []string{xdg, filepath.Join(r.runUser, strconv.Itoa(uid))} {
		name := filepath.Join(dir, "banger-"+hash)
		if filepath.IsAbs(dir) && ours(dir, uid) == nil && len(name)+len(longestSocket) <= maxSocket {
			candidates = append(candidates, name)
		}
	}
	candidates = append(candidates, fallback)
	if before, err := os.ReadFile(filepath.Join(state, pointerName)); err == nil {
		dir := strings.TrimSuffix(string(before), "\n")
		known := filepath.Base(dir) == "banger-"+hash || dir == fallback
		if known && filepath.IsAbs(dir) && len(dir)+len(longestSocket) <= maxSocket && ours(dir, uid) == nil {
			return dir
		}
	}
	return candidates[0]
}

// ours returns nil if dir is a directory, not a link to one, that belongs to
// uid and that nobody else can write.
func ours(dir string, uid int) error {
	fi, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	switch {
	case !fi.IsDir():
		return fmt.Errorf("%s is not a directory", dir)
	case !ok || int(st.Uid) != uid:
		return fmt.Errorf("%s belongs to another user", dir)
	case fi.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%s can be written by others (mode %04o)", dir, fi.Mode().Perm())
	}
	return nil
}

// Make creates the directories with mode 0700 and refuses those that are
// somebody else's. It may be called again at any time.
func (l Layout) Make() error {
	for _, dir := range []string{l.State, l.Cache} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("making directory: %w", err)
		}
	}
	// The parent of the runtime directory exists; making it would follow links.
	if err := os.Mkdir(l.Runtime, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making runtime directory: %w", err)
	}
	for _, dir := range []string{l.State, l.Cache, l.Runtime} {
		if err := ours(dir, l.uid); err != nil {
			return fmt.Errorf("checking directory: %w", err)
		}
	}
	for _, dir := range []string{l.State, l.Runtime} {
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("closing directory to others: %w", err)
		}
	}
	for _, dir := range []string{l.VMs, l.VMRun, l.Images, l.Kernels, l.SSH, l.Initramfs, l.Downloads} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("making directory: %w", err)
		}
	}
	pointer := filepath.Join(l.State, pointerName)
	if now, err := os.ReadFile(pointer); err == nil && string(now) == l.Runtime+"\n" {
		return nil
	}
	if err := atomicfile.Write(pointer, []byte(l.Runtime+"\n"), 0o600); err != nil {
		return fmt.Errorf("recording the runtime directory: %w", err)
	}
	return nil
}
