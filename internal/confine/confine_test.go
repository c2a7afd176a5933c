package confine

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/testneed"
)

// need ends the test where the kernel has no Landlock.
func need(t *testing.T) {
	t.Helper()
	if _, err := abi(); err != nil {
		testneed.Missing(t, "a kernel with Landlock: "+err.Error())
	}
}

// run runs a shell's script so confined, with files as descriptors from 3 on.
func run(t *testing.T, r Rules, files []*os.File, script string) string {
	t.Helper()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", script)
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = null, &out, &out, files
	confined, err := Start(cmd, r)
	if err != nil || !confined {
		t.Fatalf("Start() = %v, %v; want it confined", confined, err)
	}
	_ = cmd.Wait() // what it printed tells
	return out.String()
}

func TestOnlyWhatIsGivenCanBeOpened(t *testing.T) {
	need(t)
	dir := t.TempDir()
	given, other := filepath.Join(dir, "given"), filepath.Join(dir, "other")
	for _, p := range []string{given, other} {
		if err := os.WriteFile(p, []byte(filepath.Base(p)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(given)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	script := `read x < /proc/self/fd/3 && echo "got $x"; read x < ` + other + ` && echo "got $x"
		echo x > /proc/self/fd/3 && echo wrote; echo x > ` + dir + `/new && echo made; read x < /etc/passwd && echo "got passwd"; echo end`
	got := run(t, Rules{Files: []*os.File{f}}, []*os.File{f}, script)
	if !strings.Contains(got, "got given\n") || !strings.HasSuffix(got, "end\n") {
		t.Errorf("it printed %q, want the given file read", got)
	}
	for _, bad := range []string{"got other", "wrote", "made", "got passwd"} {
		if strings.Contains(got, bad+"\n") {
			t.Errorf("it printed %q, with %q", got, bad)
		}
	}
	if b, err := os.ReadFile(given); err != nil || string(b) != "given\n" {
		t.Errorf("the given file holds %q, %v", b, err)
	}
}

// What is open for writing may be opened so again, though it has no name.
func TestFileWithoutAName(t *testing.T) {
	need(t)
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		t.Fatal(err)
	}
	if got := run(t, Rules{Files: []*os.File{f}}, []*os.File{f}, `echo x 1<> /proc/self/fd/3; echo end`); got != "end\n" {
		t.Errorf("it printed %q", got)
	}
	b := make([]byte, 2)
	if _, err := f.ReadAt(b, 0); err != nil || string(b) != "x\n" {
		t.Errorf("the file holds %q, %v; want what was written", b, err)
	}
}

// The thread that was confined is not used again.
func TestThisProcessIsNotConfined(t *testing.T) {
	need(t)
	for range 20 {
		run(t, Rules{}, nil, "echo end")
	}
	for range 100 {
		if _, err := os.ReadFile("/etc/passwd"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestProgramThatIsMissing(t *testing.T) {
	need(t)
	cmd := exec.CommandContext(t.Context(), "/nowhere/program")
	if _, err := Start(cmd, Rules{}); err == nil {
		t.Error("Start() of a missing program = nil, want an error")
	}
}
