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

// TestNoFiles: a shell offers files only where a command says that it takes one.
func TestNoFiles(t *testing.T) {
	root := &cobra.Command{Use: "banger"}
	c := &cobra.Command{Use: "do", Run: func(*cobra.Command, []string) {}}
	c.Flags().String("size", "", "a size")
	c.Flags().String("kind", "", "a kind")
	Values(c, "kind", "big")
	file := &cobra.Command{Use: "read", Run: func(*cobra.Command, []string) {}}
	file.ValidArgsFunction = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveDefault
	}
	root.AddCommand(c, file)
	Dress(root)
	for line, want := range map[string]string{
		"do ":        ":4\n",
		"do --size ": ":4\n",
		"do --kind ": "big\n:4\n",
		"read ":      ":0\n",
	} {
		var out strings.Builder
		root.SetOut(&out)
		root.SetErr(&strings.Builder{})
		root.SetArgs(append([]string{"__complete"}, strings.Split(line, " ")...))
		if err := root.Execute(); err != nil || out.String() != want {
			t.Errorf("completing %q: %q, %v; want %q", line, out.String(), err, want)
		}
	}
}

// TestNearFlag is about the hint after a misspelt flag.
func TestNearFlag(t *testing.T) {
	root := &cobra.Command{Use: "banger"}
	c := &cobra.Command{Use: "run [-- COMMAND...]", Run: func(*cobra.Command, []string) {}}
	c.Flags().String("memory", "", "memory")
	c.Flags().String("disk-size", "", "size")
	root.AddCommand(c)
	Dress(root)
	for given, want := range map[string]string{
		"--memroy": "banger run --memory", "--disksize": "banger run --disk-size",
		"--frobnicate": "banger run [-- COMMAND...]", "--l": "banger run [-- COMMAND...]", "-l": "banger run [-- COMMAND...]",
	} {
		root.SetArgs([]string{"run", given})
		if got := api.AsError(root.Execute()).Hint; got != want {
			t.Errorf("run %s: got the hint %q, want %q", given, got, want)
		}
	}
}
