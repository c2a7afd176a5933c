package initramfs

import (
	"fmt"
	"io"
)

// File types of a cpio mode.
const (
	modeFile = 0o100000
	modeDir  = 0o040000
	modeChar = 0o020000
)

type entry struct {
	name         string // without a leading slash
	mode         uint32
	major, minor uint32 // of a device
	data         []byte
}

// A cpio writes an archive in the newc format, as the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst has it: 110 bytes
// of header in hex, the name, the data, each padded to four bytes.
type cpio struct {
	w   io.Writer
	ino uint32
	err error
}

func (c *cpio) add(e entry) {
	c.ino++
	nlink := 1
	if e.mode&modeDir != 0 {
		nlink = 2
	}
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.ino, e.mode, 0, 0, nlink, 0, len(e.data), 0, 0, e.major, e.minor, len(e.name)+1, 0, e.name)
	c.write([]byte(head))
	c.write(e.data)
}

// write writes b and pads it.
func (c *cpio) write(b []byte) {
	for _, p := range [][]byte{b, make([]byte, -len(b)&3)} {
		if c.err == nil && len(p) > 0 {
			_, c.err = c.w.Write(p)
		}
	}
}

func (c *cpio) close() error {
	c.ino = 0
	c.add(entry{name: "TRAILER!!!"})
	return c.err
}
