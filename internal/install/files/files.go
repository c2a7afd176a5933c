// Package files puts files on the host such that they can be taken away again,
// exactly, at any later time and after a death at any instant.
//
// The manifest says what is ours: it is written before the first file is, and
// removed after the last one. A file that it does not name is somebody else's,
// and is never replaced or removed. What is in the files is others' to know.
package files

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"banger/internal/atomicfile"
)

// A Manifest lists what is ours on this host.
type Manifest struct {
	Version  string   `json:"version"`  // the banger that wrote it
	Complete bool     `json:"complete"` // false: what it tells of was begun and not finished
	Files    []File   `json:"files"`
	Dirs     []string `json:"dirs"` // that we made, outermost first
	// Forwarding is what the host's net.ipv4.ip_forward was before.
	Forwarding string `json:"ip_forward,omitempty"`
}

// A File is one name. Sums are the SHA-256 of what may be there, two while one
// is being replaced by another; a link's is that of its target's name.
type File struct {
	Path string   `json:"path"`
	Sums []string `json:"sha256"`
}

// Read reads a manifest; one that is not there is empty.
func Read(path string) (m Manifest, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Manifest{}, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		return Manifest{}, fmt.Errorf("reading the list of installed files %s: %w", path, err)
	}
	return m, nil
}

// Write replaces the manifest at path.
func (m Manifest) Write(path string) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err == nil {
		err = atomicfile.Write(path, append(b, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("writing the list of installed files: %w", err)
	}
	return nil
}

// Adopt is a manifest of what is there at these paths, for when the list was lost.
func Adopt(paths []string) (m Manifest, err error) {
	for _, p := range paths {
		now, err := onDisk(p)
		if err != nil {
			return m, err
		}
		if now != "" {
			m.Files = append(m.Files, File{Path: p, Sums: []string{now}})
		}
	}
	return m, nil
}

// sums are those that the manifest has for a path.
func (m Manifest) sums(path string) []string {
	for _, f := range m.Files {
		if f.Path == path {
			return f.Sums
		}
	}
	return nil
}

// With is the manifest while these files are being put: each may be as it was
// or as it will be.
func (m Manifest) With(list []New) Manifest {
	out := m
	out.Files = slices.Clone(m.Files)
	for _, n := range list {
		i := slices.IndexFunc(out.Files, func(f File) bool { return f.Path == n.Path })
		if i < 0 {
			out.Files = append(out.Files, File{Path: n.Path})
			i = len(out.Files) - 1
		}
		if !slices.Contains(out.Files[i].Sums, n.Sum()) {
			out.Files[i].Sums = append(slices.Clone(out.Files[i].Sums), n.Sum())
		}
	}
	return out
}

// Settled is the manifest when these files are there, and no others of ours.
func (m Manifest) Settled(list []New) Manifest {
	out := m
	out.Files = nil
	for _, n := range list {
		out.Files = append(out.Files, File{Path: n.Path, Sums: []string{n.Sum()}})
	}
	return out
}

// Dropped are the files of the manifest that are not in the list: an earlier
// version had them.
func (m Manifest) Dropped(list []New) (old []File) {
	for _, f := range m.Files {
		if !slices.ContainsFunc(list, func(n New) bool { return n.Path == f.Path }) {
			old = append(old, f)
		}
	}
	return old
}

// New is a file that shall be there: Data, or a link to Link.
type New struct {
	Path string
	Mode fs.FileMode
	Data []byte
	Link string

	sum string // of Data, once for all who ask; empty: not known yet
}

// Large is a New with much data, which is summed here and never again. The data
// must not change afterwards.
func Large(path string, mode fs.FileMode, data []byte) New {
	return New{Path: path, Mode: mode, Data: data, sum: sum(data)}
}

// Sum is what the manifest has of it.
func (n New) Sum() string {
	if n.Link != "" {
		return linkSum(n.Link)
	}
	if n.sum != "" {
		return n.sum
	}
	return sum(n.Data)
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func linkSum(target string) string { return sum([]byte("link to " + target)) }

// onDisk is the sum of what is at path, "" if there is nothing. What is neither
// a file nor a link has a sum that nothing else has.
func onDisk(path string) (string, error) {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", err
	case st.Mode().Type() == fs.ModeSymlink:
		target, err := os.Readlink(path)
		return linkSum(target), err
	case !st.Mode().IsRegular():
		return st.Mode().Type().String(), nil
	}
	b, err := os.ReadFile(path)
	return sum(b), err
}

// A State is how a name on the host stands to what shall be there.
type State string

// The states.
const (
	Absent  State = "new"
	Same    State = "unchanged"
	Older   State = "replace"                      // ours, of another version
	Changed State = "replace (changed since then)" // ours, but not what was put there
	Foreign State = "not ours"                     // somebody else's: never touched
)

// Look compares a file with what is there.
func (m Manifest) Look(n New) (State, error) {
	known := m.sums(n.Path)
	if n.there() && n.modeFits() {
		return Same, nil
	}
	now, err := onDisk(n.Path)
	switch {
	case err != nil:
		return "", err
	case now == "":
		return Absent, nil
	case slices.Contains(known, now):
		return Older, nil
	case known != nil:
		return Changed, nil
	}
	return Foreign, nil
}

// there reports whether the name on the host is such a file, byte for byte, or
// such a link.
func (n New) there() bool {
	st, err := os.Lstat(n.Path)
	switch {
	case err != nil:
		return false
	case n.Link != "":
		target, err := os.Readlink(n.Path)
		return err == nil && target == n.Link
	case !st.Mode().IsRegular() || st.Size() != int64(len(n.Data)):
		return false
	}
	b, err := os.ReadFile(n.Path)
	return err == nil && bytes.Equal(b, n.Data)
}

// modeFits reports whether the file there, if it is one, has the mode, and is
// ours to write: its owner could change it at any time.
func (n New) modeFits() bool {
	st, err := os.Lstat(n.Path)
	return err == nil && uidOf(st) == uint32(os.Geteuid()) && (n.Link != "" || st.Mode() == n.Mode)
}

// Drift lists the files that are not as they were put.
func (m Manifest) Drift() (changed []string, err error) {
	for _, f := range m.Files {
		now, err := onDisk(f.Path)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(f.Sums, now) {
			changed = append(changed, f.Path)
		}
	}
	return changed, nil
}

// keptPrefix begins the names of files as they were before they were replaced.
const keptPrefix = ".banger-old-"

func kept(path string) string {
	return filepath.Join(filepath.Dir(path), keptPrefix+filepath.Base(path))
}

// Put puts a file in place, in one step. back makes it as it was; [Tidy] makes
// that impossible, and must be called in the end.
func (n New) Put() (back func() error, err error) {
	old := kept(n.Path)
	if err := os.Remove(old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	err = os.Link(n.Path, old)
	was := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("keeping %s as it was: %w", n.Path, err)
	}
	if n.Link != "" {
		err = replaceLink(n.Link, n.Path)
	} else {
		err = atomicfile.Write(n.Path, n.Data, n.Mode)
	}
	if err != nil {
		return nil, errors.Join(err, ignoreGone(os.Remove(old)))
	}
	return func() error {
		if was {
			return os.Rename(old, n.Path)
		}
		return ignoreGone(os.Remove(n.Path))
	}, nil
}

func replaceLink(target, path string) error {
	tmp := filepath.Join(filepath.Dir(path), atomicfile.TempPrefix+filepath.Base(path)+".link")
	if err := ignoreGone(os.Remove(tmp)); err != nil {
		return err
	}
	if err := os.Symlink(target, tmp); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// Tidy removes what a replacement that ended, or was killed, has left beside
// the paths.
func Tidy(paths ...string) (err error) {
	for _, p := range paths {
		half, globErr := filepath.Glob(filepath.Join(filepath.Dir(p), atomicfile.TempPrefix+filepath.Base(p)+".*"))
		err = errors.Join(err, globErr)
		for _, name := range append(half, kept(p)) {
			err = errors.Join(err, ignoreGone(os.Remove(name)))
		}
	}
	return err
}

// Remove removes a file if it is what was put there, and says whether it left
// one that is not.
func (f File) Remove() (left bool, err error) {
	now, err := onDisk(f.Path)
	if err != nil || now == "" {
		return false, err
	}
	if !slices.Contains(f.Sums, now) {
		return true, nil
	}
	return false, ignoreGone(os.Remove(f.Path))
}

// MakeDirs makes the directories of the files, mode 0755, and returns those
// that were not there, outermost first.
func MakeDirs(list []New) (made []string, err error) {
	for _, n := range list {
		m, err := makeDir(filepath.Dir(n.Path))
		made = append(made, m...)
		if err != nil {
			return made, err
		}
	}
	return made, nil
}

// Missing are the directories that MakeDirs would make.
func Missing(list []New) (dirs []string) {
	for _, n := range list {
		var these []string
		for dir := filepath.Dir(n.Path); !slices.Contains(dirs, dir); dir = filepath.Dir(dir) {
			if _, err := os.Lstat(dir); err == nil {
				break
			}
			these = append(these, dir)
		}
		slices.Reverse(these)
		dirs = append(dirs, these...)
	}
	return dirs
}

func makeDir(dir string) (made []string, err error) {
	if st, err := os.Stat(dir); err == nil {
		if !st.IsDir() {
			return nil, fmt.Errorf("making %s: it is no directory", dir)
		}
		return nil, nil
	}
	made, err = makeDir(filepath.Dir(dir))
	if err != nil {
		return made, err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return made, err
	}
	return append(made, dir), os.Chmod(dir, 0o755)
}

// RemoveDirs removes those of the directories that are empty, innermost first.
func RemoveDirs(dirs []string) (err error) {
	for _, dir := range slices.Backward(dirs) {
		if left, readErr := os.ReadDir(dir); readErr == nil && len(left) == 0 {
			err = errors.Join(err, ignoreGone(os.Remove(dir)))
		}
	}
	return err
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Equal reports whether two manifests say the same.
func (m Manifest) Equal(o Manifest) bool {
	a, err1 := json.Marshal(m)
	b, err2 := json.Marshal(o)
	return err1 == nil && err2 == nil && bytes.Equal(a, b)
}
