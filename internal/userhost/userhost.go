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
	"encoding/json"
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
	"banger/internal/procid"
	"banger/internal/unixsock"
	"banger/internal/vmm"
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
	// Driver names the driver to use; by the KVM probe if empty.
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

// Driver is the name of the driver that new VMs get and, if that is not KVM,
// why. The first call on each boot of the host may take two seconds.
func (h *Host) Driver(ctx context.Context) (name, why string) {
	if h.cfg.Driver != "" {
		return h.cfg.Driver, ""
	}
	v := h.kvm(ctx)
	return qemu.Driver{KVM: v.Usable}.Name(), v.Why
}

// Check says why no VM can be started here, if none can: it costs next to
// nothing, so it can be asked before anything that takes long.
func (h *Host) Check() error {
	if h.cfg.Driver != "" && h.cfg.Driver != qemu.NameKVM && h.cfg.Driver != qemu.NameTCG {
		return nil // a test's
	}
	_, err := qemu.Find()
	return err
}

// cached is the content of Config.KVMCache.
type cached struct {
	BootID  string      `json:"boot_id"`
	UID     int         `json:"uid"`
	Verdict kvm.Verdict `json:"verdict"`
}

// kvm asks the probe once. "You may not open it" is asked again by the next
// process: being added to a group takes no new boot.
func (h *Host) kvm(ctx context.Context) kvm.Verdict {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.verdict != nil {
		return *h.verdict
	}
	boot, err := procid.BootID()
	var c cached
	if err == nil && h.cfg.KVMCache != "" {
		if b, err := os.ReadFile(h.cfg.KVMCache); err == nil && json.Unmarshal(b, &c) == nil && c.BootID == boot && c.UID == os.Geteuid() {
			h.verdict = &c.Verdict
			return c.Verdict
		}
	}
	v := kvm.Probe(ctx)
	if ctx.Err() != nil {
		return v
	}
	h.verdict = &v
	if h.cfg.KVMCache != "" && v.Fix == "" {
		dir, name := filepath.Split(h.cfg.KVMCache)
		if err := companionapi.Save(dir, name, cached{boot, os.Geteuid(), v}); err != nil {
			h.log.Warn("keeping the KVM verdict", "err", err)
		}
	}
	return v
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
	driver, _ := h.Driver(ctx)
	if err := h.Check(); err != nil { // said here, it keeps its hint
		return companionapi.Config{}, nil, err
	}
	c := companionapi.Config{ID: s.ID, Dir: dir, ConsolePath: s.ConsolePath, Driver: driver, Identity: s.Identity, Lease: s.Lease,
		VMM: vmm.Config{ID: s.ID, VCPUs: s.VCPUs, MemoryMiB: s.MemoryMiB, Cmdline: vmm.Cmdline}}
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
		c.VMM.Disks = append(c.VMM.Disks, vmm.Disk{File: pass(d.File), Serial: d.Serial, ReadOnly: d.ReadOnly})
	}
	return c, files, nil
}

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
