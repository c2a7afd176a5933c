// Package vmmguest is the guest of the contract suite in package vmmtest: an init
// that says that it is there, does what the kernel's command line says, and then
// stays.
//
// It is a package of its own because a test binary plays it, where there is
// nothing to build one with, or a program of a few lines, which boots faster.
package vmmguest

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/initramfs"
	"banger/internal/vmm"
)

// Marker is what the guest prints when it is there.
const Marker = "guest: here I am"

// Words of the command line. Without one the guest stays.
const (
	Off   = "guest.off"   // powers off, as its VMM knows it
	Reset = "guest.reset" // resets
	Calls = "guest.calls" // says Marker on the agent's channel
)

// Run is process 1 of the guest. It does not return.
func Run() {
	_, _ = os.Stdout.WriteString(Marker + "\n")
	if err := act(); err != nil {
		_, _ = os.Stdout.WriteString("guest: " + err.Error() + "\n")
	}
	select {}
}

func act() error {
	for dir, kind := range map[string]string{"/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(kind, dir, kind, 0, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", dir, err)
		}
	}
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	cmdline := string(b)
	off := unix.LINUX_REBOOT_CMD_POWER_OFF
	if vmm.Word(cmdline, vmm.WordOff) == vmm.OffReset {
		off = unix.LINUX_REBOOT_CMD_RESTART
	}
	for word := range strings.FieldsSeq(cmdline) {
		switch word {
		case Off:
			return unix.Reboot(off)
		case Reset:
			return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		case Calls:
			return call(vmm.Word(cmdline, vmm.WordChannel) == vmm.ChannelVsock)
		}
	}
	return nil
}

// call says Marker to the host.
func call(vsock bool) error {
	for _, name := range initramfs.ChannelModules(vsock) {
		if err := load(initramfs.ModuleDir + "/" + name + ".ko"); err != nil {
			return fmt.Errorf("loading %s: %w", name, err)
		}
	}
	if !vsock {
		return write([]byte(Marker))
	}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: vmm.VsockHost, Port: vmm.VsockPort}); err != nil {
		return fmt.Errorf("calling: %w", err)
	}
	_, err = unix.Write(fd, []byte(Marker))
	return err
}

// write writes to the port, which appears some time after its module.
func write(b []byte) error {
	const class = "/sys/class/virtio-ports/"
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		ports, err := os.ReadDir(class)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, p := range ports {
			name, err := os.ReadFile(class + p.Name() + "/name")
			if err != nil || strings.TrimSpace(string(name)) != vmm.PortName {
				continue
			}
			f, err := os.OpenFile("/dev/"+p.Name(), os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.Write(b)
			return err
		}
		<-tick.C
	}
}

// load loads a module, unless it is built in.
func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}
