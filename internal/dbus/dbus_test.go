package dbus

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is encoded is decoded to the same, alignment included, as far as the
// decoder goes.
func TestValuesRoundTrip(t *testing.T) {
	for _, tt := range []struct {
		sig  string
		send []any
		want []any
	}{
		{"s", []any{"name"}, []any{"name"}},
		{"sb", []any{"odd", true}, []any{"odd", uint64(1)}},
		{"ybybqyu", []any{byte(1), true, byte(2), false, uint16(3), byte(4), uint32(5)},
			[]any{uint64(1), uint64(1), uint64(2), uint64(0), uint64(3), uint64(4), uint64(5)}},
		{"yt", []any{byte(1), uint64(1) << 63}, []any{uint64(1), uint64(1) << 63}},
		{"i", []any{int32(-1)}, []any{uint64(1<<32 - 1)}},
		{"yays", []any{byte(9), []byte{1, 2, 3}, "x"}, []any{uint64(9), []byte{1, 2, 3}, "x"}},
		{"vo", []any{Variant{"s", "in"}, "/a"}, []any{"in", "/a"}},
		{"yvyvg", []any{byte(1), Variant{"t", uint64(7)}, byte(2), Variant{"ay", []byte{5}}, signature("as")},
			[]any{uint64(1), uint64(7), uint64(2), []byte{5}, "as"}},
		{"uoss", []any{uint32(1), "/job/1", "x.service", "done"}, []any{uint64(1), "/job/1", "x.service", "done"}},
	} {
		var e encoder
		e.add(tt.send...)
		d := decoder{b: e.b}
		if got := d.values(tt.sig); e.err != nil || d.err != nil || !cmp.Equal(got, tt.want) || d.at != len(e.b) {
			t.Errorf("%s: decoded %v, %v, %v, %d of %d bytes; want %v", tt.sig, got, e.err, d.err, d.at, len(e.b), tt.want)
		}
		for n := range e.b { // every shorter one ends too early
			if d := (decoder{b: e.b[:n]}); d.values(tt.sig) != nil && d.err == nil {
				t.Errorf("%s: the first %d of %d bytes decode without an error", tt.sig, n, len(e.b))
			}
		}
	}
	var e encoder
	if e.add(1.5); e.err == nil {
		t.Error("encoding a float gives no error")
	}
}

// Bytes that were written down by hand, from the rules of the specification.
func TestKnownBytes(t *testing.T) {
	for _, tt := range []struct {
		send []any
		want []byte
	}{
		{[]any{byte(1), []Struct{{"k", Variant{"u", uint32(2)}}}}, // ya{sv}
			[]byte{1, 0, 0, 0, 16, 0, 0, 0, 1, 0, 0, 0, 'k', 0, 1, 'u', 0, 0, 0, 0, 2, 0, 0, 0}},
		{[]any{[]Struct{}, byte(7)}, []byte{0, 0, 0, 0, 0, 0, 0, 0, 7}}, // a(..)y: padded though empty
		{[]any{[]string{}, byte(7)}, []byte{0, 0, 0, 0, 7}},
		{[]any{[]string{"a", "bc"}}, []byte{15, 0, 0, 0, 1, 0, 0, 0, 'a', 0, 0, 0, 2, 0, 0, 0, 'b', 'c', 0}},
		{[]any{int32(3), []Struct{{int32(2), []byte{127, 0, 0, 1}, uint16(53), ""}}}, // ia(iayqs)
			[]byte{3, 0, 0, 0, 21, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 127, 0, 0, 1, 53, 0, 0, 0, 0, 0, 0, 0, 0}},
		{[]any{Struct{true, []string{"x"}}}, []byte{1, 0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 0, 'x', 0}}, // (bas)
	} {
		var e encoder
		if e.add(tt.send...); !bytes.Equal(e.b, tt.want) {
			t.Errorf("%v: encoded\n% x, want\n% x", tt.send, e.b, tt.want)
		}
	}
}

// Types that are made of others end the decoding, and are no error: what comes
// before them is all that anybody asks for.
func TestUnknownTypesEndTheValues(t *testing.T) {
	var e encoder
	e.add("first", []string{"x"})
	for _, sig := range []string{"sas", "s(s)", "s{", "s)", "sz", "sa"} {
		d := decoder{b: e.b}
		if got := d.values(sig); d.err != nil || !cmp.Equal(got, []any{"first"}) {
			t.Errorf("values(%q) = %v, %v; want the first", sig, got, d.err)
		}
	}
	nested := bytes.Repeat([]byte{1, 'v', 0}, 1000)
	if d := (decoder{b: nested}); len(d.values("v")) != 0 || d.err != nil {
		t.Errorf("variants in variants: %v", d.err)
	}
}

// FuzzParse looks for a message that breaks the decoder: PID 1 is trusted, and
// what it passes on comes from others.
func FuzzParse(f *testing.F) {
	var fields encoder
	fields.add(Struct{fieldMember, Variant{"s", "JobRemoved"}}, Struct{fieldReply, Variant{"u", uint32(3)}}, Struct{fieldSignature, Variant{"g", signature("uoss")}})
	var body encoder
	body.add(uint32(1), "/job/1", "x.service", "done")
	f.Add(byte(4), fields.b, body.b)
	f.Add(byte(2), bytes.Repeat([]byte{1, 1, 'v', 0}, 100), []byte{})
	f.Fuzz(func(t *testing.T, kind byte, fields, body []byte) {
		m, err := parse(kind, fields, body)
		if err == nil && len(m.Body) > len(body)+1 {
			t.Errorf("%d values from %d bytes", len(m.Body), len(body))
		}
	})
}

// peer is the other side: it authenticates and then answers each call with
// what reply makes of it.
func peer(t *testing.T, reply func(serial uint32, w io.Writer)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b := make([]byte, 4096)
		if n, _ := c.Read(b); !bytes.HasPrefix(b[:n], []byte("\x00AUTH EXTERNAL 3")) || !bytes.HasSuffix(b[:n], []byte("\r\nBEGIN\r\n")) {
			return
		}
		io.WriteString(c, "OK 1234\r\n")
		for {
			n, err := c.Read(b)
			if err != nil || n < 16 {
				return
			}
			reply(binary.LittleEndian.Uint32(b[8:]), c)
		}
	}()
	return path
}

// say encodes a message of the other side's.
func say(w io.Writer, kind byte, fields []Struct, sig string, body ...any) {
	var b, h encoder
	b.add(body...)
	fields = append(fields, Struct{fieldSignature, Variant{"g", signature(sig)}})
	h.add(byte('l'), kind, byte(0), byte(1), uint32(len(b.b)), uint32(1), fields)
	h.align(8)
	w.Write(append(h.b, b.b...))
}

func answer(serial uint32) []Struct { return []Struct{{fieldReply, Variant{"u", serial}}} }

func TestCallAndAwait(t *testing.T) {
	signal := func(w io.Writer, name, arg string) {
		say(w, kindSignal, []Struct{{fieldMember, Variant{"s", name}}}, "s", arg)
	}
	path := peer(t, func(serial uint32, w io.Writer) {
		switch serial {
		case 1: // the answer to something else, a signal, and the answer
			say(w, 2, answer(99), "s", "not for you")
			signal(w, "JobRemoved", "early")
			say(w, 2, answer(serial), "so", "yes", "/p")
		case 2:
			say(w, kindError, append(answer(serial), Struct{fieldError, Variant{"s", "org.no"}}), "s", "go away")
		case 3:
			signal(w, "Other", "x")
			signal(w, "JobRemoved", "late")
			say(w, 2, answer(serial), "")
		}
	})
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m := Method{"d", "/p", "i", "n"}
	if got, err := c.Call(t.Context(), m, "s", "x"); err != nil || !cmp.Equal(got, []any{"yes", "/p"}) {
		t.Errorf("Call() = %v, %v", got, err)
	}
	_, err = c.Call(t.Context(), m, "")
	var e *Error
	if !errors.As(err, &e) || !Is(err, "org.no") || Is(err, "org.yes") || e.Text != "go away" {
		t.Errorf("Call() = %v, want the refusal", err)
	}
	is := func(arg string) func(Signal) bool {
		return func(s Signal) bool { return s.Name == "JobRemoved" && s.Body[0] == arg }
	}
	if s, err := c.Await(t.Context(), is("early")); err != nil || s.Body[0] != "early" {
		t.Errorf("Await(early) = %v, %v", s, err)
	}
	if _, err := c.Call(t.Context(), m, ""); err != nil {
		t.Errorf("third Call() = %v", err)
	}
	if s, err := c.Await(t.Context(), is("late")); err != nil || s.Body[0] != "late" {
		t.Errorf("Await(late) = %v, %v", s, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Await(ctx, is("never")); !errors.Is(err, context.Canceled) {
		t.Errorf("Await() without an end = %v, want Canceled", err)
	}
}

func TestRefusesNonsense(t *testing.T) {
	for name, raw := range map[string]string{
		"big-endian":    "B\x02\x00\x01" + strings.Repeat("\x00", 12),
		"a huge body":   "l\x02\x00\x01\xff\xff\xff\x7f" + strings.Repeat("\x00", 8),
		"a huge header": "l\x02\x00\x01" + strings.Repeat("\x00", 8) + "\xff\xff\xff\x7f",
	} {
		path := peer(t, func(_ uint32, w io.Writer) { io.WriteString(w, raw) })
		c, err := Dial(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Call(t.Context(), Method{"d", "/p", "i", "n"}, ""); err == nil || !strings.Contains(err.Error(), "a message begins with") {
			t.Errorf("%s: Call() = %v", name, err)
		}
		c.Close()
	}
}
