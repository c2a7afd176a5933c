package ext4

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// FuzzWrite takes any bytes for a tar: an error, or an image that e2fsck likes
// and that can be read back.
func FuzzWrite(f *testing.F) {
	f.Add([]byte{})
	f.Add(tarOf(f, file("d/f", "x"), hard("g", "d/f"), symlink("s", strings.Repeat("t", 70)), dir("d"), file("g", "y")))
	f.Add(tarOf(f, item{tar.Header{Typeflag: tar.TypeReg, Name: "f", PAXRecords: map[string]string{paxXattr + "user.a": strings.Repeat("v", 100)}}, "x"}))
	f.Add(tarOf(f, symlink("a", "b"), dir("b"), file("a/c", strings.Repeat("\x00", 40000)+"x")))
	f.Add(tarOf(f, randomItems(1, 12)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		img := tempFile(t)
		if _, err := Write(ctx, bytes.NewReader(data), img, Options{MaxBytes: 64 << 20, MaxInodes: 10_000}); err != nil {
			return
		}
		fsck(t, img)
		listing(t, img)
	})
}

// FuzzOpen takes any bytes for an image: reading ends, without a panic.
func FuzzOpen(f *testing.F) {
	img, err := os.Create(f.TempDir() + "/image")
	if err != nil {
		f.Fatal(err)
	}
	defer img.Close()
	for _, items := range [][]item{
		{file("f", "x"), symlink("s", strings.Repeat("t", 70)), dir("d")},
		{{tar.Header{Typeflag: tar.TypeReg, Name: "f", PAXRecords: map[string]string{paxXattr + "user.a": strings.Repeat("v", 100)}}, "x"}},
	} {
		if _, err := Write(f.Context(), bytes.NewReader(tarOf(f, items...)), img, Options{MaxBytes: 1 << 20}); err != nil {
			f.Fatal(err)
		}
		p, err := os.ReadFile(img.Name())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) <= 1<<20 {
			_ = exercise(data)
		}
	})
}

// BenchmarkWrite is a tree with the file sizes of a small distribution: most
// are small, most bytes are in large ones.
func BenchmarkWrite(b *testing.B) {
	noise := strings.Repeat("0123456789abcdefghijklmnopqrstuvw", 32<<10)
	var items []item
	for i := range 4000 {
		size := 3000
		if i%20 == 0 {
			size = 1 << 20
		}
		items = append(items, file(fmt.Sprintf("usr/share/d%d/f%d", i%200, i), noise[i:i+size]))
	}
	data := tarOf(b, items...)
	img := tempFile(b)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := Write(b.Context(), io.NewSectionReader(bytes.NewReader(data), 0, int64(len(data))), img, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
