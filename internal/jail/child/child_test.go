package child

import (
	"strings"
	"testing"
)

// The rest needs a service of systemd's, and is run in the lab.
func TestRunRefusesNonsense(t *testing.T) {
	for arg, want := range map[string]string{"": "description", "{": "description", `{"ID":"ffffffffffff"}`: "console"} {
		if err := Run(arg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Run(%q) = %v, want %q", arg, err, want)
		}
	}
}
