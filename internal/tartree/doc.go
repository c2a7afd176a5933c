// Package tartree packs a file or a directory as a tar, and unpacks a tar below
// a directory.
//
// It owns one promise: whatever a tar says, nothing outside the directory is
// made, changed or removed. Every name is walked component by component with
// openat and O_NOFOLLOW, so neither "..", an absolute name, a link of the tar
// nor a link that was there before leads out. Guest and host use the same code:
// the guest unpacks what its trusted host sends, the host what a hostile guest
// sends ([Options.Foreign]).
//
// It knows nothing of VMs, streams or frames.
package tartree

import (
	"errors"
	"strconv"
)

// ErrUnsafe is the error of an entry that would leave the directory, or that
// passes through a symbolic link.
var ErrUnsafe = errors.New("not below the directory")

// ErrLimit is the error of a tar that is larger than the caller allows.
var ErrLimit = errors.New("over the limit")

// maxDepth is how many directories an entry may be deep. Each level costs an
// open descriptor; real trees stay below 60.
const maxDepth = 255

// maxSkipped bounds the names that Stats keeps, since a guest chooses them.
const maxSkipped = 100

// Stats is what was packed or unpacked.
type Stats struct {
	Files int64 // entries of any type
	Bytes int64 // of the contents of regular files
	// Skipped names what was left out: sockets when packing, devices, fifos
	// and sockets when unpacking without Owner. At most 100 names are kept.
	Skipped []string
}

func (s *Stats) skip(name string) {
	if len(s.Skipped) < maxSkipped {
		s.Skipped = append(s.Skipped, name)
	}
}

// quote makes a name fit for a message: no control bytes, no great length.
func quote(name string) string {
	if len(name) > 300 {
		name = name[:150] + "..." + name[len(name)-100:]
	}
	return strconv.Quote(name)
}
