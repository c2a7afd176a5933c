// Package store keeps the daemon's state in one SQLite file: it opens it,
// brings its schema up to date and runs transactions.
//
// It has no queries of its own: each noun keeps its SQL in its rows.go and
// hands its migrations to the daemon, which opens the store with all of them.
// A file that cannot be used is never a crash: one from the future is refused
// with a sentence, a damaged one is set aside and said, and the nouns rebuild
// their rows from the copies beside their files.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"

	"banger/internal/api"
)

// A Store is an open state file. Its methods may be called from several
// goroutines; transactions run one after the other.
type Store struct {
	db       *sql.DB
	path     string
	setAside string
	fresh    bool
}

// SetAside is the path to which a damaged state file was renamed by [Open],
// or "".
func (s *Store) SetAside() string { return s.setAside }

// Fresh reports whether Open made the file, or one before did and [Store.Rebuilt]
// was not called since: what there is on the disk may have no rows yet.
func (s *Store) Fresh() bool { return s.fresh }

// Rebuilt notes that all that is on the disk has its rows again, so that the
// next Open is not Fresh. A process that dies before leaves the whole work to the
// next one, which must not take what has no row for a leak.
func (s *Store) Rebuilt(ctx context.Context) error {
	return s.Tx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "DROP TABLE IF EXISTS "+rebuilding); err != nil {
			return fmt.Errorf("noting that rows are rebuilt: %w", err)
		}
		return nil
	})
}

// rebuilding is a table that is there as long as a new file lacks rows.
const rebuilding = "rebuilding"

// Close closes the file.
func (s *Store) Close() error { return s.db.Close() }

// Tx runs f in one transaction and commits if it returns nil; everything is
// undone otherwise, also when ctx ends first. f must not keep tx, and must not
// begin another transaction, which would wait for this one for ever.
func (s *Store) Tx(ctx context.Context, f func(tx *sql.Tx) error) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("beginning transaction: %w", err)
	}
	if err := f(tx); err != nil {
		// SQLite has rolled back by itself where the disk is full, and says so.
		if rollback := tx.Rollback(); rollback != nil && !errors.Is(rollback, sql.ErrTxDone) && !IsFull(err) {
			return errors.Join(err, fmt.Errorf("rolling back: %w", rollback))
		}
		return s.full(err)
	}
	if err := tx.Commit(); err != nil {
		return s.full(fmt.Errorf("committing: %w", err))
	}
	return nil
}

// full gives an error of a full disk the words that help.
func (s *Store) full(err error) error {
	if !IsFull(err) {
		return err
	}
	dir := filepath.Dir(s.path)
	return &api.Error{Code: api.NoSpace, Msg: dir + " is full, and the state cannot be saved", Hint: "make room there, for example with: banger vm delete NAME", Err: err}
}
