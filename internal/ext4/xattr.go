package ext4

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// xattr is an extended attribute the way ext4 keeps it: its name's prefix as
// a number, access control lists in a format of their own.
type xattr struct {
	index byte
	name  string
	value []byte
}

// Access control lists are the two prefixes that are whole names.
const (
	indexACLAccess  = 2
	indexACLDefault = 3
)

// xattrPrefix is what names of an index begin with. Images can also have
// others than these, below "system.".
func xattrPrefix(index byte) string {
	switch index {
	case 1:
		return "user."
	case indexACLAccess:
		return "system.posix_acl_access"
	case indexACLDefault:
		return "system.posix_acl_default"
	case 4:
		return "trusted."
	case 6:
		return "security."
	}
	return fmt.Sprintf("system.%d.", index)
}

const (
	xattrMagic      = 0xEA020000
	xattrEntry      = 16 // before the name
	xattrBlockStart = 32 // before the first entry of a block
	xattrInodeStart = 4
	inodeXattrRoom  = inodeSize - inodeXattrs - xattrInodeStart
)

// newXattr converts an attribute from the form that the system calls use; ok
// is false if ext4 has no place for the name.
func newXattr(name string, value []byte) (x xattr, ok bool, err error) {
	for _, x.index = range []byte{1, indexACLAccess, indexACLDefault, 4, 6} {
		if x.name, ok = strings.CutPrefix(name, xattrPrefix(x.index)); ok {
			break
		}
	}
	x.value = value
	isACL := x.index == indexACLAccess || x.index == indexACLDefault
	switch {
	case !ok || isACL && x.name != "":
		return x, false, nil
	case isACL:
		if x.value, err = aclToDisk(value); err != nil {
			return x, false, fmt.Errorf("attribute %s: %w", name, err)
		}
		return x, len(x.value) > aclHeader, nil
	case x.name == "" || len(x.name) > maxName || strings.Contains(x.name, "\x00"):
		return x, false, fmt.Errorf("attribute with a name of %d bytes", len(x.name))
	}
	return x, true, nil
}

func (x xattr) entrySize() int { return (xattrEntry + len(x.name) + 3) &^ 3 }
func (x xattr) valueSize() int { return (len(x.value) + 3) &^ 3 }

// encodeXattrs puts as many attributes as fit into the inode's tail and the
// rest into a block; either is nil if it stays empty.
func encodeXattrs(attrs []xattr) (tail, block []byte, err error) {
	slices.SortFunc(attrs, func(a, b xattr) int {
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(len(a.name), len(b.name)), strings.Compare(a.name, b.name))
	})
	var inner, outer []xattr
	room := inodeXattrRoom - 4 // the entry that ends the list
	for _, x := range attrs {
		if need := x.entrySize() + x.valueSize(); need <= room {
			room -= need
			inner = append(inner, x)
			continue
		}
		outer = append(outer, x)
	}
	if len(inner) > 0 {
		tail = make([]byte, inodeSize-inodeXattrs)
		binary.LittleEndian.PutUint32(tail, xattrMagic)
		putXattrs(tail, inner, xattrInodeStart, xattrInodeStart)
	}
	if len(outer) == 0 {
		return tail, nil, nil
	}
	need := xattrBlockStart + 4
	for _, x := range outer {
		need += x.entrySize() + x.valueSize()
	}
	if need > blockSize {
		return nil, nil, fmt.Errorf("extended attributes of %d bytes: the limit is %d: %w", need, blockSize, ErrTooLarge)
	}
	block = make([]byte, blockSize)
	le := binary.LittleEndian
	le.PutUint32(block[0:], xattrMagic)
	le.PutUint32(block[4:], 1) // references
	le.PutUint32(block[8:], 1) // blocks
	le.PutUint32(block[12:], putXattrs(block, outer, xattrBlockStart, 0))
	return tail, block, nil
}

// putXattrs encodes entries from start and values from the end of p, whose
// offsets count from base. It returns the hash of all. Entries in an inode
// (base > 0) carry no hash.
func putXattrs(p []byte, attrs []xattr, start, base int) (sum uint32) {
	le := binary.LittleEndian
	end := len(p)
	for _, x := range attrs {
		end -= x.valueSize()
		e := p[start:]
		e[0], e[1] = byte(len(x.name)), x.index
		if len(x.value) > 0 {
			le.PutUint16(e[2:], uint16(end-base))
		}
		le.PutUint32(e[8:], uint32(len(x.value)))
		copy(e[xattrEntry:], x.name)
		copy(p[end:], x.value)
		if base == 0 {
			h := xattrHash(x.name, p[end:end+x.valueSize()])
			le.PutUint32(e[12:], h)
			sum = sum<<16 ^ sum>>16 ^ h
		}
		start += x.entrySize()
	}
	return sum
}

// xattrHash is the hash of one attribute, its value padded to whole words.
func xattrHash(name string, value []byte) (h uint32) {
	for i := range len(name) {
		h = h<<5 ^ h>>27 ^ uint32(name[i])
	}
	for ; len(value) > 0; value = value[4:] {
		h = h<<16 ^ h>>16 ^ binary.LittleEndian.Uint32(value)
	}
	return h
}

// parseXattrs reads entries from start; values lie at offsets from base.
func parseXattrs(p []byte, start, base int, into map[string][]byte) error {
	le := binary.LittleEndian
	for at := start; at+4 <= len(p) && le.Uint32(p[at:]) != 0; {
		if at+xattrEntry > len(p) || at+xattrEntry+int(p[at]) > len(p) {
			return fmt.Errorf("extended attribute: %w", ErrCorrupt)
		}
		e := p[at:]
		x := xattr{index: e[1], name: string(e[xattrEntry : xattrEntry+int(e[0])])}
		from, size := int(le.Uint16(e[2:]))+base, int64(le.Uint32(e[8:]))
		if le.Uint32(e[4:]) != 0 {
			return fmt.Errorf("extended attribute in an inode of its own: %w", ErrUnsupported)
		}
		if size > 0 {
			if int64(from)+size > int64(len(p)) {
				return fmt.Errorf("extended attribute of %d bytes: %w", size, ErrCorrupt)
			}
			x.value = p[from : from+int(size)]
		}
		value := slices.Clone(x.value)
		if x.index == indexACLAccess || x.index == indexACLDefault {
			var err error
			if value, err = aclFromDisk(x.value); err != nil {
				return err
			}
		}
		into[xattrPrefix(x.index)+x.name] = value
		at += x.entrySize()
	}
	return nil
}

// Access control lists: a version, then entries of a tag, permissions and,
// on disk only for named users and groups, an id.
const (
	aclVersionCall = 2
	aclVersionDisk = 1
	aclHeader      = 4
	aclUser        = 0x02
	aclGroup       = 0x08
	aclNoID        = 0xFFFFFFFF
)

func aclHasID(tag uint16) bool { return tag == aclUser || tag == aclGroup }

func validTag(tag uint16) bool {
	return tag != 0 && tag&(tag-1) == 0 && tag <= 0x20
}

// aclToDisk converts a list from the form of getxattr(2).
func aclToDisk(p []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(p) < aclHeader || le.Uint32(p) != aclVersionCall || (len(p)-aclHeader)%8 != 0 {
		return nil, errors.New("not an access control list")
	}
	out := le.AppendUint32(nil, aclVersionDisk)
	for p = p[aclHeader:]; len(p) > 0; p = p[8:] {
		tag := le.Uint16(p)
		if !validTag(tag) {
			return nil, fmt.Errorf("access control entry with tag %#x", tag)
		}
		out = append(out, p[:4]...)
		if aclHasID(tag) {
			out = append(out, p[4:8]...)
		}
	}
	return out, nil
}

// aclFromDisk is the inverse of aclToDisk.
func aclFromDisk(p []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(p) < aclHeader || le.Uint32(p) != aclVersionDisk {
		return nil, fmt.Errorf("access control list: %w", ErrCorrupt)
	}
	out := le.AppendUint32(nil, aclVersionCall)
	for p = p[aclHeader:]; len(p) > 0; {
		size := 4
		if len(p) >= size && aclHasID(le.Uint16(p)) {
			size = 8
		}
		if len(p) < size {
			return nil, fmt.Errorf("access control list: %w", ErrCorrupt)
		}
		out = append(out, p[:4]...)
		if size == 8 {
			out = append(out, p[4:8]...)
		} else {
			out = le.AppendUint32(out, aclNoID)
		}
		p = p[size:]
	}
	return out, nil
}
