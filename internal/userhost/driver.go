package userhost

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/host"
	"banger/internal/kvm"
	"banger/internal/procid"
	"banger/internal/vmm/firecracker"
	"banger/internal/vmm/qemu"
)

// firecrackers is the Firecracker in PATH.
type firecrackers struct {
	path    string // "" if there is none
	version firecracker.Version
	err     error // why it cannot be used
}

// firecracker looks for Firecracker and asks it for its version, once.
func (h *Host) firecracker(ctx context.Context) firecrackers {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.found != nil {
		return *h.found
	}
	var f firecrackers
	if f.path, f.err = firecracker.Find(h.cfg.Firecracker); f.err == nil {
		f.version, f.err = firecracker.Query(ctx, f.path)
	}
	if f.err == nil && firecracker.Window(f.version) == firecracker.Below {
		f.err = &api.Error{Code: api.Unsupported, Msg: fmt.Sprintf("%s is %v: the oldest that can be used is %s", f.path, f.version, firecracker.MinSupportedVersion),
			Hint: "banger doctor"}
	}
	if ctx.Err() != nil {
		return f // it was not asked to the end
	}
	if f.path != "" && f.err != nil {
		h.log.Warn("not using Firecracker", "why", f.err)
	}
	h.found = &f
	return f
}

// Driver is the name of the driver that new VMs get and, if that does not use
// KVM, why. The first call on each boot of the host may take two seconds.
func (h *Host) Driver(ctx context.Context) (name, why string) {
	if h.cfg.Driver != "" {
		return h.cfg.Driver, ""
	}
	v := h.kvm(ctx)
	if v.Usable && h.firecracker(ctx).err == nil {
		return firecracker.Name, ""
	}
	return qemu.Driver{KVM: v.Usable}.Name(), v.Why
}

// choose is the driver for one VM, and its program if that is not for the driver
// to find. A kernel that the Firecracker at hand does not suit gets QEMU, if that
// is there.
func (h *Host) choose(ctx context.Context, s host.Spec) (driver, program string, err error) {
	driver, _ = h.Driver(ctx)
	switch driver {
	case firecracker.Name:
		f := h.firecracker(ctx)
		if f.err != nil {
			return "", "", f.err
		}
		unfit := firecracker.Suits(f.version, s.KernelConfig)
		if unfit == nil {
			return driver, f.path, nil
		}
		if _, err := qemu.Find(); err != nil || h.cfg.Driver != "" {
			return "", "", &api.Error{Code: api.Unsupported, Msg: unfit.Error(), Hint: "install a newer Firecracker: " + firecracker.Releases}
		}
		h.log.Warn("using QEMU for a VM", "id", s.ID, "why", unfit)
		return qemu.NameKVM, "", nil
	case qemu.NameKVM, qemu.NameTCG:
		_, err := qemu.Find()
		return driver, "", err
	}
	return driver, "", nil // a test's
}

// Check says why no VM can be started here, if none can: it costs next to
// nothing, so it can be asked before anything that takes long.
func (h *Host) Check() error {
	switch h.cfg.Driver {
	case firecracker.Name:
		_, err := firecracker.Find(h.cfg.Firecracker)
		return err
	case "", qemu.NameKVM, qemu.NameTCG:
		_, err := qemu.Find()
		if _, ferr := firecracker.Find(h.cfg.Firecracker); h.cfg.Driver == "" && ferr == nil && h.perhapsUsable() {
			return nil // QEMU is not needed
		}
		return err
	}
	return nil // a test's
}

// perhapsUsable is false if the probe has found KVM not usable; it is not asked.
func (h *Host) perhapsUsable() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.remembered() || h.verdict.Usable
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
	if h.remembered() {
		return *h.verdict
	}
	v := kvm.Probe(ctx)
	if ctx.Err() != nil {
		return v
	}
	h.verdict = &v
	if boot, err := procid.BootID(); err == nil && h.cfg.KVMCache != "" && v.Fix == "" {
		dir, name := filepath.Split(h.cfg.KVMCache)
		if err := companionapi.Save(dir, name, cached{boot, os.Geteuid(), v}); err != nil {
			h.log.Warn("keeping the KVM verdict", "err", err)
		}
	}
	return v
}

// remembered fetches what the probe has found on this boot. The caller holds mu.
func (h *Host) remembered() bool {
	if h.verdict != nil {
		return true
	}
	boot, err := procid.BootID()
	if err != nil || h.cfg.KVMCache == "" {
		return false
	}
	var c cached
	b, err := os.ReadFile(h.cfg.KVMCache)
	if err != nil || json.Unmarshal(b, &c) != nil || c.BootID != boot || c.UID != os.Geteuid() {
		return false
	}
	h.verdict = &c.Verdict
	return true
}
