//go:build lab

package roothelper

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"banger/internal/initramfs"

	"golang.org/x/sys/unix"
)

// guest is the init of the VMs here. It loads the modules that lead to the
// host, calls port 1024 there and does what it is told, a line at a time.
func guest() error {
	for _, err := range []error{unix.Mkdir("/proc", 0o755), unix.Mount("dev", "/dev", "devtmpfs", 0, ""), unix.Mount("proc", "/proc", "proc", 0, "")} {
		if err != nil && err != unix.EBUSY && err != unix.EEXIST {
			return err
		}
	}
	for _, name := range guestModules() {
		f, err := os.Open(initramfs.ModuleDir + "/" + name + ".ko")
		if err != nil {
			continue // built in
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
			return fmt.Errorf("loading %s: %w", name, err)
		}
		f.Close()
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	for {
		if err := call(strings.TrimSpace(string(boot))); err != nil {
			fmt.Fprintln(os.Stderr, "guest:", err)
		}
	}
}

func guestModules() []string {
	return append(initramfs.ChannelModules(true), "virtio_blk")
}

// call dials the host and obeys until the connection ends.
func call(boot string) error {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: 1024}); err != nil {
		unix.Close(fd)
		return err
	}
	f := os.NewFile(uintptr(fd), "host")
	defer f.Close()
	fmt.Fprintln(f, "hello", boot)
	for in := bufio.NewScanner(f); in.Scan(); {
		verb, arg, _ := strings.Cut(in.Text(), " ")
		switch verb {
		case "quit":
			return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		case "echo":
			fmt.Fprintln(f, arg)
		case "say": // on the console
			fmt.Println(arg)
			fmt.Fprintln(f, "said")
		case "eat": // MiB of memory
			var mib int
			fmt.Sscan(arg, &mib)
			b := make([]byte, mib<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			fmt.Fprintln(f, "ate", len(b)>>20)
		case "write": // to a disk
			name, text, _ := strings.Cut(arg, " ")
			fmt.Fprintln(f, write("/dev/"+name, text))
		}
	}
	return nil
}

func write(name, text string) error {
	d, err := os.OpenFile(name, os.O_RDWR|os.O_SYNC, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	_, err = d.WriteAt([]byte(text), 0)
	return err
}
