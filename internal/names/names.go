// Package names says what a VM or an image may be called, and makes up names
// and ids.
//
// It rejects rather than rewrites: a name is what the user typed, or nothing.
// It knows nothing of which names are taken.
package names

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	mathrand "math/rand/v2"
	"strings"

	"banger/internal/api"
)

const (
	// maxVM is the longest label of a host name (RFC 1035, 2.3.4): NAME.vm is
	// one, and so is the guest's own.
	maxVM = 63
	// maxImage leaves room for suffixes in the 255 bytes of a file name.
	maxImage = 128
	// idBytes gives ids of 12 hex digits: short enough to type, and a chance
	// of 1 in 56,000 that any two of 100,000 VMs ever made meet.
	idBytes = 6
	// MinPrefix is the shortest prefix of an id that refers to a VM.
	MinPrefix = 4
)

// CheckVM returns an Invalid error unless name is 1 to 63 lower-case letters,
// digits and hyphens, with no hyphen at either end.
func CheckVM(name string) error {
	problem := labelProblem(name)
	if problem == "" {
		return nil
	}
	return &api.Error{
		Code: api.Invalid,
		Msg:  fmt.Sprintf("VM name %q %s", shorten(name), problem),
		Hint: "use 1 to 63 lower-case letters, digits and hyphens, for example: --name my-vm",
	}
}

func labelProblem(name string) string {
	switch {
	case name == "":
		return "is empty"
	case len(name) > maxVM:
		return fmt.Sprintf("has %d bytes, and at most %d are allowed", len(name), maxVM)
	case name[0] == '-' || name[len(name)-1] == '-':
		return "begins or ends with a hyphen"
	}
	for _, r := range name {
		if !lowerAlnum(r) && r != '-' {
			return fmt.Sprintf("contains %q", r)
		}
	}
	return ""
}

// CheckImage returns an Invalid error unless name can be the name of an image
// or a kernel: 1 to 128 lower-case letters, digits, dots, hyphens and
// underscores, beginning with a letter or digit. Such a name is also a file
// name, and never one that leaves its directory.
func CheckImage(name string) error {
	problem := ""
	switch {
	case name == "":
		problem = "is empty"
	case len(name) > maxImage:
		problem = fmt.Sprintf("has %d bytes, and at most %d are allowed", len(name), maxImage)
	case !lowerAlnum(rune(name[0])):
		problem = "does not begin with a lower-case letter or a digit"
	}
	for _, r := range name {
		if problem == "" && !lowerAlnum(r) && !strings.ContainsRune(".-_", r) {
			problem = fmt.Sprintf("contains %q", r)
		}
	}
	if problem == "" {
		return nil
	}
	return &api.Error{
		Code: api.Invalid,
		Msg:  fmt.Sprintf("name %q %s", shorten(name), problem),
		Hint: "use lower-case letters, digits, dots, hyphens and underscores, for example: debian-bookworm",
	}
}

// shorten keeps a message to one line whatever was typed.
func shorten(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

func lowerAlnum(r rune) bool { return 'a' <= r && r <= 'z' || '0' <= r && r <= '9' }

// NewID returns 12 random hex digits.
func NewID() string {
	var b [idBytes]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(b[:])
}

// IsID reports whether s has the form of an id.
func IsID(s string) bool { return len(s) == 2*idBytes && isHex(s) }

// IsPrefix reports whether s can be a prefix of an id: at least MinPrefix
// lower-case hex digits.
func IsPrefix(s string) bool {
	return len(s) >= MinPrefix && len(s) <= 2*idBytes && isHex(s)
}

func isHex(s string) bool {
	for _, r := range s {
		if !('0' <= r && r <= '9' || 'a' <= r && r <= 'f') {
			return false
		}
	}
	return true
}

// Random makes up a name for a VM. It is pleasant, not unique: the caller
// tries again if it is taken.
func Random() string {
	adjectives, nouns := words()
	return adjectives[mathrand.IntN(len(adjectives))] + "-" + nouns[mathrand.IntN(len(nouns))]
}

// words are short, easy to say and to tell apart; none can be taken for an
// insult. Together they make 3,600 names.
func words() (adjectives, nouns []string) {
	return strings.Fields(`
		able amber ample apt bold brave breezy brief bright brisk calm candid
		clear clever cool cosy crisp dapper daring deft eager early easy fair
		fancy fast fine firm fond free fresh gentle glad golden grand handy
		happy hardy jolly keen kind light lively lucky mellow merry mild neat
		nimble noble plucky prime proud quick quiet rapid ready sunny swift`),
		strings.Fields(`
		acorn alder anchor apple badger beacon beaver birch bison breeze brook
		canyon cedar clover comet coral crane creek cricket delta ember falcon
		fern finch fjord forest fox garden glacier harbor hazel heron island
		ivy juniper kestrel lagoon lantern lark linnet lynx maple meadow otter
		owl pebble pine plover quartz raven reef river robin sparrow spruce
		summit thistle tulip willow wren`)
}
