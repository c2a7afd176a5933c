package sshconf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"banger/internal/atomicfile"
)

// Host is the name under which a VM's host key is kept, and by which ssh asks
// for it.
func Host(name string) string { return name + ".vm" }

// KnownHosts is a known_hosts file that banger alone writes. Changes are
// atomic and may come from several processes.
type KnownHosts struct{ Path string }

// Put makes key, a public line, the only key of the VM called name.
func (k KnownHosts) Put(name, key string) error {
	return k.edit(func(lines []string) []string {
		return append(without(lines, Host(name)), Host(name)+" "+strings.TrimSpace(key))
	})
}

// Remove forgets the VM called name.
func (k KnownHosts) Remove(name string) error {
	return k.edit(func(lines []string) []string { return without(lines, Host(name)) })
}

func without(lines []string, host string) []string {
	var kept []string
	for _, l := range lines {
		if first, _, _ := strings.Cut(l, " "); first != host {
			kept = append(kept, l)
		}
	}
	return kept
}

func (k KnownHosts) edit(change func([]string) []string) error {
	if err := os.MkdirAll(filepath.Dir(k.Path), 0o700); err != nil {
		return fmt.Errorf("making the ssh directory: %w", err)
	}
	unlock, err := lock(filepath.Dir(k.Path))
	if err != nil {
		return fmt.Errorf("locking known_hosts: %w", err)
	}
	defer unlock()
	old, err := os.ReadFile(k.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading known_hosts: %w", err)
	}
	var lines []string
	for l := range strings.Lines(string(old)) {
		lines = append(lines, strings.TrimRight(l, "\n"))
	}
	var text strings.Builder
	for _, l := range change(lines) {
		text.WriteString(l + "\n")
	}
	if text.String() == string(old) {
		return nil
	}
	if err := atomicfile.Write(k.Path, []byte(text.String()), 0o600); err != nil {
		return fmt.Errorf("writing known_hosts: %w", err)
	}
	return nil
}

// lock takes an exclusive lock on a directory, which dies with the process and
// leaves no file behind.
func lock(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { f.Close() }, nil
}
