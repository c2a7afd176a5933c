package shelf

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/api"
	"banger/internal/atomicfile"
	"banger/internal/crash"
	"banger/internal/size"
)

// staging is the subdirectory in which directories are made. Ids are hex, so
// none is called that.
const staging = ".staging"

// Dirs are directories named by digests in one directory. Its methods may be
// called by many goroutines.
type Dirs struct {
	dir string

	mu sync.Mutex // makes Put and Remove of one id exclude each other
}

// OpenDirs makes dir if it is missing and removes what a crash left half-made.
func OpenDirs(dir string) (*Dirs, error) {
	s := &Dirs{dir: dir}
	if err := os.RemoveAll(s.path(staging)); err != nil {
		return nil, fmt.Errorf("removing what a crash left: %w", err)
	}
	if err := os.MkdirAll(s.path(staging), 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of a store: %w", err)
	}
	return s, nil
}

func (s *Dirs) path(name string) string { return filepath.Join(s.dir, name) }

// Dir is the directory that holds the whole shelf.
func (s *Dirs) Dir() string { return s.dir }

// Path is the file name in the directory of id.
func (s *Dirs) Path(id, name string) string { return filepath.Join(s.dir, id, name) }

// Has reports whether there is a directory of id.
func (s *Dirs) Has(id string) bool {
	if !ValidID(id) {
		return false
	}
	st, err := os.Stat(s.path(id))
	return err == nil && st.IsDir()
}

// ValidID reports whether id is a sha256 in lower-case hex.
func ValidID(id string) bool {
	return len(id) == 64 && strings.Trim(id, "0123456789abcdef") == ""
}

// IDs lists what is on the shelf, in order.
func (s *Dirs) IDs() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("listing a store: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && ValidID(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// Strays lists what is neither on the shelf nor being made, and Staged what is
// being made, as paths.
func (s *Dirs) Strays() ([]string, error) {
	return s.list(s.dir, func(name string) bool { return name != staging && !ValidID(name) })
}

// Staged lists the directories that are being made, as paths.
func (s *Dirs) Staged() ([]string, error) {
	return s.list(s.path(staging), func(string) bool { return true })
}

func (s *Dirs) list(dir string, keep func(name string) bool) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("listing a store: %w", err)
	}
	var paths []string
	for _, e := range entries {
		if keep(e.Name()) {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths, nil
}

// A Stage is a directory that is being made.
type Stage struct {
	dirs *Dirs
	dir  string
}

// Stage begins a directory. Discard must be called in the end, also after Put.
func (s *Dirs) Stage() (*Stage, error) {
	dir, err := os.MkdirTemp(s.path(staging), "")
	if err != nil {
		return nil, s.Explain(fmt.Errorf("making a directory: %w", err), 0)
	}
	crash.Point("pull.staged")
	return &Stage{dirs: s, dir: dir}, nil
}

// Path is the file name in the directory that is being made.
func (g *Stage) Path(name string) string { return filepath.Join(g.dir, name) }

// Create makes a file in the directory, for reading and writing.
func (g *Stage) Create(name string) (*os.File, error) {
	return os.OpenFile(g.Path(name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// Put gives the directory its name and makes it last; placed is false if id is
// there already, which then stays: it was made from the same content. What is
// in it must have been synced.
func (g *Stage) Put(id string) (placed bool, err error) {
	if !ValidID(id) {
		return false, fmt.Errorf("naming a directory: %q is not a digest", id)
	}
	if err := atomicfile.SyncDir(g.dir); err != nil {
		return false, err
	}
	g.dirs.mu.Lock()
	defer g.dirs.mu.Unlock()
	if g.dirs.Has(id) {
		return false, nil
	}
	if err := os.Rename(g.dir, g.dirs.path(id)); err != nil {
		return false, fmt.Errorf("putting a directory in place: %w", err)
	}
	return true, atomicfile.SyncDir(g.dirs.dir)
}

// Discard removes what was made, unless Put has given it its name.
func (g *Stage) Discard() error {
	if err := os.RemoveAll(g.dir); err != nil {
		return fmt.Errorf("removing a half-made directory: %w", err)
	}
	return nil
}

// Remove takes id off the shelf. Who has files of it open keeps them. It is
// no error if there is none.
func (s *Dirs) Remove(id string) error {
	if !ValidID(id) {
		return fmt.Errorf("removing a directory: %q is not a digest", id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Renamed first: it goes as a whole, even if this process does not live to
	// remove the files.
	gone := filepath.Join(s.path(staging), "gone-"+id)
	if err := os.RemoveAll(gone); err != nil {
		return fmt.Errorf("removing %s: %w", gone, err)
	}
	if err := os.Rename(s.path(id), gone); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("removing a directory: %w", err)
	}
	crash.Point("remove.aside")
	if err := os.RemoveAll(gone); err != nil {
		return fmt.Errorf("removing %s: %w", gone, err)
	}
	return nil
}

// Free is how many bytes the file system of the shelf has for us.
func (s *Dirs) Free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return 0, fmt.Errorf("asking for the free space of %s: %w", s.dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// Room is a NoSpace error if fewer than need bytes are free.
func (s *Dirs) Room(need int64) error {
	free, err := s.Free()
	if err != nil || free >= need {
		return err
	}
	return s.noSpace(need, free, nil)
}

// Guard returns r, with a NoSpace error once fewer than keep bytes are free: what
// is made of a tar without end must not take the room that running VMs write to.
func (s *Dirs) Guard(r io.Reader, keep int64) io.Reader { return &guard{r: r, dirs: s, keep: keep} }

// guardEvery is after how many bytes a guard looks.
const guardEvery = 4 << 20

type guard struct {
	r    io.Reader
	dirs *Dirs
	keep int64
	n    int64 // bytes since the last look
}

func (g *guard) Read(p []byte) (int, error) {
	if g.n >= guardEvery {
		g.n = 0
		if err := g.dirs.Room(g.keep); err != nil {
			return 0, err
		}
	}
	n, err := g.r.Read(p)
	g.n += int64(n)
	return n, err
}

// Explain makes an error of a full disk, a quota or a file size limit say
// which directory is meant and how much is needed, at least; others are
// returned as they are.
func (s *Dirs) Explain(err error, need int64) error {
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) && !errors.Is(err, syscall.EFBIG) {
		return err
	}
	free, ferr := s.Free()
	if ferr != nil {
		return errors.Join(err, ferr)
	}
	return s.noSpace(need, free, err)
}

func (s *Dirs) noSpace(need, free int64, err error) error {
	more := "more space is needed"
	if need > 0 {
		more = size.Bytes(need).Short() + " are needed"
	}
	return &api.Error{
		Code: api.NoSpace,
		Msg:  fmt.Sprintf("%s has no room: %s, %s are free", s.dir, more, size.Bytes(free).Short()),
		Hint: "make room there; what banger itself could give up: banger image list",
		Err:  err,
	}
}

// Used is how many bytes the files of id take on the disk.
func (s *Dirs) Used(id string) (int64, error) {
	entries, err := os.ReadDir(s.path(id))
	if err != nil {
		return 0, fmt.Errorf("measuring a directory: %w", err)
	}
	var used int64
	for _, e := range entries {
		var st unix.Stat_t
		if err := unix.Lstat(s.Path(id, e.Name()), &st); err != nil {
			return 0, fmt.Errorf("measuring %s: %w", s.Path(id, e.Name()), err)
		}
		used += st.Blocks * 512
	}
	return used, nil
}
