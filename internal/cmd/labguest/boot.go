package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/initramfs"
	"banger/internal/labwire"
)

// newRoot is where the root is mounted before it becomes the root.
const newRoot = "/root"

// program is where the service's program lies once systemd runs.
const program = "/run/lab/guest"

// boot is init's part: from the kernel's first process to systemd.
func boot() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := mount(m.kind, m.kind, m.at); err != nil {
			return err
		}
	}
	for _, name := range labwire.Modules() {
		if err := load(name); err != nil {
			return err
		}
	}
	if err := mount("/dev/vda", "ext4", newRoot); err != nil {
		return err
	}
	if err := mount("tmpfs", "tmpfs", newRoot+"/run"); err != nil {
		return err
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	if err := plant(newRoot, strings.Contains(string(cmdline), labwire.ShellArg)); err != nil {
		return err
	}
	for _, at := range []string{"/proc", "/sys", "/dev"} {
		if err := unix.Mount(at, newRoot+at, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("moving %s: %w", at, err)
		}
	}
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving the root: %w", err)
	}
	if err := errors.Join(unix.Chroot("."), os.Chdir("/")); err != nil {
		return err
	}
	return fmt.Errorf("starting systemd: %w", unix.Exec("/sbin/init", []string{"/sbin/init"}, []string{"TERM=linux"}))
}

// mount mounts a file system where there may be no directory yet.
func mount(what, kind, at string) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(what, at, kind, 0, ""); err != nil {
		return fmt.Errorf("mounting %s: %w", at, err)
	}
	return nil
}

// load loads a module; one that is built in has no file.
func load(name string) error {
	f, err := os.Open(filepath.Join(initramfs.ModuleDir, name+".ko"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("loading %s: %w", name, err)
	}
	return nil
}

// service runs this program again, once systemd is far enough; it waits by itself
// for the end of the boot, since unpacking can begin before.
const service = `[Unit]
Description=Runs the steps of a lab job
After=dbus.socket

[Service]
ExecStart=` + program + `
TasksMax=infinity
StandardOutput=journal+console
StandardError=journal+console
`

// autologin makes the console a root shell.
const autologin = `[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,57600,38400,9600 - xterm-256color
`

// plant puts what makes a Debian the lab machine into /run, which the image
// knows nothing of: so a change here asks for no new image.
func plant(root string, shell bool) error {
	self, err := os.ReadFile("/init")
	if err != nil {
		return err
	}
	units := root + "/run/systemd/system/"
	files := []struct {
		name, body string
		mode       os.FileMode
	}{
		{root + program, string(self), 0o755},
		{units + "lab.service", service, 0o644},
	}
	if shell {
		files = append(files, struct {
			name, body string
			mode       os.FileMode
		}{units + "serial-getty@ttyS0.service.d/lab.conf", autologin, 0o644})
	}
	for _, f := range files {
		if err := os.MkdirAll(filepath.Dir(f.name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(f.name, []byte(f.body), f.mode); err != nil {
			return err
		}
	}
	// Host keys are not in the image, and a test that wants sshd makes them. The
	// rest only takes time, where nobody looks.
	masked := []string{"ssh.service", "getty@tty1.service", "e2scrub_reap.service", "systemd-binfmt.service", "systemd-pstore.service",
		"modprobe@drm.service", "modprobe@efi_pstore.service", "proc-sys-fs-binfmt_misc.automount", "systemd-update-utmp.service",
		"systemd-update-utmp-runlevel.service"}
	if !shell {
		masked = append(masked, "serial-getty@ttyS0.service")
	}
	for _, name := range masked {
		if err := os.Symlink("/dev/null", units+name); err != nil {
			return err
		}
	}
	wants := units + "multi-user.target.wants"
	if err := os.MkdirAll(wants, 0o755); err != nil {
		return err
	}
	return os.Symlink("../lab.service", wants+"/lab.service")
}
