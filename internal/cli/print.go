package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"banger/internal/printable"
	"banger/internal/progress"
	"banger/internal/session"
)

// print writes an answer: v as JSON with --json, else what text writes. It is
// the only place that knows of --json. Names and paths may be a guest's or a
// stranger's: nothing that a terminal obeys is written.
func (a *app) print(v any, text func(w io.Writer)) error {
	if !a.json {
		var b strings.Builder
		text(&b)
		_, err := io.WriteString(a.Stdout, printable.String(b.String()))
		return err
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := a.Stdout.Write(printable.JSON(b.Bytes()))
	return err
}

// note writes a line of the conversation.
func (a *app) note(format string, args ...any) { a.say("", "", format, args...) }

// dim writes a line of the conversation that matters less, if the terminal can
// show that.
func (a *app) dim(format string, args ...any) {
	if a.colour() {
		a.say("\x1b[2m", "\x1b[0m", format, args...)
		return
	}
	a.note(format, args...)
}

func (a *app) say(before, after, format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(a.Stderr, "%s%s%s\n", before, printable.String(fmt.Sprintf(format, args...)), after)
	}
}

func (a *app) colour() bool {
	return session.IsTerminal(a.Stderr) && a.Getenv("NO_COLOR") == "" && a.Getenv("TERM") != "dumb"
}

// table writes rows under a header, in columns.
func table(w io.Writer, header string, rows [][]string) {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, strings.ReplaceAll(header, " ", "\t"))
	for _, r := range rows {
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	// A tabwriter fails only if its writer does; there is nobody left to tell.
	_ = tw.Flush()
}

// ago says how long ago t was, in one unit.
func ago(now, t time.Time) string {
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

func dash(s string) string { return cmp.Or(s, "-") }

// list prints names.
func list(names []string) string { return cmp.Or(strings.Join(names, ", "), "none") }

// count says how many there are of something.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// progress tells how a long piece of work goes; the caller ends it.
func (a *app) progress(ctx context.Context, title string) *progress.Bar {
	p := progress.New(progress.Config{Title: title, Out: a.Stderr, Terminal: a.live(), Silent: a.json})
	context.AfterFunc(ctx, p.Stop)
	return p
}
