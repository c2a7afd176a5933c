package mux

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
)

// escape is the byte that never stands alone in data. It is rare: no ASCII, and
// no UTF-8 of any character in use.
const escape = 0xf1

// What follows an escape.
const (
	codeLiteral = 0
	codeHello   = 1
	codeAbsent  = 2
)

// nonceLen is the length of a nonce: hex digits, none of which is the escape,
// so that a hello which was cut off cannot swallow the next one.
const nonceLen = 32

// Signals, as errors of [unstuffer.Read].
var (
	errHello  = errors.New("a session begins")
	errAbsent = errors.New("the other end has no session")
)

func newNonce() string {
	b := make([]byte, nonceLen/2)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

func helloBytes(nonce string) []byte { return append([]byte{escape, codeHello}, nonce...) }

// stuff appends b to dst with every escape made data.
func stuff(dst, b []byte) []byte {
	for {
		i := bytes.IndexByte(b, escape)
		if i < 0 {
			return append(dst, b...)
		}
		dst = append(dst, b[:i+1]...)
		dst = append(dst, codeLiteral)
		b = b[i+1:]
	}
}

// readSize is how much an unstuffer asks of its channel at once.
const readSize = 64 << 10

// unstuffer reads data from a channel, and signals as errors. A signal does not
// end it: reading goes on behind it.
type unstuffer struct {
	r     io.Reader
	raw   []byte // read from r and not yet looked at
	store []byte

	nonce []byte // digits of a hello so far; whole after errHello
	state byte   // inData, inEscape or inNonce
	held  error  // a signal that follows data already returned
}

const (
	inData = iota
	inEscape
	inNonce
)

// Read returns data, or the signal that comes before any further data: errHello
// (u.nonce is the whole nonce then) or errAbsent.
func (u *unstuffer) Read(b []byte) (int, error) {
	if err := u.held; err != nil {
		u.held = nil
		return 0, err
	}
	n := 0
	for n < len(b) {
		if len(u.raw) == 0 {
			if n > 0 {
				break // what is there is not held back
			}
			if err := u.fill(); err != nil {
				return 0, err
			}
		}
		m, sig := u.step(b[n:])
		n += m
		if sig == nil {
			continue
		}
		if n == 0 {
			return 0, sig
		}
		u.held = sig
		break
	}
	return n, nil
}

func (u *unstuffer) fill() error {
	if u.store == nil {
		u.store = make([]byte, readSize)
	}
	n, err := u.r.Read(u.store)
	u.raw = u.store[:n]
	if n > 0 {
		return nil // an error comes again
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// step looks at some of u.raw, which is not empty, and copies data to b.
func (u *unstuffer) step(b []byte) (n int, signal error) {
	c := u.raw[0]
	switch u.state {
	case inEscape:
		u.state = inData
		switch c {
		case codeLiteral:
			u.raw = u.raw[1:]
			b[0] = escape
			return 1, nil
		case codeHello:
			u.raw = u.raw[1:]
			u.state, u.nonce = inNonce, u.nonce[:0]
		case codeAbsent:
			u.raw = u.raw[1:]
			return 0, errAbsent
		}
		return 0, nil // anything else: the bytes before broke off at the escape
	case inNonce:
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			u.state = inData // broken off
			return 0, nil
		}
		u.raw = u.raw[1:]
		if u.nonce = append(u.nonce, c); len(u.nonce) < nonceLen {
			return 0, nil
		}
		u.state = inData
		return 0, errHello
	}
	span := u.raw[:min(len(u.raw), len(b))]
	if i := bytes.IndexByte(span, escape); i >= 0 {
		u.raw, u.state = u.raw[i+1:], inEscape
		return copy(b, span[:i]), nil
	}
	u.raw = u.raw[len(span):]
	return copy(b, span), nil
}

// skip throws data away until a signal or an error.
func (u *unstuffer) skip() error {
	var b [4096]byte
	for {
		if _, err := u.Read(b[:]); err != nil {
			return err
		}
	}
}
