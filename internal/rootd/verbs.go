package rootd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"banger/internal/crash"
	"banger/internal/hostnet"
	"banger/internal/jail"
	"banger/internal/rootapi"
	"banger/internal/undo"

	"golang.org/x/sys/unix"
)

// launch starts a VMM. Once the id is claimed, release undoes it, whatever was
// done of it; the claim is the last thing that release gives up.
func (d *Daemon) launch(ctx context.Context, sd jail.Systemd, dir jail.Dir, l *rootapi.Launch, files []*os.File) (vm *rootapi.VM, ends []*os.File, err error) {
	var held undo.Stack
	defer held.OnError(&err)
	p := d.Install.Programs[l.Firecracker]
	shown, err := d.passed(l, files)
	if err := errors.Join(checkPrograms(p), err); err != nil {
		return nil, nil, err
	}
	uid, claimed, err := d.claim(dir, l.Addr)
	if claimed {
		held.Push(func() error { return d.undo(context.WithoutCancel(ctx), dir) })
	}
	if err != nil {
		return nil, nil, err
	}
	crash.Point("launch.claimed")
	if l.Addr.IsValid() {
		if err := d.Network.Attach(ctx, string(dir), l.Addr, uid, l.NAT); err != nil {
			return nil, nil, fmt.Errorf("attaching network: %w", err)
		}
	}
	crash.Point("launch.attached")
	if ends, err = open(dir); err != nil {
		return nil, nil, err
	}
	held.Push(func() error { rootapi.CloseAll(ends); return nil })
	crash.Point("launch.opened")
	err = sd.Start(ctx, jail.Spec{ID: string(dir), UID: uid, Owner: d.Install.Owner.UID, OwnerGID: d.Install.Owner.GID,
		VCPUs: l.VCPUs, MemoryMiB: l.MemoryMiB, Firecracker: p.Firecracker, Jailer: p.Jailer, Files: shown})
	if err != nil {
		return nil, nil, fmt.Errorf("starting the jail: %w", err)
	}
	crash.Point("launch.started")
	if vm, err = d.find(ctx, sd, dir, ends); err != nil {
		return nil, nil, err
	}
	crash.Point("launch.found")
	return vm, ends, nil
}

// claim takes the id and a uid that no other VM has. claimed tells whether
// there is something to give back, which there is not if the id was taken.
func (d *Daemon) claim(dir jail.Dir, addr netip.Addr) (uid uint32, claimed bool, err error) {
	d.claims.Lock()
	defer d.claims.Unlock()
	dirs, err := jail.Dirs()
	if err != nil {
		return 0, false, err
	}
	taken := map[uint32]string{}
	for _, other := range dirs {
		taken[jail.Dir(other).UID()] = other
	}
	for uid = rootapi.FirstUID + rootapi.UIDBlock; taken[uid] != ""; uid++ {
	}
	if addr.IsValid() {
		uid = d.Install.UID(addr)
	}
	if other, ok := taken[uid]; ok && other != string(dir) {
		return 0, false, rootapi.Errorf(rootapi.Exists, "addr: %v is VM %s's", addr, other)
	}
	err = dir.Claim(uid)
	if errors.Is(err, os.ErrExist) {
		return 0, false, rootapi.Errorf(rootapi.Exists, "id: there is a VM %s already", dir)
	}
	return uid, true, err
}

// adopt gives again what launch gave. The agent's listener is a new one.
func (d *Daemon) adopt(ctx context.Context, sd jail.Systemd, dir jail.Dir) (vm *rootapi.VM, ends []*os.File, err error) {
	u, err := sd.Get(ctx, string(dir))
	if err != nil {
		return nil, nil, err
	}
	if u.Running() && dir.UID() != 0 { // else the listener stays as it is
		ends, err = open(dir)
		if err == nil {
			vm, err = d.find(ctx, sd, dir, ends)
		}
		if err != nil {
			rootapi.CloseAll(ends)
			return nil, nil, err
		}
		crash.Point("adopt.found")
		return vm, ends, nil
	}
	return nil, nil, ended(u, nil)
}

// open makes the ends that must be there before the VMM is; find fills in the
// others.
func open(dir jail.Dir) ([]*os.File, error) {
	ends := make([]*os.File, rootapi.VMFiles)
	var err1, err2 error
	ends[rootapi.FileAgent], err1 = dir.Agent()
	ends[rootapi.FileConsole], err2 = dir.Console()
	return ends, errors.Join(err1, err2)
}

// find takes hold of a running VMM. What systemd says is asked a second time
// when the pidfd is there: the same means that it is of that very process.
func (d *Daemon) find(ctx context.Context, sd jail.Systemd, dir jail.Dir, ends []*os.File) (*rootapi.VM, error) {
	id, pidfd := string(dir), -1
	u, err := sd.Get(ctx, id)
	if err == nil && u.Running() {
		pidfd, err = unix.PidfdOpen(int(u.PID), unix.PIDFD_NONBLOCK)
	}
	if err != nil || pidfd < 0 {
		return nil, errors.Join(err, ended(u, ends[rootapi.FileConsole]))
	}
	ends[rootapi.FilePidfd] = os.NewFile(uintptr(pidfd), "pidfd")
	// The 22nd field, counted from behind the name, which may hold anything.
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", u.PID))
	fields := append(bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:]), make([][]byte, 22)...)
	start, startErr := strconv.ParseUint(string(fields[22-3]), 10, 64)
	again, againErr := sd.Get(ctx, id)
	if err := errors.Join(err, startErr, againErr); err != nil {
		return nil, err
	}
	if !again.Running() || *again != *u {
		return nil, ended(again, ends[rootapi.FileConsole])
	}
	ends[rootapi.FileAPI], err = dir.API(ctx, pidfd)
	if errors.Is(err, jail.ErrEnded) {
		if u, err = sd.Get(ctx, id); err == nil {
			err = ended(u, ends[rootapi.FileConsole])
		}
	}
	if err != nil {
		return nil, err
	}
	vm := &rootapi.VM{UID: dir.UID(), Unit: jail.UnitName(id), InvocationID: u.InvocationID, PID: int(u.PID), StartTime: start}
	if a := d.Install.Addr(vm.UID); a.IsValid() {
		mac := hostnet.MAC(a)
		vm.TAP, vm.MAC = hostnet.TAP(id), net.HardwareAddr(mac[:]).String()
	}
	return vm, nil
}

// ended is the error for a VMM that does not run, with the beginning of what
// the jail child, the jailer or Firecracker said, if that can be read.
func ended(u *rootapi.Unit, console *os.File) error {
	if u == nil {
		return rootapi.Errorf(rootapi.NotFound, "there is no VMM")
	}
	said := make([]byte, 1000)
	n := 0
	if fd, err := rootapi.FD(console); err == nil {
		n, _ = unix.Read(fd, said) // nothing said is nothing added
	}
	return rootapi.Errorf(rootapi.NotFound, "the VMM has ended: %s, %s, status %d, saying %q", u.Sub, u.Result, u.Status, said[:max(n, 0)])
}

// undo is release after a failure, which may have been its own conversation's
// with PID 1.
func (d *Daemon) undo(ctx context.Context, dir jail.Dir) error {
	sd, err := jail.Dial(ctx)
	if err != nil {
		return err
	}
	defer sd.Close()
	return d.release(ctx, sd, dir)
}

// release ends whatever there is of a VM, from any half-state.
func (d *Daemon) release(ctx context.Context, sd jail.Systemd, dir jail.Dir) error {
	if err := sd.Stop(ctx, string(dir)); err != nil {
		return fmt.Errorf("stopping the VMM: %w", err)
	}
	crash.Point("release.stopped")
	if err := d.Network.Detach(ctx, string(dir)); err != nil {
		return fmt.Errorf("detaching network: %w", err)
	}
	crash.Point("release.detached")
	if err := dir.Remove(); err != nil {
		return fmt.Errorf("removing the VM's directory: %w", err)
	}
	crash.Point("release.removed")
	return nil
}

// census asks each place where something of a VM can be. It is what the owner
// asks for now and then, so it also mends what others have done to the network.
func (d *Daemon) census(ctx context.Context, sd jail.Systemd) (held []rootapi.Held, mended []string, err error) {
	dirs, err1 := jail.Dirs()
	nets, err2 := d.Network.Census(ctx)
	units, err3 := jail.Units()
	if len(nets) > 0 {
		mended, err = d.Network.Repair(ctx)
	}
	if err := errors.Join(err, err1, err2, err3); err != nil {
		return nil, nil, err
	}
	ids := slices.Concat(dirs, nets, units)
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		h := rootapi.Held{ID: id, Dir: slices.Contains(dirs, id), Network: slices.Contains(nets, id), Addr: d.Install.Addr(jail.Dir(id).UID())}
		if h.Unit, err = sd.Get(ctx, id); err != nil {
			return nil, nil, err
		}
		held = append(held, h)
	}
	return held, mended, nil
}
