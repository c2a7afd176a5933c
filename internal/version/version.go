// Package version says what this build is.
package version

import (
	"fmt"
	"runtime/debug"
	"strings"
	"time"
)

// Build is what a binary knows of its own making.
type Build struct {
	Version string    `json:"version"`           // "dev" for a build without a tag
	Commit  string    `json:"commit"`            // full hash, "" if unknown
	Dirty   bool      `json:"dirty"`             // built from a changed tree
	Time    time.Time `json:"built_at,omitzero"` // of the commit, UTC; zero if unknown
	Go      string    `json:"go"`
}

// Get reads what the Go toolchain stamped into this binary. It needs no linker
// flags, so every way of building tells the truth.
func Get() Build {
	b := Build{Version: "dev"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.Go = info.GoVersion
	// A pseudo-version is no release: v0.0.0-DATE-COMMIT says less than "dev" and the commit.
	if v := info.Main.Version; v != "" && v != "(devel)" && !strings.Contains(v, "-0.") && !strings.HasPrefix(v, "v0.0.0-") {
		b.Version = v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.modified":
			b.Dirty = s.Value == "true"
		case "vcs.time":
			// A stamp that does not parse leaves the zero time, which is said as unknown.
			b.Time, _ = time.Parse(time.RFC3339, s.Value)
		}
	}
	return b
}

// String is one line: version, short commit, time.
func (b Build) String() string {
	var s strings.Builder
	s.WriteString(b.Version)
	if len(b.Commit) >= 8 {
		fmt.Fprintf(&s, " %s", b.Commit[:8])
		if b.Dirty {
			s.WriteString("+changes")
		}
	}
	if !b.Time.IsZero() {
		fmt.Fprintf(&s, " %s", b.Time.UTC().Format("2006-01-02T15:04:05Z"))
	}
	return s.String()
}
