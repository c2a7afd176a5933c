package bzimage

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// kernelELF is a file with a right ELF header and n bytes of body, half of
// them hard to compress.
func kernelELF(n int) []byte {
	b := make([]byte, 64+n)
	copy(b, "\x7fELF\x02\x01\x01")
	b[16], b[18] = 2, 62 // ET_EXEC, EM_X86_64
	r := rand.New(rand.NewPCG(1, 2))
	for i := 64; i < len(b); i += 2 {
		b[i] = byte(r.Uint32())
	}
	return b
}

// image wraps a payload into a bzImage whose setup has sectors sectors.
func image(sectors byte, payload []byte) []byte {
	setup := int(sectors)
	if setup == 0 {
		setup = 4
	}
	const before = 716 // as in a real one
	b := make([]byte, (setup+1)*512+before)
	b[0x1f1] = sectors
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x206:], 0x20f)
	binary.LittleEndian.PutUint32(b[0x248:], before)
	binary.LittleEndian.PutUint32(b[0x24c:], uint32(len(payload)))
	b = append(b, payload...)
	return append(b, "what follows the payload"...)
}

func withSize(b []byte, n int) []byte { return binary.LittleEndian.AppendUint32(b, uint32(n)) }

func gz(t testing.TB, b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func lz(t testing.TB, b []byte) []byte {
	out := []byte("\x02\x21\x4c\x18")
	for rest := b; len(rest) > 0; {
		n := min(len(rest), 8<<20)
		block := make([]byte, lz4.CompressBlockBound(n))
		c, err := lz4.CompressBlock(rest[:n], block, nil)
		if err != nil {
			t.Fatal(err)
		}
		out = append(withSize(out, c), block[:c]...)
		rest = rest[n:]
	}
	return withSize(out, len(b))
}

func zs(t testing.TB, b []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return withSize(w.EncodeAll(b, nil), len(b))
}

func TestExtract(t *testing.T) {
	kernel := kernelELF(legacyBlock + 1<<20) // two blocks of lz4
	cases := []struct {
		name  string
		image []byte
	}{
		{"elf", kernel},
		{"uncompressed payload", image(31, kernel)},
		{"lz4", image(31, lz(t, kernel))},
		{"gzip", image(31, gz(t, kernel))},
		{"zstd", image(31, zs(t, kernel))},
		{"zero setup sectors mean four", image(0, lz(t, kernel))},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := Extract(c.image)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, kernel) {
				t.Errorf("got %d bytes that differ, want the kernel's %d", len(got), len(kernel))
			}
		})
	}
}

// Go has no encoder for bzip2: this is its encoding of kernelELF(0).
func TestExtractBzip2(t *testing.T) {
	payload, err := base64.StdEncoding.DecodeString("QlpoOTFBWSZTWeN1I9IAAAncgHIAACAAAQMEAACgACIaZBoQAwF1Ekhapbb8XckU4UJDjdSPSA==")
	if err != nil {
		t.Fatal(err)
	}
	want := kernelELF(0)
	got, err := Extract(image(31, withSize(payload, len(want))))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes and %v, want the kernel's %d", len(got), err, len(want))
	}
}

func TestExtractRefuses(t *testing.T) {
	kernel := kernelELF(100_000)
	compressed := lz(t, kernel)
	edit := func(b []byte, f func([]byte)) []byte {
		b = bytes.Clone(b)
		f(b)
		return b
	}
	arm := edit(kernel, func(b []byte) { b[18] = 183 })
	cases := []struct {
		name  string
		image []byte
		want  string
	}{
		{"nothing", nil, "neither a bzImage nor an ELF"},
		{"text", []byte(strings.Repeat("hello ", 1000)), "neither a bzImage nor an ELF"},
		{"header only", image(31, compressed)[:0x250], "the header places the payload"},
		{"cut off", image(31, compressed)[:20_000], "the header places the payload"},
		{"old protocol", edit(image(31, compressed), func(b []byte) { b[0x206] = 7 }), "boot protocol 2.07"},
		{"empty payload", image(31, nil), "the header places the payload"},
		{"xz", image(31, []byte("\xfd7zXZ\x00rest")), "compressed with xz"},
		{"lzma", image(31, []byte("\x5d\x00\x00rest")), "compressed with lzma"},
		{"lzo", image(31, []byte("\x89LZO rest")), "compressed with lzo"},
		{"unknown", image(31, []byte("\x01")), "something unknown (first bytes 01)"},
		{"lz4 of nothing", image(31, []byte("\x02\x21\x4c\x18")), "lz4 payload of 4 bytes claims"},
		{"lz4 too large", image(31, withSize(compressed[:len(compressed)-4], 1<<31)), "claims 2147483648 uncompressed"},
		{"lz4 wrong size", image(31, withSize(compressed[:len(compressed)-4], len(kernel)+7)), "lz4 payload ends after 100064"},
		{"lz4 block beyond the end", image(31, edit(compressed, func(b []byte) { b[7] = 0x7f })), "lz4 block of"},
		{"lz4 damaged", image(31, edit(compressed, func(b []byte) { clear(b[8:80]) })), "lz4 payload"},
		{"gzip damaged", image(31, edit(gz(t, kernel), func(b []byte) { b[500] ^= 0xff; b[501] ^= 0xff })), "gzip payload"},
		{"zstd cut off", image(31, zs(t, kernel)[:5000]), "zstd payload"},
		{"zstd wrong size", image(31, withSize(zs(t, kernel), 99)), "zstd payload"},
		{"not a kernel inside", image(31, lz(t, make([]byte, 5000))), "not an ELF file"},
		{"another machine", arm, "EM_AARCH64"},
		{"another machine inside", image(31, gz(t, arm)), "not for x86-64"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := Extract(c.image)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
		})
	}
	var unsupported *UnsupportedError
	if _, err := Extract(image(31, []byte("\xfd7zXZ\x00rest"))); !errors.As(err, &unsupported) || unsupported.Compression != "xz" {
		t.Errorf("got %v, want an UnsupportedError for xz", err)
	}
}

func FuzzExtract(f *testing.F) {
	kernel := kernelELF(2000)
	for _, b := range [][]byte{kernel, image(31, lz(f, kernel)), image(0, gz(f, kernel)), image(1, zs(f, kernel)), image(31, kernel)} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := Extract(b)
		if err == nil && !bytes.HasPrefix(got, []byte("\x7fELF")) {
			t.Errorf("got %d bytes that are no ELF file, and no error", len(got))
		}
	})
}
