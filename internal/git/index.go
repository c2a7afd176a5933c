package git

import (
	"bytes"
	"cmp"
	"crypto/sha1" //nolint:gosec // git's object format
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"slices"
	"strings"
)

// NewHash returns the hash of an object format.
func NewHash(format string) hash.Hash {
	if format == SHA256 {
		return sha256.New()
	}
	return sha1.New() //nolint:gosec // git's object format
}

// BlobID returns the id that git gives to content as a blob.
func BlobID(format string, content []byte) string {
	h := NewHash(format)
	fmt.Fprintf(h, "blob %d\x00", len(content))
	h.Write(content)
	return hex.EncodeToString(h.Sum(nil))
}

// The bits of an entry on disk (Documentation/gitformat-index.txt).
const (
	diskAssumeValid  = 0x8000
	diskExtended     = 0x4000
	diskStageShift   = 12
	diskNameMask     = 0x0fff
	diskSkipWorktree = 0x4000 // of the second flag word
	diskIntentToAdd  = 0x2000
)

// EncodeIndex returns an index file with the entries, which it sorts in
// place: version 2, or 3 if an entry needs it, without extensions. A zero
// Stat makes git look at the file's content; any other is trusted as far as
// git's settings say.
func EncodeIndex(format string, entries []Entry) ([]byte, error) {
	slices.SortFunc(entries, func(a, b Entry) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), cmp.Compare(a.Stage, b.Stage))
	})
	version := uint32(2)
	size := 12
	for i := range entries {
		e := &entries[i]
		if e.SkipWorktree || e.IntentToAdd {
			version = 3
		}
		size += 80 + len(e.ID)/2 + len(e.Path)
	}
	h := NewHash(format)
	var b bytes.Buffer
	b.Grow(size + h.Size())
	b.WriteString("DIRC")
	b.Write(binary.BigEndian.AppendUint32(nil, version))
	b.Write(binary.BigEndian.AppendUint32(nil, uint32(len(entries))))
	for i := range entries {
		if err := entries[i].encode(&b, h.Size()); err != nil {
			return nil, err
		}
	}
	h.Write(b.Bytes())
	return h.Sum(b.Bytes()), nil
}

func (e *Entry) encode(b *bytes.Buffer, idSize int) error {
	start := b.Len()
	s := &e.Stat
	be := binary.BigEndian
	head := b.AvailableBuffer()
	for _, v := range []uint32{s.Ctime, s.CtimeNsec, s.Mtime, s.MtimeNsec, 0, s.Ino, e.Mode, s.UID, s.GID, s.Size} {
		head = be.AppendUint32(head, v)
	}
	id, err := hex.DecodeString(e.ID)
	if err != nil || len(id) != idSize {
		return fmt.Errorf("writing the index: %q has the object id %q", e.Path, e.ID)
	}
	if e.Path == "" || strings.IndexByte(e.Path, 0) >= 0 || e.Stage < 0 || e.Stage > 3 {
		return fmt.Errorf("writing the index: entry %q, stage %d", e.Path, e.Stage)
	}
	head = append(head, id...)
	flags := uint16(min(len(e.Path), diskNameMask)) | uint16(e.Stage)<<diskStageShift
	if e.AssumeValid {
		flags |= diskAssumeValid
	}
	var more uint16
	if e.SkipWorktree {
		more |= diskSkipWorktree
	}
	if e.IntentToAdd {
		more |= diskIntentToAdd
	}
	if more != 0 {
		head = be.AppendUint16(head, flags|diskExtended)
		head = be.AppendUint16(head, more)
	} else {
		head = be.AppendUint16(head, flags)
	}
	b.Write(append(head, e.Path...))
	// One to eight NULs bring the entry to a multiple of eight bytes.
	var pad [8]byte
	b.Write(pad[:8-(b.Len()-start)%8])
	return nil
}
