package ext4

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"banger/internal/testneed"
)

// blank makes a checked empty file system.
func blank(t testing.TB, size int64, o FormatOptions) *os.File {
	t.Helper()
	f := tempFile(t)
	if err := Format(f, size, o); err != nil {
		t.Fatal(err)
	}
	fsck(t, f)
	return f
}

func TestFormat(t *testing.T) {
	const mib, gib = 1 << 20, 1 << 30
	for _, c := range []struct {
		size      int64
		allocated int64 // at most
	}{
		{MinFormat, 300 << 10},
		{MinFormat + 1*mib, 300 << 10}, // a remainder too small for a group
		{MinFormat + 5*mib + 511, 300 << 10},
		{2*gib + 70*mib, 300 << 10}, // a remainder that begins a new flex group
		{8 * gib, 512 << 10},
		{100 * gib, 2 * mib},
		{MaxFormat, 20 * mib},
	} {
		t.Run(fmt.Sprint(c.size), func(t *testing.T) {
			t.Parallel()
			f := blank(t, c.size, FormatOptions{})
			fi, err := f.Stat()
			if err != nil || fi.Size() != c.size {
				t.Errorf("got %d bytes (%v), want %d", fi.Size(), err, c.size)
			}
			if got := allocated(t, f); got > c.allocated {
				t.Errorf("%d bytes allocated, want at most %d", got, c.allocated)
			}
			stats := debugfs(t, f, "stats -h")
			for _, want := range []string{"has_journal", "resize_inode", "metadata_csum", "Reserved block count:     0\n", "Filesystem state:         clean"} {
				if !strings.Contains(stats, want) {
					t.Errorf("superblock without %q:\n%s", want, stats)
				}
			}
			got := listing(t, f)
			if len(got) != 2 || got["lost+found"] == "" {
				t.Errorf("got %v, want the root and lost+found", got)
			}
		})
	}
}

func TestFormatOptions(t *testing.T) {
	o := FormatOptions{Label: "work", UUID: [16]byte{0xAB, 15: 0xCD}, Time: time.Unix(1700000000, 0)}
	a, b := blank(t, 1<<30, o), blank(t, 1<<30, o)
	stats := debugfs(t, a, "stats -h")
	for _, want := range []string{"work", "ab000000-0000-0000-0000-0000000000cd"} {
		if !strings.Contains(stats, want) {
			t.Errorf("superblock without %q:\n%s", want, stats)
		}
	}
	if got := stat(t, a, ".").Mtime; !got.Equal(o.Time) {
		t.Errorf("got the root's time %v, want %v", got, o.Time)
	}
	if debugfs(t, b, "stats -h") != stats {
		t.Error("the same options gave different file systems")
	}
	c, d := blank(t, MinFormat, FormatOptions{}), blank(t, MinFormat, FormatOptions{})
	if debugfs(t, c, "stats -h") == debugfs(t, d, "stats -h") {
		t.Error("two file systems have the same UUID")
	}
	for _, size := range []int64{0, MinFormat - 1, MaxFormat + 1, -1} {
		if err := Format(tempFile(t), size, FormatOptions{}); err == nil {
			t.Errorf("%d bytes were taken", size)
		}
	}
	if err := Format(tempFile(t), MinFormat, FormatOptions{Label: "seventeen bytes.."}); err == nil {
		t.Error("a label of 17 bytes was taken")
	}
}

// TestFormatIsWritable lets e2fsprogs fill and grow a file system.
func TestFormatIsWritable(t *testing.T) {
	f := blank(t, 512<<20, FormatOptions{})
	source := t.TempDir() + "/source"
	if err := os.WriteFile(source, []byte(strings.Repeat("content ", 500_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	for i := range 200 {
		fmt.Fprintf(&script, "mkdir /d%d\nwrite %s /d%d/f\n", i, source, i%40)
		if i < 40 {
			fmt.Fprintf(&script, "symlink /d%d/l target\n", i)
		}
	}
	cmd := exec.CommandContext(t.Context(), testneed.Tool(t, "debugfs"), "-w", "-f", "-", f.Name())
	cmd.Stdin = strings.NewReader(script.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v\n%s", err, out)
	}
	fsck(t, f)
	if err := f.Truncate(20 << 30); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), testneed.Tool(t, "resize2fs"), f.Name()).CombinedOutput(); err != nil {
		t.Fatalf("resize2fs: %v\n%s", err, out)
	}
	fsck(t, f)
	if got := read(t, f, "d7/f"); len(got) != 4_000_000 {
		t.Errorf("got a file of %d bytes, want 4000000", len(got))
	}
}
