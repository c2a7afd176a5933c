package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"banger/internal/companionapi"
	"banger/internal/crash"
	"banger/internal/host"
	"banger/internal/procid"
)

// found is a process that was started for a VM.
type found struct {
	dir       string
	id        procid.ID
	companion bool
}

// processes looks through /proc for companions and VMMs of VMs below RunDir.
// Their environment tells: it is there before their first instruction, and a
// record may be lost. Processes of other users are not ours, whatever is in
// their environment: root can read it, and they could have it killed or counted.
func (k *Keeper) processes() ([]found, error) {
	names, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("looking for processes: %w", err)
	}
	mark := []byte(companionapi.DirEnv + "=")
	var out []found
	for _, n := range names {
		pid, err := strconv.Atoi(n.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		env, err := environ("/proc/" + n.Name())
		if err != nil {
			continue // it has ended, or is somebody else's
		}
		for v := range bytes.SplitSeq(env, []byte{0}) {
			dir, ok := bytes.CutPrefix(v, mark)
			if !ok || filepath.Dir(string(dir)) != k.cfg.RunDir {
				continue
			}
			if id, err := procid.Of(pid); err == nil && k.owns(pid, filepath.Base(string(dir))) {
				out = append(out, found{dir: string(dir), id: id, companion: isCompanion(pid, filepath.Base(string(dir)))})
			}
			break
		}
	}
	return out, nil
}

// execLimit bounds the wait for a process in the middle of an exec.
const execLimit = time.Second

// environ reads the environment of a process. While a program replaces another
// both its environment and its arguments are empty: a VMM that is just starting
// would not be seen, and outlive its VM. There is no event for the end of an
// exec, so it is looked at again. Kernel threads and zombies are empty for good.
func environ(proc string) ([]byte, error) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for begun := time.Now(); ; <-tick.C {
		env, err := os.ReadFile(proc + "/environ")
		if err != nil || len(env) > 0 || time.Since(begun) > execLimit {
			return env, err
		}
		if !betweenPrograms(proc) { // by now: what is there is final
			return os.ReadFile(proc + "/environ")
		}
	}
}

// betweenPrograms reports whether a process has no arguments, and is neither a
// kernel thread nor dead: see proc_pid_stat(5) for state and flags.
func betweenPrograms(proc string) bool {
	if args, err := os.ReadFile(proc + "/cmdline"); err != nil || len(args) > 0 {
		return false
	}
	b, err := os.ReadFile(proc + "/stat")
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:]) // f[0] is field 3
	const state, flags, kthread = 0, 9 - 3, 0x200000     // PF_KTHREAD
	if err != nil || len(f) <= flags || bytes.ContainsAny(f[state], "ZXx") {
		return false
	}
	bits, err := strconv.ParseUint(string(f[flags]), 10, 64)
	return err == nil && bits&kthread == 0
}

// owns reports whether a process has only uids that we give to the processes of
// a VM. That of its file in /proc would not do: a program that is set-user-id
// gets its environment from whoever starts it.
func (k *Keeper) owns(pid int, id string) bool {
	ours := []int{os.Geteuid()}
	if k.cfg.UIDs != nil {
		ours = append(ours, k.cfg.UIDs(id)...)
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	_, rest, ok := strings.Cut(string(b), "\nUid:")
	line, _, _ := strings.Cut(rest, "\n")
	uids := strings.Fields(line)
	for _, u := range uids { // real, effective, saved and of the file system
		uid, err := strconv.Atoi(u)
		ok = ok && err == nil && slices.Contains(ours, uid)
	}
	return err == nil && ok && len(uids) == 4
}

// isCompanion tells a companion, whose only argument is the VM, from its VMM.
func isCompanion(pid int, id string) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	args := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
	return err == nil && len(args) == 2 && args[1] == "banger-"+id
}

// Release ends whatever there is of id, and removes its directory: see
// host.Host. The companion goes first, so that it cannot start a VMM behind our
// back; by itself if its VMM has ended, since clients may still read the rest.
func (k *Keeper) Release(ctx context.Context, id string) error {
	dir, err := k.Dir(id)
	if err != nil {
		return err
	}
	k.mu.Lock()
	r := k.runs[id]
	delete(k.runs, id)
	k.mu.Unlock()
	if r != nil { // or it would replace the companion
		r.let()
	}
	if err := k.killAll(ctx, id, dir); err != nil {
		return err
	}
	crash.Point("release.killed")
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing runtime directory: %w", err)
	}
	if r != nil && !ended(r) {
		r.finish(host.Exit{Reason: "it was released", Asked: true})
	}
	return nil
}

func ended(r *run) bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// killAll ends what the record names, and then whatever else /proc shows, until
// it shows nothing.
func (k *Keeper) killAll(ctx context.Context, id, dir string) error {
	var rec host.Record
	if err := companionapi.Load(dir, companionapi.RecordName, &rec); err != nil {
		rec = host.Record{}
	}
	rec.ID = id
	if rec.VMM.PID != 0 && k.dead(ctx, rec, nil) {
		farewell(ctx, rec.Companion)
	}
	if err := errors.Join(Kill(ctx, rec.Companion), k.cfg.VMMs.End(ctx, rec)); err != nil {
		return err
	}
	const rounds = 10 // a process can start one more before it dies, not endlessly
	for range rounds {
		all, err := k.processes()
		if err != nil {
			return err
		}
		all = slices.DeleteFunc(all, func(f found) bool { return f.dir != dir })
		if len(all) == 0 {
			return nil
		}
		slices.SortStableFunc(all, func(a, b found) int { return order(b) - order(a) })
		for _, f := range all {
			if err := Kill(ctx, f.id); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("ending the processes of %s: there are always more", dir)
}

// killCompanions ends the companions of a VM, recorded or not.
func (k *Keeper) killCompanions(ctx context.Context, dir string) error {
	all, err := k.processes()
	for _, f := range all {
		if f.dir == dir && f.companion {
			err = errors.Join(err, Kill(ctx, f.id))
		}
	}
	return err
}

func order(f found) int {
	if f.companion {
		return 1
	}
	return 0
}

// Census lists all VMs of which there is anything: see host.Host.
func (k *Keeper) Census(ctx context.Context) ([]host.Held, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(k.cfg.RunDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("looking for VMs: %w", err)
	}
	held := map[string]*host.Held{}
	at := func(id string) *host.Held {
		if held[id] == nil {
			held[id] = &host.Held{ID: id, Dir: filepath.Join(k.cfg.RunDir, id)}
		}
		return held[id]
	}
	for _, e := range entries {
		if idPattern.MatchString(e.Name()) {
			at(e.Name())
		}
	}
	all, err := k.processes()
	if err != nil {
		return nil, err
	}
	others, err := k.cfg.VMMs.Census(ctx)
	if err != nil {
		return nil, err
	}
	for id, pid := range others {
		at(id).VMM = pid
	}
	for _, f := range all {
		if v := at(filepath.Base(f.dir)); f.companion {
			v.Companion = f.id.PID
		} else {
			v.VMM = f.id.PID
		}
	}
	var out []host.Held
	for _, v := range held {
		out = append(out, *v)
	}
	slices.SortFunc(out, func(a, b host.Held) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}
