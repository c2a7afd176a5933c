package ext4

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// Format of an extent tree: every node has a header of 12 bytes and entries of
// 12 bytes; the root sits in the inode with room for 4.
const (
	extentMagic   = 0xF30A
	extentSize    = 12
	extentRoot    = 4
	extentFanout  = (blockSize - extentSize) / extentSize
	extentMaxLen  = 32768 // more means "unwritten"
	extentMaxDeep = 5
)

// run is a piece of a file: count blocks from logical block at, stored from
// physical block phys. Runs of a file are in order and do not overlap.
type run struct{ at, phys, count uint32 }

// appendRun adds a run, joining it to the last if both ends touch.
func appendRun(runs []run, r run) []run {
	if n := len(runs); n > 0 {
		last := &runs[n-1]
		if last.at+last.count == r.at && last.phys+last.count == r.phys {
			last.count += r.count
			return runs
		}
	}
	return append(runs, r)
}

// extentTree encodes runs as the 60 bytes of an inode's i_block. Nodes below
// go through store, which returns where the block went; nodes counts them.
func extentTree(runs []run, store func([]byte) (uint32, error)) (root [60]byte, nodes int, err error) {
	var level [][extentSize]byte
	for _, r := range runs {
		for r.count > 0 {
			n := min(r.count, extentMaxLen)
			var e [extentSize]byte
			binary.LittleEndian.PutUint32(e[0:], r.at)
			binary.LittleEndian.PutUint16(e[4:], uint16(n))
			binary.LittleEndian.PutUint32(e[8:], r.phys)
			level = append(level, e)
			r = run{r.at + n, r.phys + n, r.count - n}
		}
	}
	depth := 0
	for len(level) > extentRoot {
		var upper [][extentSize]byte
		for chunk := range slices.Chunk(level, extentFanout) {
			block := make([]byte, blockSize)
			putExtents(block, chunk, extentFanout, depth)
			at, err := store(block)
			if err != nil {
				return root, nodes, err
			}
			nodes++
			upper = append(upper, indexTo(chunk[0], at))
		}
		level = upper
		depth++
	}
	putExtents(root[:], level, extentRoot, depth)
	return root, nodes, nil
}

// indexTo is an entry that leads to the block at, whose first entry is given.
func indexTo(first [extentSize]byte, at uint32) (e [extentSize]byte) {
	copy(e[:4], first[:4])
	binary.LittleEndian.PutUint32(e[4:], at)
	return e
}

func putExtents(p []byte, entries [][extentSize]byte, limit, depth int) {
	le := binary.LittleEndian
	le.PutUint16(p[0:], extentMagic)
	le.PutUint16(p[2:], uint16(len(entries)))
	le.PutUint16(p[4:], uint16(limit))
	le.PutUint16(p[6:], uint16(depth))
	for i, e := range entries {
		copy(p[extentSize*(i+1):], e[:])
	}
}

// mapping is a run as the reader sees it: 48-bit block numbers, and maybe
// unwritten, which reads as zeros.
type mapping struct {
	at, phys, count uint64
	unwritten       bool
}

// extents reads an inode's extent tree. Bounded: a tree may not map or visit
// more blocks than the file system has.
func (fs *FS) extents(root []byte) ([]mapping, error) {
	w := extentWalk{fs: fs, nodes: fs.blocks, mapped: fs.blocks}
	if err := w.node(root, -1); err != nil {
		return nil, err
	}
	return w.found, nil
}

// extentWalk is a walk through an extent tree with what it may still use up.
type extentWalk struct {
	fs            *FS
	found         []mapping
	nodes, mapped uint64
}

// node reads one node; depth is what its parent expects, -1 for the root.
func (w *extentWalk) node(p []byte, depth int) error {
	le := binary.LittleEndian
	count, deep := int(le.Uint16(p[2:])), int(le.Uint16(p[6:]))
	if le.Uint16(p) != extentMagic || extentSize*(count+1) > len(p) || deep > extentMaxDeep || depth >= 0 && deep != depth {
		return fmt.Errorf("extent node: %w", ErrCorrupt)
	}
	for i := range count {
		e := p[extentSize*(i+1):][:extentSize]
		if deep == 0 {
			if err := w.leaf(e); err != nil {
				return err
			}
			continue
		}
		if w.nodes == 0 {
			return fmt.Errorf("extent tree without end: %w", ErrCorrupt)
		}
		w.nodes--
		block, err := w.fs.block(uint64(le.Uint32(e[4:])) | uint64(le.Uint16(e[8:]))<<32)
		if err != nil {
			return err
		}
		if err := w.node(block, deep-1); err != nil {
			return err
		}
	}
	return nil
}

func (w *extentWalk) leaf(e []byte) error {
	le := binary.LittleEndian
	m := mapping{at: uint64(le.Uint32(e)), count: uint64(le.Uint16(e[4:]))}
	m.phys = uint64(le.Uint32(e[8:])) | uint64(le.Uint16(e[6:]))<<32
	if m.count > extentMaxLen {
		m.count, m.unwritten = m.count-extentMaxLen, true
	}
	ordered := true
	if n := len(w.found); n > 0 {
		ordered = w.found[n-1].at+w.found[n-1].count <= m.at
	}
	if m.count == 0 || !ordered || m.count > w.mapped || m.phys+m.count > w.fs.blocks {
		return fmt.Errorf("extent of %d blocks at %d: %w", m.count, m.phys, ErrCorrupt)
	}
	w.mapped -= m.count
	w.found = append(w.found, m)
	return nil
}
