package guestinit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// openNodes are the nodes of modules.devname that everybody may open, as udev's
// own rules have it.
var openNodes = map[string]bool{"fuse": true, "net/tun": true}

// staticNodes makes the nodes in dev whose first opening loads a module, as the
// list of the kernel's modules has them: it has lines like "tun net/tun c10:200".
// The image's systemd starts two programs for it, which took an emulated guest
// half a second.
func staticNodes(list, dev string) error {
	var errs []error
	for line := range strings.Lines(list) {
		var module, name string
		var kind rune
		var major, minor uint32
		if n, _ := fmt.Sscanf(line, "%s %s %c%d:%d", &module, &name, &kind, &major, &minor); n != 5 || strings.Contains(name, "..") {
			continue
		}
		mode := uint32(unix.S_IFCHR | 0o600)
		if openNodes[name] {
			mode |= 0o066
		}
		if kind == 'b' {
			mode = mode&^unix.S_IFCHR | unix.S_IFBLK
		}
		path := filepath.Join(dev, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = unix.Mknod(path, mode, int(unix.Mkdev(major, minor)))
		}
		if err == nil {
			err = unix.Chmod(path, mode&0o777) // whatever the umask
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			errs = append(errs, fmt.Errorf("making /dev/%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}
