package ext4

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
)

// finish writes everything but the files' data: blocks of directories,
// symlinks, extents and attributes, then bitmaps and inode tables, then, now
// that all is known, the group descriptors and the superblock at the front.
func (w *writer) finish() error {
	live, freed := w.number()
	w.out.sum = sha256.New()
	// Inodes are complete before their place is known: they wait in memory.
	used := uint32(firstIno - 2 + len(live))
	table := make([]byte, (int(used)+inodesPerBlock-1)/inodesPerBlock*blockSize)
	for _, n := range live {
		in, err := w.inode(n)
		if err != nil {
			return err
		}
		in.put(table[int(n.ino-1)*inodeSize:])
	}
	w.out.sum.Write(table)
	sum := w.out.sum.Sum(nil)
	w.out.sum = nil // the rest depends on the tree: no need to hash it
	g, err := plan(w.out.next(), used, uint32(w.o.Writable/blockSize))
	if err != nil {
		return err
	}
	if uint64(g.blocks) > w.out.limit || 1+tableBlocks(uint64(g.blocks)) > w.first {
		return fmt.Errorf("image of more than %d bytes: %w", w.o.MaxBytes, ErrTooLarge)
	}
	m := usage{geometry: g, descs: make([]groupDesc, g.groups), free: w.freeRuns(g, freed), inodes: int(used)}
	for _, n := range live {
		if n.isDir() {
			m.descs[(n.ino-1)/m.inodesPerGroup].usedDirs++
		}
	}
	if err := m.write(w.out, table); err != nil {
		return err
	}
	for _, r := range freed {
		if err := w.out.erase(r); err != nil {
			return err
		}
	}
	if err := w.front(&m, sum); err != nil {
		return err
	}
	w.info.Bytes = int64(g.blocks) * blockSize
	w.info.Used = int64(uint64(g.blocks)-m.freeBlocks()) * blockSize
	w.info.Inodes = len(live)
	return w.out.f.Truncate(w.info.Bytes)
}

// number gives the nodes that still have a name their inode numbers, and
// collects the blocks of those that have none.
func (w *writer) number() (live []*node, freed []run) {
	next := uint32(firstIno)
	for _, n := range w.all {
		switch {
		case n.names == 0:
			freed = append(freed, n.runs...)
			continue
		case n == w.root:
			n.ino = rootIno
		default:
			n.ino = next
			next++
		}
		live = append(live, n)
	}
	return live, freed
}

// inode writes the blocks that belong to n and returns its inode.
func (w *writer) inode(n *node) (in rawInode, err error) {
	in = rawInode{mode: n.mode, uid: n.uid, gid: n.gid, mtime: n.mtime, size: n.size, links: n.links()}
	runs := n.runs
	switch n.mode & modeType {
	case modeFile:
		in.flags = flagExtents
	case modeDir:
		in.flags = flagExtents
		if runs, err = w.directory(n, &in); err != nil {
			return in, err
		}
	case modeLink:
		if len(n.target) <= fastTarget {
			copy(in.block[:], n.target)
			break
		}
		in.flags = flagExtents
		block := make([]byte, blockSize)
		copy(block, n.target)
		at, err := w.out.append(block)
		if err != nil {
			return in, err
		}
		runs = []run{{0, at, 1}}
	case modeChar, modeBlock:
		putDevice(&in.block, n.major, n.minor)
	}
	var blocks uint64
	for _, r := range runs {
		blocks += uint64(r.count)
	}
	if in.flags&flagExtents != 0 {
		var nodes int
		if in.block, nodes, err = extentTree(runs, w.out.append); err != nil {
			return in, err
		}
		blocks += uint64(nodes)
	}
	tail, block, err := encodeXattrs(n.xattrs)
	if err != nil {
		return in, err
	}
	in.xattrs = tail
	if block != nil {
		if in.acl, err = w.out.append(block); err != nil {
			return in, err
		}
		blocks++
	}
	in.sectors = blocks * sectorsPerBlk
	return in, nil
}

// directory writes a directory's blocks.
func (w *writer) directory(n *node, in *rawInode) (runs []run, err error) {
	entries := make([]dirent, 0, len(n.children))
	for name, c := range n.children {
		entries = append(entries, dirent{name, c.ino, direntType(c.mode)})
	}
	// n's parent is itself for the root.
	blocks, indexed, err := dirBlocks(n.ino, n.parent.ino, entries)
	if err != nil {
		return nil, err
	}
	if indexed {
		in.flags |= flagIndex
	}
	for i, b := range blocks {
		at, err := w.out.append(b)
		if err != nil {
			return nil, err
		}
		runs = appendRun(runs, run{uint32(i), at, 1})
	}
	in.size = int64(len(blocks)) * blockSize
	return runs, nil
}

// freeRuns returns the blocks that are free in an image, in order: unused room
// for group descriptors, what replaced files had, padding at the end.
func (w *writer) freeRuns(g geometry, freed []run) []run {
	table := 1 + tableBlocks(uint64(g.blocks))
	free := []run{{phys: table, count: w.first - table}, {phys: g.end, count: g.blocks - g.end}}
	free = append(free, freed...)
	slices.SortFunc(free, func(a, b run) int { return cmp.Compare(a.phys, b.phys) })
	return free
}

// front writes the superblock and the group descriptors. A UUID that was not
// given comes from sum, the hash of the tree.
func (w *writer) front(m *usage, sum []byte) error {
	sb := newSuperblock()
	sb.InodesCount = m.groups * m.inodesPerGroup
	sb.BlocksCountLo = m.blocks
	sb.FreeBlocksLo = uint32(m.freeBlocks())
	sb.FreeInodes = sb.InodesCount - uint32(m.inodes)
	sb.InodesPerGroup = m.inodesPerGroup
	// sparse_super2 without backup groups: no copies anywhere.
	sb.Compat = compatExtAttr | compatDirIndex | compatSparseSuper2
	if w.o.Writable == 0 {
		sb.ROCompat |= roReadonly
	}
	copy(sb.Label[:], w.o.Label)
	sb.UUID = w.o.UUID
	if sb.UUID == [16]byte{} {
		copy(sb.UUID[:], sum)
		sb.UUID[6] = sb.UUID[6]&0x0F | 0x80 // version 8: made by a rule of our own
		sb.UUID[8] = sb.UUID[8]&0x3F | 0x80
	}
	front := make([]byte, (1+tableBlocks(uint64(m.blocks)))*blockSize)
	copy(front[superOffset:], sb.encode())
	for i := range m.descs {
		m.descs[i].put(front[blockSize+i*descSize:])
	}
	_, err := w.out.f.WriteAt(front, 0)
	return err
}

// usage says which blocks and inodes are in use.
type usage struct {
	geometry
	descs  []groupDesc
	free   []run // in order of phys
	inodes int   // in use, all from 1 on
}

func (m *usage) freeBlocks() (n uint64) {
	for i := range m.descs {
		n += uint64(m.descs[i].freeBlocks)
	}
	return n
}

// write appends the bitmaps and the inode tables, and completes descs.
func (m *usage) write(o *output, table []byte) error {
	rest := m.free
	for g := range m.groups {
		var bitmap []byte
		bitmap, rest = m.blockBitmap(g, rest)
		if _, err := o.append(bitmap); err != nil {
			return err
		}
	}
	for g := range m.groups {
		if _, err := o.append(m.inodeBitmap(g)); err != nil {
			return err
		}
	}
	if _, err := o.append(table); err != nil {
		return err
	}
	for g := range m.descs {
		d := &m.descs[g]
		d.blockBitmap = m.blockBitmaps + uint32(g)
		d.inodeBitmap = m.inodeBitmaps + uint32(g)
		d.inodeTable = m.inodeTable + uint32(g)*m.inodesPerGroup/inodesPerBlock
	}
	return o.flush()
}

// blockBitmap returns a group's bitmap and the free runs that reach beyond
// the group.
func (m *usage) blockBitmap(g uint32, free []run) ([]byte, []run) {
	bitmap := make([]byte, blockSize)
	setBits(bitmap, 0, blocksPerGroup)
	from := uint64(g) * blocksPerGroup
	to := from + uint64(m.blocksIn(g))
	for len(free) > 0 {
		start, end := uint64(free[0].phys), uint64(free[0].phys)+uint64(free[0].count)
		if start >= to {
			break
		}
		start = max(start, from)
		for b := start - from; b < min(end, to)-from; b++ {
			bitmap[b/8] &^= 1 << (b % 8)
		}
		m.descs[g].freeBlocks += uint32(min(end, to) - start)
		if end > to {
			break
		}
		free = free[1:]
	}
	return bitmap, free
}

// inodeBitmap returns a group's bitmap; inodes are used from the first on.
func (m *usage) inodeBitmap(g uint32) []byte {
	used := min(max(m.inodes-int(g*m.inodesPerGroup), 0), int(m.inodesPerGroup))
	m.descs[g].freeInodes = m.inodesPerGroup - uint32(used)
	bitmap := make([]byte, blockSize)
	setBits(bitmap, 0, used)
	setBits(bitmap, int(m.inodesPerGroup), maxInodesGroup)
	return bitmap
}
