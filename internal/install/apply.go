package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"banger/internal/api"
	"banger/internal/crash"
	"banger/internal/hostnet"
	"banger/internal/hostnet/remove"
	"banger/internal/install/files"
	"banger/internal/install/systemctl"
	"banger/internal/rootapi"
	"banger/internal/undo"
)

// Points lists where an install, and then an uninstall, can be killed.
func Points() []string {
	return []string{"install.listed", "install.file", "install.placed", "install.stopped", "install.enabled", "install.answered",
		"uninstall.released", "uninstall.stopped", "uninstall.network", "uninstall.removed"}
}

// Install installs, upgrades or repairs. On any error the host is as it was.
func Install(ctx context.Context, o Options) (*Plan, error) {
	if err := needRoot("install"); err != nil {
		return nil, err
	}
	host := thisHost()
	if err := host.refuse(ctx); err != nil {
		return nil, err
	}
	unlock, err := lock(lockFile)
	if err != nil {
		return nil, err
	}
	defer unlock()
	p, err := plan(ctx, o)
	if err != nil {
		return nil, err
	}
	if !p.before.Complete { // else it was asked before; doctor asks again
		if err := host.virtual(ctx); err != nil {
			return nil, err
		}
	}
	p.Print(o.Say)
	if o.DryRun {
		return p, nil
	}
	if err := p.apply(ctx, o.Say); err != nil {
		return nil, err
	}
	p.Done = true
	return p, nil
}

// apply does the steps. What each has done is undone, the last first, if a later
// one fails: the files are back before the units are read again, and those
// before what ran is started again.
func (p *Plan) apply(ctx context.Context, say func(string, ...any)) (err error) {
	var u undo.Stack
	defer func() {
		if err != nil {
			say("undoing what was done")
		}
		u.OnError(&err)
	}()
	late := context.WithoutCancel(ctx)
	m, err := p.list(&u)
	if err != nil {
		return err
	}
	crash.Point("install.listed")
	p.states(&u)
	ran, err := systemctl.Show(ctx, DaemonUnit)
	if err != nil {
		return err
	}
	u.Push(func() error { return p.asBefore(late, ran.Up()) })
	if err := p.put(&u); err != nil {
		return err
	}
	crash.Point("install.placed")
	if err := p.start(ctx, &u); err != nil {
		return err
	}
	crash.Point("install.answered")
	m.Complete = true
	if err := m.Settled(p.contents).Write(Manifest); err != nil {
		return err
	}
	return p.tidy()
}

// list writes down what will be ours, before it is.
func (p *Plan) list(u *undo.Stack) (m files.Manifest, err error) {
	list := append(slices.Clone(p.contents), files.New{Path: Manifest})
	m = p.before.With(p.contents)
	m.Version, m.Complete = p.Version, false
	for _, dir := range files.Missing(list) {
		if !slices.Contains(m.Dirs, dir) {
			m.Dirs = append(m.Dirs, dir)
		}
	}
	if m.Forwarding == "" {
		m.Forwarding = forwarding()
	}
	made, err := files.MakeDirs([]files.New{{Path: Manifest}})
	u.Push(func() error { return files.RemoveDirs(made) })
	if err != nil {
		return m, fmt.Errorf("making the record's directory: %w", err)
	}
	before := p.before
	u.Push(func() error {
		if len(before.Files) == 0 {
			return errors.Join(os.Remove(Manifest), files.RemoveDirs(m.Dirs))
		}
		return before.Write(Manifest)
	})
	return m, m.Write(Manifest)
}

// states has the directories that the services make removed if they were not
// there and the install fails.
func (p *Plan) states(u *undo.Stack) {
	for _, dir := range stateDirs {
		if _, err := os.Lstat(dir); err != nil {
			u.Push(func() error { return os.RemoveAll(dir) })
		}
	}
}

// put puts the files, and takes away those of an earlier version.
func (p *Plan) put(u *undo.Stack) error {
	if _, err := files.MakeDirs(p.contents); err != nil {
		return err
	}
	for i, n := range p.contents {
		if p.Files[i].State == files.Same {
			continue
		}
		back, err := n.Put()
		if err != nil {
			return fmt.Errorf("installing %s: %w", n.Path, err)
		}
		u.Push(back)
		if i == len(p.contents)/2 {
			crash.Point("install.file")
		}
	}
	was := forwarding()
	u.Push(func() error { return forward(was) })
	return forward("1")
}

// start has systemd read the units, and starts the daemons, anew if they are
// not what runs. The socket is stopped too, as its unit may have changed; what a
// running VM needs is neither of the three.
func (p *Plan) start(ctx context.Context, u *undo.Stack) error {
	if _, err := systemctl.Run(ctx, "daemon-reload"); err != nil {
		return err
	}
	if p.Restart {
		if _, err := systemctl.Run(ctx, "stop", DaemonUnit, socketUnit, helperUnit); err != nil {
			return err
		}
		if err := p.moveNetwork(ctx); err != nil {
			return err
		}
	}
	crash.Point("install.stopped")
	late := context.WithoutCancel(ctx)
	u.Push(func() error {
		_, err := systemctl.Run(late, "stop", DaemonUnit, socketUnit, helperUnit)
		if p.was == nil {
			_, err2 := systemctl.Run(late, "disable", "--quiet", DaemonUnit, socketUnit)
			err = errors.Join(err, err2, removeNetwork(late, p.Record), stopSlice(late))
		}
		return err
	})
	for _, step := range [][]string{{"enable", "--quiet", socketUnit, DaemonUnit}, {"reset-failed", DaemonUnit, helperUnit, socketUnit}, {"start", socketUnit}} {
		if _, err := systemctl.Run(ctx, step...); err != nil && step[0] != "reset-failed" { // what never ran cannot be reset
			return err
		}
	}
	crash.Point("install.enabled")
	return await(ctx, p.Record, p.Version)
}

// asBefore has systemd see the files that are back, and what ran run again.
func (p *Plan) asBefore(ctx context.Context, ran bool) error {
	_, err := systemctl.Run(ctx, "daemon-reload")
	if ran {
		_, err2 := systemctl.Run(ctx, "start", socketUnit, DaemonUnit)
		err = errors.Join(err, err2)
	}
	return err
}

// moveNetwork takes the bridge away that another prefix or name was asked for.
func (p *Plan) moveNetwork(ctx context.Context) error {
	if p.was == nil || p.was.Bridge == p.Record.Bridge && p.was.Prefix == p.Record.Prefix {
		return nil
	}
	return removeNetwork(ctx, *p.was)
}

// tidy removes what made undoing possible, and what an earlier version had.
func (p *Plan) tidy() (err error) {
	for _, f := range p.before.Dropped(p.contents) {
		_, removeErr := f.Remove()
		err = errors.Join(err, removeErr)
	}
	var paths []string
	for _, n := range p.contents {
		paths = append(paths, n.Path)
	}
	return errors.Join(err, files.Tidy(append(paths, Manifest)...))
}

// removeNetwork takes away what the helper has made of the network.
func removeNetwork(ctx context.Context, in rootapi.Install) error {
	n, err := hostnet.Open(in.Bridge, in.Prefix)
	if err == nil {
		err = remove.Network(ctx, n)
	}
	if err != nil {
		return fmt.Errorf("removing the network: %w", err)
	}
	return nil
}

// Restart starts both daemons anew. VMs go on, with what runs in them.
func Restart(ctx context.Context) error {
	if err := needRoot("restart"); err != nil {
		return err
	}
	in, err := installed()
	if err != nil {
		return err
	}
	m, err := listed()
	if err == nil && m.Version == "" {
		err = &api.Error{Code: api.StateDamaged, Msg: "the list of what is installed is gone, " + Manifest, Hint: fixInstall + " writes it anew"}
	}
	if err != nil {
		return err
	}
	unlock, err := lock(lockFile)
	if err != nil {
		return err
	}
	defer unlock()
	for _, step := range [][]string{{"daemon-reload"}, {"stop", DaemonUnit, socketUnit, helperUnit}, {"reset-failed", DaemonUnit, helperUnit, socketUnit}, {"start", socketUnit}} {
		if _, err := systemctl.Run(ctx, step...); err != nil && step[0] != "reset-failed" {
			return err
		}
	}
	return await(ctx, in, m.Version)
}

// installed is the record; without one nothing is installed.
func installed() (rootapi.Install, error) {
	in, err := rootapi.ReadInstall(rootapi.InstallPath)
	if errors.Is(err, os.ErrNotExist) {
		return in, ErrNotInstalled
	}
	if err != nil {
		return in, &api.Error{Code: api.StateDamaged, Msg: "the install record cannot be read", Hint: "sudo banger system install --owner NAME writes it anew", Err: err}
	}
	return in, nil
}

// ErrNotInstalled is the error of what needs system mode where there is none.
var ErrNotInstalled = &api.Error{Code: api.NotFound, Msg: "system mode is not installed on this host", Hint: `sudo banger system install --owner "$USER"`}
