package ext4

import (
	"bytes"
	"fmt"
	"hash"
	"os"
	"syscall"
)

// output fills an image from the front to the end, in large writes. Blocks are
// given out in order: the next free one is always where the next byte goes.
type output struct {
	f     *os.File
	buf   []byte
	off   int64  // where buf goes
	limit uint64 // blocks the image may have
	sum   hash.Hash
}

const outputBuffer = 1 << 20

var zeros [outputBuffer]byte

// newOutput starts at block first of an empty file.
func newOutput(f *os.File, first uint32, limit uint64) *output {
	return &output{f: f, buf: make([]byte, 0, outputBuffer), off: int64(first) * blockSize, limit: limit}
}

// next is the block that the next append fills.
func (o *output) next() uint32 { return uint32((o.off + int64(len(o.buf))) / blockSize) }

// room says whether n more blocks fit, and as an error why not.
func (o *output) room(n int) error {
	if uint64(o.next())+uint64(n) > o.limit {
		return fmt.Errorf("image of more than %d bytes: %w", o.limit*blockSize, ErrTooLarge)
	}
	return nil
}

// append writes whole blocks and returns where the first of them went.
func (o *output) append(p []byte) (uint32, error) {
	if err := o.room(len(p) / blockSize); err != nil {
		return 0, err
	}
	if o.sum != nil {
		o.sum.Write(p) // a hash never fails
	}
	at := o.next()
	if len(o.buf)+len(p) > cap(o.buf) {
		if err := o.flush(); err != nil {
			return 0, err
		}
	}
	if len(p) >= cap(o.buf) {
		if _, err := o.f.WriteAt(p, o.off); err != nil {
			return 0, err
		}
		o.off += int64(len(p))
		return at, nil
	}
	o.buf = append(o.buf, p...)
	return at, nil
}

func (o *output) flush() error {
	if _, err := o.f.WriteAt(o.buf, o.off); err != nil {
		return err
	}
	o.off += int64(len(o.buf))
	o.buf = o.buf[:0]
	return nil
}

// erase makes blocks read as zeros that were written and are free again, so
// that nothing of a replaced file stays in the image.
func (o *output) erase(r run) error {
	off, size := int64(r.phys)*blockSize, int64(r.count)*blockSize
	const keepSize, punchHole = 1, 2 // FALLOC_FL_* of linux/falloc.h
	if syscall.Fallocate(int(o.f.Fd()), keepSize|punchHole, off, size) == nil {
		return nil
	}
	for size > 0 {
		n := min(size, outputBuffer)
		if _, err := o.f.WriteAt(zeros[:n], off); err != nil {
			return err
		}
		off, size = off+n, size-n
	}
	return nil
}

// isZero says whether p, at most outputBuffer bytes, is all zeros.
func isZero(p []byte) bool { return bytes.Equal(p, zeros[:len(p)]) }

// geometry is how an image is divided into block groups. Only group 0 begins
// with metadata; the bitmaps and inode tables of all groups lie together at
// the end, as flex_bg allows, so that data can grow without knowing its size.
type geometry struct {
	groups         uint32
	inodesPerGroup uint32
	blockBitmaps   uint32 // first of one block per group
	inodeBitmaps   uint32
	inodeTable     uint32 // all tables, one after the other
	end            uint32 // first block that is not used
	blocks         uint32 // of the file system, at least end
}

// plan divides an image whose first used blocks are taken, for inodes up to
// the number given. It has least blocks or more, and with them, more inodes.
func plan(used, inodes, least uint32) (geometry, error) {
	inodes = max(inodes, least/blocksPerInode)
	for groups := max(1, (uint64(max(used, least))+blocksPerGroup-1)/blocksPerGroup); groups*blocksPerGroup <= maxBlocks; groups++ {
		perGroup := (uint64(inodes) + groups - 1) / groups
		perGroup = (perGroup + inodesPerBlock - 1) / inodesPerBlock * inodesPerBlock
		if perGroup > maxInodesGroup {
			continue
		}
		end := uint64(used) + 2*groups + groups*perGroup/inodesPerBlock
		if end > groups*blocksPerGroup {
			continue
		}
		return geometry{
			groups:         uint32(groups),
			inodesPerGroup: uint32(perGroup),
			blockBitmaps:   used,
			inodeBitmaps:   used + uint32(groups),
			inodeTable:     used + 2*uint32(groups),
			end:            uint32(end),
			// Many inodes can ask for more groups than the blocks do.
			blocks: uint32(max(end, (groups-1)*blocksPerGroup+1, uint64(least))),
		}, nil
	}
	return geometry{}, fmt.Errorf("file system of more than %d blocks: %w", maxBlocks, ErrTooLarge)
}

// blocksIn is how many blocks a group has.
func (g geometry) blocksIn(group uint32) int {
	return int(min(blocksPerGroup, g.blocks-group*blocksPerGroup))
}
