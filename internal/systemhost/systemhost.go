// Package systemhost runs VMMs by way of the root helper: system mode's
// host.Host.
//
// The helper starts a jailed Firecracker and gives back the ends of its channels;
// they go to a companion, which boots the guest. Both outlive this process, and
// the helper keeps no state. What runs is the helper's to say; what there is of
// companions is package keeper's. It knows no rows, images or names, and leaves
// to the helper every decision about what a VM may reach.
package systemhost

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/crash"
	"banger/internal/host"
	"banger/internal/keeper"
	"banger/internal/procid"
	"banger/internal/rootapi"
	"banger/internal/rootclient"
	"banger/internal/vmm"
	"banger/internal/vmm/firecracker"
)

// Config configures a [Host]. RunDir and CompanionPath are required.
type Config struct {
	RunDir        string // holds one directory per VM; at most [keeper.MaxRunDir] bytes
	CompanionPath string
	Helper        rootclient.Client
	// Program is the path of the Firecracker to use, which must be one of the
	// install record's; its first if empty.
	Program string
	// Driver is the name of another driver than Firecracker's, for tests.
	Driver string
	Env    []string     // added to the companions' environment
	Log    *slog.Logger // discarded if nil
}

// A Host implements host.Host.
type Host struct {
	cfg Config
	log *slog.Logger
	*keeper.Keeper

	mu    sync.Mutex
	known program // the last that was asked for its version
}

// New checks the config and makes RunDir. It does not ask the helper.
func New(c Config) (*Host, error) {
	h := &Host{cfg: c, log: c.Log}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	if h.cfg.Driver == "" {
		h.cfg.Driver = firecracker.JailedName
	}
	var err error
	h.Keeper, err = keeper.New(keeper.Config{RunDir: c.RunDir, CompanionPath: c.CompanionPath, VMMs: vmms{c.Helper, h.cfg.Driver}, Env: c.Env, Log: h.log})
	return h, err
}

// helperLimit is for one request to the helper, which has a minute for it.
const helperLimit = 70 * time.Second

// Launch implements host.Host.
func (h *Host) Launch(ctx context.Context, s host.Spec) (_ host.Run, err error) {
	dir, err := h.Dir(s.ID)
	if err != nil {
		return nil, err
	}
	l, files, err := h.request(ctx, s)
	if err != nil {
		return nil, err
	}
	if err := h.Make(s.ID); err != nil {
		return nil, err
	}
	taken := false // by something that is not of this launch
	defer func() {
		switch {
		case err == nil:
		case taken:
			err = errors.Join(err, os.RemoveAll(dir))
		default:
			err = errors.Join(err, h.Release(context.WithoutCancel(ctx), s.ID))
		}
	}()
	crash.Point("launch.dir-made")
	v, err := h.start(ctx, s.ID, l, files)
	if err != nil {
		taken = api.CodeOf(err) == api.Conflict
		return nil, err
	}
	ends := endsOf(v)
	defer rootapi.CloseAll(ends)
	crash.Point("launch.vmm-started")
	c, err := h.config(s, dir, v)
	if err != nil {
		return nil, err
	}
	started, err := h.Start(ctx, c, ends)
	if err != nil {
		return nil, err
	}
	crash.Point("launch.started")
	return h.Hold(ctx, started.Record)
}

// start has the helper start a VMM. A request that was sent is waited for, even
// if ctx ends: one that is not yet begun could be overtaken by the release that
// follows, and then nobody would know of what it starts.
func (h *Host) start(ctx context.Context, id string, l rootapi.Launch, files []*os.File) (*rootclient.VM, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), helperLimit)
	defer cancel()
	v, err := h.cfg.Helper.Launch(asking, id, l, files...)
	if refused, ok := errors.AsType[*rootapi.Error](err); ok && refused.Code == rootapi.NotFound {
		// It was there: what callers take this code for is a VM that is not.
		return nil, &api.Error{Code: api.Internal, Msg: "starting the VMM: " + refused.Message, Hint: "see what this host lacks: banger doctor", Err: err}
	}
	if err != nil {
		return nil, explain("starting the VMM", err)
	}
	if ctx.Err() != nil {
		rootapi.CloseAll(endsOf(v))
		return nil, context.Cause(ctx)
	}
	return v, nil
}

// request says to the helper what the spec says to us. What the helper would
// refuse in its own words is refused here in those of people.
func (h *Host) request(ctx context.Context, s host.Spec) (l rootapi.Launch, files []*os.File, err error) {
	refuse := func(format string, args ...any) error {
		return &api.Error{Code: api.Unsupported, Msg: fmt.Sprintf("starting the VMM: "+format, args...)}
	}
	switch {
	case s.VCPUs < 1 || s.VCPUs > rootapi.MaxVCPUs:
		return l, nil, refuse("%d vCPUs are not between 1 and %d", s.VCPUs, rootapi.MaxVCPUs)
	case s.MemoryMiB < rootapi.MinMemory || s.MemoryMiB > rootapi.MaxMemory:
		return l, nil, refuse("%d MiB of memory are not between %d and %d", s.MemoryMiB, rootapi.MinMemory, rootapi.MaxMemory)
	case len(s.Disks) < 1 || len(s.Disks) > rootapi.MaxDisks:
		return l, nil, refuse("%d disks are not between 1 and %d", len(s.Disks), rootapi.MaxDisks)
	case s.Kernel == nil || s.Initramfs == nil:
		return l, nil, errors.New("starting the VMM: kernel or initramfs is missing")
	}
	l = rootapi.Launch{VCPUs: s.VCPUs, MemoryMiB: s.MemoryMiB}
	if l.Firecracker, err = h.choose(ctx, s); err != nil {
		return l, nil, err
	}
	if s.Net != nil {
		l.Addr, l.NAT = s.Net.Addr, s.Net.NAT
	}
	files = []*os.File{s.Kernel, s.Initramfs}
	for i, d := range s.Disks {
		if err := d.Check(); err != nil {
			return l, nil, err
		}
		if d.ReadOnly {
			l.ReadOnly |= 1 << i
		}
		files = append(files, d.File)
	}
	return l, files, nil
}

// config says to the companion what the spec says to us.
func (h *Host) config(s host.Spec, dir string, v *rootclient.VM) (companionapi.Config, error) {
	boot, err := procid.BootID()
	if err != nil {
		return companionapi.Config{}, err
	}
	c := companionapi.Config{ID: s.ID, Dir: dir, ConsolePath: s.ConsolePath, Driver: h.cfg.Driver, Identity: s.Identity, Lease: s.Lease,
		UID: int(v.UID), GID: int(v.UID),
		Handed: &companionapi.Handed{Helper: h.cfg.Helper.Socket, VMM: procid.ID{PID: v.PID, Start: v.StartTime, BootID: boot}},
		VMM: vmm.Config{ID: s.ID, VCPUs: s.VCPUs, MemoryMiB: s.MemoryMiB, Cmdline: vmm.Cmdline,
			Kernel: vmm.File{Name: firecracker.JailKernel}, Initramfs: vmm.File{Name: firecracker.JailInitramfs},
			Sockets: vmm.File{Name: firecracker.JailSockets}, Network: vmm.Network{TAP: v.TAP, MAC: v.MAC}}}
	if s.Cmdline != "" {
		c.VMM.Cmdline += " " + s.Cmdline
	}
	for i, d := range s.Disks {
		c.VMM.Disks = append(c.VMM.Disks, vmm.Disk{File: vmm.File{Name: firecracker.JailDisk(i)}, Serial: d.Serial, ReadOnly: d.ReadOnly})
	}
	return c, nil
}

// SetNAT implements host.Host.
func (h *Host) SetNAT(ctx context.Context, id string, nat bool) error {
	if _, err := h.Dir(id); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, helperLimit)
	defer cancel()
	return explain("changing what the VM may reach", h.cfg.Helper.Policy(ctx, id, nat))
}
