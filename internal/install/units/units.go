// Package units holds the texts of banger's systemd units.
//
// They are templates: @OWNER@ stands for the owner's name and @BINDIR@ for the
// directory of the binaries. What writes them to the host is package install.
package units

import "embed"

// Files are the texts, by the names that the units have.
//
//go:embed *.service *.socket *.slice
var Files embed.FS
