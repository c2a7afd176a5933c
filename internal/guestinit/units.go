package guestinit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/handover"
)

// needless are units that a VM of this kind has no use for and that cost time
// at boot: they are masked in system.control, which outranks /etc without
// changing it. Most probe for hardware, set up what an image brings, or tidy on
// a timer. Without udev's coldplug no device unit appears, so what waits for
// one goes too; the devices themselves are the kernel's work, and ours. The
// agent has the journal brought to the disk when the boot is over.
var needless = strings.Fields(`
	modprobe@configfs.service modprobe@dm_mod.service modprobe@drm.service
	modprobe@efi_pstore.service modprobe@fuse.service modprobe@loop.service
	systemd-modules-load.service systemd-udev-trigger.service systemd-pstore.service
	kmod-static-nodes.service systemd-tmpfiles-setup-dev.service systemd-journal-flush.service
	dev-hugepages.mount sys-fs-fuse-connections.mount sys-kernel-config.mount
	sys-kernel-debug.mount sys-kernel-tracing.mount
	systemd-binfmt.service proc-sys-fs-binfmt_misc.automount
	systemd-firstboot.service systemd-machine-id-commit.service systemd-sysusers.service
	systemd-random-seed.service systemd-remount-fs.service systemd-repart.service
	systemd-update-utmp.service systemd-update-utmp-runlevel.service
	getty@tty1.service getty-static.service serial-getty@ttyS0.service
	e2scrub_all.timer e2scrub_reap.service fstrim.timer
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer`)

// unitDirs are where an image keeps units.
var unitDirs = []string{"/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}

// stageUnits are sockets that nobody connects to: systemd makes them itself
// when their target is reached, which costs no process, and takes away the
// first two as soon as a shutdown begins.
var stageUnits = []struct{ name, target, unit string }{
	{handover.StageSockets, "sockets.target", "After=sockets.target\nConflicts=shutdown.target\nBefore=shutdown.target\n"},
	{handover.StageBoot, "multi-user.target", "After=multi-user.target\nConflicts=shutdown.target\nBefore=shutdown.target\n"},
	{handover.StagePowerOff, "poweroff.target", ""},
	{handover.StageReboot, "reboot.target", ""},
	{handover.StageHalt, "halt.target", ""},
}

// A unitTree writes units of systemd below the new root's /run.
type unitTree struct {
	root string
	errs []error
}

// writeUnits tells systemd what to report and what to leave out. cmdline is the
// kernel's.
func writeUnits(root, cmdline string) error {
	t := &unitTree{root: root}
	t.dir(handover.StageDir, 0o700)
	for _, s := range stageUnits {
		name := "banger-" + s.name
		t.write(name+".socket", "[Unit]\nDescription=Stage "+s.name+" of the VM\nDefaultDependencies=no\n"+s.unit+
			"[Socket]\nListenStream="+handover.StageDir+"/"+s.name+"\nRemoveOnStop=yes\n")
		t.write(name+".service", "[Unit]\nDescription=Never started\n[Service]\nExecStart=/bin/true\n")
		t.link("../"+name+".socket", "/run/systemd/system/"+s.target+".wants/"+name+".socket")
	}
	for _, u := range needless {
		t.link("/dev/null", "/run/systemd/system.control/"+u)
	}
	t.generators(cmdline)
	t.onDemand()
	if err := errors.Join(t.errs...); err != nil {
		return fmt.Errorf("writing units: %w", err)
	}
	return nil
}

// onDemand has ssh, Docker, and D-Bus with logind started by their first
// connection. Their services are not masked, only no longer wished for at boot.
func (t *unitTree) onDemand() {
	const unwish = "/run/systemd/system.control/multi-user.target.wants/"
	if ssh := t.find("ssh.socket"); ssh != "" && t.find("ssh.service") != "" {
		t.link("/dev/null", unwish+"ssh.service")
		t.link(ssh, "/run/systemd/system/sockets.target.wants/ssh.socket")
	}
	if socket := t.find("docker.socket"); socket != "" && t.find("docker.service") != "" {
		t.link("/dev/null", unwish+"docker.service")
		t.link("/dev/null", unwish+"containerd.service") // Docker's service asks for it
		t.link(socket, "/run/systemd/system/sockets.target.wants/docker.socket")
	}
	if t.find("dbus.socket") != "" && t.find("dbus-org.freedesktop.login1.service") != "" {
		t.link("/dev/null", unwish+"dbus.service")
		t.link("/dev/null", unwish+"systemd-logind.service")
	}
}

// find returns the path of a unit of the image, or "".
func (t *unitTree) find(unit string) string {
	for _, d := range unitDirs {
		if _, err := os.Lstat(t.root + d + "/" + unit); err == nil {
			return d + "/" + unit
		}
	}
	return ""
}

func (t *unitTree) dir(path string, mode os.FileMode) {
	t.errs = append(t.errs, os.MkdirAll(t.root+path, mode))
}

func (t *unitTree) write(name, text string) {
	t.dir("/run/systemd/system", 0o755)
	t.errs = append(t.errs, os.WriteFile(t.root+"/run/systemd/system/"+name, []byte(text), 0o644))
}

func (t *unitTree) link(target, path string) {
	t.dir(filepath.Dir(path), 0o755)
	t.errs = append(t.errs, os.Symlink(target, t.root+path))
}
