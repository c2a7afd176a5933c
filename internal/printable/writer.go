package printable

import (
	"bytes"
	"io"
	"unicode/utf8"
)

// maxHeld is how much of an unfinished line a Writer keeps back.
const maxHeld = 4 << 10

// A Writer makes what passes harmless, a line at a time, so that characters are
// not cut in two.
type Writer struct {
	w    io.Writer
	rest []byte // held back
	open bool   // what was passed on has no end of line yet
}

// NewWriter passes on to w. The caller closes it, which does not close w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write passes on what is whole.
func (p *Writer) Write(b []byte) (int, error) {
	cut := 0
	if i := bytes.LastIndexByte(b, '\n'); i >= 0 {
		cut = len(p.rest) + i + 1
	}
	p.rest = append(p.rest, b...)
	if cut == 0 && len(p.rest) > maxHeld {
		cut = whole(p.rest)
	}
	if cut == 0 {
		return len(b), nil
	}
	if _, err := io.WriteString(p.w, String(string(p.rest[:cut]))); err != nil {
		return 0, err
	}
	p.open = p.rest[cut-1] != '\n'
	p.rest = append(p.rest[:0], p.rest[cut:]...)
	return len(b), nil
}

// whole is the length of b without a character, or a line end, at its end that
// may go on.
func whole(b []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if c := b[len(b)-n]; utf8.RuneStart(c) {
			if c >= utf8.RuneSelf && !utf8.FullRune(b[len(b)-n:]) || c == '\r' {
				return len(b) - n
			}
			break
		}
	}
	return len(b)
}

// Close passes on an unfinished last line, with an end.
func (p *Writer) Close() error {
	if len(p.rest) == 0 && !p.open {
		return nil
	}
	_, err := p.Write([]byte{'\n'})
	return err
}
