// Package bzimage finds the kernel inside the file that a distribution boots.
//
// Debian ships a bzImage: a small loader with the real kernel, an ELF file,
// compressed inside it. Firecracker wants the ELF, and QEMU starts it faster
// than a loader that must first unpack itself. This package owns the layout of
// that file and the formats of its payload. It reads bytes that somebody else
// chose, so every length is checked and every output is capped. It does not
// look into the ELF beyond its first header, and it does not touch files.
package bzimage

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// MaxKernel is the largest uncompressed kernel that Extract returns, in bytes.
// Debian's cloud kernel has 51 MiB, one with everything built in some 100.
const MaxKernel = 512 << 20

// Offsets in the setup header, from the "Linux/x86 boot protocol"
// (Documentation/arch/x86/boot.rst in the kernel's source).
const (
	offSetupSects    = 0x1f1
	offMagic         = 0x202
	offVersion       = 0x206
	offPayload       = 0x248
	offPayloadLength = 0x24c
	headerEnd        = offPayloadLength + 4

	sectorSize        = 512
	defaultSetupSects = 4     // what 0 stands for
	firstWithPayload  = 0x208 // the protocol version that brought payload_offset
)

// UnsupportedError says that the kernel is there, in a compression that this
// package cannot undo.
type UnsupportedError struct {
	// Compression is its name, such as "xz".
	Compression string
}

// Error names the compression and those that would do.
func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("reading kernel: its payload is compressed with %s (readable: lz4, gzip, zstd, bzip2, none)", e.Compression)
}

// Extract returns the x86-64 ELF kernel inside image, which is a bzImage or
// that ELF itself. In the latter case, and where the payload is not
// compressed, the result shares memory with image. A compression that cannot
// be undone gives an [*UnsupportedError].
func Extract(image []byte) ([]byte, error) {
	if isELF(image) {
		return image, checkELF(image)
	}
	payload, err := payloadOf(image)
	if err != nil {
		return nil, err
	}
	kernel, err := decompress(payload)
	if err != nil {
		return nil, err
	}
	return kernel, checkELF(kernel)
}

// payloadOf returns the compressed part of a bzImage.
func payloadOf(image []byte) ([]byte, error) {
	if len(image) < headerEnd || string(image[offMagic:offMagic+4]) != "HdrS" {
		return nil, fmt.Errorf("reading kernel: neither a bzImage nor an ELF file (%d bytes)", len(image))
	}
	if v := binary.LittleEndian.Uint16(image[offVersion:]); v < firstWithPayload {
		return nil, fmt.Errorf("reading kernel: boot protocol %d.%02d is older than 2.08 and does not say where the kernel is", v>>8, v&0xff)
	}
	sectors := uint64(image[offSetupSects])
	if sectors == 0 {
		sectors = defaultSetupSects
	}
	start := (sectors+1)*sectorSize + uint64(binary.LittleEndian.Uint32(image[offPayload:]))
	end := start + uint64(binary.LittleEndian.Uint32(image[offPayloadLength:]))
	if start == end || end > uint64(len(image)) {
		return nil, fmt.Errorf("reading kernel: the header places the payload at bytes %d to %d of a file of %d", start, end, len(image))
	}
	return image[start:end], nil
}

// decompress undoes the compression that the payload's first bytes tell.
func decompress(payload []byte) ([]byte, error) {
	has := func(magic string) bool { return bytes.HasPrefix(payload, []byte(magic)) }
	switch {
	case isELF(payload):
		return payload, nil
	case has("\x02\x21\x4c\x18"):
		return unLZ4(payload)
	case has("\x1f\x8b"):
		return unGzip(payload)
	case has("\x28\xb5\x2f\xfd"):
		return unZstd(payload)
	case has("BZh"):
		return drain("bzip2", bzip2.NewReader(bytes.NewReader(frame(payload))), sizeAtEnd(payload))
	case has("\xfd7zXZ\x00"):
		return nil, &UnsupportedError{"xz"}
	case has("\x5d\x00\x00"):
		return nil, &UnsupportedError{"lzma"}
	case has("\x89LZO"):
		return nil, &UnsupportedError{"lzo"}
	}
	return nil, &UnsupportedError{fmt.Sprintf("something unknown (first bytes %x)", payload[:min(4, len(payload))])}
}

func unGzip(payload []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(payload))
	if err != nil {
		return nil, fmt.Errorf("reading kernel: gzip payload: %w", err)
	}
	r.Multistream(false)
	// gzip ends with the uncompressed size itself, so the kernel's build adds none.
	return drain("gzip", r, sizeAtEnd(payload))
}

func unZstd(payload []byte) ([]byte, error) {
	size := sizeAtEnd(payload)
	r, err := zstd.NewReader(bytes.NewReader(frame(payload)), zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderMaxMemory(MaxKernel), zstd.WithDecoderMaxWindow(128<<20))
	if err != nil {
		return nil, fmt.Errorf("reading kernel: zstd payload: %w", err)
	}
	defer r.Close()
	return drain("zstd", r, size)
}

// legacyBlock is the uncompressed size of every block but the last in lz4's
// legacy frame (lz4_Frame_format.md, "Legacy frame").
const legacyBlock = 8 << 20

// unLZ4 reads the legacy frame: the magic, then blocks with their compressed
// sizes, then the uncompressed size that the kernel's build appends.
func unLZ4(payload []byte) ([]byte, error) {
	size := sizeAtEnd(payload)
	// A block cannot grow by more than 255 times: no allocation on the word of
	// a four-byte field alone.
	if size > MaxKernel || size > 255*int64(len(payload)) || len(payload) < 8 {
		return nil, fmt.Errorf("reading kernel: lz4 payload of %d bytes claims %d uncompressed (at most %d)", len(payload), size, MaxKernel)
	}
	out := make([]byte, size)
	blocks, done := payload[4:len(payload)-4], 0
	for len(blocks) >= 4 && int64(done) < size {
		n := int64(binary.LittleEndian.Uint32(blocks))
		blocks = blocks[4:]
		if n == 0 || n > int64(len(blocks)) {
			return nil, fmt.Errorf("reading kernel: lz4 block of %d bytes where %d are left", n, len(blocks))
		}
		room := out[done:min(done+legacyBlock, len(out))]
		got, err := lz4.UncompressBlock(blocks[:n], room)
		if err != nil {
			return nil, fmt.Errorf("reading kernel: lz4 payload: %w", err)
		}
		blocks, done = blocks[n:], done+got
	}
	if int64(done) != size {
		return nil, fmt.Errorf("reading kernel: lz4 payload ends after %d of %d bytes", done, size)
	}
	return out, nil
}

// frame is the payload without the size at its end, which a decoder would take
// for the beginning of another frame.
func frame(payload []byte) []byte { return payload[:len(payload)-min(4, len(payload))] }

// sizeAtEnd is the uncompressed size in the payload's last four bytes, where
// the kernel's build puts it for its own loader.
func sizeAtEnd(payload []byte) int64 {
	if len(payload) < 4 {
		return 0
	}
	return int64(binary.LittleEndian.Uint32(payload[len(payload)-4:]))
}

// drain reads what r decompresses and holds it against the size that the image claims.
func drain(how string, r io.Reader, size int64) ([]byte, error) {
	if size > MaxKernel {
		return nil, fmt.Errorf("reading kernel: %s payload claims %d bytes (at most %d)", how, size, MaxKernel)
	}
	out, err := io.ReadAll(io.LimitReader(r, size+1))
	if err != nil {
		return nil, fmt.Errorf("reading kernel: %s payload: %w", how, err)
	}
	if int64(len(out)) != size {
		return nil, fmt.Errorf("reading kernel: %s payload gives %d bytes or more where %d were claimed", how, len(out), size)
	}
	return out, nil
}

func isELF(b []byte) bool { return bytes.HasPrefix(b, []byte(elf.ELFMAG)) }

// checkELF refuses what is not a 64-bit x86 program.
func checkELF(b []byte) error {
	if !isELF(b) || len(b) < 64 {
		return fmt.Errorf("reading kernel: what is inside is not an ELF file (%d bytes)", len(b))
	}
	class, data := elf.Class(b[elf.EI_CLASS]), elf.Data(b[elf.EI_DATA])
	machine := elf.Machine(binary.LittleEndian.Uint16(b[18:]))
	if class != elf.ELFCLASS64 || data != elf.ELFDATA2LSB || machine != elf.EM_X86_64 {
		return fmt.Errorf("reading kernel: an ELF file for %v (%v), not for x86-64", machine, class)
	}
	return nil
}
