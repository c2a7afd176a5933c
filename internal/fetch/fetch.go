// Package fetch gets files whose content is known beforehand.
//
// An [Item] is named by its sha256. A [Store] keeps each under that name, so a
// file that reached the machine by any way at all, a copy by hand included, is
// as good as a download. Otherwise the item's sources are tried in order: an
// https address, or a member of an npm package, got by the ordinary npm
// client. Nothing is believed but the sum: cached files are summed again each
// time, and a file takes its name only when it is whole and right. The package
// does not know what the files are for.
package fetch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/api"
)

// Item is a file by its content.
type Item struct {
	// Name is what messages call it.
	Name string `json:"name"`
	// SHA256 is the sum of the content, 64 lower-case hex digits.
	SHA256 string `json:"sha256"`
	// Size is the content's length in bytes. No source may send more.
	Size int64 `json:"size"`
	// Sources are the places to get it from, the first that works wins.
	Sources []Source `json:"sources"`
}

// Source is one place to get an item from: either URL, or NPM with Member.
type Source struct {
	// URL is an https address.
	URL string `json:"url,omitempty"`
	// NPM is a package with its exact version, as in "name@1.2.3".
	NPM string `json:"npm,omitempty"`
	// Member is the item's path inside the package's archive.
	Member string `json:"member,omitempty"`
}

// String is how messages call the source.
func (s Source) String() string {
	if s.NPM != "" {
		return fmt.Sprintf("npm package %s (%s)", s.NPM, s.Member)
	}
	return s.URL
}

// Store keeps items in a directory. Any number of processes may use the same
// one: each file appears whole or not at all.
type Store struct {
	// Dir holds the files, each named by its sha256. It is made if needed.
	Dir string
	// Client is used for URLs; nil means one of the store's own that gives up
	// on servers which do not answer.
	Client *http.Client
	// Progress is told how many bytes of an item have come, 0 when a source is
	// about to be asked. One goroutine calls it; nil means nobody listens.
	Progress func(it Item, done int64)
}

// Path is where the store keeps an item, and where a person may put it.
func (s Store) Path(sha string) string { return filepath.Join(s.Dir, sha) }

// Get returns the item's file, open for reading at its start and verified; the
// caller closes it. If neither the cache nor any source has it, the error is
// an [*api.Error] that names the sum, each source with its reason, and where
// to put the file.
func (s Store) Get(ctx context.Context, it Item) (*os.File, error) {
	if raw, err := hex.DecodeString(it.SHA256); err != nil || len(raw) != sha256.Size || it.SHA256 != strings.ToLower(it.SHA256) || it.Size <= 0 {
		return nil, fmt.Errorf("fetching %s: its sha256 %q or its size %d makes no sense", it.Name, it.SHA256, it.Size)
	}
	f, err := s.cached(ctx, it)
	if f != nil || ctx.Err() != nil {
		return f, err
	}
	var reasons []string
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		reasons = append(reasons, fmt.Sprintf("%s: %v", s.Path(it.SHA256), err))
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("fetching %s: %w", it.Name, err)
	}
	for _, src := range it.Sources {
		f, err := s.from(ctx, it, src)
		if err == nil {
			return f, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("fetching %s: %w", it.Name, context.Cause(ctx))
		}
		if errors.Is(err, syscall.ENOSPC) {
			return nil, &api.Error{Code: api.NoSpace, Msg: fmt.Sprintf("fetching %s: no room for its %d bytes in %s", it.Name, it.Size, s.Dir), Err: err}
		}
		reasons = append(reasons, fmt.Sprintf("%s: %v", src, err))
	}
	if len(it.Sources) == 0 {
		reasons = append(reasons, "it has no source")
	}
	return nil, &api.Error{
		Code: api.NotFound,
		Msg:  fmt.Sprintf("fetching %s (sha256 %s): no source has it: %s", it.Name, it.SHA256, strings.Join(reasons, "; ")),
		Hint: fmt.Sprintf("put a file with that sha256 at %s, and repeat", s.Path(it.SHA256)),
	}
}

// cached opens the store's own copy. A copy with another content is an error,
// and stays until a right one replaces it.
func (s Store) cached(ctx context.Context, it Item) (*os.File, error) {
	f, err := os.Open(s.Path(it.SHA256))
	if err != nil {
		return nil, err
	}
	err = copyVerified(ctx, io.Discard, f, it)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// from gets the item from one source into the store.
func (s Store) from(ctx context.Context, it Item, src Source) (*os.File, error) {
	f, err := unnamed(s.Dir)
	if err != nil {
		return nil, err
	}
	s.tell(it, 0)
	if src.NPM != "" {
		err = s.npm(ctx, f, it, src)
	} else {
		err = s.https(ctx, f, it, src.URL)
	}
	if err == nil {
		err = name(f, s.Path(it.SHA256))
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (s Store) tell(it Item, done int64) {
	if s.Progress != nil {
		s.Progress(it, done)
	}
}

// copyVerified copies exactly the item from r to w, and says what differs.
func copyVerified(ctx context.Context, w io.Writer, r io.Reader, it Item) error {
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, sum), io.LimitReader(&stopped{ctx, r}, it.Size+1))
	switch {
	case err != nil:
		return err
	case n > it.Size:
		return fmt.Errorf("larger than the item's %d bytes", it.Size)
	case n < it.Size:
		return fmt.Errorf("ends after %d of %d bytes", n, it.Size)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != it.SHA256 {
		return fmt.Errorf("has another content (sha256 %s)", got)
	}
	return nil
}

// stopped is a reader that ends with its context.
type stopped struct {
	ctx context.Context
	r   io.Reader
}

func (s *stopped) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	return s.r.Read(p)
}

// unnamed makes a file in dir that has no name yet, so that a process which
// dies leaves nothing.
func unnamed(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("making a file without a name in %s: %w", dir, err)
	}
	return os.NewFile(uintptr(fd), filepath.Join(dir, "(unnamed)")), nil
}

// name gives an unnamed file its path, in place of a wrong one that may be
// there. If another process was first, its file is as good.
func name(f *os.File, path string) error {
	if err := f.Sync(); err != nil {
		return err
	}
	from := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	err := unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	// What is there may be damaged. Whoever removes it links again, so that after
	// the last removal of several there is a file.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	err = unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil // somebody else's, just made: verified by them, and by the next Get
}
