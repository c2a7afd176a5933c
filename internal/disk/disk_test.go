package disk_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/api"
	"banger/internal/disk"
	"banger/internal/size"
	"banger/internal/testneed"
)

func TestCreate(t *testing.T) {
	e2fsck := testneed.Tool(t, "e2fsck")
	path := filepath.Join(t.TempDir(), "disk.ext4")
	for _, n := range []size.Bytes{disk.Min, 8 * size.GiB, 100 * size.GiB} {
		start := time.Now()
		if err := disk.Create(t.Context(), path, int64(n)); err != nil {
			t.Fatalf("Create(%v): %v", n, err)
		}
		took := time.Since(start)
		fi, err := os.Stat(path)
		if err != nil || fi.Size() != int64(n) || fi.Mode() != 0o600 {
			t.Errorf("%v: %v, %v; want that size and mode 0600", n, fi, err)
		}
		used := disk.Used(path)
		t.Logf("%v: %v used, made in %v", n, used, took)
		if used > 8*size.MiB || used == 0 {
			t.Errorf("%v: a fresh disk takes %v, want at most 8MiB", n, used)
		}
		if out, err := exec.CommandContext(t.Context(), e2fsck, "-fn", path).CombinedOutput(); err != nil {
			t.Errorf("%v: e2fsck: %v\n%s", n, err, out)
		}
	}
}

func TestCreateLeavesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.ext4")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := disk.Create(ctx, path, 8<<30); err == nil {
		t.Error("Create after cancel = nil, want an error")
	}
	for _, n := range []size.Bytes{0, disk.Min - 1, disk.Max + 1} {
		if err := disk.Create(t.Context(), path, int64(n)); api.CodeOf(err) != api.Invalid {
			t.Errorf("Create(%d) = %v, want an invalid error", n, err)
		}
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("a failed Create left a file")
	}
}

func TestGrow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.ext4")
	if err := disk.Create(t.Context(), path, 1<<30); err != nil {
		t.Fatal(err)
	}
	for _, n := range []size.Bytes{size.GiB, 3 * size.GiB} {
		if err := disk.Grow(path, int64(n)); err != nil {
			t.Errorf("Grow(%v): %v", n, err)
		}
	}
	if err := disk.Grow(path, 2<<30); api.CodeOf(err) != api.Invalid || !strings.Contains(err.Error(), "3GiB") {
		t.Errorf("Grow to less = %v, want an invalid error that names the size", err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Size() != int64(3*size.GiB) {
		t.Errorf("after growing: %v, %v; want 3GiB", fi, err)
	}
}

func TestOpenRefusesLinks(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.ext4")
	if err := os.Symlink("/etc/passwd", path); err != nil {
		t.Fatal(err)
	}
	if f, err := disk.Open(path); err == nil {
		f.Close()
		t.Error("Open of a link = nil, want an error")
	}
	if f, err := disk.Open(dir); err == nil {
		f.Close()
		t.Error("Open of a directory = nil, want an error")
	}
	for range 2 {
		if err := disk.Remove(path); err != nil {
			t.Errorf("Remove: %v", err)
		}
	}
	if got := disk.Used(path); got != 0 {
		t.Errorf("Used of nothing = %v, want 0", got)
	}
}

func TestCheckRoom(t *testing.T) {
	dir := t.TempDir()
	if err := disk.CheckRoom(dir, 1); err != nil {
		t.Errorf("CheckRoom(1) = %v", err)
	}
	err := disk.CheckRoom(dir, 1<<60)
	if api.CodeOf(err) != api.NoSpace || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), (1<<60*size.Bytes(1)).String()) {
		t.Errorf("CheckRoom(1<<60) = %v, want no space, with directory and size", err)
	}
}

func BenchmarkCreate(b *testing.B) {
	path := filepath.Join(b.TempDir(), "disk.ext4")
	for b.Loop() {
		if err := disk.Create(b.Context(), path, 8<<30); err != nil {
			b.Fatal(err)
		}
	}
}
