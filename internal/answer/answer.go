// Package answer is how banger speaks: an answer on stdout as text or JSON, the
// conversation on stderr.
//
// It alone knows of --json, and nothing that a terminal obeys gets through it:
// names, reasons and paths may be a guest's or a stranger's. It refuses to know
// how what it prints was found out.
package answer

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"banger/internal/api"
	"banger/internal/printable"
	"banger/internal/size"
)

// A Printer writes answers and the conversation. Out and Err are required.
type Printer struct {
	Out, Err io.Writer
	JSON     bool // answers are documents
	Quiet    bool // there is no conversation
	Colour   bool // Err is a terminal that can show what matters less
}

// Print writes an answer: v as JSON if that is wanted, else what text writes.
func (p Printer) Print(v any, text func(w io.Writer)) error {
	if !p.JSON {
		var b strings.Builder
		text(&b)
		_, err := io.WriteString(p.Out, printable.String(b.String()))
		return err
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := p.Out.Write(printable.JSON(b.Bytes()))
	return err
}

// Note writes a line of the conversation.
func (p Printer) Note(format string, args ...any) { p.say("", "", format, args...) }

// Dim writes a line of the conversation that matters less, if the terminal can
// show that.
func (p Printer) Dim(format string, args ...any) {
	if p.Colour {
		p.say("\x1b[2m", "\x1b[0m", format, args...)
		return
	}
	p.Note(format, args...)
}

func (p Printer) say(before, after, format string, args ...any) {
	if !p.Quiet {
		fmt.Fprintf(p.Err, "%s%s%s\n", before, printable.String(fmt.Sprintf(format, args...)), after)
	}
}

// Report prints an error: for people on stderr, with JSON on stdout.
func (p Printer) Report(e *api.Error) {
	if p.JSON {
		// Nothing is left to tell if stdout is gone.
		_ = p.Print(map[string]*api.Error{"error": e}, nil)
		return
	}
	fmt.Fprintf(p.Err, "banger: %s\n", printable.String(strings.TrimSpace(e.Msg)))
	for line := range strings.Lines(printable.String(e.Detail)) {
		fmt.Fprintf(p.Err, "    %s\n", strings.TrimRight(line, "\n"))
	}
	if e.Hint != "" {
		fmt.Fprintf(p.Err, "banger: hint: %s\n", printable.String(e.Hint))
	}
}

// A Log is the JSON of what was logged: of a VM's console, or a file.
type Log struct {
	VM   string `json:"vm,omitempty"`
	File string `json:"file,omitempty"`
	Text string `json:"text"`
}

// Console prints a console as it comes, or its last lines if lines is not 0, and
// returns how much of it there was. raw leaves what a terminal obeys as it is.
func (p Printer) Console(vm string, console io.Reader, lines int, raw bool) (n int64, err error) {
	switch {
	case lines > 0 || p.JSON:
		// The companion bounds it, to 16 MiB in all.
		all, err := io.ReadAll(console)
		n = int64(len(all))
		if err != nil || n == 0 && !p.JSON {
			return n, err
		}
		if lines > 0 && n > 0 {
			all = append(printable.Tail(all, lines), '\n')
		}
		if raw && !p.JSON {
			_, err = p.Out.Write(all)
			return n, err
		}
		return n, p.Print(Log{VM: vm, Text: string(all)}, func(w io.Writer) { w.Write(all) })
	case raw:
		return io.Copy(p.Out, console)
	}
	visible := printable.NewWriter(p.Out)
	n, err = io.Copy(visible, console)
	return n, errors.Join(err, visible.Close())
}

// Table writes rows under a header, in columns.
func Table(w io.Writer, header string, rows [][]string) {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, strings.ReplaceAll(header, " ", "\t"))
	for _, r := range rows {
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	// A tabwriter fails only if its writer does; there is nobody left to tell.
	_ = tw.Flush()
}

// Ago says how long ago t was, in one unit.
func Ago(now, t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	switch d := now.Sub(t); {
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(max(d, 0).Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd ago", int(d.Hours()/24))
	}
}

// Dash stands for what is not known.
func Dash(s string) string { return cmp.Or(s, "-") }

// List prints names.
func List(names []string) string { return cmp.Or(strings.Join(names, ", "), "none") }

// Count says how many there are of something.
func Count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// Bytes says how much that is.
func Bytes(n int64) string { return size.Bytes(n).Short() }

// MiB says how much so many MiB are.
func MiB(n int64) string { return (size.Bytes(n) * size.MiB).String() }

// Line is text of a stranger's as part of a line, of at most max bytes.
func Line(text string, max int) string { return printable.Line(text, max) }
