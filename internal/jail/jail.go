// Package jail starts, finds and ends the services in which Firecrackers run
// so that they can reach nothing but their VM's own files, each in a root
// directory of its own and under a uid of its own.
//
// It owns the services' properties, and the directory through which a VM's
// sockets are reached; package child builds the jail from inside. It knows
// nothing of networks and decides nothing: package rootd has.
package jail

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"banger/internal/beneath"
	"banger/internal/dbus"
	"banger/internal/rootapi"

	"golang.org/x/sys/unix"
)

// overhead is what a unit's memory limit has above the guest's memory, in MiB:
// for the VMM itself, its binary in the jail, and the kernel's share of both.
const overhead = 160

// A Spec is what a jail holds. It crosses to the child as its one argument.
type Spec struct {
	ID          string
	UID         uint32 // and gid, of the VMM
	Owner       uint32 // uid of the files' owner
	OwnerGID    uint32
	VCPUs       int
	MemoryMiB   int64
	Firecracker string
	Jailer      string
	Files       []File
}

// A File is one that the jail shows, if what is found at its path is the very
// file whose descriptor the helper holds.
type File struct {
	Name     string // in the jail
	Base     string // a directory that is root's all the way up
	Path     string // below Base, where everything may be the owner's
	Dev, Ino uint64
	ReadOnly bool
}

// UnitName is the name of a VM's service.
func UnitName(id string) string { return "banger-vm-" + id + ".service" }

const (
	systemd    = "org.freedesktop.systemd1"
	noSuchUnit = systemd + ".NoSuchUnit"
)

// A Systemd is a conversation with PID 1, without a bus daemon in between. It
// ends with its Conn.
type Systemd struct{ *dbus.Conn }

// Dial begins it. Only root may.
func Dial(ctx context.Context) (Systemd, error) {
	c, err := dbus.Dial(ctx, "/run/systemd/private")
	return Systemd{c}, err
}

func (s Systemd) manager(ctx context.Context, name, sig string, args ...any) ([]any, error) {
	return s.Call(ctx, dbus.Method{Dest: systemd, Path: "/org/freedesktop/systemd1", Interface: systemd + ".Manager", Name: name}, sig, args...)
}

// job runs a method that makes a job, and waits for the job's end. Without
// Subscribe nobody would tell of it.
func (s Systemd) job(ctx context.Context, name, sig string, args ...any) error {
	if _, err := s.manager(ctx, "Subscribe", ""); err != nil && !dbus.Is(err, systemd+".AlreadySubscribed") {
		return err
	}
	made, err := s.manager(ctx, name, sig, args...)
	if err != nil {
		return err
	}
	removed, err := s.Await(ctx, func(sg dbus.Signal) bool {
		return sg.Name == "JobRemoved" && len(sg.Body) == 4 && sg.Body[1] == made[0]
	})
	if err == nil && removed.Body[3] != "done" {
		err = fmt.Errorf("%s: the job ended as %q", name, removed.Body[3])
	}
	return err
}

// Start makes the VM's service, whose process is the jail child. It returns
// when that has been executed.
func (s Systemd) Start(ctx context.Context, sp Spec) error {
	self, err := os.Executable()
	b, err2 := json.Marshal(sp)
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	argv := []string{filepath.Join(filepath.Dir(self), "banger-jail"), string(b)}
	return s.job(ctx, "StartTransientUnit", "ssa(sv)a(sa(sv))", UnitName(sp.ID), "fail", properties(argv, sp), []dbus.Struct{})
}

// Stop ends a VM's service whatever its state, and forgets it: a failed one
// would stay, and keep its name.
func (s Systemd) Stop(ctx context.Context, id string) error {
	err := s.job(ctx, "StopUnit", "ss", UnitName(id), "replace")
	if err == nil {
		_, err = s.manager(ctx, "ResetFailedUnit", "s", UnitName(id))
	}
	if dbus.Is(err, noSuchUnit) {
		return nil
	}
	return err
}

// Get tells a service's state, nil if there is none of the name.
func (s Systemd) Get(ctx context.Context, id string) (*rootapi.Unit, error) {
	var u rootapi.Unit
	found, err := s.manager(ctx, "GetUnit", "s", UnitName(id))
	if dbus.Is(err, noSuchUnit) {
		return nil, nil
	}
	get := func(of, name string) any {
		if err != nil {
			return nil
		}
		path, _ := found[0].(string)
		var v []any
		v, err = s.Call(ctx, dbus.Method{Dest: systemd, Path: path, Interface: "org.freedesktop.DBus.Properties", Name: "Get"}, "ss", systemd+of, name)
		return append(v, nil)[0]
	}
	text := func(of, name string) string { v, _ := get(of, name).(string); return v }
	number := func(of, name string) uint32 { v, _ := get(of, name).(uint64); return uint32(v) }
	invocation, _ := get(".Unit", "InvocationID").([]byte)
	u.InvocationID = hex.EncodeToString(invocation)
	u.Active, u.Sub, u.Result = text(".Unit", "ActiveState"), text(".Unit", "SubState"), text(".Service", "Result")
	u.Code, u.Status, u.PID = number(".Service", "ExecMainCode"), number(".Service", "ExecMainStatus"), number(".Service", "MainPID")
	if dbus.Is(err, "org.freedesktop.DBus.Error.UnknownObject") { // it has gone meanwhile
		return nil, nil
	}
	return &u, err
}

// Units returns the ids of all VMs that have a cgroup, which is to say
// processes.
func Units() ([]string, error) {
	entries, err := os.ReadDir("/sys/fs/cgroup/banger.slice")
	if errors.Is(err, os.ErrNotExist) { // there was no VM since the host started
		err = nil
	}
	return ids(entries, "banger-vm-", ".service"), err
}

// ids are those among the names that are one, between prefix and suffix.
func ids(entries []os.DirEntry, prefix, suffix string) (list []string) {
	for _, e := range entries {
		if id := strings.TrimSuffix(strings.TrimPrefix(e.Name(), prefix), suffix); rootapi.ValidID(id) {
			list = append(list, id)
		}
	}
	return list
}

// properties is the sandbox in which the jail child, the jailer and Firecracker
// run. docs/adr/0015 says which of the usual directives cannot be had, and why.
func properties(argv []string, sp Spec) (list []dbus.Struct) {
	add := func(sig string, value any, names ...string) {
		for _, n := range names {
			list = append(list, dbus.Struct{n, dbus.Variant{Sig: sig, Value: value}})
		}
	}
	var caps uint64 // each of them is needed until the jailer drops all
	for _, c := range []int{unix.CAP_SYS_ADMIN, unix.CAP_MKNOD, unix.CAP_CHOWN, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_DAC_OVERRIDE} {
		caps |= 1 << c
	}
	add("s", "banger VM "+sp.ID, "Description")
	add("s", "exec", "Type")
	add("s", "banger.slice", "Slice")
	add("a(sasb)", []dbus.Struct{{argv[0], argv, false}}, "ExecStart")
	add("b", true, "RemainAfterExit")           // else a clean end would unload the unit and its status
	add("i", int32(unix.SIGKILL), "KillSignal") // who wants a clean end asks the guest
	add("u", uint32(0o077), "UMask")
	add("t", uint64(sp.MemoryMiB+overhead)<<20, "MemoryMax")
	add("t", uint64(0), "MemorySwapMax", "LimitCORE")
	add("t", uint64(100), "CPUWeight")
	add("t", uint64(sp.VCPUs+32), "TasksMax")
	add("s", "closed", "DevicePolicy")
	add("a(ss)", []dbus.Struct{{"/dev/kvm", "rwm"}, {"/dev/net/tun", "rwm"}}, "DeviceAllow") // m: the jailer's mknod
	add("t", caps, "CapabilityBoundingSet")
	add("b", true, "NoNewPrivileges", "PrivateMounts", "PrivateTmp", "PrivateIPC", "ProtectClock", "ProtectControlGroups", "ProtectHostname",
		"ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "LockPersonality", "MemoryDenyWriteExecute", "RestrictRealtime",
		"RestrictSUIDSGID", "RemoveIPC")
	add("s", "strict", "ProtectSystem")
	add("s", "yes", "ProtectHome")
	add("s", "invisible", "ProtectProc")
	add("s", "pid", "ProcSubset") // hides /proc/misc, so the jailer makes no userfaultfd
	add("s", "private", "KeyringMode")
	add("as", []string{"native"}, "SystemCallArchitectures")
	add("t", uint64(unix.CLONE_NEWNS|unix.CLONE_NEWUSER), "RestrictNamespaces")
	add("(bas)", dbus.Struct{true, []string{"AF_UNIX"}}, "RestrictAddressFamilies")
	add("(bas)", dbus.Struct{true, []string{"@system-service", "@mount", "seccomp"}}, "SystemCallFilter")
	add("a(iayu)", []dbus.Struct{{int32(unix.AF_INET), make([]byte, 4), uint32(0)}, {int32(unix.AF_INET6), make([]byte, 16), uint32(0)}}, "IPAddressDeny")
	return list
}

// Where a directory for each VM is; where each child mounts its jail, which is
// empty for everybody else; and names in the directory "s", which the jail has
// as /s: Firecracker's own socket, and what it dials when the guest calls.
const (
	runDir     = "/run/banger-root/vm"
	MountPoint = "/run/banger-root/jail"

	APISocket   = "api.sock"
	agentSocket = "v.sock_1024"
)

// Prepare makes what all VMs share.
func Prepare() error {
	return errors.Join(os.MkdirAll(runDir, 0o711), os.Chmod(runDir, 0o711), os.MkdirAll(MountPoint, 0o711))
}

// A Dir is a VM's directory, by its id. It is there as long as anything of the
// VM may be.
type Dir string

// Path is that of a name in it.
func (d Dir) Path(name string) string { return filepath.Join(runDir, string(d), name) }

// Claim makes the directory, which must not be there. The group of "s" says
// which uid the VM has, so that nothing must be remembered.
func (d Dir) Claim(uid uint32) error {
	if err := os.Mkdir(d.Path(""), 0o711); err != nil {
		return err
	}
	// Sticky: the VMM adds its own sockets, and cannot remove or replace ours.
	return errors.Join(os.Chmod(d.Path(""), 0o711), unix.Mkfifo(d.Path("console"), 0o600), os.Mkdir(d.Path("s"), 0o700),
		os.Chown(d.Path("s"), 0, int(uid)), os.Chmod(d.Path("s"), 0o770|os.ModeSticky))
}

// UID returns the uid of the VM, 0 if its directory is not there or not whole.
func (d Dir) UID() uint32 {
	var st unix.Stat_t
	_ = unix.Lstat(d.Path("s"), &st) // it stays zero
	return st.Gid
}

// Remove removes the directory, if it is there.
func (d Dir) Remove() error { return os.RemoveAll(d.Path("")) }

// Dirs returns the ids of all that are there.
func Dirs() ([]string, error) {
	entries, err := os.ReadDir(runDir)
	return ids(entries, "", ""), err
}

// Agent makes the socket that the guest's calls arrive on, in the place of any
// that is there: who held the old one hears nothing more. It is made where the
// VMM cannot interfere, and renamed.
func (d Dir) Agent() (*os.File, error) {
	made := d.Path("agent")
	_ = os.Remove(made) // of a helper that was killed; else the next line fails
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listening for the agent: %w", err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chown(made, 0, int(d.UID())), os.Chmod(made, 0o660), os.Rename(made, d.Path("s/"+agentSocket))); err != nil {
		return nil, fmt.Errorf("listening for the agent: %w", err)
	}
	return l.File()
}

// Console opens the reading end of the VM's output, without waiting for a
// writer.
func (d Dir) Console() (*os.File, error) {
	fd, err := unix.Open(d.Path("console"), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the console: %w", err)
	}
	// Room for what a guest prints while its reader is being replaced; it does
	// with less where there is none.
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, 1<<20)
	return os.NewFile(uintptr(fd), "console"), nil
}

// ErrEnded is why there is no API.
var ErrEnded = errors.New("the VMM has ended")

// API connects to the VMM's API, as soon as that listens and as long as the
// process behind pidfd lives. Nothing tells when somebody begins to listen, so
// what is waited for between two tries is the process's end.
func (d Dir) API(ctx context.Context, pidfd int) (*os.File, error) {
	for {
		c, err := d.connect(ctx)
		if err == nil || !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ECONNREFUSED) {
			return c, err
		}
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		if n, _ := unix.Poll(fds, 2); n > 0 { // interrupted, it is tried again
			return nil, ErrEnded
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("waiting for the API: %w", context.Cause(ctx))
		}
	}
}

// connect follows nothing that the VMM may have put in the socket's place.
func (d Dir) connect(ctx context.Context) (*os.File, error) {
	f, err := beneath.Open(runDir, string(d)+"/s/"+APISocket)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK || st.Uid != d.UID() {
		return nil, fmt.Errorf("connecting to the API: %s is not the VMM's socket (%v)", f.Name(), err)
	}
	var dial net.Dialer
	c, err := dial.DialContext(ctx, "unix", "/proc/self/fd/"+strconv.Itoa(int(f.Fd())))
	if err != nil {
		return nil, fmt.Errorf("connecting to the API: %w", err)
	}
	defer c.Close()
	return c.(*net.UnixConn).File()
}
