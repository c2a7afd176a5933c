package paths

import (
	"os"
	"path/filepath"
	"testing"

	"banger/internal/api"
)

func TestWhoIsInSystemMode(t *testing.T) {
	dir := t.TempDir()
	record, broken, none := filepath.Join(dir, "record"), filepath.Join(dir, "broken"), filepath.Join(dir, "none")
	for name, text := range map[string]string{record: `{"owner":{"uid":1000,"name":"alice"}}`, broken: `{`} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		record string
		uid    int
		mode   string
		system bool
		code   api.Code
	}{
		{record, 1000, "", true, ""},
		{record, 1000, "system", true, ""},
		{record, 1000, "user", false, ""},
		{record, 1001, "", false, ""},
		{record, 1001, "system", false, api.Denied},
		{record, 0, "", false, ""},
		{none, 1000, "", false, ""},
		{none, 1000, "system", false, api.NotFound},
		{broken, 1000, "", false, api.StateDamaged},
		{broken, 1000, "user", false, ""},
		{broken, 0, "", false, ""},
		{none, 1000, "both", false, api.Invalid},
	} {
		l, err := choose(tt.record, func(name string) string {
			if name == ModeEnv {
				return tt.mode
			}
			return ""
		}, tt.uid, "/home/alice")
		code := api.Code("")
		if err != nil {
			code = api.CodeOf(err)
		}
		if l.System != tt.system || code != tt.code {
			t.Errorf("%s, uid %d, mode %q: system %v, error %v; want %v, %q", filepath.Base(tt.record), tt.uid, tt.mode, l.System, err, tt.system, tt.code)
		}
	}
}
