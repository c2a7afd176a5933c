package rootapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// MaxPacket is the longest packet in bytes, MaxFiles the most descriptors.
const (
	MaxPacket = 64 << 10
	MaxFiles  = FixedFiles + MaxDisks
)

// FD is the number of c's descriptor. Unlike Fd of [os.File], asking for it
// changes nothing for those who share the open file.
func FD(c syscall.Conn) (n int, err error) {
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { n = int(fd) })
	}
	return n, err
}

// Send sends v as one packet, with files beside it, which stay the caller's.
func Send(c *net.UnixConn, v any, files ...*os.File) error {
	b, err := json.Marshal(v)
	if err == nil && len(b) > MaxPacket {
		err = fmt.Errorf("%d bytes, of at most %d", len(b), MaxPacket)
	}
	if err != nil {
		return fmt.Errorf("sending: %w", err)
	}
	fds := make([]int, len(files))
	for i, f := range files {
		if fds[i], err = FD(f); err != nil {
			return fmt.Errorf("sending a descriptor: %w", err)
		}
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix(b, oob, nil); err != nil {
		return fmt.Errorf("sending: %w", err)
	}
	return nil
}

// Receive reads one packet into v, which it must fill exactly, and returns the
// descriptors that came with it. On an error it has closed them.
func Receive(c *net.UnixConn, v any) (files []*os.File, err error) {
	b, oob := make([]byte, MaxPacket+1), make([]byte, unix.CmsgSpace(4*MaxFiles))
	n, oobn, flags, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, fmt.Errorf("receiving: %w", err)
	}
	// Whatever else is wrong, the kernel has put these into our table.
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	for _, m := range msgs {
		fds, _ := unix.ParseUnixRights(&m) // what is no descriptor need not be closed
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	switch {
	case err != nil:
		err = Errorf(Invalid, "receiving: %v", err)
	case flags&unix.MSG_TRUNC != 0 || n > MaxPacket:
		err = Errorf(Invalid, "receiving: the packet is longer than %d bytes", MaxPacket)
	case flags&unix.MSG_CTRUNC != 0:
		err = Errorf(Invalid, "files: more than %d came", MaxFiles)
	case n == 0:
		err = Errorf(Invalid, "receiving: nothing came")
	default:
		err = decode(b[:n], v)
	}
	if err != nil {
		CloseAll(files)
		return nil, err
	}
	return files, nil
}

// decode is json.Unmarshal for a packet in the one form that our own encoder
// gives a value: unknown, repeated and differently spelled fields, spaces and
// trailing bytes all make it another.
func decode(packet []byte, v any) error {
	if err := json.Unmarshal(packet, v); err != nil {
		return Errorf(Invalid, "decoding: %v", err)
	}
	if again, err := json.Marshal(v); err != nil || !bytes.Equal(packet, again) {
		return Errorf(Invalid, "decoding: the packet is not in the form that protocol %d has", Protocol)
	}
	return nil
}

// CloseAll closes files.
func CloseAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
