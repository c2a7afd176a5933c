package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"banger/internal/api"
	"banger/internal/atomicfile"
)

// A Migration is one numbered step of the schema. Steps only go forward, and
// a step that was released never changes.
type Migration struct {
	Number int    // 1, 2, 3, ... without gaps over all nouns
	Noun   string // whose tables it touches, for messages
	SQL    string // one or more statements
}

// Config configures [Open].
type Config struct {
	Path       string      // its directory must exist
	Migrations []Migration // in any order
	Log        *slog.Logger
	// Now names the time in the name of a file that is set aside; time.Now if
	// nil.
	Now func() time.Time
}

// applicationID marks the file as ours for file(1) and for Open: "bngr".
const applicationID = 0x626e6772

// pragmas of every connection. Locked for us alone, since there is one daemon
// and one connection: so there is no file of shared memory, for which a full
// disk may have no room. FULL, since a row that is lost with the host's power
// would turn its VM's disk into a leak; cell_size_check finds damage before it
// is followed.
var pragmas = [...]string{
	"busy_timeout(5000)",
	"locking_mode(EXCLUSIVE)",
	"synchronous(FULL)",
	"foreign_keys(1)",
	"cell_size_check(1)",
	"trusted_schema(0)",
}

// errDamaged marks what makes Open set a file aside.
var errDamaged = errors.New("the state file is damaged")

// Open opens the state file, or makes it, and applies the migrations that it
// lacks. A file from a newer banger is a VersionSkew error. A file that cannot
// be read, or makes no sense, is renamed to PATH.damaged-TIME and a new one
// begun: see [Store.SetAside].
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	steps, err := ordered(c.Migrations)
	if err != nil {
		return nil, err
	}
	s, err := open(ctx, c.Path, steps)
	if !errors.Is(err, errDamaged) {
		return s, err
	}
	aside, asideErr := setAside(c.Path, c.Now())
	if asideErr != nil {
		return nil, &api.Error{
			Code: api.StateDamaged,
			Msg:  fmt.Sprintf("state file %s is damaged and cannot be set aside", c.Path),
			Hint: "move it away by hand: mv " + c.Path + " " + c.Path + ".damaged",
			Err:  errors.Join(err, asideErr),
		}
	}
	c.Log.Error("state file is damaged: set aside, beginning a new one", "path", c.Path, "aside", aside, "why", err)
	if s, err = open(ctx, c.Path, steps); err != nil {
		return nil, err
	}
	s.setAside = aside
	return s, nil
}

// ordered sorts migrations and checks that they are numbered 1, 2, 3, ...
func ordered(in []Migration) ([]Migration, error) {
	steps := slices.Clone(in)
	slices.SortFunc(steps, func(a, b Migration) int { return cmp.Compare(a.Number, b.Number) })
	for i, m := range steps {
		if m.Number != i+1 {
			return nil, fmt.Errorf("ordering migrations: number %d of %s follows %d", m.Number, m.Noun, i)
		}
	}
	return steps, nil
}

func open(ctx context.Context, path string, steps []Migration) (s *Store, err error) {
	if err := readable(path); err != nil {
		return nil, err
	}
	query := url.Values{"_txlock": {"immediate"}, "_pragma": pragmas[:]}
	name := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: query.Encode()}
	db, err := sql.Open("sqlite", name.String())
	if err != nil {
		return nil, fmt.Errorf("opening state file: %w", err)
	}
	// One connection: one writer, and readers never see half a transaction.
	db.SetMaxOpenConns(1)
	defer func() {
		if err != nil {
			err = errors.Join(err, db.Close())
		}
	}()
	version, err := inspect(ctx, db)
	if err != nil {
		return nil, sentence(path, err)
	}
	if version > len(steps) {
		return nil, &api.Error{
			Code: api.VersionSkew,
			Msg: fmt.Sprintf("state file %s was written by a newer banger (schema %d, this one knows %d)",
				path, version, len(steps)),
			Hint: "use the newer banger, or begin anew with: mv " + path + " " + path + ".newer",
		}
	}
	// WAL, since the state outlives a daemon killed at any instruction. The file
	// remembers it; asked for before the first read, it brings shared memory.
	if _, err := db.ExecContext(ctx, "PRAGMA journal_mode(WAL)"); err != nil {
		return nil, sentence(path, fmt.Errorf("choosing the journal: %w", err))
	}
	// Writing what is there proves that the file takes it. A full disk can still
	// be read, and VMs be deleted, which makes room.
	if _, err := db.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", version)); err != nil && (version == 0 || !IsFull(err)) {
		return nil, sentence(path, fmt.Errorf("writing the header: %w", err))
	}
	s = &Store{db: db, path: path}
	for _, m := range steps[version:] {
		if err := s.apply(ctx, m); err != nil {
			return nil, sentence(path, fmt.Errorf("applying migration %d of %s: %w", m.Number, m.Noun, err))
		}
	}
	row := db.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema WHERE name = ?", rebuilding)
	if err := row.Scan(&s.fresh); err != nil {
		return nil, sentence(path, fmt.Errorf("looking for what is to be rebuilt: %w", err))
	}
	return s, nil
}

// readable finds out early what SQLite would only call "unable to open": a
// state file that is no file, or not ours to read.
func readable(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at state file: %w", err)
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%w: %s is not a regular file", errDamaged, path)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	if err != nil {
		return fmt.Errorf("opening state file: %w", err)
	}
	return f.Close()
}

// inspect returns the number of migrations that the file has had, after a look
// at every page. The number is kept twice, so that one flipped bit is damage
// and not the future.
func inspect(ctx context.Context, db *sql.DB) (version int, err error) {
	var verdict string
	if err := db.QueryRowContext(ctx, "PRAGMA integrity_check(1)").Scan(&verdict); err != nil {
		if e, ok := errors.AsType[*sqlite.Error](err); ok && e.Code() == sqlite3.SQLITE_ERROR {
			return 0, fmt.Errorf("%w: %w", errDamaged, err) // an unknown file format
		}
		return 0, fmt.Errorf("checking: %w", err)
	}
	if verdict != "ok" {
		return 0, fmt.Errorf("%w: %s", errDamaged, verdict)
	}
	var app, tables int
	row := db.QueryRowContext(ctx, `SELECT
		(SELECT application_id FROM pragma_application_id),
		(SELECT user_version FROM pragma_user_version),
		(SELECT count(*) FROM sqlite_schema)`)
	if err := row.Scan(&app, &version, &tables); err != nil {
		return 0, fmt.Errorf("reading the header: %w", err)
	}
	if tables == 0 && app == 0 && version == 0 {
		return 0, nil
	}
	if app != applicationID {
		return 0, fmt.Errorf("%w: it is not a state file of banger", errDamaged)
	}
	var count, last int
	row = db.QueryRowContext(ctx, "SELECT count(*), coalesce(max(number), 0) FROM migrations")
	if err := row.Scan(&count, &last); err != nil {
		return 0, fmt.Errorf("%w: reading migrations: %w", errDamaged, err)
	}
	if version != last || version != count || version < 1 {
		return 0, fmt.Errorf("%w: schema %d with %d migrations up to %d", errDamaged, version, count, last)
	}
	return version, nil
}

// apply runs one migration and notes it, in one transaction.
func (s *Store) apply(ctx context.Context, m Migration) error {
	return s.Tx(ctx, func(tx *sql.Tx) error {
		text := m.SQL
		if m.Number == 1 {
			text = fmt.Sprintf(`PRAGMA application_id = %d;
				CREATE TABLE migrations (number INTEGER PRIMARY KEY, noun TEXT NOT NULL) STRICT;
				CREATE TABLE %s (reason TEXT) STRICT;`, applicationID, rebuilding) + text
		}
		if _, err := tx.ExecContext(ctx, text); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO migrations VALUES (?, ?)", m.Number, m.Noun); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", m.Number))
		return err
	})
}

// sentence turns what SQLite says into damage, or into words that name the
// file and a way out.
func sentence(path string, err error) error {
	e, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return fmt.Errorf("opening state file %s: %w", path, err)
	}
	out := &api.Error{Code: api.StateDamaged, Msg: "opening state file " + path, Err: err}
	if e.Code() == sqlite3.SQLITE_READONLY {
		// Without an extended code it is the file's own header that says so,
		// since the file could be opened for writing.
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	switch e.Code() & 0xff { // the rest is detail
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT:
		return fmt.Errorf("%w: %w", errDamaged, err)
	case sqlite3.SQLITE_IOERR:
		switch e.Code() {
		case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS, sqlite3.SQLITE_IOERR_DATA:
			return fmt.Errorf("%w: %w", errDamaged, err)
		}
		// The file may be sound: it is what is beside it that cannot be used.
		out.Hint = "see whether the disk of " + filepath.Dir(path) + " is full or broken: df and dmesg"
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		out.Code, out.Hint = api.Conflict, "another process holds it: see banger daemon status"
	case sqlite3.SQLITE_FULL:
		out.Code, out.Hint = api.NoSpace, "make room in "+filepath.Dir(path)
	case sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM:
		out.Code, out.Hint = api.Denied, "make sure that you may write to "+filepath.Dir(path)
	}
	return out
}

// setAside renames the state file and what SQLite keeps beside it.
func setAside(path string, now time.Time) (string, error) {
	aside := path + ".damaged-" + now.UTC().Format("20060102T150405.000")
	for _, suffix := range []string{"-wal", "-shm", ""} {
		err := os.Rename(path+suffix, aside+suffix)
		if err != nil && !(suffix != "" && errors.Is(err, fs.ErrNotExist)) {
			return "", fmt.Errorf("setting aside: %w", err)
		}
	}
	return aside, atomicfile.SyncDir(filepath.Dir(path))
}

// IsFull reports whether err says that the disk is full.
func IsFull(err error) bool {
	e, ok := errors.AsType[*sqlite.Error](err)
	return ok && e.Code()&0xff == sqlite3.SQLITE_FULL
}

// IsUnique reports whether err says that a row with this key exists already.
func IsUnique(err error) bool {
	e, ok := errors.AsType[*sqlite.Error](err)
	return ok && (e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || e.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
}
