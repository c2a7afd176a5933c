package jail

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"banger/internal/dbus"
	"banger/internal/rootapi"

	"golang.org/x/sys/unix"
)

// overhead is what a unit's memory limit has above the guest's memory, in MiB:
// for the VMM itself, its binary in the jail, and the kernel's share of both.
const overhead = 160

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

// Start makes the VM's service, whose process is the jail child: self, with
// other arguments. It returns when that has been executed.
func (s Systemd) Start(ctx context.Context, self string, sp Spec) error {
	b, err := json.Marshal(sp)
	if err != nil {
		return err
	}
	argv := []string{self, ChildArg, string(b)}
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
func Units() (ids []string, err error) {
	entries, err := os.ReadDir("/sys/fs/cgroup/banger.slice")
	for _, e := range entries {
		if id := strings.TrimSuffix(strings.TrimPrefix(e.Name(), "banger-vm-"), ".service"); rootapi.ValidID(id) {
			ids = append(ids, id)
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return ids, err
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
