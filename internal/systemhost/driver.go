package systemhost

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"banger/internal/api"
	"banger/internal/host"
	"banger/internal/rootapi"
	"banger/internal/vmm/firecracker"
)

// program is one of the record's Firecrackers, as it was when it was asked.
type program struct {
	path    string
	size    int64
	changed time.Time
	version firecracker.Version
}

// Driver is the name of the driver that VMs get. It always uses KVM.
func (h *Host) Driver(context.Context) (name, why string) { return h.cfg.Driver, "" }

// kvmDevice shows whether there is a KVM where the daemon's unit has no devices.
const kvmDevice = "/sys/class/misc/kvm"

// checkLimit is for the helper to say who it is.
const checkLimit = 5 * time.Second

// Check says why no VM can be started here, if none can: the helper does not
// answer or is of another version, the Firecracker cannot be used, or there is no
// KVM. It costs next to nothing.
func (h *Host) Check(ctx context.Context) error {
	if _, err := os.Stat(kvmDevice); errors.Is(err, fs.ErrNotExist) {
		return &api.Error{Code: api.Missing, Msg: "starting VMs: this machine has no KVM",
			Hint: "switch virtualization on in the firmware, or (in a VM) nested virtualization on its host, and load kvm_intel or kvm_amd"}
	}
	_, _, err := h.Firecracker(ctx)
	return err
}

// Firecracker is the program that VMs get, and its version.
func (h *Host) Firecracker(ctx context.Context) (path string, v firecracker.Version, err error) {
	_, path, err = h.program(ctx)
	if err != nil || h.cfg.Driver != firecracker.JailedName {
		return path, v, err
	}
	v, err = h.version(ctx, path)
	return path, v, err
}

// program finds Config.Program in the install record.
func (h *Host) program(ctx context.Context) (index int, path string, err error) {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	hello, err := h.cfg.Helper.Hello(ctx)
	if refused, ok := errors.AsType[*rootapi.Error](err); ok && refused.Code == rootapi.Invalid {
		return 0, "", &api.Error{Code: api.VersionSkew, Msg: "starting VMs: the root helper is of another version: " + refused.Message, Hint: restart, Err: err}
	}
	if err != nil {
		return 0, "", explain("starting VMs", err)
	}
	programs := hello.Install.Programs
	if h.cfg.Program != "" {
		index = slices.IndexFunc(programs, func(p rootapi.Program) bool { return p.Firecracker == h.cfg.Program })
	}
	if index < 0 || index >= len(programs) {
		var names []string
		for _, p := range programs {
			names = append(names, p.Firecracker)
		}
		return 0, "", &api.Error{Code: api.Denied, Msg: fmt.Sprintf("starting VMs: %s is not among the Firecrackers that were installed for system mode, which are %s",
			h.cfg.Program, strings.Join(names, ", ")), Hint: "set firecracker_bin to one of them, or: sudo banger system install --firecracker " + h.cfg.Program}
	}
	return index, programs[index].Firecracker, nil
}

// version asks a program, once as long as it is the same file.
func (h *Host) version(ctx context.Context, path string) (firecracker.Version, error) {
	st, err := os.Stat(path)
	if err != nil {
		return firecracker.Version{}, &api.Error{Code: api.Missing, Msg: "starting VMs: Firecracker is missing: " + err.Error(), Hint: "see " + firecracker.Releases}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.known.path != path || h.known.size != st.Size() || !h.known.changed.Equal(st.ModTime()) {
		v, err := firecracker.Query(ctx, path)
		if err != nil {
			return v, err
		}
		h.known = program{path, st.Size(), st.ModTime(), v}
	}
	if v := h.known.version; firecracker.Window(v) == firecracker.Below {
		return v, &api.Error{Code: api.Unsupported, Msg: fmt.Sprintf("%s is %v: the oldest that can be used is %s", path, v, firecracker.MinSupportedVersion),
			Hint: "banger doctor"}
	}
	return h.known.version, nil
}

// choose is the Firecracker for one VM, by its place in the install record.
func (h *Host) choose(ctx context.Context, s host.Spec) (int, error) {
	index, path, err := h.program(ctx)
	if err != nil || h.cfg.Driver != firecracker.JailedName { // a test's
		return index, err
	}
	v, err := h.version(ctx, path)
	if err != nil {
		return 0, err
	}
	if err := firecracker.Suits(v, s.KernelConfig); err != nil {
		return 0, &api.Error{Code: api.Unsupported, Msg: err.Error(), Hint: "install a newer Firecracker: " + firecracker.Releases}
	}
	return index, nil
}
