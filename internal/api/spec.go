package api

import "fmt"

// Limits of a [Spec]. QEMU's microvm takes up to 288 vCPUs; with less memory
// Debian's kernel does not reach an init, and with less disk an ext4 has no room
// beside its journal; the rest fits any host.
const (
	MaxVCPUs     = 64
	MinMemoryMiB = 128
	MaxMemoryMiB = 1 << 20
	MinDiskBytes = 256 << 20
	MaxDiskBytes = 2 << 40
)

// Check returns an Invalid error if no VM can have this size. The CLI and the
// daemon both call it before anything is made.
func (s Spec) Check() error {
	switch {
	case s.VCPUs < 1 || s.VCPUs > MaxVCPUs:
		return &Error{
			Code: Invalid,
			Msg:  fmt.Sprintf("%d vCPUs are not between 1 and %d", s.VCPUs, MaxVCPUs),
			Hint: "for example: --vcpu 2",
		}
	case s.MemoryMiB < MinMemoryMiB || s.MemoryMiB > MaxMemoryMiB:
		return &Error{
			Code: Invalid,
			Msg:  fmt.Sprintf("%d MiB of memory are not between %d MiB, the least that boots, and 1 TiB", s.MemoryMiB, MinMemoryMiB),
			Hint: "for example: --memory 2G",
		}
	case s.DiskBytes < MinDiskBytes || s.DiskBytes > MaxDiskBytes:
		return &Error{
			Code: Invalid,
			Msg:  fmt.Sprintf("a disk of %d MiB is not between %d MiB and 2 TiB", s.DiskBytes>>20, MinDiskBytes>>20),
			Hint: "for example: --disk-size 8G",
		}
	}
	return nil
}
