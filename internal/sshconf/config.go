package sshconf

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/api"
	"banger/internal/atomicfile"
)

// The fence of the block in ~/.ssh/config. Whatever is between the two lines
// is banger's; nothing else is.
const (
	fenceBegin = "# >>> banger >>>"
	// fenceMade begins the block in a file that Install has made, so that
	// Uninstall may take the file away again.
	fenceMade = "# >>> banger >>> (banger made this file)"
	fenceEnd  = "# <<< banger <<<"
)

// A Target is what ssh must be told to reach one VM.
type Target struct {
	Name         string
	KnownHosts   string
	Key          string
	ProxyCommand string // a shell command; % stands for itself
}

// Args are the options of an ssh command to a target, without the host. They
// ignore the user's configuration, which knows nothing of VMs and could only
// weaken them.
func Args(t Target) []string {
	args := []string{"-F", "none"}
	for _, o := range [][2]string{
		{"ProxyCommand", strings.ReplaceAll(t.ProxyCommand, "%", "%%")},
		{"HostKeyAlias", Host(t.Name)},
		{"UserKnownHostsFile", quote(t.KnownHosts)},
		{"IdentityFile", quote(t.Key)},
		{"GlobalKnownHostsFile", "none"},
		{"StrictHostKeyChecking", "yes"},
		{"UpdateHostKeys", "no"},
		{"IdentitiesOnly", "yes"},
		{"PreferredAuthentications", "publickey"},
		{"ForwardAgent", "no"},
		{"ControlPath", "none"},
		{"LogLevel", "ERROR"},
		// The channel is a socket of our own: the cheapest good exchange first.
		{"KexAlgorithms", "^curve25519-sha256"},
	} {
		args = append(args, "-o", o[0]+"="+o[1])
	}
	return args
}

// quote makes a path one argument of a configuration line.
func quote(path string) string {
	path = strings.ReplaceAll(path, "%", "%%")
	if !strings.ContainsAny(path, " \t\"'#\\") {
		return path
	}
	return `"` + strings.ReplaceAll(strings.ReplaceAll(path, `\`, `\\`), `"`, `\"`) + `"`
}

// Stanza is the configuration that makes `ssh NAME.vm` work for every VM:
// self is the path of the banger program. A host's name comes from anywhere, a
// submodule's URL for one, and a shell reads the command: only recent versions of
// ssh refuse names that mean something to it.
func Stanza(self, knownHosts, key string) string {
	return fmt.Sprintf(`# Written by "banger ssh-config"; changes are overwritten.
Host *.vm "!*'*"
    User root
    ProxyCommand '%s' internal ssh-proxy -- '%%n'
    IdentityFile %s
    IdentitiesOnly yes
    UserKnownHostsFile %s
    GlobalKnownHostsFile none
    StrictHostKeyChecking yes
    UpdateHostKeys no
    ForwardAgent no
`, strings.ReplaceAll(strings.ReplaceAll(self, "'", `'\''`), "%", "%%"), quote(key), quote(knownHosts))
}

// WriteStanza writes what Stanza gives to the file at path, which is to be
// included, and makes its directory.
func WriteStanza(path, self, knownHosts, key string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return &api.Error{Code: api.Denied, Msg: "making the configuration directory", Err: err}
	}
	return atomicfile.Write(path, []byte(Stanza(self, knownHosts, key)), 0o600)
}

// IncludeLine is what a user pastes who does not want Install.
func IncludeLine(stanzaFile string) string { return "Include " + quote(stanzaFile) }

// Install puts the include line in a fenced block at the beginning of
// ~/.ssh/config, where it is not inside somebody's Host block. It reports
// whether it changed anything. A second Install replaces the block.
func Install(home, stanzaFile string) (changed bool, err error) {
	return editUser(home, func(old []byte) []byte {
		eol := "\n"
		if bytes.Contains(old, []byte("\r\n")) {
			eol = "\r\n"
		}
		begin := fenceBegin
		if old == nil || madeByUs(old) {
			begin = fenceMade
		}
		block := strings.Join([]string{begin, IncludeLine(stanzaFile), fenceEnd, ""}, eol)
		return append([]byte(block), unfenced(old)...)
	})
}

// Uninstall takes the block away: what Install found is there again, byte for
// byte, or the file is gone if it was not there.
func Uninstall(home string) (changed bool, err error) {
	if _, err := os.Lstat(filepath.Join(home, ".ssh")); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return editUser(home, unfenced)
}

// Included reports whether ~/.ssh/config has the include line.
func Included(home, stanzaFile string) bool {
	text, err := os.ReadFile(filepath.Join(home, ".ssh", "config"))
	return err == nil && bytes.Contains(text, []byte(IncludeLine(stanzaFile)))
}

// unfenced returns the text without our blocks.
func unfenced(text []byte) []byte {
	var kept []byte
	inside := false
	for line := range bytes.Lines(text) {
		switch strings.TrimRight(string(line), "\r\n") {
		case fenceBegin, fenceMade:
			inside = true
			continue
		case fenceEnd:
			if inside {
				inside = false
				continue
			}
		}
		if !inside {
			kept = append(kept, line...)
		}
	}
	return kept
}

func madeByUs(text []byte) bool { return bytes.Contains(text, []byte(fenceMade)) }

// editUser changes ~/.ssh/config atomically, keeping its mode. A link is
// followed as long as it stays in the home directory.
func editUser(home string, change func([]byte) []byte) (bool, error) {
	dir := filepath.Join(home, ".ssh")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, fmt.Errorf("making %s: %w", dir, err)
	}
	unlock, err := lock(dir)
	if err != nil {
		return false, fmt.Errorf("locking %s: %w", dir, err)
	}
	defer unlock()
	path, mode, err := resolve(home, filepath.Join(dir, "config"))
	if err != nil {
		return false, err
	}
	old, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		old = nil
	} else if err != nil {
		return false, fmt.Errorf("reading %s: %w", path, err)
	}
	if unfinished(old) {
		return false, &api.Error{Code: api.Invalid, Msg: fmt.Sprintf("%s has a line %q without its end %q", path, fenceBegin, fenceEnd), Hint: "edit " + path}
	}
	text := change(old)
	switch {
	case bytes.Equal(text, old):
		return false, nil
	case len(text) == 0 && madeByUs(old):
		return true, os.Remove(path)
	}
	if err := atomicfile.Write(path, text, mode); err != nil {
		return false, fmt.Errorf("writing %s: %w", path, err)
	}
	return true, nil
}

// unfinished reports a begin without an end: removing it would take the rest
// of the file away.
func unfinished(text []byte) bool {
	open := false
	for line := range bytes.Lines(text) {
		switch strings.TrimRight(string(line), "\r\n") {
		case fenceBegin, fenceMade:
			open = true
		case fenceEnd:
			open = false
		}
	}
	return open
}

// resolve finds the real file behind path, and its mode.
func resolve(home, path string) (string, fs.FileMode, error) {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return path, 0o600, nil
	}
	if err != nil {
		return "", 0, fmt.Errorf("looking at %s: %w", path, err)
	}
	if st.Mode()&fs.ModeSymlink == 0 {
		return path, st.Mode().Perm(), nil
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", 0, fmt.Errorf("following %s: %w", path, err)
	}
	realHome, err := filepath.EvalSymlinks(home)
	if err != nil {
		return "", 0, fmt.Errorf("following %s: %w", home, err)
	}
	if !strings.HasPrefix(real, realHome+string(filepath.Separator)) {
		return "", 0, &api.Error{Code: api.Denied, Msg: fmt.Sprintf("%s leads out of the home directory, to %s", path, real), Hint: "paste the line that banger ssh-config prints"}
	}
	if st, err = os.Stat(real); err != nil {
		return "", 0, fmt.Errorf("looking at %s: %w", real, err)
	}
	return real, st.Mode().Perm(), nil
}
