package systemcmd

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"banger/internal/api"
	"banger/internal/install"
)

// A hint can be typed as it is, also before anything is in root's PATH.
func TestHinted(t *testing.T) {
	built := filepath.Join(t.TempDir(), "banger")
	if err := os.WriteFile(built, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for self, want := range map[string]string{
		built:                    "sudo " + built + ` system install --owner "$USER"`,
		install.BinDir + "/gone": `sudo banger system install --owner "$USER"`,
	} {
		err := Env{Self: self}.hinted(install.ErrNotInstalled)
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Hint != want || e.Msg != install.ErrNotInstalled.Msg {
			t.Errorf("%s says %+v, want the hint %q", self, err, want)
		}
	}
	if install.ErrNotInstalled.Hint != `sudo banger system install --owner "$USER"` {
		t.Errorf("hinted() changed the error that it was given: %q", install.ErrNotInstalled.Hint)
	}
	if err := (Env{Self: built}).hinted(nil); err != nil {
		t.Errorf("hinted(nil) = %v", err)
	}
	if err := (Env{Self: built}).hinted(os.ErrInvalid); err != os.ErrInvalid {
		t.Errorf("hinted() of another error = %v", err)
	}
}
