package mux

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"
)

func TestUnstuffer(t *testing.T) {
	nonce := "0123456789abcdef0123456789abcdef"
	hello := string(helloBytes(nonce))
	for name, tt := range map[string]struct{ in, want string }{
		"data":                        {"abc", "abc"},
		"an escape as data":           {"a\xf1\x00b", "a\xf1b"},
		"a hello":                     {"ab" + hello + "cd", "ab<" + nonce + ">cd"},
		"no session":                  {"ab\xf1\x02cd", "ab<absent>cd"},
		"broken off at an escape":     {"ab\xf1" + hello + "c", "ab<" + nonce + ">c"},
		"broken off in a hello":       {"ab" + hello[:20] + hello + "c", "ab<" + nonce + ">c"},
		"broken off behind an escape": {"ab\xf1cd", "abcd"},
		"a nonce with a wrong digit":  {hello[:20] + "xyz", "xyz"},
		"two hellos":                  {hello + hello, "<" + nonce + "><" + nonce + ">"},
	} {
		for kind, r := range map[string]io.Reader{
			"whole":  bytes.NewReader([]byte(tt.in)),
			"bytes":  iotest.OneByteReader(bytes.NewReader([]byte(tt.in))),
			"halves": iotest.HalfReader(bytes.NewReader([]byte(tt.in))),
		} {
			if got := describe(&unstuffer{r: r}, 7); got != tt.want {
				t.Errorf("%s, %s: got %q, want %q", name, kind, got, tt.want)
			}
		}
	}
}

// describe reads all of u in pieces of n bytes, with the signals spelt out.
func describe(u *unstuffer, n int) string {
	var out []byte
	b := make([]byte, n)
	for {
		n, err := u.Read(b)
		out = append(out, b[:n]...)
		switch {
		case errors.Is(err, errHello):
			out = append(out, "<"+string(u.nonce)+">"...)
		case errors.Is(err, errAbsent):
			out = append(out, "<absent>"...)
		case err != nil:
			return string(out)
		}
	}
}

// Whatever the data and wherever an earlier stream broke off: what follows a
// hello is exactly what was sent, and data never looks like a signal.
func FuzzStuffing(f *testing.F) {
	f.Add([]byte("old\xf1\x01"), []byte("a\xf1\x00\xf1\x01\xf1\x02\xf1\xf1b"), uint8(3))
	f.Fuzz(func(t *testing.T, old, data []byte, size uint8) {
		nonce := newNonce()
		in := append(append([]byte{}, old...), helloBytes(nonce)...)
		u := &unstuffer{r: bytes.NewReader(stuff(in, data))}
		for string(u.nonce) != nonce {
			if err := u.skip(); !errors.Is(err, errHello) && !errors.Is(err, errAbsent) {
				t.Fatalf("no hello in %q: %v", in, err)
			}
		}
		if got := describe(u, 1+int(size)); got != string(data) {
			t.Errorf("after the hello: got %q, want %q", got, data)
		}
	})
}

func TestFramerPutsFramesBetweenFrames(t *testing.T) {
	var out bytes.Buffer
	f := &framer{w: &out}
	hdr := make([]byte, headerLen)
	hdr[11] = 5
	steps := []func() error{
		func() error { _, err := f.Write(hdr); return err },
		func() error { return f.put(windowFrame(flagRST, 7)) },
		func() error { _, err := f.Write([]byte("12345")); return err },
		func() error { return f.put(windowFrame(flagFIN, 9)) },
	}
	for i, step := range steps {
		if err := step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	want := string(hdr) + "12345" + string(windowFrame(flagRST, 7)) + string(windowFrame(flagFIN, 9))
	if got := out.String(); got != want {
		t.Errorf("written: %q, want %q", got, want)
	}
	var seen []uint32
	s := &scanner{r: iotest.OneByteReader(&out), seen: func(h header) (bool, error) { seen = append(seen, h.stream()); return false, nil }}
	got, err := io.ReadAll(s)
	if err != nil || !slices.Equal(seen, []uint32{0, 7, 9}) || string(got) != want {
		t.Errorf("scanned: frames of %v, %q, %v; want those of 0, 7 and 9, and %q", seen, got, err, want)
	}
}
