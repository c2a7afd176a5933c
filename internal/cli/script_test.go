package cli_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/rogpeppe/go-internal/txtar"

	"banger/internal/client"
)

// With -update, what scripts expect of "golden" and "cmp" is what they got.
var update = flag.Bool("update", false, "rewrite what the scripts expect")

// worldKey finds the world of a script.
type worldKey struct{}

// TestScripts runs testdata/*.txtar, each in a world of its own whose census
// must be clean at the end. Besides testscript's own commands there are
//
//	transcript FILE  the commands of FILE print what it says: see transcript
//	census           nothing is left of any VM
func TestScripts(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                "testdata",
		RequireUniqueNames: true,
		UpdateScripts:      *update,
		ContinueOnError:    true,
		Setup: func(e *testscript.Env) error {
			ctx := t.Context()
			w, err := newWorld(ctx, e.WorkDir)
			if err != nil {
				return err
			}
			e.Vars = append(e.Vars, w.env...)
			e.Vars = append(e.Vars, "STATE="+w.layout.State, "RUNTIME="+w.layout.Runtime, "LOG="+w.layout.Log, "TESTDATA="+filepath.Join(here, "testdata"))
			e.Values[worldKey{}] = w
			e.Defer(func() {
				if err := w.close(context.WithoutCancel(ctx)); err != nil {
					e.T().Fatal(err, "\n", w.log())
				}
			})
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, errors.New("unknown condition")
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"transcript": transcript, "census": census},
	})
}

// transcript runs the commands of FILE, which are the lines that begin with
// "$ ", each with a shell, and compares what they print with the lines that
// follow: stdout as it is, stderr after "! ", and "= N" if the status is not 0.
func transcript(ts *testscript.TestScript, _ bool, args []string) {
	want := ts.ReadFile(args[0])
	var got strings.Builder
	for line := range strings.Lines(want) {
		command, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "$ ")
		if !ok {
			continue
		}
		got.WriteString("$ " + command + "\n")
		err := ts.Exec("sh", "-c", command)
		got.WriteString(normal(ts, lines("", ts.ReadFile("stdout"))+lines("! ", ts.ReadFile("stderr"))))
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			fmt.Fprintf(&got, "= %d\n", e.ExitCode())
		} else {
			ts.Check(err)
		}
	}
	if got.String() == want {
		return
	}
	if !*update {
		ts.Fatalf("%s (-want +got):\n%s", args[0], cmp.Diff(want, got.String()))
	}
	file := filepath.Join(ts.Getenv("TESTDATA"), ts.Name()+".txtar") // scripts run elsewhere
	a, err := txtar.ParseFile(file)
	ts.Check(err)
	for i := range a.Files {
		if a.Files[i].Name == args[0] {
			a.Files[i].Data = []byte(got.String())
		}
	}
	ts.Check(os.WriteFile(file, txtar.Format(a), 0o644))
}

// lines puts a word before each line; a last line without an end says so.
func lines(before, text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(before + strings.TrimSuffix(line, "\n"))
		if !strings.HasSuffix(line, "\n") {
			b.WriteString("<no newline>")
		}
		b.WriteString("\n")
	}
	return b.String()
}

// census fails unless nothing is left of any VM. It starts a daemon if there is
// none.
func census(ts *testscript.TestScript, _ bool, _ []string) {
	w := ts.Value(worldKey{}).(world)
	ctx := context.Background()
	c, err := client.Connect(ctx, w.options())
	ts.Check(err)
	defer c.Close()
	ts.Check(nothing(ctx, c))
}

// normal replaces what differs from run to run.
func normal(ts *testscript.TestScript, s string) string {
	for _, r := range []struct{ pattern, with string }{
		{regexp.QuoteMeta(ts.Getenv("RUNTIME")), "RUNTIME"},
		{regexp.QuoteMeta(ts.Getenv("WORK")), "WORK"},
		{regexp.QuoteMeta(filepath.Dir(self("banger"))), "BIN"},
		{`/fake-\d+/`, "/fake/"},
		{`\b[0-9a-f]{64}\b`, "SHA256"},
		{`\b[0-9a-f]{40}\b`, "COMMIT"},
		{`\b[0-9a-f]{12}\b`, "ID"},
		{`\b[0-9a-f]{8}\b`, "SHORT-ID"},
		{`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)`, "TIME"},
		{`("pid"|"vmm_pid"|"disk_used_bytes"|"used_bytes"|"bytes"|"vmms"|"companions"): *(\d+|\[\d+\])`, "$1: N"},
		{`("stage": ")(sockets|boot)`, "${1}sockets"},
		{`guest at (sockets|boot)`, "guest at sockets"},
		{`\b\d+(\.\d+)?KiB\b`, "SIZE"},
		{`(on disk +)\S+`, "${1}SIZE"},
		{`(vmm pid +|pid )\d+`, "${1}PID"},
		{`\b\d+(s|m|h|d) ago`, "AGO"},
		{`ready in \d\S*`, "ready in DURATION"},
		{`\bgo1\.\d+(\.\d+)?`, "go1.N"},
		{`127\.0\.0\.1:\d+`, "127.0.0.1:PORT"},
	} {
		s = regexp.MustCompile(r.pattern).ReplaceAllString(s, r.with)
	}
	return strings.ReplaceAll(s, "\r\n", "\n")
}
