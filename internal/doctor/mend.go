package doctor

import (
	"context"
	"io"
	"os/exec"
	"slices"
	"strings"
)

// Mend makes the fixes that are commands of banger's own and need no root, each
// once, and says of the others whose they are. It reports whether anything was
// done, so that it is worth looking again.
func Mend(ctx context.Context, rows []Row, run func(ctx context.Context, args []string) error, say func(format string, args ...any)) (done bool) {
	var made []string
	for _, r := range rows {
		switch {
		case r.Status == Pass || strings.HasPrefix(r.Fix, "none"):
		case r.Run == nil && needsRoot(r.Fix):
			say("%s: needs root, so it is yours to type: %s", r.Check, r.Fix)
		case r.Run == nil:
			say("%s: yours to do: %s", r.Check, r.Fix)
		case !slices.Contains(made, r.Fix):
			made = append(made, r.Fix)
			say("%s: %s", r.Check, r.Fix)
			if err := run(ctx, r.Run); err != nil {
				say("%s: %v", r.Check, err)
				continue
			}
			done = true
		}
	}
	return done
}

// Self runs a command of this program, which is at path, and has what it answers
// written to w: it is a part of the conversation.
func Self(path string, w io.Writer) func(ctx context.Context, args []string) error {
	return func(ctx context.Context, args []string) error {
		c := exec.CommandContext(ctx, path, args...)
		c.Stdout, c.Stderr = w, w
		return c.Run()
	}
}

func needsRoot(fix string) bool {
	return strings.HasPrefix(fix, "sudo ") || strings.Contains(fix, ": sudo ")
}

// Table are rows as people read them: a line each, and one below for the fix.
func Table(rows []Row) (lines [][]string) {
	for _, r := range rows {
		lines = append(lines, []string{string(r.Status), r.Check, r.Detail})
		if r.Fix != "" {
			lines = append(lines, []string{"", "", "fix: " + r.Fix})
		}
	}
	return lines
}
