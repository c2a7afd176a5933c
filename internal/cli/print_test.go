package cli

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"banger/internal/answer"
	"banger/internal/api"
)

// Paths, reasons and errors may be a guest's or a stranger's repository's.
func TestNothingATerminalObeysIsPrinted(t *testing.T) {
	const evil = "x\x1b]52;c;AAAA\a\u009b31m\u202e\x7f"
	m := api.Machine{ID: "0123456789ab", Name: "web", Reason: evil, Workspace: &api.Workspace{Source: evil, GuestPath: evil}}
	for name, print := range map[string]func(a *app) error{
		"a table": func(a *app) error {
			return a.print(m, func(w io.Writer) { a.printer().Machines(w, []api.Machine{m}, false) })
		},
		"one VM": func(a *app) error { return a.print(m, func(w io.Writer) { answer.Machine(w, m) }) },
		"a note": func(a *app) error { a.note("%s", evil); return nil },
		"a remark": func(a *app) error {
			a.dim("%s", evil)
			return nil
		},
		"an error": func(a *app) error {
			e := &api.Error{Code: api.Denied, Msg: evil, Detail: evil + "\n" + evil, Hint: evil}
			if got := a.finish(t.Context(), nil, fmt.Errorf("doing: %w", e)); got != exitBanger {
				t.Errorf("finish() = %d, want %d", got, exitBanger)
			}
			return nil
		},
	} {
		for _, json := range []bool{false, true} {
			var out bytes.Buffer
			a := &app{Env: Env{Stdout: &out, Stderr: &out, Getenv: func(string) string { return "" }}.withDefaults(), json: json}
			if err := print(a); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if got := out.String(); !strings.Contains(got, "x") || strings.ContainsAny(got, "\x1b\a\u009b\u202e\x7f") {
				t.Errorf("%s, json %v: %q", name, json, got)
			}
		}
	}
}
