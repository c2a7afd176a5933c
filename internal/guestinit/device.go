package guestinit

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ext4ResizeFS is EXT4_IOC_RESIZE_FS of linux/ext4.h: _IOW('f', 16, __u64).
const ext4ResizeFS = 0x40086610

// Where ext4's superblock is, and what we read of it (Documentation/filesystems/ext4/super.rst).
const (
	superOffset   = 1024
	superBlocksLo = 0x4
	superLogSize  = 0x18 // block size is 1024 << this
	superBlocksHi = 0x150
	superLen      = 0x154
)

// grow makes the file system mounted at dir as large as its device, so that a
// disk is enlarged by enlarging its file.
func grow(dev, dir string) error {
	f, err := os.Open(dev)
	if err != nil {
		return fmt.Errorf("growing the VM disk: %w", err)
	}
	defer func() { _ = f.Close() }()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("growing the VM disk: %w", err)
	}
	super := make([]byte, superLen)
	if _, err := f.ReadAt(super, superOffset); err != nil {
		return fmt.Errorf("growing the VM disk: %w", err)
	}
	block := uint64(1024) << (binary.LittleEndian.Uint32(super[superLogSize:]) & 0xf)
	have := uint64(binary.LittleEndian.Uint32(super[superBlocksHi:]))<<32 | uint64(binary.LittleEndian.Uint32(super[superBlocksLo:]))
	want := uint64(size) / block
	// Less than a block group more cannot always be used.
	if want < have+8*block {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("growing the VM disk: %w", err)
	}
	defer func() { _ = d.Close() }()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), ext4ResizeFS, uintptr(unsafe.Pointer(&want))); errno != 0 {
		return fmt.Errorf("growing the VM disk to %d blocks of %d bytes: %w", want, block, errno)
	}
	return nil
}

// virtioNet is the number of network devices (virtio 1.2, section 5), as the
// kernel writes it.
const virtioNet = "0x0001\n"

// hasNetwork says whether one of the virtio devices in dir is for networks.
func hasNetwork(dir string) bool {
	devices, _ := os.ReadDir(dir) // none if there is no such directory
	return slices.ContainsFunc(devices, func(d os.DirEntry) bool {
		b, err := os.ReadFile(dir + "/" + d.Name() + "/device")
		return err == nil && string(b) == virtioNet
	})
}

// loopbackUp makes 127.0.0.1 work where no init does.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	return nil
}
