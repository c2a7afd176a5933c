package bootfs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/atomicfile"
	"banger/internal/initramfs"
)

func TestInitramfsIsKeptAndTidied(t *testing.T) {
	dir := t.TempDir()
	agent := filepath.Join(dir, "agent")
	write := func(content string) {
		t.Helper()
		if err := atomicfile.Write(agent, []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	cache := filepath.Join(dir, "cache")
	if err := os.Mkdir(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	b := &Cache{Dir: cache, Agent: agent}
	open := func(kernel string) string {
		t.Helper()
		f, err := b.Open(kernel, []initramfs.Module{{Name: "virtio", Data: []byte("\x7fELF v")}})
		if err != nil {
			t.Fatalf("Open(%q) = %v", kernel, err)
		}
		defer f.Close()
		return f.Name()
	}
	if _, err := b.Open("k1", nil); err == nil {
		t.Error("Open() without an agent succeeded")
	}
	write("\x7fELF one")
	first := open("k1")
	if again := open("k1"); again != first {
		t.Errorf("Open() made %s and %s of the same", first, again)
	}
	if other := open("k2"); other == first {
		t.Error("two kernels share an initramfs")
	}
	write("\x7fELF two")
	old, half := filepath.Join(cache, "initramfs-old.cpio"), filepath.Join(cache, atomicfile.TempPrefix+"x")
	long := time.Now().Add(-2 * unusedFor)
	for _, p := range []string{old, half} {
		if err := errors.Join(os.WriteFile(p, nil, 0o600), os.Chtimes(p, long, long)); err != nil {
			t.Fatal(err)
		}
	}
	if second := open("k1"); second == first {
		t.Error("two agents share an initramfs")
	}
	for _, p := range []string{old, half} {
		if _, err := os.Stat(p); err == nil {
			t.Errorf("%s is still there", p)
		}
	}
	if _, err := os.Stat(first); err != nil {
		t.Errorf("the one that was used just now is gone: %v", err)
	}
}
