// Package initramfs packs the agent and the kernel modules it needs before it
// can reach a disk into the archive that a kernel unpacks as its first root.
//
// It knows the archive's format (newc cpio) and which modules a guest starts
// with, not where modules come from nor how they are loaded. The same input
// gives the same bytes.
package initramfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
)

// The modules of a guest's first second, in load order. A kernel that has one of
// them built in has no file for it: then it is left out of [In].
var (
	busModules    = []string{"virtio_ring", "virtio", "virtio_mmio"}
	serialModules = []string{"virtio_console"}
	vsockModules  = []string{"vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"}
	diskModules   = []string{"virtio_blk", "overlay"}
	netModules    = []string{"failover", "net_failover", "dim", "virtio_net"} // dim: since Linux 6.10
)

// ChannelModules are what the agent's channel needs: a vsock, or else a port of
// a virtio-serial device.
func ChannelModules(vsock bool) []string {
	if vsock {
		return slices.Concat(busModules, vsockModules)
	}
	return slices.Concat(busModules, serialModules)
}

// DiskModules are what the disks need, once the channel's are loaded.
func DiskModules() []string { return slices.Clone(diskModules) }

// NetModules are what a network device needs, once the channel's are loaded.
func NetModules() []string { return slices.Clone(netModules) }

// ModuleNames are the modules that every initramfs holds if the kernel has them
// as modules, without ".ko". A guest loads those that its devices need.
func ModuleNames() []string {
	return slices.Concat(busModules, serialModules, vsockModules, diskModules, netModules)
}

// ModuleDir is where the modules are, as NAME.ko.
const ModuleDir = "/m"

// A Module is a kernel module: its name without ".ko", and the file's bytes.
type Module struct {
	Name string
	Data []byte
}

// In is what goes into an initramfs.
type In struct {
	Agent   []byte // a static ELF program; becomes /init
	Modules []Module
}

// Build writes the archive to w.
func Build(w io.Writer, in In) error {
	if !bytes.HasPrefix(in.Agent, elf) {
		return errors.New("building the initramfs: the agent is not an ELF program")
	}
	c := &cpio{w: w}
	for _, dir := range []string{"dev", ModuleDir[1:]} {
		c.add(entry{name: dir, mode: modeDir | 0o755})
	}
	// The kernel opens /dev/console for init before init can mount anything.
	c.add(entry{name: "dev/console", mode: modeChar | 0o600, major: 5, minor: 1})
	c.add(entry{name: "init", mode: modeFile | 0o755, data: in.Agent})
	for _, m := range in.Modules {
		data, err := plain(m)
		if err != nil {
			return fmt.Errorf("building the initramfs: %w", err)
		}
		c.add(entry{name: ModuleDir[1:] + "/" + m.Name + ".ko", mode: modeFile | 0o644, data: data})
	}
	if err := c.close(); err != nil {
		return fmt.Errorf("building the initramfs: %w", err)
	}
	return nil
}

var elf = []byte("\x7fELF")

// plain refuses what the kernel could not load as it is.
func plain(m Module) ([]byte, error) {
	if bytes.HasPrefix(m.Data, elf) {
		return m.Data, nil
	}
	for magic, kind := range map[string]string{"\xfd7zXZ\x00": "xz", "\x1f\x8b": "gzip", "\x28\xb5\x2f\xfd": "zstd"} {
		if bytes.HasPrefix(m.Data, []byte(magic)) {
			return nil, fmt.Errorf("module %s is compressed with %s: only plain .ko files can be used", m.Name, kind)
		}
	}
	return nil, fmt.Errorf("module %s is not an ELF object", m.Name)
}
