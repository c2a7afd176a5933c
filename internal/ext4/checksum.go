package ext4

import (
	"encoding/binary"
	"hash/crc32"
)

// crc32c continues a Castagnoli checksum the way ext4 does: without the
// inversions at both ends that package crc32 makes. It starts from ^0.
func crc32c(crc uint32, p []byte) uint32 {
	return ^crc32.Update(^crc, crc32.MakeTable(crc32.Castagnoli), p)
}

// crc32cNumber continues a checksum with a 32-bit number.
func crc32cNumber(crc, n uint32) uint32 {
	var p [4]byte
	binary.LittleEndian.PutUint32(p[:], n)
	return crc32c(crc, p[:])
}

// Offsets of the two halves of an inode's checksum.
const (
	inodeCsumLo = 0x7C
	inodeCsumHi = 0x82
)

// sealInode puts the checksum into an encoded inode that has none yet. The file system's seed is
// the checksum of its UUID.
func sealInode(seed, ino uint32, p []byte) {
	le := binary.LittleEndian
	crc := crc32c(inodeSeed(seed, ino), p[:inodeSize])
	le.PutUint16(p[inodeCsumLo:], uint16(crc))
	le.PutUint16(p[inodeCsumHi:], uint16(crc>>16))
}

// inodeSeed begins the checksums of what belongs to one inode of generation 0.
func inodeSeed(seed, ino uint32) uint32 {
	return crc32cNumber(crc32cNumber(seed, ino), 0)
}

// sealDesc puts the checksum into an encoded group descriptor that has none yet.
func sealDesc(seed, group uint32, p []byte) {
	binary.LittleEndian.PutUint16(p[descChecksum:], uint16(crc32c(crc32cNumber(seed, group), p[:descSize])))
}
