// Package userhost runs VMMs as ordinary processes of the user: user mode's
// host.Host.
//
// For each VM it makes a directory and starts a companion, which starts the
// VMM. Both outlive this process. What there is can be found again from the
// directories and from /proc alone: the package keeps no state. It knows no
// rows, images or names. Run as root, it gives each VMM a uid of its own.
package userhost

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
	"banger/internal/crash"
	"banger/internal/host"
	"banger/internal/kvm"
	"banger/internal/unixsock"
	"banger/internal/vmm"
	"banger/internal/vmm/firecracker"
	"banger/internal/vmm/qemu"
)

// Config configures a [Host]. RunDir and CompanionPath are required.
type Config struct {
	// RunDir holds one directory per VM, named by its id. It should be on a
	// file system that does not outlive the boot. At most [MaxRunDir] bytes.
	RunDir        string
	CompanionPath string
	// KVMCache is a file that keeps what the KVM probe found, for this boot of
	// the host; not kept if empty.
	KVMCache string
	// Driver names the driver to use. If it is empty, it is Firecracker where KVM
	// works and one is in PATH, else QEMU.
	Driver string
	// Env is added to the companions' environment.
	Env []string
	Log *slog.Logger // discarded if nil
}

// MaxRunDir is the longest RunDir: the sockets' paths below it must fit.
const MaxRunDir = unixsock.MaxPath - len("/0123456789ab/") - len(companionapi.SocketName)

// A Host implements host.Host.
type Host struct {
	cfg Config
	log *slog.Logger

	mu      sync.Mutex
	runs    map[string]*run // by id
	verdict *kvm.Verdict
	found   *firecrackers
	tscKHz  int64
}

// New checks the config and makes RunDir.
func New(c Config) (*Host, error) {
	if len(c.RunDir) > MaxRunDir {
		return nil, &api.Error{Code: api.Invalid,
			Msg:  fmt.Sprintf("using %s for sockets: the path has %d bytes, at most %d fit", c.RunDir, len(c.RunDir), MaxRunDir),
			Hint: "set XDG_RUNTIME_DIR to a directory with a short path"}
	}
	if err := unixsock.Dir(c.RunDir); err != nil {
		return nil, err
	}
	h := &Host{cfg: c, log: c.Log, runs: map[string]*run{}}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	return h, nil
}

var idPattern = regexp.MustCompile(`^[0-9a-f]{12}$`)

// dir is the runtime directory of id, or an error if id is none.
func (h *Host) dir(id string) (string, error) {
	if !idPattern.MatchString(id) {
		return "", &api.Error{Code: api.Invalid, Msg: fmt.Sprintf("%q is not a VM's id", id)}
	}
	return filepath.Join(h.cfg.RunDir, id), nil
}

// tsc measures the host's time stamp counter, once.
func (h *Host) tsc(ctx context.Context) (int64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.tscKHz == 0 {
		khz, err := qemu.TSC(ctx)
		if err != nil {
			return 0, err
		}
		h.tscKHz = khz
	}
	return h.tscKHz, nil
}

// Launch implements host.Host.
func (h *Host) Launch(ctx context.Context, s host.Spec) (_ host.Run, err error) {
	dir, err := h.dir(s.ID)
	if err != nil {
		return nil, err
	}
	if s.Net != nil {
		return nil, errNoNetwork
	}
	cfg, files, err := h.config(ctx, s, dir)
	if err != nil {
		return nil, err
	}
	defer func() { // copies that config made
		for _, f := range files[:2] {
			if f != s.Kernel && f != s.Initramfs {
				f.Close()
			}
		}
	}()
	if err := os.Mkdir(dir, 0o700); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil, &api.Error{Code: api.Conflict, Msg: "starting the VMM: there is something of this VM already in " + dir}
		}
		return nil, fmt.Errorf("making runtime directory: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Release(context.WithoutCancel(ctx), s.ID))
		}
	}()
	crash.Point("launch.dir-made")
	started, err := h.start(ctx, cfg, files)
	if err != nil {
		return nil, err
	}
	crash.Point("launch.started")
	return h.hold(ctx, dir, started.Record)
}

// config says to the companion what the spec says to us.
func (h *Host) config(ctx context.Context, s host.Spec, dir string) (companionapi.Config, []*os.File, error) {
	driver, program, err := h.choose(ctx, s)
	if err != nil { // said here, it keeps its hint
		return companionapi.Config{}, nil, err
	}
	c := companionapi.Config{ID: s.ID, Dir: dir, ConsolePath: s.ConsolePath, Driver: driver, Identity: s.Identity, Lease: s.Lease,
		VMM: vmm.Config{ID: s.ID, VCPUs: s.VCPUs, MemoryMiB: s.MemoryMiB, Cmdline: vmm.Cmdline, Program: program}}
	if s.Cmdline != "" {
		c.VMM.Cmdline += " " + s.Cmdline
	}
	if driver == qemu.NameTCG {
		khz, err := h.tsc(ctx)
		if err != nil {
			return c, nil, err
		}
		c.VMM.TSCKHz = khz
	}
	if err := credentials(&c, os.Geteuid()); err != nil {
		return c, nil, err
	}
	var files []*os.File
	pass := func(f *os.File) vmm.File {
		files = append(files, f)
		return vmm.File{Name: f.Name(), FD: companionapi.FilesFD + len(files) - 1}
	}
	for _, r := range []struct {
		from *os.File
		to   *vmm.File
	}{{s.Kernel, &c.VMM.Kernel}, {s.Initramfs, &c.VMM.Initramfs}} {
		f, err := readable(r.from, c.UID)
		if err != nil {
			return c, nil, err
		}
		*r.to = pass(f)
	}
	for _, d := range s.Disks {
		if err := checkMode(d); err != nil {
			return c, nil, err
		}
		if driver == firecracker.Name { // it opens disks again, as what it runs as
			if err := admit(d, c.UID); err != nil {
				return c, nil, err
			}
		}
		c.VMM.Disks = append(c.VMM.Disks, vmm.Disk{File: pass(d.File), Serial: d.Serial, ReadOnly: d.ReadOnly})
	}
	return c, files, nil
}

// errNoNetwork is what a VM is told that wants the host's network.
var errNoNetwork = &api.Error{Code: api.Unsupported, Msg: "user mode gives VMs no network of the host's",
	Hint: "install system mode: sudo banger system install --owner \"$USER\""}

// SetNAT implements host.Host.
func (h *Host) SetNAT(context.Context, string, bool) error { return errNoNetwork }

// Close lets go of all VMs, which run on.
func (h *Host) Close() error {
	h.mu.Lock()
	runs := h.runs
	h.runs = map[string]*run{}
	h.mu.Unlock()
	var errs []error
	for _, r := range runs {
		r.leave()
		errs = append(errs, r.process.Close())
	}
	return errors.Join(errs...)
}
