package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"banger/internal/api"
	"banger/internal/crash"
	"banger/internal/install/files"
	"banger/internal/install/systemctl"
	"banger/internal/rootapi"
	"banger/internal/rootclient"
)

// Removal says what to take away.
type Removal struct {
	Purge  bool // VMs, images and caches too
	DryRun bool
	Say    func(format string, args ...any)
}

// Removed is what an uninstall did, or would do.
type Removed struct {
	Running []string `json:"stopped_vms"` // names of VMs that ran
	Files   []string `json:"files"`
	Left    []string `json:"left,omitempty"` // changed by somebody since, and kept
	Purged  []string `json:"purged,omitempty"`
	Done    bool     `json:"done"`
}

// uninstall is one run of Uninstall.
type uninstall struct {
	Removal
	Removed
	m      files.Manifest
	in     *rootapi.Install // nil if an install never came to the record
	cgroup string           // of the owner daemon, and the companions
}

// Uninstall is the inverse of [Install]. VMs that run are shut down in order.
// It may be called again if it failed, and does what is left to do.
func Uninstall(ctx context.Context, r Removal) (*Removed, error) {
	if err := needRoot("uninstall"); err != nil {
		return nil, err
	}
	unlock, err := lock(lockFile)
	if err != nil {
		return nil, err
	}
	defer unlock()
	x := &uninstall{Removal: r, Removed: Removed{Running: []string{}, Files: []string{}}}
	if x.m, err = ours(); err != nil {
		return nil, err
	}
	in, err := rootapi.ReadInstall(rootapi.InstallPath)
	switch {
	case err == nil:
		x.in = &in
	case !errors.Is(err, os.ErrNotExist):
		x.Say("note: %v; the network stays, if there is one", err)
	}
	if err := x.plan(ctx); err != nil || r.DryRun {
		return &x.Removed, err
	}
	return &x.Removed, x.do(ctx)
}

// plan tells what will be done.
func (x *uninstall) plan(ctx context.Context) error {
	for _, f := range x.m.Files {
		if _, err := os.Lstat(f.Path); err == nil {
			x.Files = append(x.Files, f.Path)
		}
	}
	if x.Purge {
		for _, dir := range stateDirs {
			if _, err := os.Lstat(dir); err == nil {
				x.Purged = append(x.Purged, dir)
			}
		}
	}
	if len(x.m.Files) == 0 && len(x.Purged) == 0 {
		x.Say("system mode is not installed on this host: there is nothing to do")
		return nil
	}
	if x.in != nil {
		ms, err := x.running(ctx)
		if err != nil {
			x.Say("note: the owner daemon cannot be asked for its VMs: %v", err)
		}
		for _, m := range ms {
			x.Running = append(x.Running, m.Name)
		}
	}
	if len(x.Running) > 0 {
		x.Say("  shut down    %s", strings.Join(x.Running, ", "))
	}
	if len(x.m.Files) > 0 {
		x.Say("  stop         %s, %s", DaemonUnit, helperUnit)
	}
	for _, path := range x.Files {
		x.Say("  remove       %s", path)
	}
	for _, dir := range x.Purged {
		x.Say("  remove       %s, with all that is in it", dir)
	}
	if left := vms(stateDir); len(left) > 0 && !x.Purge {
		x.Say("  keep         %s, %s: %d VMs, which the next install finds; --purge removes them", stateDir, cacheDir, len(left))
	}
	return nil
}

// running asks the owner daemon for the VMs that run.
func (x *uninstall) running(ctx context.Context) (ms []api.Machine, err error) {
	if u, err := systemctl.Show(ctx, DaemonUnit); err != nil || !u.Up() {
		return nil, err // VMs of a daemon that does not run are ended by the helper
	}
	err = asOwner(ctx, *x.in, &ms, "vm", "list", "--running")
	return ms, err
}

// do takes everything away, in the order in which it depends on each other:
// VMs, daemons, network, files. It stops at the first error; what is gone is not
// asked for again the next time.
func (x *uninstall) do(ctx context.Context) error {
	if len(x.m.Files) > 0 {
		x.m.Complete = false
		if err := x.m.Write(Manifest); err != nil {
			return err
		}
		if err := x.services(ctx); err != nil {
			return err
		}
		if x.in != nil {
			if err := removeNetwork(ctx, *x.in); err != nil {
				return err
			}
		}
		crash.Point("uninstall.network")
		if err := x.files(ctx); err != nil {
			return err
		}
	}
	if err := purge(x.Purged); err != nil {
		return err
	}
	x.Done = true
	return nil
}

// purge removes directories in which everything may be the owner's: links in them
// are removed and not followed. What is mounted there, root may not be able to
// enter.
func purge(dirs []string) error {
	for _, dir := range dirs {
		if err := os.RemoveAll(dir); err != nil {
			return &api.Error{Code: api.Conflict, Msg: "all of banger is gone from this host but what is in " + dir, Err: err,
				Hint: "see what is mounted there: findmnt | grep " + dir + "; then: sudo rm -rf --one-file-system " + dir}
		}
	}
	return nil
}

// services ends the VMs, the daemons and the companions.
func (x *uninstall) services(ctx context.Context) (err error) {
	if len(x.Running) > 0 {
		var stopped any
		if err := asOwner(ctx, *x.in, &stopped, append([]string{"vm", "stop"}, x.Running...)...); err != nil {
			x.Say("note: shutting the VMs down: %v; they are ended now", err)
		}
	}
	out, err := systemctl.Run(ctx, "show", "--property=ControlGroup", "--value", "--", DaemonUnit)
	if err != nil {
		return err
	}
	x.cgroup = strings.TrimSpace(out)
	// First the daemon, which would start again what the helper ends.
	if err := x.stop(ctx, DaemonUnit); err != nil {
		return err
	}
	if err := x.release(ctx); err != nil {
		return err
	}
	crash.Point("uninstall.released")
	if err := x.stop(ctx, socketUnit, helperUnit); err != nil {
		return err
	}
	if err := endAll(x.cgroup); err != nil {
		return err
	}
	if err := stopSlice(ctx); err != nil {
		return err
	}
	crash.Point("uninstall.stopped")
	return nil
}

// stop stops units and has them not started again, those too whose files
// somebody has deleted meanwhile.
func (x *uninstall) stop(ctx context.Context, names ...string) error {
	for _, name := range names {
		u, err := systemctl.Show(ctx, name)
		if err != nil {
			return err
		}
		if u.Gone() {
			continue
		}
		if _, err := systemctl.Run(ctx, "stop", name); err != nil {
			return err
		}
		if name == helperUnit { // has no [Install]
			continue
		}
		if _, err := systemctl.Run(ctx, "disable", "--quiet", name); err != nil && u.Load != "not-found" { // nothing to read an [Install] from
			return err
		}
	}
	return nil
}

// release has the helper end and forget whatever there is of VMs, and take the
// names back from the resolver. A helper that does not answer cannot: what is
// left is ended by stopping the slice and removing the network.
func (x *uninstall) release(ctx context.Context) error {
	if u, err := systemctl.Show(ctx, socketUnit); err != nil || !u.Up() {
		return err
	}
	var c rootclient.Client
	held, err := c.Census(ctx)
	for _, h := range held {
		err = errors.Join(err, c.Release(ctx, h.ID))
	}
	if err := errors.Join(err, c.Resolver(ctx, 0)); err != nil {
		x.Say("note: %v", err)
	}
	return ctx.Err()
}

// stopSlice ends VMs that the helper has not ended, and their slice.
func stopSlice(ctx context.Context) error {
	u, err := systemctl.Show(ctx, sliceUnit)
	if err != nil || u.Load == "not-found" && !u.Up() {
		return err
	}
	_, err = systemctl.Run(ctx, "stop", "banger-vm-*.service", sliceUnit)
	_, err2 := systemctl.Run(ctx, "reset-failed", "banger-vm-*.service")
	return errors.Join(err, err2)
}

// endAll kills the processes of a cgroup: companions outlive their daemon's
// service, as they should, and wait in vain for their VMs.
func endAll(cgroup string) error {
	dir := filepath.Join("/sys/fs/cgroup", cgroup)
	if cgroup == "" || cgroup == "/" || !strings.HasSuffix(cgroup, "/"+DaemonUnit) {
		return nil
	}
	err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	if _, gone := os.Stat(dir); err == nil || gone != nil {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs")) // before Linux 5.14
	if err != nil {
		return fmt.Errorf("ending the companions: %w", err)
	}
	for line := range bytes.Lines(b) {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(line))); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended by itself
		}
	}
	return nil
}

// files removes what was installed, the list of it last.
func (x *uninstall) files(ctx context.Context) error {
	var paths []string
	for _, f := range x.m.Files {
		left, err := f.Remove()
		if err != nil {
			return fmt.Errorf("removing %s: %w", f.Path, err)
		}
		if left {
			x.Left = append(x.Left, f.Path)
			x.Say("  left         %s: it is not what banger has put there", f.Path)
		}
		paths = append(paths, f.Path)
	}
	if err := files.Tidy(append(paths, Manifest)...); err != nil {
		return err
	}
	if _, err := systemctl.Run(ctx, "daemon-reload"); err != nil {
		return err
	}
	for _, unit := range []string{DaemonUnit, helperUnit, socketUnit, sliceUnit} {
		_, _ = systemctl.Run(ctx, "reset-failed", unit) // there may be nothing to forget
	}
	if x.m.Forwarding == "0" && forwarding() == "1" {
		if b := bridges(); b != "" {
			x.Say("note: net.ipv4.ip_forward stays 1, for %s; if nothing needs it: sudo sysctl -w net.ipv4.ip_forward=0", b)
		} else if err := forward("0"); err != nil {
			return err
		}
	}
	crash.Point("uninstall.removed")
	if err := os.Remove(Manifest); err != nil {
		return err
	}
	return files.RemoveDirs(append(x.m.Dirs, filepath.Dir(Manifest)))
}

// bridges names one of the host's bridges, such as Docker's: its packets pass
// the host too.
func bridges() string {
	found, err := filepath.Glob("/sys/class/net/*/bridge")
	if err != nil || len(found) == 0 {
		return ""
	}
	return filepath.Base(filepath.Dir(found[0]))
}
