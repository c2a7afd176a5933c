package usage

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"banger/internal/api"
)

// TestNearest is about the hint after a misspelt command.
func TestNearest(t *testing.T) {
	root := &cobra.Command{Use: "banger"}
	group := &cobra.Command{Use: "vm"}
	for _, name := range []string{"set", "show", "start", "stop", "list", "logs"} {
		group.AddCommand(&cobra.Command{Use: name, RunE: func(*cobra.Command, []string) error { return nil }})
	}
	root.AddCommand(group)
	Dress(root)
	for given, want := range map[string]string{
		"shw": "banger vm show", "lst": "banger vm list", "star": "banger vm start", "stp": "banger vm stop",
		"st": "banger vm set", "unlike": "banger vm --help",
	} {
		root.SetArgs([]string{"vm", given})
		if got := api.AsError(root.Execute()).Hint; got != want {
			t.Errorf("vm %s: got the hint %q, want %q", given, got, want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "ab", 2}, {"show", "show", 0}, {"shw", "show", 1}, {"kitten", "sitting", 3}} {
		if got := distance(tt.a, tt.b); got != tt.want {
			t.Errorf("%q to %q: got %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}

// TestHelpFitsATerminal wraps the text of flags.
func TestHelpFitsATerminal(t *testing.T) {
	root := &cobra.Command{Use: "banger"}
	c := &cobra.Command{Use: "do", Run: func(*cobra.Command, []string) {}}
	c.Flags().String("flag", "", strings.Repeat("a long text ", 20))
	root.AddCommand(c)
	Dress(root)
	var out strings.Builder
	root.SetOut(&out)
	root.SetArgs([]string{"do", "--help"})
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if len(line) > 81 {
			t.Errorf("%d columns: %q", len(line)-1, line)
		}
	}
}
