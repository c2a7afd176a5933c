// Package dbus is a small D-Bus client: method calls and signals over a unix
// socket, as PID 1 offers on /run/systemd/private and a bus daemon on the
// system bus. It knows the encoding and nothing of what is called.
package dbus

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// A Conn carries one conversation. It is not safe for concurrent use, and of
// no more use after an error other than *[Error].
type Conn struct {
	conn    net.Conn
	in      *bufio.Reader
	serial  uint64
	signals []Signal // that came while an answer was waited for
}

// A Method is what is called, and on what.
type Method struct{ Dest, Path, Interface, Name string }

// A Signal is something that the other side says of its own accord.
type Signal struct {
	Name string
	Body []any
}

// An Error is a refusal by the other side.
type Error struct{ Name, Text string }

// Error tells the text, and the name after it.
func (e *Error) Error() string { return fmt.Sprintf("%s (%s)", e.Text, e.Name) }

// Is reports whether err is a refusal of that name.
func Is(err error, name string) bool {
	var e *Error
	return errors.As(err, &e) && e.Name == name
}

// What the other side may send.
const maxMessage, maxSignals = 16 << 20, 4096

// Dial connects to the socket of a single peer, such as PID 1's private one, or
// of a bus daemon, which wants to hear the method Hello first.
func Dial(ctx context.Context, socket string) (*Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", socket, err)
	}
	c := &Conn{conn: conn, in: bufio.NewReader(conn)}
	defer c.until(ctx)()
	// In one piece: PID 1 does not look at a call that it read together with
	// BEGIN until more comes, and the answer says that it has read BEGIN.
	uid := hex.EncodeToString([]byte(strconv.Itoa(os.Geteuid())))
	_, err = io.WriteString(conn, "\x00AUTH EXTERNAL "+uid+"\r\nBEGIN\r\n")
	if line, readErr := c.in.ReadSlice('\n'); err != nil || readErr != nil || !strings.HasPrefix(string(line), "OK ") {
		conn.Close()
		return nil, fmt.Errorf("authenticating to %s: %w, and the answer is %q", socket, errors.Join(err, readErr), line)
	}
	return c, nil
}

// Close ends the conversation.
func (c *Conn) Close() error { return c.conn.Close() }

// until makes reading and writing end with ctx, until the returned function is
// called.
func (c *Conn) until(ctx context.Context) func() bool {
	return context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
}

// Call calls m with args, whose types sig names, and returns its results.
func (c *Conn) Call(ctx context.Context, m Method, sig string, args ...any) (results []any, err error) {
	defer c.until(ctx)()
	c.serial++
	for err = c.send(m, sig, args); err == nil; {
		var r message
		r, err = c.read()
		switch {
		case err != nil:
		case r.kind == kindSignal && len(c.signals) == maxSignals:
			err = errors.New("too many signals came")
		case r.kind == kindSignal:
			c.signals = append(c.signals, r.Signal)
		case r.reply == c.serial && r.kind == kindError:
			text, _ := append(r.Body, "")[0].(string)
			err = &Error{Name: r.refusal, Text: text}
		case r.reply == c.serial:
			return r.Body, nil
		}
	}
	return nil, fmt.Errorf("calling %s: %w", m.Name, errors.Join(context.Cause(ctx), err))
}

// Await returns the first signal that match likes, of those that have come and
// of those that come until ctx ends. Others are forgotten.
func (c *Conn) Await(ctx context.Context, match func(Signal) bool) (Signal, error) {
	defer c.until(ctx)()
	for {
		for len(c.signals) > 0 {
			found := c.signals[0]
			if c.signals = c.signals[1:]; match(found) {
				return found, nil
			}
		}
		r, err := c.read()
		if err != nil {
			return Signal{}, fmt.Errorf("waiting for a signal: %w", errors.Join(context.Cause(ctx), err))
		}
		if r.kind == kindSignal {
			c.signals = append(c.signals, r.Signal)
		}
	}
}

// Numbers of the specification.
const (
	kindCall, kindError, kindSignal                                byte = 1, 3, 4
	fieldPath, fieldInterface, fieldMember, fieldError, fieldReply byte = 1, 2, 3, 4, 5
	fieldDest, fieldSignature                                      byte = 6, 8
)

func (c *Conn) send(m Method, sig string, args []any) error {
	field := func(code byte, t string, v any) Struct { return Struct{code, Variant{t, v}} }
	var body, head encoder
	body.add(args...)
	head.add(byte('l'), kindCall, byte(0), byte(1), uint32(len(body.b)), uint32(c.serial), []Struct{
		field(fieldPath, "o", m.Path), field(fieldMember, "s", m.Name), field(fieldInterface, "s", m.Interface),
		field(fieldDest, "s", m.Dest), field(fieldSignature, "g", signature(sig))})
	head.align(8)
	if body.err != nil {
		return body.err
	}
	_, err := c.conn.Write(append(head.b, body.b...))
	return err
}

// A message is what came in: a signal, or an answer without a name.
type message struct {
	kind    byte
	reply   uint64
	refusal string
	Signal
}

func (c *Conn) read() (message, error) {
	head := make([]byte, 16)
	if _, err := io.ReadFull(c.in, head); err != nil {
		return message{}, err
	}
	d := decoder{b: head, at: 4}
	size, _, fields := d.number(4), d.number(4), d.number(4)
	if head[0] != 'l' || head[3] != 1 || size > maxMessage || fields > maxMessage {
		return message{}, fmt.Errorf("a message begins with % x", head)
	}
	rest := make([]byte, (fields+7)&^7+size)
	if _, err := io.ReadFull(c.in, rest); err != nil {
		return message{}, err
	}
	return parse(head[1], rest[:fields], rest[uint64(len(rest))-size:])
}

// parse takes a message apart: its header's fields are a number and a variant
// each.
func parse(kind byte, fields, body []byte) (message, error) {
	m, sig := message{kind: kind}, ""
	d, b := decoder{b: fields}, decoder{b: body}
	for d.at < len(fields) && d.err == nil {
		d.align(8)
		f := append(d.values("yv"), nil, nil)
		text, _ := f[1].(string)
		switch f[0] {
		case uint64(fieldMember):
			m.Name = text
		case uint64(fieldError):
			m.refusal = text
		case uint64(fieldReply):
			m.reply, _ = f[1].(uint64)
		case uint64(fieldSignature):
			sig = text
		}
	}
	m.Body = b.values(sig)
	return m, errors.Join(d.err, b.err)
}
