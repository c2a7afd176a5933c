// Package image keeps the base images that VMs boot from.
//
// An image is a read-only ext4 file system, made from a root tar in one pass
// and never changed. It is not mounted, not extracted and not looked into
// again on the host. Where a tar comes from, and which VMs use an image, is
// for others to know.
package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"banger/internal/api"
	"banger/internal/ext4"
	"banger/internal/names"
	"banger/internal/shelf"
	"banger/internal/store"
)

// fileName is the image in its directory.
const fileName = "base.ext4"

// minFree is how much room there must be before a tar of unknown size is read
// at all, and as long as it is read: less holds no useful image, and VMs that
// run need some.
const minFree = 64 << 20

// Config configures [Open]. All of it is required.
type Config struct {
	Store *store.Store
	Dir   string // of its own
	// Users names the VMs that use the image with this id, as of tx.
	Users func(ctx context.Context, tx *sql.Tx, id string) ([]string, error)
	// Rebuild says that the state file is new: see [shelf.Config].
	Rebuild bool
}

// Migrations are the steps of the table images, numbered from first.
func Migrations(first int) []store.Migration {
	return []store.Migration{{Number: first, Noun: "image", SQL: shelf.Schema("images")}}
}

// A Store holds the images. Its methods may be called by many goroutines.
type Store struct{ shelf *shelf.Shelf[api.Image] }

// Open makes the store ready and removes what a crash left half-made.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	s, err := shelf.Open[api.Image](ctx, shelf.Config{
		Dir: cfg.Dir, Noun: "image", Table: "images", Tx: cfg.Store.Tx, Users: cfg.Users, Rebuild: cfg.Rebuild,
	})
	if err != nil {
		return nil, fmt.Errorf("opening the image store: %w", err)
	}
	return &Store{shelf: s}, nil
}

// An Import says what to make of a tar.
type Import struct {
	Name   string
	Source string // "import", "catalog:debian-bookworm"
	// Replace lets Name move on from another image, which is kept while VMs
	// use it. Else a name that is taken is refused.
	Replace bool
	// Need is how many bytes the image will take, if that is known: an import
	// that cannot end well is then refused at its beginning.
	Need int64
	// Progress, if not nil, is called now and then with the number of bytes of
	// the tar that have been read.
	Progress func(done int64)
}

// Import makes an image of the root tar in r, which is read to its end. Until
// that has come without an error nothing can be seen of the image, and when
// Import returns an error nothing is left of it. NoSpace says where. A read
// from r that blocks is not interrupted by ctx: its owner must end it.
func (s *Store) Import(ctx context.Context, imp Import, r io.Reader) (_ api.Image, err error) {
	if err := names.CheckImage(imp.Name); err != nil {
		return api.Image{}, err
	}
	if !imp.Replace {
		if err := s.shelf.Vacant(ctx, nil, imp.Name); err != nil {
			return api.Image{}, err
		}
	}
	if err := s.shelf.Room(max(imp.Need, minFree)); err != nil {
		return api.Image{}, err
	}
	stage, err := s.shelf.Stage()
	if err != nil {
		return api.Image{}, err
	}
	defer func() { err = errors.Join(err, stage.Discard()) }()
	im, err := s.write(ctx, stage, imp, r)
	if err != nil {
		return api.Image{}, fmt.Errorf("making image %s: %w", imp.Name, s.shelf.Explain(err, imp.Need))
	}
	if err := s.shelf.Put(ctx, stage, shelf.Entry[api.Image]{Name: im.Name, ID: im.ID, Body: im}, imp.Replace); err != nil {
		return api.Image{}, fmt.Errorf("storing image %s: %w", imp.Name, err)
	}
	return im, nil
}

// write streams the tar into the image file and says what it was.
func (s *Store) write(ctx context.Context, stage *shelf.Stage, imp Import, r io.Reader) (im api.Image, err error) {
	f, err := stage.Create(fileName)
	if err != nil {
		return im, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sum := sha256.New()
	tee := io.TeeReader(s.shelf.Guard(r, minFree), sum)
	var init initFinder
	// It reads to the end of the stream, which says that the maker ended well.
	info, err := ext4.Write(ctx, tee, f, ext4.Options{Label: "banger-base", Filter: init.see, Progress: imp.Progress})
	if ctx.Err() != nil {
		return im, context.Cause(ctx)
	}
	if err != nil {
		return im, badTar(err)
	}
	if info.Inodes <= 1 {
		return im, &api.Error{Code: api.Invalid, Msg: "the tar is empty"}
	}
	if err := f.Sync(); err != nil {
		return im, fmt.Errorf("syncing %s: %w", fileName, err)
	}
	return api.Image{
		Name: imp.Name, ID: hex.EncodeToString(sum.Sum(nil)), Source: imp.Source,
		Bytes: info.Bytes, Used: info.Used, Init: init.found(), Created: time.Now().UTC().Truncate(time.Second),
	}, nil
}

// badTar tells what is wrong with the tar from what is wrong with the host.
func badTar(err error) error {
	switch {
	case errors.Is(err, ext4.ErrTooLarge):
		return &api.Error{Code: api.Invalid, Msg: "the tar is too large for an image", Err: err}
	case errors.Is(err, ext4.ErrTruncated), errors.Is(err, io.ErrUnexpectedEOF):
		return &api.Error{Code: api.Invalid, Msg: "the tar is not whole", Hint: "what makes it may have been interrupted", Err: err}
	case errors.Is(err, tar.ErrHeader):
		return &api.Error{Code: api.Invalid, Msg: "this is not a tar, or a damaged one", Hint: "an import takes an uncompressed root tar; for others: zcat FILE.tar.gz | banger image import NAME -", Err: err}
	}
	return err
}

// initFinder looks for an init among the names of a tar.
type initFinder struct{ systemd, other bool }

func (i *initFinder) see(h *tar.Header) bool {
	if h.Typeflag != tar.TypeDir {
		switch strings.TrimPrefix(path.Clean("/"+h.Name), "/usr") {
		case "/lib/systemd/systemd":
			i.systemd = true
		case "/sbin/init", "/bin/init", "/init", "/etc/init":
			i.other = true
		}
	}
	return true
}

func (i *initFinder) found() string {
	switch {
	case i.systemd:
		return "systemd"
	case i.other:
		return "other"
	}
	return "none"
}

// List returns the images by name, without their users.
func (s *Store) List(ctx context.Context) ([]api.Image, error) {
	es, err := s.shelf.List(ctx)
	if err != nil {
		return nil, err
	}
	out := []api.Image{}
	for _, e := range es {
		out = append(out, of(e))
	}
	return out, nil
}

// Find returns the image that ref, a name, an id or the beginning of one,
// means.
func (s *Store) Find(ctx context.Context, ref string) (api.Image, error) {
	e, err := s.shelf.Find(ctx, ref)
	if err != nil {
		return api.Image{}, err
	}
	return of(e), nil
}

// of is an image under the name that it has now.
func of(e shelf.Entry[api.Image]) api.Image {
	im := e.Body
	im.Name, im.ID = e.Name, e.ID
	return im
}

// Claim is a Conflict error if the image with this id is gone or has lost its
// name. It is called in the transaction that writes a VM's row.
func (s *Store) Claim(ctx context.Context, tx *sql.Tx, id string) error {
	return s.shelf.Claim(ctx, tx, id)
}

// Delete removes the image that ref means; it is refused while VMs use it.
func (s *Store) Delete(ctx context.Context, ref string) (api.Image, error) {
	e, err := s.shelf.Delete(ctx, ref)
	return of(e), err
}

// OpenFile opens the file system of the image with this id for reading,
// whatever its name is by now. The caller closes it.
func (s *Store) OpenFile(id string) (*os.File, error) {
	if !s.shelf.Has(id) {
		return nil, &api.Error{Code: api.NotFound, Msg: fmt.Sprintf("the image %.12s that this VM was made from is gone", id)}
	}
	f, err := os.Open(s.shelf.Path(id, fileName))
	if err != nil {
		return nil, fmt.Errorf("opening image: %w", err)
	}
	return f, nil
}

// Room is a NoSpace error, which names the directory, if fewer than need bytes
// are free.
func (s *Store) Room(need int64) error { return s.shelf.Room(need) }

// Sweep removes images that have lost their name and their last VM.
func (s *Store) Sweep(ctx context.Context) error { return s.shelf.Sweep(ctx) }

// Staging lists the directories of images that are being made.
func (s *Store) Staging() ([]string, error) { return s.shelf.Staged() }

// Leaks says in sentences what nothing explains.
func (s *Store) Leaks(ctx context.Context) ([]string, error) { return s.shelf.Leaks(ctx) }
