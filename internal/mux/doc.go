// Package mux carries many streams over one byte channel that has no
// connections of its own, such as a virtio-serial port.
//
// Such a channel does not say reliably when the other end came or went: a quick
// reconnect is not seen at all, and bytes of an earlier connection, cut
// anywhere, can precede those of this one. So a session begins inside the byte
// stream. One byte value, the escape, never stands alone in data: the sender
// adds a zero to it. Followed by something else it is a signal, which a reader
// recognises wherever the old bytes broke off:
//
//	escape 0            the escape as data
//	escape 1 nonce[32]  host to guest: a session begins; guest to host: it has
//	escape 2            guest to host: no session is here, say hello (again)
//
// The host says hello with a nonce and throws away everything up to the answer
// with that nonce. Only a hello ends a session at the guest. What the guest says
// when it opens the port, or when a session broke down, makes a host that waits
// repeat its hello, and ends a session that the host still believes in: so an
// agent that was restarted is noticed without any timer.
//
// Within a session, streams are yamux's, with keepalive off: a paused guest is
// not a dead one. The package knows nothing of what the streams carry.
package mux
