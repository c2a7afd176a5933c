package printable

import (
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// TestWriter: however the bytes come, the same text leaves.
func TestWriter(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"one\ntwo\n", "one\ntwo\n"},
		{"no end", "no end\n"},
		{"console\r\nlines\r\n", "console\nlines\n"},
		{"\x1b[31mred\a\n", "^[[31mred^G\n"},
		{"grün 日本\n", "grün 日本\n"},
		{"bad \xff\xfe\n", `bad \xff\xfe` + "\n"},
		{strings.Repeat("日本", 3000), strings.Repeat("日本", 3000) + "\n"},
		{strings.Repeat("x", 10000) + "\n", strings.Repeat("x", 10000) + "\n"},
	} {
		for name, r := range map[string]io.Reader{
			"at once": strings.NewReader(c.in), "by bytes": iotest.OneByteReader(strings.NewReader(c.in)), "halved": iotest.HalfReader(strings.NewReader(c.in)),
		} {
			var out strings.Builder
			w := NewWriter(&out)
			if _, err := io.Copy(struct{ io.Writer }{w}, r); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if out.String() != c.want {
				t.Errorf("%s: %.60q became %.60q, want %.60q", name, c.in, out.String(), c.want)
			}
		}
	}
}

// TestWriterBound: a guest that never ends its line is not kept in memory.
func TestWriterBound(t *testing.T) {
	var out strings.Builder
	w := NewWriter(&out)
	for range 1000 {
		if _, err := w.Write([]byte(strings.Repeat("z", 100))); err != nil {
			t.Fatal(err)
		}
		if len(w.rest) > maxHeld+100 {
			t.Fatalf("%d bytes are kept back, at most %d expected", len(w.rest), maxHeld)
		}
	}
}
