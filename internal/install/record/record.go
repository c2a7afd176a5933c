// Package record checks the install record and writes it.
//
// It is apart from package rootapi, which has the record's type, so that the
// root helper links only what reads it: the helper takes root's word.
package record

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"banger/internal/atomicfile"
	"banger/internal/rootapi"
)

var (
	bridgeName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,11}$`) // room for "-up" behind it
	zoneName   = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)
)

// widest is the shortest prefix, in bits: its 253 guests are what one reply to a
// census has room for (rootapi: 64 KiB, some 220 bytes a VM).
const widest = 24

// Check reports the first thing wrong with the record.
func Check(in rootapi.Install) error {
	p := in.Prefix
	switch {
	case in.Owner.UID == 0 || in.Owner.UID >= rootapi.FirstUID:
		return fmt.Errorf("owner: uid %d cannot be the owner", in.Owner.UID)
	case !p.IsValid() || !p.Addr().Is4() || p != p.Masked() || p.Bits() < widest || p.Bits() > 29 || !p.Addr().IsPrivate():
		return fmt.Errorf("prefix: %v is no private IPv4 prefix of %d to 29 bits", p, widest)
	case !bridgeName.MatchString(in.Bridge) || strings.HasPrefix(in.Bridge, "bvm"):
		return fmt.Errorf("bridge: %q cannot be its name", in.Bridge)
	case !zoneName.MatchString(in.Zone):
		return fmt.Errorf("zone: %q is not one lower-case label", in.Zone)
	case len(in.Programs) == 0:
		return fmt.Errorf("programs: none")
	}
	for _, p := range in.Programs {
		if !rootapi.PlainPath(p.Firecracker) || !rootapi.PlainPath(p.Jailer) {
			return fmt.Errorf("programs: %q and %q must be plain absolute paths", p.Firecracker, p.Jailer)
		}
	}
	return nil
}

// Bytes is a record that [Check] has nothing against, as its file has it.
func Bytes(in rootapi.Install) ([]byte, error) {
	if err := Check(in); err != nil {
		return nil, fmt.Errorf("writing install record: %w", err)
	}
	b, err := json.MarshalIndent(in, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("writing install record: %w", err)
	}
	return append(b, '\n'), nil
}

// Write writes a record in one step, so that a helper that starts meanwhile
// reads the old one or the new one.
func Write(path string, in rootapi.Install) error {
	b, err := Bytes(in)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("writing install record: %w", err)
	}
	return atomicfile.Write(path, b, 0o644)
}
