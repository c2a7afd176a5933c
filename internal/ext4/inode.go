package ext4

import (
	"encoding/binary"
	"time"
)

// Offsets in an inode.
const (
	inodeMode    = 0x00
	inodeUID     = 0x02
	inodeSizeLo  = 0x04
	inodeAtime   = 0x08
	inodeCtime   = 0x0C
	inodeMtime   = 0x10
	inodeGID     = 0x18
	inodeLinks   = 0x1A
	inodeSectors = 0x1C
	inodeFlags   = 0x20
	inodeBlock   = 0x28 // 60 bytes: extent root, fast symlink or device
	inodeACL     = 0x68 // the xattr block
	inodeSizeHi  = 0x6C
	inodeSectHi  = 0x74
	inodeACLHi   = 0x76
	inodeUIDHi   = 0x78
	inodeGIDHi   = 0x7A
	inodeExtra   = 0x80
	inodeCtimeX  = 0x84
	inodeMtimeX  = 0x88
	inodeAtimeX  = 0x8C
	inodeCrtime  = 0x90
	inodeCrtimeX = 0x94
	inodeXattrs  = 0x80 + extraIsize
)

// timestamp is a time as an inode keeps it: 34 bits of seconds, nanoseconds.
type timestamp struct {
	sec  int64
	nsec uint32
}

// Range of an inode's seconds: 1901 to 2446.
const (
	minSeconds = -1 << 31
	maxSeconds = 1<<34 - 1<<31 - 1
)

// newTimestamp converts t, bringing what is out of range to its end.
func newTimestamp(t time.Time) timestamp {
	sec := t.Unix()
	switch {
	case sec < minSeconds:
		return timestamp{sec: minSeconds}
	case sec > maxSeconds:
		return timestamp{sec: maxSeconds}
	}
	return timestamp{sec, uint32(t.Nanosecond())}
}

// encode returns the two words of an inode's time.
func (t timestamp) encode() (base, extra uint32) {
	base = uint32(t.sec)
	epoch := uint32((t.sec-int64(int32(base)))>>32) & 3
	return base, t.nsec<<2 | epoch
}

func decodeTime(base, extra uint32) time.Time {
	return time.Unix(int64(int32(base))+int64(extra&3)<<32, int64(extra>>2))
}

// rawInode is what goes into an inode, whatever it belongs to.
type rawInode struct {
	mode     uint16
	uid, gid uint32
	mtime    timestamp
	size     int64
	links    int
	sectors  uint64
	flags    uint32
	block    [60]byte
	acl      uint32
	xattrs   []byte // of at most inodeSize-inodeXattrs bytes
}

// put encodes the inode into p, which must be zeroed, inodeSize bytes long.
func (in *rawInode) put(p []byte) {
	le := binary.LittleEndian
	le.PutUint16(p[inodeMode:], in.mode)
	le.PutUint16(p[inodeUID:], uint16(in.uid))
	le.PutUint16(p[inodeUIDHi:], uint16(in.uid>>16))
	le.PutUint16(p[inodeGID:], uint16(in.gid))
	le.PutUint16(p[inodeGIDHi:], uint16(in.gid>>16))
	le.PutUint32(p[inodeSizeLo:], uint32(in.size))
	le.PutUint32(p[inodeSizeHi:], uint32(in.size>>32))
	base, extra := in.mtime.encode()
	for _, at := range []int{inodeAtime, inodeCtime, inodeMtime, inodeCrtime} {
		le.PutUint32(p[at:], base)
	}
	for _, at := range []int{inodeAtimeX, inodeCtimeX, inodeMtimeX, inodeCrtimeX} {
		le.PutUint32(p[at:], extra)
	}
	le.PutUint16(p[inodeLinks:], uint16(in.links))
	le.PutUint32(p[inodeSectors:], uint32(in.sectors))
	le.PutUint16(p[inodeSectHi:], uint16(in.sectors>>32))
	le.PutUint32(p[inodeFlags:], in.flags)
	copy(p[inodeBlock:], in.block[:])
	le.PutUint32(p[inodeACL:], in.acl)
	le.PutUint16(p[inodeExtra:], extraIsize)
	copy(p[inodeXattrs:inodeSize], in.xattrs)
}

// putDevice encodes a device number into i_block: small ones in the first
// word the old way, others in the second.
func putDevice(block *[60]byte, major, minor uint32) {
	if major < 256 && minor < 256 {
		binary.LittleEndian.PutUint32(block[0:], major<<8|minor)
		return
	}
	binary.LittleEndian.PutUint32(block[4:], minor&0xFF|major<<8|minor&^0xFF<<12)
}

func decodeDevice(block []byte) (major, minor uint32) {
	if old := binary.LittleEndian.Uint32(block); old != 0 {
		return old >> 8 & 0xFF, old & 0xFF
	}
	n := binary.LittleEndian.Uint32(block[4:])
	return n >> 8 & 0xFFF, n&0xFF | n>>12&0xFFF00
}
