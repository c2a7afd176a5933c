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
	"log/slog"
	"os"
	"sync"

	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/crash"
	"banger/internal/host"
	"banger/internal/keeper"
	"banger/internal/kvm"
	"banger/internal/procid"
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
	// Firecracker is the path of the one to use; that in PATH if empty.
	Firecracker string
	// Driver names the driver to use. If it is empty, it is Firecracker where KVM
	// works and one is in PATH, else QEMU.
	Driver string
	// Env is added to the companions' environment.
	Env []string
	Log *slog.Logger // discarded if nil
}

// MaxRunDir is the longest RunDir: the sockets' paths below it must fit.
const MaxRunDir = keeper.MaxRunDir

// A Host implements host.Host.
type Host struct {
	cfg Config
	log *slog.Logger

	*keeper.Keeper

	mu      sync.Mutex
	verdict *kvm.Verdict
	found   *firecrackers
	tscKHz  int64
}

// New checks the config and makes RunDir.
func New(c Config) (*Host, error) {
	h := &Host{cfg: c, log: c.Log}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	var err error
	h.Keeper, err = keeper.New(keeper.Config{RunDir: c.RunDir, CompanionPath: c.CompanionPath, VMMs: processes{}, UIDs: uidsOf, Env: c.Env, Log: h.log})
	return h, err
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
	dir, err := h.Dir(s.ID)
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
	if err := h.Make(s.ID); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Release(context.WithoutCancel(ctx), s.ID))
		}
	}()
	crash.Point("launch.dir-made")
	started, err := h.Start(ctx, cfg, files)
	if err != nil {
		return nil, err
	}
	crash.Point("launch.started")
	return h.Hold(ctx, started.Record)
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
		if err := d.Check(); err != nil {
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

// processes are VMMs that are ours: found again by their pid, ended by a signal,
// and reached through the files in the VM's directory.
type processes struct{}

// Open implements keeper.VMMs.
func (processes) Open(_ context.Context, r host.Record) (*procid.Process, error) {
	return procid.Open(r.VMM)
}

// Ends are none: the channels are found by name.
func (processes) Ends(context.Context, host.Record) ([]*os.File, error) { return nil, nil }

// End implements keeper.VMMs. One that is on no record is found in /proc.
func (processes) End(ctx context.Context, r host.Record) error { return keeper.Kill(ctx, r.VMM) }

// Why is not known: only a process's parent is told how it ended.
func (processes) Why(context.Context, host.Record) string { return "" }

// Census has nothing to add.
func (processes) Census(context.Context) (map[string]int, error) { return nil, nil }
