package printable_test

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"unicode/utf8"

	"banger/internal/printable"
)

func TestString(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"plain text, ä and 🚀\n\ttab", "plain text, ä and 🚀\n\ttab"},
		{"\x1b]0;owned\x07", "^[]0;owned^G"},         // window title
		{"\x1b]52;c;aGk=\x1b\\", "^[]52;c;aGk=^[\\"}, // clipboard
		{"\x1bP$qm\x1b\\", "^[P$qm^[\\"},             // DECRQSS
		{"\x1b[200~rm -rf\n", "^[[200~rm -rf\n"},     // bracketed paste
		{"\u009b31m", `\u009b31m`},                   // C1 CSI
		{"over\rwritten", "over^Mwritten"},           // a lone carriage return hides text
		{"line\r\nline\r\n", "line\nline\n"},         // a console's line ends
		{"\xff\xfe", `\xff\xfe`},                     // not UTF-8
		{"user\u202etxt.exe", `user\u202etxt.exe`},   // right-to-left override
		{"a\u061cb", `a\u061cb`},                     // Arabic letter mark
		{"\x00\x08\x7f", "^@^H^?"},                   // NUL, backspace, DEL
	} {
		if got := printable.String(tt.in); got != tt.want {
			t.Errorf("String(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestLine(t *testing.T) {
	for _, tt := range []struct {
		in    string
		limit int
		want  string
	}{
		{"one\ntwo\tthree", 80, "one two three"},
		{"abcdef", 3, "abc..."},
		{"äöü", 3, "ä..."},
	} {
		if got := printable.Line(tt.in, tt.limit); got != tt.want {
			t.Errorf("Line(%q, %d) = %q, want %q", tt.in, tt.limit, got, tt.want)
		}
	}
}

func TestJSON(t *testing.T) {
	in := map[string]string{"a": "plain ä 🚀", "b": "\x1b[0m \u009b31m \x7f \u202e \u061c \n \xff"}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	got := printable.JSON(b)
	if string(got) != printable.String(string(got)) {
		t.Errorf("JSON(%q) = %q, which is not harmless", b, got)
	}
	var before, after map[string]string
	if err := json.Unmarshal(b, &before); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(got, &after); err != nil || !maps.Equal(before, after) {
		t.Errorf("JSON(%q) = %q means %v, %v; want the same", b, got, after, err)
	}
	if b := []byte(`{"a": 1}`); &printable.JSON(b)[0] != &b[0] {
		t.Error("JSON copies what is harmless")
	}
}

func TestLastLines(t *testing.T) {
	got := printable.LastLines([]byte("one\r\ntwo\r\n\x1b[31mthree\r\n\r\n"), 2)
	if want := "two\n^[[31mthree"; got != want {
		t.Errorf("LastLines = %q, want %q", got, want)
	}
}

func FuzzString(f *testing.F) {
	f.Add("\x1b[0m\u009b\u202e\xff\r\n")
	f.Fuzz(func(t *testing.T, in string) {
		got := printable.String(in)
		if !utf8.ValidString(got) || strings.ContainsAny(got, "\x1b\r\x00\x7f\u009b") {
			t.Errorf("String(%q) = %q is not harmless", in, got)
		}
		if again := printable.String(got); again != got {
			t.Errorf("String is not idempotent on %q: %q, then %q", in, got, again)
		}
	})
}

func TestTail(t *testing.T) {
	for _, c := range []struct {
		text string
		n    int
		want string
	}{
		{"", 3, ""}, {"one", 1, "one"}, {"one\n", 1, "one"}, {"one\r\ntwo\r\n\n\n", 1, "two"}, {"one\ntwo\nthree\n", 2, "two\nthree"}, {"one\ntwo", 9, "one\ntwo"},
	} {
		if got := string(printable.Tail([]byte(c.text), c.n)); got != c.want {
			t.Errorf("Tail(%q, %d) = %q, want %q", c.text, c.n, got, c.want)
		}
	}
}
