package usage

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"banger/internal/testneed"
)

// TestBashAlone completes in a shell that has nothing but the script.
func TestBashAlone(t *testing.T) {
	bash := testneed.Tool(t, "bash")
	root := &cobra.Command{Use: "banger"}
	root.AddCommand(&cobra.Command{Use: "doctor", Run: func(*cobra.Command, []string) {}})
	Dress(root)
	var script strings.Builder
	root.SetOut(&script)
	root.SetArgs([]string{"completion", "bash"})
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	fake := "#!/bin/sh\nprintf '%s\\n' \"$*\" >" + dir + "/asked\nprintf 'web\\nwest\\n:4\\n'\n"
	if err := os.WriteFile(filepath.Join(dir, "banger"), []byte(fake), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bash, "--norc", "--noprofile", "-c", script.String()+`
compopt() { :; } # works in a completion alone
COMP_LINE="banger vm ssh w" COMP_POINT=15 COMP_TYPE=9
COMP_WORDS=(banger vm ssh w) COMP_CWORD=3
__start_banger
echo "${COMPREPLY[*]}"`)
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if got, want := string(out), "web west\n"; got != want || err != nil {
		t.Errorf("got %q (%v), want %q", got, err, want)
	}
	if asked, err := os.ReadFile(filepath.Join(dir, "asked")); string(asked) != "__complete vm ssh w\n" {
		t.Errorf("banger was asked %q (%v)", asked, err)
	}
}
