// Package install puts banger's system mode on a host, looks after it and takes
// it away again: programs, units, the record, and what follows from them.
//
// An install is a list of steps, each of which can be undone; what was put
// where is written down first (package files). It may be killed at any step: the
// next install completes it, and an uninstall removes it. VMs and their
// companions do not notice. What the daemons do is theirs; how the user asks is
// package systemcmd's.
package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"banger/internal/api"
	"banger/internal/hostnet"
	"banger/internal/install/choice"
	"banger/internal/install/files"
	"banger/internal/install/record"
	"banger/internal/install/units"
	"banger/internal/rootapi"
	"banger/internal/version"
)

// Where things go. All programs are in one directory, as they look for each
// other beside themselves; in PATH there is a link to the one that people type.
const (
	BinDir   = "/usr/local/libexec/banger"
	Command  = "/usr/local/bin/banger"
	Manifest = "/etc/banger/files.json"
	unitDir  = "/etc/systemd/system"
	sysctl   = "/etc/sysctl.d/60-banger.conf"
)

// The units. The helper's service is started by its socket.
const (
	DaemonUnit = "bangerd.service"
	helperUnit = "bangerd-root.service"
	socketUnit = "bangerd-root.socket"
	sliceUnit  = "banger.slice"
)

// The directories of what is not installed but made: state, cache, and what a
// restart of the host empties.
const (
	stateDir  = "/var/lib/banger"
	cacheDir  = "/var/cache/banger"
	runDir    = "/run/banger"
	helperDir = "/run/banger-root"
)

var stateDirs = []string{stateDir, cacheDir, runDir, helperDir}

var programs = []string{"banger", "bangerd", "bangerd-root", "banger-companion", "banger-jail", "banger-vsock-agent"}

// Options say what to install, and from where.
type Options struct {
	choice.Wanted
	Self   string // the running program; the others are beside it
	DryRun bool
	// Say tells what happens, a line at a time.
	Say func(format string, args ...any)
}

// A Plan is what an install does.
type Plan struct {
	Version  string          `json:"version"`
	Record   rootapi.Install `json:"record"`
	Versions []string        `json:"firecracker_versions"`
	Files    []Planned       `json:"files"`
	Drops    []string        `json:"removed_files,omitempty"` // of an earlier version
	Notes    []string        `json:"notes,omitempty"`
	// Restart tells whether the daemons are started anew; VMs go on.
	Restart bool `json:"restart"`
	Done    bool `json:"done"`

	before   files.Manifest   // empty on the first install
	was      *rootapi.Install // nil on the first install
	contents []files.New      // in the order of Files
}

// Planned is one file of a plan.
type Planned struct {
	Path  string      `json:"path"`
	State files.State `json:"state"`
}

// plan looks at everything and changes nothing.
func plan(ctx context.Context, o Options) (p *Plan, err error) {
	p = &Plan{Version: version.Get().String()}
	if p.before, err = ours(); err != nil {
		return nil, err
	}
	was, err := rootapi.ReadInstall(rootapi.InstallPath)
	switch {
	case err == nil && record.Check(was) == nil:
		p.was = &was
	case !errors.Is(err, fs.ErrNotExist):
		p.Notes = append(p.Notes, rootapi.InstallPath+" cannot be read, and is written anew")
	}
	c, err := choice.Choose(ctx, o.Wanted, choice.ThisHost(ctx, p.was))
	if err != nil {
		return nil, err
	}
	p.Record, p.Notes = c.Install, append(p.Notes, c.Notes...)
	for _, v := range c.Versions {
		p.Versions = append(p.Versions, v.String())
	}
	if err := p.suits(); err != nil {
		return nil, err
	}
	if err := bridgeFree(p.Record, p.was, linkOf); err != nil {
		return nil, err
	}
	if p.contents, err = contents(o.Self, p.Record); err != nil {
		return nil, err
	}
	if err := p.compare(); err != nil {
		return nil, err
	}
	p.Notes = append(p.Notes, p.userMode()...)
	return p, nil
}

// listed reads the list. One that cannot be read is as good as lost, but that is
// for root to say.
func listed() (files.Manifest, error) {
	m, err := files.Read(Manifest)
	if err != nil {
		err = &api.Error{Code: api.StateDamaged, Msg: "the list of what is installed cannot be read", Hint: "what is there is found without it: sudo mv " + Manifest + " " + Manifest + ".damaged, and try again", Err: err}
	}
	return m, err
}

// ours lists what is ours on this host. Where the list was lost and the record is
// there, which only root can have written, it is what is at our places.
func ours() (files.Manifest, error) {
	m, err := listed()
	if err != nil || len(m.Files) > 0 {
		return m, err
	}
	if _, err := os.Lstat(rootapi.InstallPath); err != nil {
		return m, nil
	}
	paths := []string{sysctl}
	if to, err := os.Readlink(Command); err == nil && strings.HasPrefix(to, BinDir+"/") {
		paths = append(paths, Command)
	}
	for _, name := range programs {
		paths = append(paths, filepath.Join(BinDir, name))
	}
	for _, name := range []string{sliceUnit, socketUnit, helperUnit, DaemonUnit} {
		paths = append(paths, filepath.Join(unitDir, name))
	}
	m, err = files.Adopt(append(paths, rootapi.InstallPath))
	m.Dirs = []string{BinDir}
	return m, err
}

// contents are all the files, in the order in which they are put: the record
// last, as it is what makes banger use system mode.
func contents(self string, in rootapi.Install) (list []files.New, err error) {
	real, err := filepath.EvalSymlinks(self)
	if err != nil {
		return nil, fmt.Errorf("looking for the programs beside this one: %w", err)
	}
	for _, name := range programs {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(real), name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, &api.Error{Code: api.Missing, Msg: fmt.Sprintf("there is no %s beside %s", name, real), Hint: "build all of them: make build; then: sudo ./build/bin/banger system install"}
		}
		if err != nil {
			return nil, err
		}
		list = append(list, files.Large(filepath.Join(BinDir, name), 0o755, b))
	}
	list = append(list, files.New{Path: Command, Link: filepath.Join(BinDir, "banger")},
		files.New{Path: sysctl, Mode: 0o644, Data: []byte("# banger: VMs that may reach the internet do so by way of this host.\nnet.ipv4.ip_forward = 1\n")})
	fill := strings.NewReplacer("@OWNER@", unitName(in.Owner), "@BINDIR@", BinDir)
	for _, name := range []string{sliceUnit, socketUnit, helperUnit, DaemonUnit} {
		text, err := units.Files.ReadFile(name)
		if err != nil {
			return nil, err
		}
		list = append(list, files.New{Path: filepath.Join(unitDir, name), Mode: 0o644, Data: []byte(fill.Replace(string(text)))})
	}
	b, err := record.Bytes(in)
	return append(list, files.New{Path: rootapi.InstallPath, Mode: 0o644, Data: b}), err
}

// unitName is how units name the owner: by the uid if systemd would find fault
// with the name, or see something else in it.
func unitName(o rootapi.Owner) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789-"
	if strings.Trim(o.Name, plain) == "" && !strings.Contains("-0123456789", o.Name[:1]) && len(o.Name) < 32 {
		return o.Name
	}
	return fmt.Sprint(o.UID)
}

// compare looks at what is there, and refuses to touch what is not ours.
func (p *Plan) compare() error {
	p.Restart = !p.before.Complete
	for _, n := range p.contents {
		s, err := p.before.Look(n)
		if err != nil {
			return fmt.Errorf("looking at what is installed: %w", err)
		}
		if at, err := files.Guarded(filepath.Dir(n.Path)); err != nil {
			return &api.Error{Code: api.Denied, Msg: fmt.Sprintf("%s would not be root's alone: %v", n.Path, err), Hint: fmt.Sprintf("who can write there could become root; make it root's: sudo chown root: %s && sudo chmod go-w %[1]s", at)}
		}
		if s == files.Foreign && n.Path != rootapi.InstallPath {
			return &api.Error{Code: api.Exists, Msg: fmt.Sprintf("%s is there, and banger has not put it there", n.Path), Hint: "look at it, and move it away: sudo mv " + n.Path + " " + n.Path + ".before-banger"}
		}
		p.Restart = p.Restart || s != files.Same
		p.Files = append(p.Files, Planned{n.Path, s})
	}
	for _, f := range p.before.Dropped(p.contents) {
		p.Drops = append(p.Drops, f.Path)
		p.Restart = true
	}
	return nil
}

// suits refuses what VMs that are there would not survive: directories that are
// another's, which systemd would give to the new owner with all that is in them;
// and a network in which their addresses are none.
func (p *Plan) suits() error {
	for _, dir := range []string{stateDir, cacheDir, runDir} {
		uid, empty, err := holder(dir)
		if err != nil {
			return err
		}
		if uid >= 0 && uint32(uid) != p.Record.Owner.UID && !empty {
			return &api.Error{Code: api.Conflict, Msg: fmt.Sprintf("%s belongs to uid %d, not to %s, and is not empty", dir, uid, p.Record.Owner.Name),
				Hint: "if an earlier install left it: sudo banger system uninstall --purge removes it; or install for that account"}
		}
	}
	if w := p.was; w == nil || w.Prefix == p.Record.Prefix && w.Bridge == p.Record.Bridge {
		return nil
	}
	if n := len(vms(stateDir)); n > 0 {
		return &api.Error{Code: api.Conflict, Msg: fmt.Sprintf("there are %d VMs with addresses of %v on %s, which they would lose", n, p.was.Prefix, p.was.Bridge),
			Hint: "delete them first (banger vm list, banger vm delete NAME...), or leave out --prefix and --bridge"}
	}
	return nil
}

// linkOf is the Ethernet address of an interface of the host's, nil if there is
// none of the name.
func linkOf(name string) net.HardwareAddr {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil
	}
	if i.HardwareAddr == nil {
		return net.HardwareAddr{}
	}
	return i.HardwareAddr
}

// bridgeFree refuses a name that an interface of somebody else's has: no VM would
// start. Ours is known by its address, which is that of the prefix now or before.
func bridgeFree(in rootapi.Install, was *rootapi.Install, at func(name string) net.HardwareAddr) error {
	mac := at(in.Bridge)
	if mac == nil {
		return nil
	}
	for _, r := range []*rootapi.Install{&in, was} {
		if r != nil && r.Bridge == in.Bridge {
			if ours := hostnet.MAC(r.Prefix.Masked().Addr().Next()); bytes.Equal(mac, ours[:]) {
				return nil
			}
		}
	}
	hint := "name another: sudo banger system install --bridge br-banger"
	if bytes.HasPrefix(mac, []byte{0x02, 0xfc}) { // as ours of any prefix
		hint += "; if an install that was killed has left it: sudo ip link del " + in.Bridge
	}
	return &api.Error{Code: api.Conflict, Msg: fmt.Sprintf("the host has an interface %s that is not banger's", in.Bridge), Hint: hint}
}

// holder tells whose a directory is, -1 if it is not there, and whether it is
// empty.
func holder(dir string) (uid int, empty bool, err error) {
	st, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return -1, true, nil
	}
	if err != nil {
		return -1, false, err
	}
	if !st.IsDir() {
		return -1, false, &api.Error{Code: api.Conflict, Msg: dir + " is there, and is no directory", Hint: "look at it, and move it away: sudo mv " + dir + " " + dir + ".before-banger"}
	}
	names, err := os.ReadDir(dir)
	return ownerOf(st), len(names) == 0, err
}

// vms lists the VMs that a state directory holds. Their directories tell it, so
// it can be known while no daemon runs.
func vms(state string) (ids []string) {
	entries, err := os.ReadDir(filepath.Join(state, "vms"))
	if err != nil {
		return nil // there is none, or it is not for us to see
	}
	for _, e := range entries {
		if rootapi.ValidID(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids
}

// userMode tells of VMs that the owner has made without system mode. They stay
// user mode's: their rows and disks are another daemon's, and they have no
// address.
func (p *Plan) userMode() []string {
	state := filepath.Join(p.Record.Owner.Home, ".local/state/banger")
	n := len(vms(state))
	if n == 0 {
		return nil
	}
	return []string{
		fmt.Sprintf("%s has %d VMs of user mode in %s; they stay there. To use them: BANGER_MODE=user banger vm list", p.Record.Owner.Name, n, state),
		"to move one's work: BANGER_MODE=user banger vm cp OLD:/root/DIR DIR; banger vm cp DIR NEW:/root/DIR",
	}
}

// Print writes the plan for people.
func (p *Plan) Print(say func(format string, args ...any)) {
	r := p.Record
	say("banger %s, system mode for %s (uid %d)", p.Version, r.Owner.Name, r.Owner.UID)
	say("  network      %v on %s, names in .%s; VMs reach the host only, with --nat also the internet", r.Prefix, r.Bridge, r.Zone)
	for i, f := range r.Programs {
		say("  firecracker  %s (%s), %s", f.Firecracker, p.Versions[i], f.Jailer)
	}
	for _, f := range p.Files {
		if f.State != files.Same {
			say("  %-11s  %s", f.State, f.Path)
		}
	}
	for _, path := range p.Drops {
		say("  remove       %s", path)
	}
	switch n := len(vms(stateDir)); {
	case !p.Restart:
		say("  nothing to replace: all files are as they should be")
	case n > 0:
		say("  restart      %s, %s; VMs go on, with what runs in them", helperUnit, DaemonUnit)
	default:
		say("  start        %s, %s, now and at each boot", socketUnit, DaemonUnit)
	}
	if slices.ContainsFunc(p.Files, func(f Planned) bool { return f.Path == sysctl && f.State == files.Absent }) && forwarding() == "0" {
		say("  set          net.ipv4.ip_forward = 1: with --nat a VM's packets pass this host")
	}
	for _, n := range p.Notes {
		say("note: %s", n)
	}
}
