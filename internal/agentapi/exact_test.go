package agentapi_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/agentapi"
)

func TestExecKeepsEveryByte(t *testing.T) {
	for _, e := range []agentapi.Exec{
		{Argv: []string{"echo", "plain"}, Dir: "/root", User: "nobody", TTY: true, Size: agentapi.Winsize{Rows: 24, Cols: 80}},
		{Argv: []string{"cat", "\xff\xfe", "", "new\nline", "<&>"}, Env: []string{"A=\x80"}, Dir: "/\xc3\x28"},
		{Argv: []string{"\xf0\x9f"}},
		{Argv: []string{"\ufffd", "🙂"}, Env: []string{"X=\x01\x7f"}},
	} {
		req := agentapi.Request{Op: agentapi.OpExec, Exec: &e}
		b, err := json.Marshal(req)
		if err != nil {
			t.Fatalf("Marshal: %v", err)
		}
		var got agentapi.Request
		if err := agentapi.Decode(b, &got); err != nil {
			t.Fatalf("Decode: %v", err)
		}
		if d := cmp.Diff(req, got); d != "" {
			t.Errorf("after %s (-sent +got)\n%s", b, d)
		}
	}
}
