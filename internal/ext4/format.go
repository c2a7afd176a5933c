package ext4

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"time"
)

// FormatOptions changes what [Format] makes. The zero value is good.
type FormatOptions struct {
	// Label is the volume's name, at most 16 bytes.
	Label string
	// UUID is the volume's UUID. Zero means a random one.
	UUID [16]byte
	// Time is when the file system was made. Zero means now.
	Time time.Time
}

// Sizes that Format accepts, in bytes.
const (
	MinFormat = 256 << 20
	MaxFormat = 2 << 40
)

const (
	formatInodes   = 8192 // per group: one for 16 KiB, as mke2fs has it
	formatTable    = formatInodes / inodesPerBlock
	lostFoundSize  = 4 // blocks, so that e2fsck can use it without making room
	csumTail       = 12
	minLastGroup   = 1024  // a smaller remainder is not worth a group
	reservedGDT    = 32    // blocks for descriptors: room to grow by 512 GiB
	minJournal     = 1024  // blocks: the least that jbd2 takes
	maxJournal     = 16384 // 64 MiB
	journalPortion = 512   // of the file system
)

// Format makes an empty, writable ext4 file system of size bytes in f, a
// regular file, whose content is replaced. It writes a few hundred kilobytes:
// the rest stays holes, and since holes read as zeros, inode tables and journal
// count as zeroed, and the kernel has nothing left to initialise.
//
// The file system has a journal, checksums and no reserved blocks, and can grow
// while mounted. It is made for whole multiples of 128 MiB: a small remainder
// stays unused. Format does not sync f; after an error its content is undefined.
func Format(f *os.File, size int64, o FormatOptions) error {
	if size < MinFormat || size > MaxFormat {
		return fmt.Errorf("file system of %d bytes: sizes go from %d to %d", size, int64(MinFormat), int64(MaxFormat))
	}
	if len(o.Label) > 16 {
		return fmt.Errorf("label %q: the limit is 16 bytes", o.Label)
	}
	if o.UUID == [16]byte{} {
		rand.Read(o.UUID[:]) // never fails
		o.UUID[6] = o.UUID[6]&0x0F | 0x40
		o.UUID[8] = o.UUID[8]&0x3F | 0x80
	}
	if o.Time.IsZero() {
		o.Time = time.Now()
	}
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("emptying the disk: %w", err)
	}
	if err := f.Truncate(size); err != nil {
		return fmt.Errorf("setting the disk's size: %w", err)
	}
	m := newFormat(size, o)
	for _, write := range []func(*os.File) error{m.writeContent, m.writeResize, m.writeBitmaps, m.writeFront} {
		if err := write(f); err != nil {
			return fmt.Errorf("formatting the disk: %w", err)
		}
	}
	return nil
}

// format is one call of Format: where everything goes.
type format struct {
	blocks  uint32
	groups  uint32
	table   uint32 // blocks of group descriptors
	journal uint32 // blocks of the journal
	root    uint32 // block of the root directory, and from there on:
	found   uint32 // lost+found
	dind    uint32 // the resize inode's double indirect block
	log     uint32 // first block of the journal
	end     uint32
	seed    uint32 // of checksums
	time    timestamp
	descs   []groupDesc
	sb      superblock
}

// newFormat plans a file system. Of every 16 groups the first holds the
// bitmaps and inode tables of all; group 0 holds all content besides.
func newFormat(size int64, o FormatOptions) *format {
	m := &format{blocks: uint32(size / blockSize), time: newTimestamp(o.Time)}
	m.count()
	if last := m.blocksIn(m.groups - 1); last < m.front(m.groups-1)+minLastGroup {
		m.blocks -= last
		m.count()
	}
	m.journal = min(max(m.blocks/journalPortion, minJournal), maxJournal)
	m.seed = crc32c(^uint32(0), o.UUID[:])
	m.root = m.flexStart(0) + m.flexCount(0)*(2+formatTable)
	m.found = m.root + 1
	m.dind = m.found + lostFoundSize
	m.log = m.dind + 1
	m.end = m.log + m.journal
	m.descs = make([]groupDesc, m.groups)
	for g := range m.groups {
		m.descs[g] = m.describe(g)
	}
	m.sb = m.super(o)
	return m
}

// count derives the groups from the blocks.
func (m *format) count() {
	m.groups = (m.blocks + blocksPerGroup - 1) / blocksPerGroup
	m.table = (m.groups*descSize + blockSize - 1) / blockSize
}

func (m *format) blocksIn(g uint32) uint32 {
	return min(blocksPerGroup, m.blocks-g*blocksPerGroup)
}

// hasBackup says whether a group begins with a superblock: 0, 1 and the powers
// of 3, 5 and 7 (sparse_super).
func hasBackup(g uint32) bool {
	for _, base := range []uint32{3, 5, 7} {
		n := g
		for n > 1 && n%base == 0 {
			n /= base
		}
		if n <= 1 {
			return true
		}
	}
	return false
}

// front is how many blocks of superblock and descriptors a group begins with.
func (m *format) front(g uint32) uint32 {
	if !hasBackup(g) {
		return 0
	}
	return 1 + m.table + reservedGDT
}

// flexStart is the block where the metadata of a flex group begins, given its
// first group; flexCount is how many groups there are in it.
func (m *format) flexStart(first uint32) uint32 { return first*blocksPerGroup + m.front(first) }
func (m *format) flexCount(first uint32) uint32 { return min(groupsPerFlex, m.groups-first) }

// used is how many blocks are taken from the start of a group.
func (m *format) used(g uint32) uint32 {
	switch {
	case g == 0:
		return m.end
	case g%groupsPerFlex == 0:
		return m.front(g) + m.flexCount(g)*(2+formatTable)
	}
	return m.front(g)
}

// describe returns a group's descriptor, still without the bitmaps' checksums.
func (m *format) describe(g uint32) groupDesc {
	first := g - g%groupsPerFlex
	start, count := m.flexStart(first), m.flexCount(first)
	d := groupDesc{
		blockBitmap: start + g - first,
		inodeBitmap: start + count + g - first,
		inodeTable:  start + 2*count + (g-first)*formatTable,
		freeBlocks:  m.blocksIn(g) - m.used(g),
		freeInodes:  formatInodes,
		unused:      formatInodes,
		flags:       groupInodeUninit | groupInodeZeroed,
	}
	if g == 0 {
		d.freeInodes, d.unused, d.usedDirs = formatInodes-firstIno, formatInodes-firstIno, 2
		d.flags = groupInodeZeroed
	}
	if !m.hasBitmap(g) {
		d.flags |= groupBlockUninit
	}
	return d
}

// hasBitmap says whether a group's block bitmap is written. The kernel can
// work out the others, but not where other groups' metadata lies.
func (m *format) hasBitmap(g uint32) bool { return g%groupsPerFlex == 0 || g == m.groups-1 }

// super returns the superblock.
func (m *format) super(o FormatOptions) superblock {
	sb := newSuperblock()
	sb.InodesCount = m.groups * formatInodes
	sb.BlocksCountLo = m.blocks
	for i := range m.descs {
		sb.FreeBlocksLo += m.descs[i].freeBlocks
	}
	sb.FreeInodes = sb.InodesCount - firstIno
	sb.InodesPerGroup = formatInodes
	sb.Compat = compatHasJournal | compatExtAttr | compatResizeInode | compatDirIndex
	sb.ROCompat |= roMetadataCsum
	sb.ChecksumType = checksumCRC32C
	sb.UUID = o.UUID
	copy(sb.Label[:], o.Label)
	sb.ReservedGDTBlocks = reservedGDT
	now := uint32(m.time.sec)
	sb.MkfsTime, sb.WriteTime, sb.LastCheck = now, now, now
	for i := range sb.HashSeed { // any will do that an attacker cannot guess
		sb.HashSeed[i] = crc32cNumber(binary.LittleEndian.Uint32(o.UUID[4*i:]), uint32(i))
	}
	// A copy of the journal's inode, for e2fsck to find the journal without it.
	in := m.journalInode()
	sb.JournalInum, sb.JournalBackup = journalIno, 1
	for i := range 15 {
		sb.JournalBlocks[i] = binary.LittleEndian.Uint32(in.block[4*i:])
	}
	sb.JournalBlocks[16] = uint32(in.size)
	return sb
}

// file returns the inode of blocks blocks from at on.
func (m *format) file(mode uint16, at, blocks uint32) rawInode {
	in := rawInode{
		mode:    mode,
		mtime:   m.time,
		size:    int64(blocks) * blockSize,
		links:   1,
		sectors: uint64(blocks) * sectorsPerBlk,
		flags:   flagExtents,
	}
	// One extent needs no further blocks, so nothing can fail.
	in.block, _, _ = extentTree([]run{{0, at, blocks}}, nil)
	return in
}

func (m *format) journalInode() rawInode { return m.file(modeFile|0o600, m.log, m.journal) }

// resizeInode reserves the blocks into which the descriptors of a grown file
// system go: a double indirect block leads to the reserved blocks of group 0,
// and each of these to its backups.
func (m *format) resizeInode() rawInode {
	const perBlock = blockSize / 4
	in := rawInode{mode: modeFile | 0o600, mtime: m.time, links: 1}
	in.size = int64(12+perBlock+perBlock*perBlock) * blockSize
	in.sectors = uint64(1+reservedGDT*(1+len(m.backups()))) * sectorsPerBlk
	binary.LittleEndian.PutUint32(in.block[13*4:], m.dind)
	return in
}

// backups are the groups with copies of the superblock.
func (m *format) backups() (groups []uint32) {
	for g := uint32(1); g < m.groups; g++ {
		if hasBackup(g) {
			groups = append(groups, g)
		}
	}
	return groups
}

// writeContent writes the inodes in use, the directories and the journal's
// superblock.
func (m *format) writeContent(f *os.File) error {
	root, found := m.file(modeDir|0o755, m.root, 1), m.file(modeDir|0o700, m.found, lostFoundSize)
	root.links, found.links = 3, 2
	table := make([]byte, firstIno*inodeSize)
	for ino, in := range map[uint32]rawInode{
		rootIno: root, firstIno: found, journalIno: m.journalInode(), resizeIno: m.resizeInode(),
	} {
		p := table[(ino-1)*inodeSize : ino*inodeSize]
		in.put(p)
		sealInode(m.seed, ino, p)
	}
	dirs := m.dirBlock(rootIno, []dirent{{".", rootIno, typeDir}, {"..", rootIno, typeDir}, {"lost+found", firstIno, typeDir}})
	dirs = append(dirs, m.dirBlock(firstIno, []dirent{{".", firstIno, typeDir}, {"..", rootIno, typeDir}})...)
	for range lostFoundSize - 1 {
		dirs = append(dirs, m.dirBlock(firstIno, nil)...)
	}
	if err := writeBlocks(f, table, m.descs[0].inodeTable); err != nil {
		return err
	}
	if err := writeBlocks(f, dirs, m.root); err != nil {
		return err
	}
	return writeBlocks(f, m.journalSuper(), m.log)
}

// writeBlocks writes p where a block begins.
func writeBlocks(f *os.File, p []byte, block uint32) error {
	_, err := f.WriteAt(p, int64(block)*blockSize)
	return err
}

// dirBlock is a directory block with a checksum at its end.
func (m *format) dirBlock(ino uint32, entries []dirent) []byte {
	p := linearBlock(entries, blockSize-csumTail)
	tail := p[blockSize-csumTail:]
	binary.LittleEndian.PutUint16(tail[4:], csumTail)
	tail[7] = typeCsum
	binary.LittleEndian.PutUint32(tail[8:], crc32c(inodeSeed(m.seed, ino), p[:blockSize-csumTail]))
	return p
}

// journalSuper is the first block of an empty journal: jbd2 superblock of
// version 2, numbers big-endian.
func (m *format) journalSuper() []byte {
	p := make([]byte, blockSize)
	be := binary.BigEndian
	be.PutUint32(p[0x00:], 0xC03B3998) // magic
	be.PutUint32(p[0x04:], 4)          // superblock, version 2
	be.PutUint32(p[0x0C:], blockSize)
	be.PutUint32(p[0x10:], m.journal)
	be.PutUint32(p[0x14:], 1) // first block of the log
	be.PutUint32(p[0x18:], 1) // sequence of the first commit; start 0: empty
	copy(p[0x30:], m.sb.UUID[:])
	be.PutUint32(p[0x40:], 1) // users
	return p
}

// writeResize writes the blocks of the resize inode.
func (m *format) writeResize(f *os.File) error {
	dind := make([]byte, blockSize)
	lists := make([]byte, reservedGDT*blockSize)
	for i := range uint32(reservedGDT) {
		at := 1 + m.table + i
		binary.LittleEndian.PutUint32(dind[4*(m.table+i):], at)
		for k, g := range m.backups() {
			binary.LittleEndian.PutUint32(lists[int(i)*blockSize+4*k:], g*blocksPerGroup+at)
		}
	}
	if err := writeBlocks(f, lists, 1+m.table); err != nil {
		return err
	}
	return writeBlocks(f, dind, m.dind)
}

// writeBitmaps writes the bitmaps that the kernel cannot work out, and puts
// their checksums into the descriptors.
func (m *format) writeBitmaps(f *os.File) error {
	inodes := make([]byte, blockSize)
	setBits(inodes, 0, firstIno)
	setBits(inodes, formatInodes, maxInodesGroup)
	m.descs[0].inodeCsum = uint16(crc32c(m.seed, inodes[:formatInodes/8]))
	if err := writeBlocks(f, inodes, m.descs[0].inodeBitmap); err != nil {
		return err
	}
	for g := range m.groups {
		if !m.hasBitmap(g) {
			continue
		}
		bitmap := make([]byte, blockSize)
		setBits(bitmap, 0, int(m.used(g)))
		setBits(bitmap, int(m.blocksIn(g)), blocksPerGroup)
		m.descs[g].blockCsum = uint16(crc32c(m.seed, bitmap))
		if err := writeBlocks(f, bitmap, m.descs[g].blockBitmap); err != nil {
			return err
		}
	}
	return nil
}

// writeFront writes the group descriptors and superblocks, the first last: a
// file system that was not finished is none.
func (m *format) writeFront(f *os.File) error {
	descs := make([]byte, m.table*blockSize)
	for g := range m.groups {
		p := descs[g*descSize : (g+1)*descSize]
		m.descs[g].put(p)
		sealDesc(m.seed, g, p)
	}
	for _, g := range m.backups() {
		sb := m.sb
		sb.GroupNumber, sb.State = uint16(g), 0
		if err := writeBlocks(f, append(sb.encode(), make([]byte, blockSize-superSize)...), g*blocksPerGroup); err != nil {
			return err
		}
		if err := writeBlocks(f, descs, g*blocksPerGroup+1); err != nil {
			return err
		}
	}
	if err := writeBlocks(f, descs, 1); err != nil {
		return err
	}
	_, err := f.WriteAt(m.sb.encode(), superOffset)
	return err
}
