package machine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"banger/internal/api"
	"banger/internal/crash"
)

// network is the word for what a VM can reach.
func (x *Index) network(r row) string {
	switch {
	case x.cfg.Net == nil:
		return api.NetworkNone
	case r.NAT:
		return api.NetworkInternet
	}
	return api.NetworkHost
}

// Address is where the VM of this name is reached while it runs, from memory: it
// is right as soon as [Open] has returned, and never waits.
func (x *Index) Address(name string) (netip.Addr, bool) {
	x.mu.Lock()
	v := x.byName[name]
	x.mu.Unlock()
	if v == nil {
		return netip.Addr{}, false
	}
	r := v.look().row
	return r.Address, r.State == api.Running && r.Address.IsValid()
}

// NameOf is the name of the VM that runs with this address.
func (x *Index) NameOf(a netip.Addr) (string, bool) {
	for _, p := range x.snapshots() {
		if p.row.Address == a && p.row.State == api.Running {
			return p.row.Name, true
		}
	}
	return "", false
}

// AnyRuns reports whether there may be a VMM.
func (x *Index) AnyRuns() bool {
	for _, p := range x.snapshots() {
		if p.row.Record != nil || p.row.State == api.Starting {
			return true
		}
	}
	return false
}

// setNAT lets a VM out of the host or keeps it in: at once if it runs, else from
// its next start on. If that fails the row is as before. A host that has failed may
// have done it all the same, or half of it: it is told what holds, now or before
// the next operation. ctx must not end.
func (v *vm) setNAT(ctx context.Context, nat bool) error {
	running := v.runs()
	if err := v.save(ctx, v.row.State, func(r *row) { r.NAT, r.Untold = nat, running }); err != nil || !running {
		return err
	}
	crash.Point("set.row")
	err := v.tellNAT(ctx)
	if err == nil {
		return nil
	}
	if err2 := v.save(ctx, v.row.State, func(r *row) { r.NAT = !nat }); err2 != nil {
		return errors.Join(err, err2)
	}
	v.log("telling the host what a VM may still reach", v.tellNAT(ctx))
	return err
}

// runs reports whether there is a VMM that has not ended.
func (v *vm) runs() bool {
	select {
	case <-v.ended():
		return false
	default:
		return v.run != nil
	}
}

// tellNAT tells the host what the row says of a VM that runs.
func (v *vm) tellNAT(ctx context.Context) error {
	if err := v.x.cfg.Host.SetNAT(ctx, v.id, v.row.NAT); err != nil {
		return fmt.Errorf("changing the network of VM %q: %w", v.row.Name, err)
	}
	crash.Point("set.told")
	return v.save(ctx, v.row.State, func(r *row) { r.Untold = false })
}
