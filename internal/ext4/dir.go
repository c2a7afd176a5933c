package ext4

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// Types of a directory entry that need a name here.
const (
	typeDir  = 2
	typeCsum = 0xDE // the checksum at a block's end, dressed as an entry
)

// direntType is the type in a directory entry for a mode.
func direntType(mode uint16) byte {
	return "\x00\x05\x03\x00\x02\x00\x04\x00\x01\x00\x07\x00\x06\x00\x00\x00"[mode>>12]
}

// dirent is one name in a directory.
type dirent struct {
	name  string
	ino   uint32
	ftype byte
}

const direntHeader = 8

// direntSize is what an entry with a name of n bytes takes.
func direntSize(n int) int { return (direntHeader + n + 3) &^ 3 }

// putDirent encodes an entry that reaches to the end of p, or is size long.
func putDirent(p []byte, e dirent, size int) {
	le := binary.LittleEndian
	le.PutUint32(p, e.ino)
	le.PutUint16(p[4:], uint16(size))
	p[6], p[7] = byte(len(e.name)), e.ftype
	copy(p[direntHeader:], e.name)
}

// linearBlock packs entries into one block, the last of them stretched to
// room bytes. They must fit.
func linearBlock(entries []dirent, room int) []byte {
	p := make([]byte, blockSize)
	at := 0
	for i, e := range entries {
		size := direntSize(len(e.name))
		if i == len(entries)-1 {
			size = room - at
		}
		putDirent(p[at:], e, size)
		at += size
	}
	if len(entries) == 0 {
		putDirent(p, dirent{}, room)
	}
	return p
}

// dirBlocks returns a directory's blocks and whether they form a hash tree:
// one plain block if everything fits there, else an index with full leaves.
func dirBlocks(self, parent uint32, entries []dirent) (blocks [][]byte, indexed bool, err error) {
	dots := []dirent{{".", self, typeDir}, {"..", parent, typeDir}}
	total := 2 * direntSize(1)
	for _, e := range entries {
		total += direntSize(len(e.name))
	}
	if total <= blockSize {
		slices.SortFunc(entries, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
		return [][]byte{linearBlock(append(dots, entries...), blockSize)}, false, nil
	}
	blocks, err = hashTree(dots, hashLeaves(entries))
	return blocks, true, err
}

// leaf is a block of a hash tree and the lowest hash it may hold; the lowest
// bit of the hash says that the leaf before may hold that hash as well.
type leaf struct {
	hash  uint32
	block []byte
}

// hashLeaves sorts entries by hash and packs them into leaves.
func hashLeaves(entries []dirent) []leaf {
	type hashed struct {
		dirent
		major, minor uint32
	}
	sorted := make([]hashed, len(entries))
	for i, e := range entries {
		major, minor := dirHash(e.name)
		sorted[i] = hashed{e, major, minor}
	}
	slices.SortFunc(sorted, func(a, b hashed) int {
		return cmp.Or(cmp.Compare(a.major, b.major), cmp.Compare(a.minor, b.minor), strings.Compare(a.name, b.name))
	})
	var leaves []leaf
	var batch []dirent
	var start, last uint32 // the batch's lowest hash, the hash before it
	size := 0
	flush := func() {
		leaves = append(leaves, leaf{start, linearBlock(batch, blockSize)})
		batch, size = batch[:0], 0
	}
	for _, e := range sorted {
		need := direntSize(len(e.name))
		if size+need > blockSize {
			flush()
		}
		if len(batch) == 0 {
			start = e.major
			if len(leaves) > 0 && last == e.major {
				start |= 1
			}
		}
		batch, size, last = append(batch, e.dirent), size+need, e.major
	}
	flush()
	return leaves
}

// Where the index entries of a hash tree's root and inner nodes begin. Both
// look like empty directory blocks to a reader that knows no hash trees.
const (
	rootEntriesAt = 32
	nodeEntriesAt = 8
	indexEntry    = 8
	rootFanout    = (blockSize - rootEntriesAt) / indexEntry
	nodeFanout    = (blockSize - nodeEntriesAt) / indexEntry
)

// indexRef is one entry of an index: the lowest hash below a block.
type indexRef struct{ hash, block uint32 }

// hashTree puts a root, and a level of nodes if need be, before leaves.
func hashTree(dots []dirent, leaves []leaf) ([][]byte, error) {
	root := make([]byte, blockSize)
	putDirent(root, dots[0], direntSize(1))
	putDirent(root[direntSize(1):], dots[1], blockSize-direntSize(1))
	root[28], root[29] = hashHalfMD4, 8 // version, length of this information
	blocks := [][]byte{root}
	nodes := 0
	if len(leaves) > rootFanout {
		nodes = (len(leaves) + nodeFanout - 1) / nodeFanout
		root[30] = 1 // one level below the root
	}
	if nodes > rootFanout {
		return nil, fmt.Errorf("directory of %d blocks: %w", len(leaves), ErrTooLarge)
	}
	refs := make([]indexRef, len(leaves))
	for i, l := range leaves {
		refs[i] = indexRef{l.hash, uint32(1 + nodes + i)}
	}
	if nodes > 0 {
		var upper []indexRef
		for chunk := range slices.Chunk(refs, nodeFanout) {
			node := make([]byte, blockSize)
			putDirent(node, dirent{}, blockSize)
			putIndex(node[nodeEntriesAt:], chunk, nodeFanout)
			upper = append(upper, indexRef{chunk[0].hash, uint32(len(blocks))})
			blocks = append(blocks, node)
		}
		refs = upper
	}
	putIndex(root[rootEntriesAt:], refs, rootFanout)
	for _, l := range leaves {
		blocks = append(blocks, l.block)
	}
	return blocks, nil
}

// putIndex encodes index entries. The first has no hash: in its place are the
// limit and the count.
func putIndex(p []byte, refs []indexRef, limit int) {
	le := binary.LittleEndian
	for i, r := range refs {
		le.PutUint32(p[i*indexEntry:], r.hash)
		le.PutUint32(p[i*indexEntry+4:], r.block)
	}
	le.PutUint16(p, uint16(limit))
	le.PutUint16(p[2:], uint16(len(refs)))
}

// parseDir calls f for every entry of one directory block but "." and "..".
func parseDir(p []byte, f func(dirent) error) error {
	for len(p) > 0 {
		if len(p) < direntHeader {
			return fmt.Errorf("directory entry beyond its block: %w", ErrCorrupt)
		}
		size, n := int(binary.LittleEndian.Uint16(p[4:])), int(p[6])
		if size == 0xFFFF || size == 0 && len(p) == 1<<16 {
			size = 1 << 16
		}
		if size < direntHeader || size%4 != 0 || size > len(p) || direntHeader+n > size {
			return fmt.Errorf("directory entry of %d bytes with a name of %d: %w", size, n, ErrCorrupt)
		}
		e := dirent{string(p[direntHeader : direntHeader+n]), binary.LittleEndian.Uint32(p), p[7]}
		p = p[size:]
		if e.ino == 0 || e.name == "." || e.name == ".." {
			continue
		}
		if e.name == "" || strings.ContainsAny(e.name, "/\x00") {
			return fmt.Errorf("directory entry named %q: %w", e.name, ErrCorrupt)
		}
		if err := f(e); err != nil {
			return err
		}
	}
	return nil
}
