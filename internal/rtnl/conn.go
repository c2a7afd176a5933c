// Package rtnl speaks netlink by hand: the few requests about links, bridge
// ports, addresses and routes that the root helper makes, each acknowledged by
// the kernel before the call returns, and what other protocols of netlink need
// to be spoken in the same way.
//
// It knows nothing of VMs. Refusals are the kernel's own error numbers.
package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// A Conn is one netlink socket. It is not safe for concurrent use.
type Conn struct {
	fd  int
	seq uint32
}

var ne = binary.NativeEndian

// Dial opens a socket of a netlink protocol: unix.NETLINK_ROUTE for the
// methods about links, others for [Conn.Do].
func Dial(protocol int) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	// The kernel answers at once; what takes longer is not its answer.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		return nil, errors.Join(fmt.Errorf("limiting a netlink socket: %w", err), unix.Close(fd))
	}
	return &Conn{fd: fd}, nil
}

// Close closes the socket.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// Do sends one request and returns the bodies of what the kernel answers
// before its acknowledgement. A dump is asked for again, a few times, when the
// kernel says that its list has changed meanwhile.
func (c *Conn) Do(typ, flags uint16, body ...[]byte) (replies [][]byte, err error) {
	for range 10 {
		if replies, err = c.once(typ, flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK, Join(body...)); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return replies, err
}

func (c *Conn) once(typ, flags uint16, body []byte) (replies [][]byte, err error) {
	c.seq++
	msg := ne.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	msg = ne.AppendUint16(ne.AppendUint16(msg, typ), flags)
	msg = ne.AppendUint32(ne.AppendUint32(msg, c.seq), 0)
	if err := unix.Sendto(c.fd, append(msg, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	changed := unix.Errno(0)
	for buf := make([]byte, 1<<16); ; {
		n, from, err := unix.Recvfrom(c.fd, buf, 0)
		if err != nil {
			return nil, err
		}
		if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
			continue // not from the kernel
		}
		for b := buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(ne.Uint32(b))
			if size < unix.SizeofNlMsghdr+4 || size > len(b) {
				return nil, unix.EBADMSG
			}
			kind, flags, payload := ne.Uint16(b[4:]), ne.Uint16(b[6:]), b[unix.SizeofNlMsghdr:size]
			ours := ne.Uint32(b[8:]) == c.seq // or the tail of what was given up
			b = b[min(len(b), (size+3)&^3):]
			if ours && flags&unix.NLM_F_DUMP_INTR != 0 {
				changed = unix.EINTR
			}
			switch {
			case ours && (kind == unix.NLMSG_ERROR || kind == unix.NLMSG_DONE):
				if errno := -int32(ne.Uint32(payload)); errno != 0 {
					return nil, unix.Errno(errno)
				} else if changed != 0 {
					return nil, changed
				}
				return replies, nil
			case ours:
				replies = append(replies, append([]byte(nil), payload...))
			}
		}
	}
}

// Attr is one attribute: its parts are joined, so an attribute of attributes
// is written as a call inside a call.
func Attr(typ uint16, parts ...[]byte) []byte {
	v := Join(parts...)
	b := ne.AppendUint16(ne.AppendUint16(nil, uint16(4+len(v))), typ)
	return append(append(b, v...), make([]byte, -len(v)&3)...)
}

// Text is an attribute that holds a string.
func Text(typ uint16, s string) []byte { return Attr(typ, []byte(s), []byte{0}) }

// Join puts parts of a message one after the other.
func Join(parts ...[]byte) (b []byte) {
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// Each calls f with the attributes in b, in order; what is malformed ends them.
func Each(b []byte, f func(typ uint16, value []byte)) {
	for len(b) >= 4 {
		size := int(ne.Uint16(b))
		if size < 4 || size > len(b) {
			return
		}
		f(ne.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:size])
		b = b[min(len(b), (size+3)&^3):]
	}
}

// Attrs returns the attributes in b by their type.
func Attrs(b []byte) map[uint16][]byte {
	m := map[uint16][]byte{}
	Each(b, func(typ uint16, value []byte) { m[typ] = value })
	return m
}
