package api

import "fmt"

// Limits of a [Spec]. QEMU's microvm takes up to 288 vCPUs; the rest is what
// a kernel needs to boot at all and what fits any host.
const (
	MaxVCPUs     = 64
	MinMemoryMiB = 64
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
			Hint: "use for example: --vcpu 2",
		}
	case s.MemoryMiB < MinMemoryMiB || s.MemoryMiB > MaxMemoryMiB:
		return &Error{
			Code: Invalid,
			Msg:  fmt.Sprintf("%d MiB of memory are not between %d and %d", s.MemoryMiB, MinMemoryMiB, MaxMemoryMiB),
			Hint: "use for example: --memory 2G",
		}
	case s.DiskBytes < MinDiskBytes || s.DiskBytes > MaxDiskBytes:
		return &Error{
			Code: Invalid,
			Msg:  fmt.Sprintf("a disk of %d MiB is not between %d MiB and 2 TiB", s.DiskBytes>>20, MinDiskBytes>>20),
			Hint: "use for example: --disk-size 8G",
		}
	}
	return nil
}
