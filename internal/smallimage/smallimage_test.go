package smallimage

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/testneed"
)

func busybox(t *testing.T) string {
	t.Helper()
	p, err := Busybox()
	if err != nil {
		testneed.Missing(t, err.Error())
	}
	return p
}

func TestWrite(t *testing.T) {
	path := busybox(t)
	var first, second bytes.Buffer
	for _, buf := range []*bytes.Buffer{&first, &second} {
		if err := Write(buf, path); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("two images of the same busybox differ, want the same bytes")
	}

	have := map[string]*tar.Header{}
	for r := tar.NewReader(&first); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if have[h.Name] != nil {
			t.Errorf("%s is there twice", h.Name)
		}
		if dir := filepath.Dir(strings.TrimSuffix(h.Name, "/")) + "/"; h.Name != "./" && dir != "./" && have["./"+dir] == nil {
			t.Errorf("%s comes before its directory", h.Name)
		}
		have[h.Name] = h
	}
	for name, mode := range map[string]int64{"./": 0o755, "./root/": 0o700, "./tmp/": 0o1777, "./etc/passwd": 0o644, "./bin/busybox": 0o755} {
		if h := have[name]; h == nil || h.Mode != mode || h.Uid != 0 {
			t.Errorf("%s: got %+v, want it there with mode %o", name, h, mode)
		}
	}
	if h := have["./bin/sh"]; h == nil || h.Linkname != "busybox" {
		t.Errorf("./bin/sh: got %+v, want a link to busybox", h)
	}
	for _, name := range []string{"./sbin/init", "./var/lib/docker/", "./bin/init"} {
		if have[name] != nil {
			t.Errorf("%s is there, want the image without", name)
		}
	}
}

// TestAppletsExist holds the list against the host's program.
func TestAppletsExist(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), busybox(t), "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for name := range strings.FieldsSeq(string(out)) {
		known[name] = true
	}
	for name := range strings.FieldsSeq(applets) {
		if !known[name] {
			t.Logf("this host's busybox has no %s", name)
		}
	}
	for _, name := range []string{"sh", "cat", "true", "tar", "stty", "sleep", "seq", "sha256sum"} {
		if !known[name] {
			t.Errorf("this host's busybox has no %s, which tests use", name)
		}
	}
}

func TestWriteRefusesADynamicProgram(t *testing.T) {
	path := filepath.Join(t.TempDir(), "busybox")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Write(io.Discard, path); err == nil || !strings.Contains(err.Error(), "statically linked") {
		t.Errorf("got error %v, want one that says it is not statically linked", err)
	}
}

func TestWriteReportsAFullDisk(t *testing.T) {
	full := errors.New("no space")
	pr, pw := io.Pipe()
	pr.CloseWithError(full)
	if err := Write(pw, busybox(t)); !errors.Is(err, full) {
		t.Errorf("got error %v, want %v", err, full)
	}
}
