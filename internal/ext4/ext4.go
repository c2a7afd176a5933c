// Package ext4 makes and reads ext4 file systems without mounting them and
// without tools.
//
// [Write] turns a tar stream into a read-only image in one pass, [Open] reads
// an image back, and [Format] makes an empty writable file system in a sparse
// file. Images are little-endian, with 4 KiB blocks and 256-byte inodes, as
// Linux and e2fsprogs expect them; the format is described in the kernel's
// Documentation/filesystems/ext4.
//
// The package knows files and bytes only. It refuses to know where a tar comes
// from, where an image is kept, or what a virtual machine does with it.
package ext4

import "errors"

// ErrTooLarge says that the content does not fit the limits of [Options], or
// those of ext4.
var ErrTooLarge = errors.New("too large")

// ErrTruncated says that a tar ended without the two zero blocks that end a
// complete one: its writer was probably interrupted.
var ErrTruncated = errors.New("tar ends without its end marker")

// ErrCorrupt says that an image contradicts itself or its own size.
var ErrCorrupt = errors.New("corrupt ext4 file system")

// ErrUnsupported says that an image is well-formed as far as it was looked at,
// but uses something that this package does not read.
var ErrUnsupported = errors.New("unsupported ext4 feature")

// Geometry of everything this package writes.
const (
	blockSize      = 4096
	blocksPerGroup = 8 * blockSize // one bitmap block covers one group
	inodeSize      = 256
	extraIsize     = 32 // bytes of the inode's second half before its xattrs
	inodesPerBlock = blockSize / inodeSize
	blocksPerInode = 4             // where files will be added
	maxInodesGroup = 8 * blockSize // one bitmap block again
	sectorsPerBlk  = blockSize / 512
	maxBlocks      = 1<<32 - 1 // without the 64bit feature
)

// Limits of ext4 and of the kernel's path handling.
const (
	maxName    = 255
	maxPath    = 4095  // PATH_MAX less the NUL
	maxTarget  = 4095  // a slow symlink is one block with its NUL
	fastTarget = 59    // a fast symlink is i_block with its NUL
	maxLinks   = 65000 // EXT4_LINK_MAX
)

// Inode numbers with a meaning; all below firstIno are reserved.
const (
	rootIno    = 2
	resizeIno  = 7
	journalIno = 8
	firstIno   = 11
)

// File type bits of a mode, as in stat(2).
const (
	modeType   = 0o170000
	modeSocket = 0o140000
	modeLink   = 0o120000
	modeFile   = 0o100000
	modeBlock  = 0o060000
	modeDir    = 0o040000
	modeChar   = 0o020000
	modeFifo   = 0o010000
	modePerm   = 0o007777
)

// Flags of an inode.
const (
	flagIndex   = 0x00001000 // the directory has a hash tree
	flagExtents = 0x00080000
	flagInline  = 0x10000000
)

// Features, by the three compatibility classes of the superblock.
const (
	compatHasJournal   = 0x0004
	compatExtAttr      = 0x0008
	compatResizeInode  = 0x0010
	compatDirIndex     = 0x0020
	compatSparseSuper2 = 0x0200

	incompatFiletype = 0x0002
	incompatRecover  = 0x0004
	incompatExtents  = 0x0040
	incompat64bit    = 0x0080
	incompatFlexBG   = 0x0200
	incompatCsumSeed = 0x2000
	incompatLargeDir = 0x4000

	roSparseSuper  = 0x0001
	roLargeFile    = 0x0002
	roHugeFile     = 0x0008
	roDirNlink     = 0x0020
	roExtraIsize   = 0x0040
	roMetadataCsum = 0x0400
	roReadonly     = 0x1000
)
