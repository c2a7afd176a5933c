package config

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"banger/internal/api"
	"banger/internal/size"
)

// Sizes of a VM; zero means "not said".
type Sizes struct {
	VCPUs  int
	Memory size.Bytes
	Disk   size.Bytes
}

// Host is what sizes are derived from.
type Host struct {
	CPUs   int
	Memory size.Bytes // all of it; 0 if unknown
}

// The floors, and the caps of what is derived from the host. An explicit value
// may be above a cap, and below a floor.
const (
	floorVCPUs  = 1
	floorMemory = 1 * size.GiB
	floorDisk   = 8 * size.GiB
	capVCPUs    = 4
	capMemory   = 8 * size.GiB
)

// Resolved is the size a VM gets, and where each value came from.
type Resolved struct {
	Spec   api.Spec
	VCPUs  api.Source
	Memory api.Source
	Disk   api.Source
}

// ThisHost reads the CPUs and the memory of the host.
func ThisHost() Host {
	h := Host{CPUs: runtime.NumCPU()}
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return h // the floor will do
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err == nil {
				h.Memory = size.Bytes(kib) * size.KiB
			}
		}
	}
	return h
}

// Resolve decides the size of a VM: flags, then [vm_defaults], then what the
// host suggests (a quarter of its CPUs up to 4, an eighth of its memory up to
// 8 GiB), then the floors. Values that cannot work are refused by name.
func (c Config) Resolve(flags Sizes, h Host) (Resolved, error) {
	var r Resolved
	var vcpus int
	var memory, disk size.Bytes
	vcpus, r.VCPUs = pick(flags.VCPUs, c.Defaults.VCPUs, min(h.CPUs/4, capVCPUs), floorVCPUs)
	memory, r.Memory = pick(flags.Memory, c.Defaults.Memory, roundMiB(min(h.Memory/8, capMemory)), floorMemory)
	disk, r.Disk = pick(flags.Disk, c.Defaults.Disk, 0, floorDisk)
	r.Spec = api.Spec{VCPUs: vcpus, MemoryMiB: int64(memory / size.MiB), DiskBytes: int64(disk)}
	if err := r.Spec.Check(); err != nil {
		return r, err
	}
	return r, h.Holds(memory)
}

// pick takes the first value that is said; a value derived from the host that
// is below the floor counts as not said.
func pick[T int | size.Bytes](flag, config, host, floor T) (T, api.Source) {
	switch {
	case flag != 0:
		return flag, api.FromFlag
	case config != 0:
		return config, api.FromConfig
	case host > floor:
		return host, api.FromHost
	}
	return floor, api.FromBuiltin
}

// roundMiB rounds down to 64 MiB, so that the spec line stays readable.
func roundMiB(b size.Bytes) size.Bytes { return b / (64 * size.MiB) * (64 * size.MiB) }

// Holds refuses memory that the host does not have: QEMU would end at once, with
// words that name no flag.
func (h Host) Holds(memory size.Bytes) error {
	if h.Memory == 0 || memory <= h.Memory {
		return nil
	}
	return &api.Error{
		Code: api.Invalid,
		Msg:  fmt.Sprintf("%v of memory are more than the %s that this host has", memory, h.Memory.Short()),
		Hint: "for example: --memory 2G",
	}
}
