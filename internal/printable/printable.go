// Package printable makes text from a guest, an image or a registry safe to
// show on a terminal.
//
// What a guest prints can hold escape sequences that retitle a window, answer
// queries into the shell's input or write the clipboard. Only line feeds and
// tabs pass; every other control character, C0, C1 or DEL, becomes visible in
// caret or \x notation, and so do the characters that reorder text.
package printable

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"
)

// String returns s with everything a terminal would act upon made visible.
// Invalid UTF-8 comes out as \xNN. The result is valid UTF-8 and safe to pass
// again.
func String(s string) string {
	if clean(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == '\r' && strings.HasPrefix(s[i+1:], "\n"):
			// a console's line end: the line feed alone says it
		case r == '\n' || r == '\t':
			b.WriteRune(r)
		case r < 0x20:
			b.WriteByte('^')
			b.WriteByte(byte(r) + '@')
		case r == 0x7f:
			b.WriteString("^?")
		case unsafeRune(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// Line is [String] for text that must stay on one line: line feeds and tabs
// become spaces, and what is longer than limit bytes is cut, with "...".
func Line(s string, limit int) string {
	s = strings.Join(strings.Fields(String(s)), " ")
	if len(s) <= limit {
		return s
	}
	s = s[:limit]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + "..."
}

// LastLines returns at most n last lines of a console, made printable. Empty
// lines at the end do not count.
func LastLines(console []byte, n int) string {
	lines := strings.Split(strings.TrimRight(String(string(console)), "\n\t "), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}

// JSON returns a JSON text of which a terminal obeys nothing: json.Marshal leaves
// DEL, C1 and what reorders text as they are. The value stays the same.
func JSON(b []byte) []byte {
	if clean(string(b)) {
		return b
	}
	var out []byte
	for _, r := range string(b) {
		switch {
		case r == 0x7f || unsafeRune(r): // only in a string, where any character may be written so
			out = fmt.Appendf(out, `\u%04x`, r)
		default:
			out = utf8.AppendRune(out, r)
		}
	}
	return out
}

func clean(s string) bool {
	for _, r := range s {
		if r < 0x20 && r != '\n' && r != '\t' || r == 0x7f || unsafeRune(r) || r == utf8.RuneError {
			return false
		}
	}
	return true
}

// unsafeRune reports the C1 controls, which some terminals still obey, and the
// bidirectional controls, which make text read as something else (Unicode
// Standard Annex 9).
func unsafeRune(r rune) bool {
	return r >= 0x80 && r <= 0x9f || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == 0x200e || r == 0x200f || r == 0x061c
}

// Tail is the last n lines of a text, without the last end of line.
func Tail(text []byte, n int) []byte {
	text = bytes.TrimRight(text, "\r\n")
	at := len(text)
	for ; n > 0 && at >= 0; n-- {
		at = bytes.LastIndexByte(text[:at], '\n')
	}
	return text[at+1:]
}
