package banger_test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

// TestLayers holds the import graph to layers.txt. A package may import only
// packages on a lower layer, so the file reads as the architecture: what sits
// on what. Test files may import anything.
func TestLayers(t *testing.T) {
	layer := readLayers(t)
	seen := map[string]bool{}
	for _, p := range goList(t) {
		seen[p.rel] = true
		from, ok := layer[p.rel]
		if !ok {
			t.Errorf("%s: not in layers.txt", p.rel)
			continue
		}
		for _, dep := range p.internal {
			if to, ok := layer[dep]; ok && to >= from {
				t.Errorf("%s (layer %d) imports %s (layer %d)", p.rel, from, dep, to)
			}
		}
	}
	for rel := range layer {
		if !seen[rel] {
			t.Errorf("layers.txt lists %s, which does not exist", rel)
		}
	}
}

// forbidden says what a binary must not link, and why. Patterns are as for
// path.Match on the import path, or a prefix ending in "/...".
var forbidden = []struct{ binary, dep, why string }{
	{"cmd/banger-vsock-agent", "net/http", "it is in every VM's memory, and each megabyte is unpacked at each boot"},
	{"cmd/banger-vsock-agent", "crypto/tls", "as above"},
	{"cmd/banger-vsock-agent", "encoding/xml", "as above"},
	{"cmd/banger-vsock-agent", "modernc.org/...", "the guest keeps no state"},
	{"cmd/banger-vsock-agent", "banger/internal/store", "as above"},
	{"cmd/banger-vsock-agent", "banger/internal/machine", "the guest knows nothing of the host's nouns"},
	{"cmd/banger-vsock-agent", "github.com/spf13/...", "the agent has roles, not flags"},
	{"cmd/banger-companion", "net/http", "one per VM: it must stay small and speak one small protocol"},
	{"cmd/banger-companion", "modernc.org/...", "the owner daemon is the only writer of state"},
	{"cmd/banger-companion", "banger/internal/store", "as above"},
	{"cmd/banger-companion", "banger/internal/machine", "a companion holds one VMM, not the VMs"},
	{"cmd/banger", "banger/internal/store", "the CLI holds no state: it asks the daemon"},
	{"cmd/banger", "modernc.org/...", "as above; and it must start within milliseconds"},
	{"cmd/banger", "banger/internal/machine", "the CLI parses and prints; VMs are the daemon's"},
	{"cmd/banger", "banger/internal/userhost", "only the daemon starts VMMs"},
	{"cmd/banger", "banger/internal/systemhost", "as above"},
	{"cmd/banger", "banger/internal/daemon", "the CLI speaks to a daemon, it contains none"},
	{"cmd/bangerd", "banger/internal/git", "git runs as the user, in the CLI, never in a daemon"},
	{"cmd/bangerd", "banger/internal/workspace", "as above"},
	{"cmd/bangerd", "banger/internal/cli", "the daemon prints nothing"},
	{"cmd/bangerd", "github.com/spf13/...", "the daemon has three flags"},
	{"cmd/bangerd-root", "net/http", "it speaks packets to one peer, and none of it over a network"},
	{"cmd/bangerd-root", "crypto/tls", "as above"},
	{"cmd/bangerd-root", "database/sql", "it keeps no state: the kernel, systemd and /run do"},
	{"cmd/bangerd-root", "os/user", "it goes by numbers; names are looked up when the record is written"},
	{"cmd/bangerd-root", "encoding/gob", "one encoding, of which exactly one form is accepted"},
	{"cmd/bangerd-root", "encoding/xml", "as above"},
	{"cmd/bangerd-root", "plugin", "what is read is what runs"},
	{"cmd/bangerd-root", "text/template", "it writes no text but the packet filter's"},
	{"cmd/bangerd-root", "archive/...", "it opens nothing that a guest or a registry made"},
	{"cmd/bangerd-root", "banger/internal/api", "root knows seven verbs, not the daemon's words"},
	{"cmd/bangerd-root", "banger/internal/store", "as above"},
	{"cmd/bangerd-root", "banger/internal/machine", "as above"},
	{"cmd/bangerd-root", "banger/internal/ext4", "root reads no disk"},
	{"cmd/bangerd-root", "banger/internal/disk", "as above"},
	{"cmd/bangerd-root", "banger/internal/rootclient", "it asks nobody"},
	{"cmd/bangerd-root", "banger/internal/jail/child", "what builds a jail has rights that the helper lacks, and is a program of its own"},
	{"cmd/banger-jail", "net/http", "it builds a jail and becomes the jailer"},
	{"cmd/banger-jail", "banger/internal/rootd", "as above"},
	{"cmd/banger-jail", "banger/internal/hostnet", "as above"},
	{"*", "testing", "test kits stay in tests"},
	{"*", "github.com/google/go-cmp/...", "test kits stay in tests"},
}

// TestForbiddenDependencies checks what each binary links.
func TestForbiddenDependencies(t *testing.T) {
	for _, bin := range binaries(t) {
		deps := strings.Fields(run(t, "go", "list", "-deps", "./"+bin))
		for _, f := range forbidden {
			if f.binary != "*" && f.binary != bin {
				continue
			}
			for _, d := range deps {
				if matches(f.dep, d) {
					t.Errorf("%s links %s: %s", bin, d, f.why)
				}
			}
		}
	}
}

// rootPrograms are what runs as root, with the most lines that each may have
// with all that it links of ours: what is not blank, comments included.
var rootPrograms = map[string]int{"cmd/bangerd-root": 2500, "cmd/banger-jail": 1400}

// TestRootProgramsAreSmall holds them to what can be read in one sitting, and
// to the standard library and x/sys.
func TestRootProgramsAreSmall(t *testing.T) {
	files := map[string][]string{}
	for _, p := range goList(t) {
		files[p.rel] = p.files
	}
	for bin, limit := range rootPrograms {
		lines := 0
		for _, dep := range strings.Fields(run(t, "go", "list", "-deps", "./"+bin)) {
			rel, ours := strings.CutPrefix(dep, "banger/")
			if first, _, _ := strings.Cut(dep, "/"); !ours && strings.Contains(first, ".") && !strings.HasPrefix(dep, "golang.org/x/sys/") {
				t.Errorf("%s links %s: as root, only the standard library and golang.org/x/sys", bin, dep)
			}
			for _, name := range files[rel] {
				b, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				for line := range strings.Lines(string(b)) {
					if strings.TrimSpace(line) != "" {
						lines++
					}
				}
			}
		}
		t.Logf("%s: %d lines of ours", bin, lines)
		if lines > limit {
			t.Errorf("%s has %d lines with all that it links of ours, at most %d", bin, lines, limit)
		}
	}
}

func matches(pattern, importPath string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "..."); ok {
		return strings.HasPrefix(importPath, prefix)
	}
	return pattern == importPath
}

func binaries(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("cmd")
	if err != nil {
		t.Fatal(err)
	}
	var bins []string
	for _, e := range entries {
		bins = append(bins, path.Join("cmd", e.Name()))
	}
	want := []string{"cmd/banger", "cmd/banger-companion", "cmd/banger-jail", "cmd/banger-vsock-agent", "cmd/bangerd", "cmd/bangerd-root"}
	if !slices.Equal(bins, want) {
		t.Errorf("binaries are %v, want %v", bins, want)
	}
	return bins
}

type listed struct {
	rel      string // import path below the module
	internal []string
	files    []string // non-test Go files, relative to the module
}

func goList(t *testing.T) []listed {
	t.Helper()
	out := run(t, "go", "list", "-json=ImportPath,Imports,GoFiles", "./...")
	var pkgs []listed
	for d := json.NewDecoder(strings.NewReader(out)); ; {
		var p struct {
			ImportPath string
			Imports    []string
			GoFiles    []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		self, ok := strings.CutPrefix(p.ImportPath, "banger/")
		if !ok {
			continue // the module root holds only these tests
		}
		l := listed{rel: self}
		for _, i := range p.Imports {
			if r, ok := strings.CutPrefix(i, "banger/"); ok {
				l.internal = append(l.internal, r)
			}
		}
		for _, f := range p.GoFiles {
			l.files = append(l.files, path.Join(self, f))
		}
		pkgs = append(pkgs, l)
	}
}

func run(t *testing.T, argv ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", strings.Join(argv, " "), err)
	}
	return string(out)
}

func readLayers(t *testing.T) map[string]int {
	t.Helper()
	b, err := os.ReadFile("layers.txt")
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]int{}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		n, pkg, ok := strings.Cut(line, " ")
		if !ok || n < "0" || n > "9" {
			t.Fatalf("layers.txt: bad line %q", line)
		}
		m[strings.TrimSpace(pkg)] = int(n[0] - '0')
	}
	return m
}
