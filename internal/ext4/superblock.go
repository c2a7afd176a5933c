package ext4

import (
	"bytes"
	"encoding/binary"
)

const (
	superOffset = 1024 // of the superblock in its block 0
	superSize   = 1024
	superMagic  = 0xEF53

	stateClean      = 1
	errorsContinue  = 1
	hashHalfMD4     = 1
	flagUnsigned    = 2    // directory hashes take names as unsigned bytes
	mountXattrACL   = 0x0C // default mount options user_xattr and acl
	neverCheck      = 0xFFFF
	checksumCRC32C  = 1
	groupsPerFlex   = 16
	logGroupsInFlex = 4
)

// superblock is the 1,024 bytes at offset 1,024, as in the kernel's struct
// ext4_super_block; what stays zero here has no name.
type superblock struct {
	InodesCount       uint32
	BlocksCountLo     uint32
	_                 uint32 // reserved blocks
	FreeBlocksLo      uint32
	FreeInodes        uint32
	FirstDataBlock    uint32
	LogBlockSize      uint32
	LogClusterSize    uint32
	BlocksPerGroup    uint32
	ClustersPerGroup  uint32
	InodesPerGroup    uint32
	_                 uint32 // mount time
	WriteTime         uint32
	_                 uint16 // mount count
	MaxMountCount     uint16
	Magic             uint16
	State             uint16
	Errors            uint16
	_                 uint16 // minor revision
	LastCheck         uint32
	_                 [8]byte // check interval, creator: Linux
	Revision          uint32
	_                 [4]byte // who may use reserved blocks
	FirstIno          uint32
	InodeSize         uint16
	GroupNumber       uint16
	Compat            uint32
	Incompat          uint32
	ROCompat          uint32
	UUID              [16]byte
	Label             [16]byte
	_                 [70]byte // last mounted, compression, preallocation
	ReservedGDTBlocks uint16
	_                 [16]byte // the journal's UUID, for journals outside
	JournalInum       uint32
	_                 [8]byte // the journal's device, list of orphans
	HashSeed          [4]uint32
	HashVersion       uint8
	JournalBackup     uint8
	DescSize          uint16
	MountOptions      uint32
	_                 uint32 // meta_bg
	MkfsTime          uint32
	JournalBlocks     [17]uint32
	BlocksCountHi     uint32
	_                 [8]byte // high halves of reserved and free blocks
	MinExtraIsize     uint16
	WantExtraIsize    uint16
	Flags             uint32
	_                 [16]byte // RAID, multiple mount protection
	LogGroupsPerFlex  uint8
	ChecksumType      uint8
	_                 [646]byte // statistics, errors, quota, encryption
	Checksum          uint32
}

// newSuperblock is what the images of Write and Format have in common.
func newSuperblock() superblock {
	return superblock{
		LogBlockSize:     2, // 1024 << 2
		LogClusterSize:   2,
		BlocksPerGroup:   blocksPerGroup,
		ClustersPerGroup: blocksPerGroup,
		MaxMountCount:    neverCheck,
		Magic:            superMagic,
		State:            stateClean,
		Errors:           errorsContinue,
		Revision:         1,
		FirstIno:         firstIno,
		InodeSize:        inodeSize,
		Incompat:         incompatFiletype | incompatExtents | incompatFlexBG,
		ROCompat:         roSparseSuper | roLargeFile | roHugeFile | roDirNlink | roExtraIsize,
		HashVersion:      hashHalfMD4,
		MountOptions:     mountXattrACL,
		MinExtraIsize:    extraIsize,
		WantExtraIsize:   extraIsize,
		Flags:            flagUnsigned,
		LogGroupsPerFlex: logGroupsInFlex,
	}
}

// encode returns the superblock's bytes, with its checksum if it has one.
func (sb *superblock) encode() []byte {
	var b bytes.Buffer
	b.Grow(superSize)
	// Writing fixed-size fields to memory has no way to fail.
	_ = binary.Write(&b, binary.LittleEndian, sb)
	p := b.Bytes()
	if sb.ROCompat&roMetadataCsum != 0 {
		binary.LittleEndian.PutUint32(p[superSize-4:], crc32c(^uint32(0), p[:superSize-4]))
	}
	return p
}

func (sb *superblock) blocks() uint64 {
	n := uint64(sb.BlocksCountLo)
	if sb.Incompat&incompat64bit != 0 {
		n |= uint64(sb.BlocksCountHi) << 32
	}
	return n
}

// Offsets in a group descriptor, and its flags.
const (
	descSize = 32

	descBlockBitmap  = 0x00
	descInodeBitmap  = 0x04
	descInodeTable   = 0x08
	descFreeBlocks   = 0x0C
	descFreeInodes   = 0x0E
	descUsedDirs     = 0x10
	descFlags        = 0x12
	descBlockCsum    = 0x18
	descInodeCsum    = 0x1A
	descUnusedInodes = 0x1C
	descChecksum     = 0x1E
	descTableHi      = 0x28

	groupInodeUninit = 1
	groupBlockUninit = 2
	groupInodeZeroed = 4
)

// groupDesc describes one block group. Checksums stay 0 where the file system
// has none.
type groupDesc struct {
	blockBitmap, inodeBitmap, inodeTable     uint32
	freeBlocks, freeInodes, usedDirs, unused uint32
	flags                                    uint16
	blockCsum, inodeCsum                     uint16
}

// put encodes d into p, 32 bytes, without the descriptor's own checksum.
func (d *groupDesc) put(p []byte) {
	le := binary.LittleEndian
	le.PutUint32(p[descBlockBitmap:], d.blockBitmap)
	le.PutUint32(p[descInodeBitmap:], d.inodeBitmap)
	le.PutUint32(p[descInodeTable:], d.inodeTable)
	le.PutUint16(p[descFreeBlocks:], uint16(d.freeBlocks))
	le.PutUint16(p[descFreeInodes:], uint16(d.freeInodes))
	le.PutUint16(p[descUsedDirs:], uint16(d.usedDirs))
	le.PutUint16(p[descFlags:], d.flags)
	le.PutUint16(p[descBlockCsum:], d.blockCsum)
	le.PutUint16(p[descInodeCsum:], d.inodeCsum)
	le.PutUint16(p[descUnusedInodes:], uint16(d.unused))
}

// setBits sets the bits [from, to) of a bitmap.
func setBits(bitmap []byte, from, to int) {
	for ; from < to && from%8 != 0; from++ {
		bitmap[from/8] |= 1 << (from % 8)
	}
	for ; from+8 <= to; from += 8 {
		bitmap[from/8] = 0xFF
	}
	for ; from < to; from++ {
		bitmap[from/8] |= 1 << (from % 8)
	}
}
