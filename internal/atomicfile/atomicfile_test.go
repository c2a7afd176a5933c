package atomicfile_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"banger/internal/atomicfile"
)

func TestWriteReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, want := range []string{"one", "", "a longer one"} {
		if err := atomicfile.Write(path, []byte(want), 0o640); err != nil {
			t.Fatalf("Write: %v", err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Errorf("ReadFile = %q, %v; want %q", got, err, want)
		}
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode() != 0o640 {
		t.Errorf("mode = %v, %v; want 0640 whatever the umask", fi.Mode(), err)
	}
}

func TestWriteLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.MkdirAll(filepath.Join(path, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Write(path, []byte("x"), 0o600); err == nil {
		t.Errorf("Write over a directory = nil, want an error")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("directory holds %v, %v; want only f", entries, err)
	}
	if err := atomicfile.Write(filepath.Join(dir, "none", "f"), nil, 0o600); err == nil {
		t.Errorf("Write into a missing directory = nil, want an error")
	}
}

func TestReadersSeeAWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	content := func(i int) []byte { return bytes.Repeat(fmt.Appendf(nil, "%02d", i), 10_000) }
	if err := atomicfile.Write(path, content(0), 0o600); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for range 10 {
				if err := atomicfile.Write(path, content(i), 0o600); err != nil {
					t.Errorf("Write: %v", err)
				}
			}
		})
	}
	for range 100 {
		got, err := os.ReadFile(path)
		if err != nil || len(got) != 20_000 || !bytes.Equal(got, bytes.Repeat(got[:2], 10_000)) {
			t.Fatalf("a reader saw a mixture of %d bytes, %v", len(got), err)
		}
	}
	wg.Wait()
}
