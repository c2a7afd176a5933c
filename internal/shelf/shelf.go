// Package shelf keeps things of several files each under names.
//
// A thing is a directory, named by the digest of what it was made from, which
// appears whole, never changes and goes as a whole. Names are rows of the state
// file that point to digests. A name can move on to another digest; the old
// one stays until no VM uses it. Images and kernels are kept like this.
//
// What a crash leaves half-made is removed when the shelf is opened, since
// only one daemon has it open. A copy of each row lies in its directory, from
// which a lost state file is made again. The package knows neither what is in
// the files nor who the users are.
package shelf

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"banger/internal/api"
	"banger/internal/atomicfile"
	"banger/internal/crash"
)

// CrashPoints lists where a daemon may die between two steps of making or
// removing a thing, in the order in which it passes them.
func CrashPoints() []string {
	return []string{"pull.staged", "pull.made", "pull.placed", "pull.named", "remove.unnamed", "remove.aside"}
}

// manifestName is the file with a copy of the row.
const manifestName = "manifest.json"

// minPrefix is how many digits of a digest are the least that refer to it.
const minPrefix = 4

// Config configures a [Shelf]. All of it is required.
type Config struct {
	Dir   string // of its own
	Noun  string // "image": for messages and for the command in hints
	Table string // of the state file; see [Schema]
	// Tx runs a transaction on the state file.
	Tx func(ctx context.Context, f func(tx *sql.Tx) error) error
	// Users names the VMs that use a digest, as of tx.
	Users func(ctx context.Context, tx *sql.Tx, id string) ([]string, error)
	// Rebuild says that the state file is new, so that names come from the
	// copies in the directories.
	Rebuild bool
}

// Schema makes the table of a shelf.
func Schema(table string) string {
	return "CREATE TABLE " + table + " (name TEXT PRIMARY KEY, id TEXT NOT NULL, body TEXT NOT NULL) STRICT;" +
		"CREATE INDEX " + table + "_id ON " + table + " (id);"
}

// An Entry is a name and what it stands for.
type Entry[T any] struct {
	Name string `json:"name"`
	ID   string `json:"id"`
	Body T      `json:"body"` // what the noun knows of it
}

// A Shelf is the names and the directories of one noun. Its methods may be
// called by many goroutines.
type Shelf[T any] struct {
	*Dirs
	cfg Config
	// mu keeps a sweep from taking a directory between its placing and its
	// naming. It is held for one rename and one short transaction.
	mu sync.Mutex
}

// Open makes the shelf ready and removes what nobody can use any more.
func Open[T any](ctx context.Context, cfg Config) (*Shelf[T], error) {
	dirs, err := OpenDirs(cfg.Dir)
	if err != nil {
		return nil, err
	}
	s := &Shelf[T]{Dirs: dirs, cfg: cfg}
	if cfg.Rebuild {
		if err := s.rebuild(ctx); err != nil {
			return nil, err
		}
	}
	return s, s.Sweep(ctx)
}

// rebuild names what lies in the directories, from the beginning if an earlier
// daemon died over it. If two claim one name, both digests are kept under it and
// its first digits.
func (s *Shelf[T]) rebuild(ctx context.Context) error {
	ids, err := s.IDs()
	if err != nil {
		return err
	}
	return s.cfg.Tx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "DELETE FROM "+s.cfg.Table); err != nil {
			return fmt.Errorf("beginning to rebuild: %w", err)
		}
		for _, id := range ids {
			e, err := s.Manifest(id)
			if err != nil {
				continue // nothing can be said of it: swept
			}
			for _, name := range []string{e.Name, e.Name + "-" + id[:12]} {
				taken, err := s.query(ctx, tx, "WHERE name = ?", name)
				if err != nil {
					return err
				}
				if len(taken) == 0 {
					e.Name = name
					break
				}
			}
			if err := s.insert(ctx, tx, e); err != nil {
				return err
			}
		}
		return nil
	})
}

// Manifest reads the copy of the row in the directory of id, whose name may
// have moved on since.
func (s *Shelf[T]) Manifest(id string) (e Entry[T], err error) {
	b, err := os.ReadFile(s.Path(id, manifestName))
	if err == nil {
		err = json.Unmarshal(b, &e)
	}
	if err == nil && e.ID != id {
		err = fmt.Errorf("it is of %q", e.ID)
	}
	if err != nil {
		return e, fmt.Errorf("reading what %s %.12s is: %w", s.cfg.Noun, id, err)
	}
	return e, nil
}

// Put gives what was made in g to e's digest and e's name. Unless replace is
// set, a name that is taken is an Exists error.
func (s *Shelf[T]) Put(ctx context.Context, g *Stage, e Entry[T], replace bool) error {
	b, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding a manifest: %w", err)
	}
	if err := atomicfile.Write(g.Path(manifestName), append(b, '\n'), 0o600); err != nil {
		return s.Explain(err, 0)
	}
	crash.Point("pull.made")
	if err := s.place(ctx, g, e, replace); err != nil {
		return err
	}
	crash.Point("pull.named")
	return s.Sweep(context.WithoutCancel(ctx)) // what had the name before
}

func (s *Shelf[T]) place(ctx context.Context, g *Stage, e Entry[T], replace bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	placed, err := g.Put(e.ID)
	if err != nil {
		return s.Explain(err, 0)
	}
	crash.Point("pull.placed")
	err = s.cfg.Tx(ctx, func(tx *sql.Tx) error {
		if !replace {
			if err := s.Vacant(ctx, tx, e.Name); err != nil {
				return err
			}
		}
		return s.insert(ctx, tx, e)
	})
	if err != nil && placed {
		err = errors.Join(err, s.Remove(e.ID))
	}
	return err
}

// Vacant is an Exists error if name is taken. Without a tx it makes its own.
func (s *Shelf[T]) Vacant(ctx context.Context, tx *sql.Tx, name string) error {
	if tx == nil {
		return s.cfg.Tx(ctx, func(tx *sql.Tx) error { return s.Vacant(ctx, tx, name) })
	}
	taken, err := s.query(ctx, tx, "WHERE name = ?", name)
	if err != nil || len(taken) == 0 {
		return err
	}
	return &api.Error{
		Code: api.Exists, Msg: fmt.Sprintf("the name %s is taken by another %s", name, s.cfg.Noun),
		Hint: "take another name, or first: banger " + s.cfg.Noun + " " + s.deleteVerb() + " " + name,
	}
}

func (s *Shelf[T]) deleteVerb() string {
	if s.cfg.Noun == "kernel" {
		return "rm"
	}
	return "delete"
}

// List returns the entries by name.
func (s *Shelf[T]) List(ctx context.Context) (es []Entry[T], err error) {
	err = s.cfg.Tx(ctx, func(tx *sql.Tx) error {
		es, err = s.query(ctx, tx, "ORDER BY name")
		return err
	})
	return es, err
}

// Find returns what ref means: a name, a digest, or the beginning of one, at
// least four digits long.
func (s *Shelf[T]) Find(ctx context.Context, ref string) (e Entry[T], err error) {
	err = s.cfg.Tx(ctx, func(tx *sql.Tx) error {
		e, err = s.find(ctx, tx, ref)
		return err
	})
	return e, err
}

func (s *Shelf[T]) find(ctx context.Context, tx *sql.Tx, ref string) (Entry[T], error) {
	es, err := s.query(ctx, tx, "WHERE name = ?", ref)
	if err == nil && len(es) == 0 && len(ref) >= minPrefix && strings.Trim(ref, "0123456789abcdef") == "" {
		es, err = s.query(ctx, tx, "WHERE substr(id, 1, ?) = ? ORDER BY name", len(ref), ref)
	}
	switch {
	case err != nil:
		return Entry[T]{}, err
	case len(es) == 0:
		return Entry[T]{}, &api.Error{
			Code: api.NotFound, Msg: fmt.Sprintf("there is no %s %q", s.cfg.Noun, ref),
			Hint: "see what there is: banger " + s.cfg.Noun + " list",
		}
	case len(es) > 1 && es[0].ID != es[len(es)-1].ID:
		var names []string
		for _, e := range es {
			names = append(names, e.Name)
		}
		return Entry[T]{}, &api.Error{
			Code: api.Ambiguous, Msg: fmt.Sprintf("%s %q could be %s", s.cfg.Noun, ref, strings.Join(names, " or ")),
			Hint: "give a name, or more digits",
		}
	}
	return es[0], nil
}

// Claim is a Conflict error if no name stands for id any more. Called in the
// transaction that writes a user's row, it makes sure that what is used stays.
func (s *Shelf[T]) Claim(ctx context.Context, tx *sql.Tx, id string) error {
	es, err := s.query(ctx, tx, "WHERE id = ? LIMIT 1", id)
	if err == nil && len(es) == 0 {
		err = &api.Error{Code: api.Conflict, Msg: fmt.Sprintf("%s %.12s was deleted or replaced just now", s.cfg.Noun, id), Hint: "try again"}
	}
	return err
}

// Delete removes the name that ref means, and its files with the last name of
// a digest. That is refused while VMs use them.
func (s *Shelf[T]) Delete(ctx context.Context, ref string) (e Entry[T], err error) {
	err = s.cfg.Tx(ctx, func(tx *sql.Tx) error {
		if e, err = s.find(ctx, tx, ref); err != nil {
			return err
		}
		if err := s.disused(ctx, tx, e); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "DELETE FROM "+s.cfg.Table+" WHERE name = ?", e.Name)
		return err
	})
	if err != nil {
		return e, err
	}
	crash.Point("remove.unnamed")
	return e, s.Sweep(context.WithoutCancel(ctx))
}

// disused is a Conflict error if e is the last name of a digest in use.
func (s *Shelf[T]) disused(ctx context.Context, tx *sql.Tx, e Entry[T]) error {
	names, err := s.query(ctx, tx, "WHERE id = ?", e.ID)
	if err != nil || len(names) > 1 {
		return err
	}
	users, err := s.cfg.Users(ctx, tx, e.ID)
	if err != nil || len(users) == 0 {
		return err
	}
	return &api.Error{
		Code: api.Conflict, Msg: fmt.Sprintf("%s %s is used by %s", s.cfg.Noun, e.Name, strings.Join(users, ", ")),
		Hint: "if you can do without: banger vm delete " + strings.Join(users, " "),
	}
}

// Sweep removes directories that have no name and no user.
func (s *Shelf[T]) Sweep(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids, err := s.unused(ctx)
	for _, id := range ids {
		err = errors.Join(err, s.Remove(id))
	}
	return err
}

// unused lists the directories that have no name and no user.
func (s *Shelf[T]) unused(ctx context.Context) (out []string, err error) {
	ids, err := s.IDs()
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	err = s.cfg.Tx(ctx, func(tx *sql.Tx) error {
		for _, id := range ids {
			es, err := s.query(ctx, tx, "WHERE id = ? LIMIT 1", id)
			if err != nil {
				return err
			}
			users, err := s.cfg.Users(ctx, tx, id)
			if err != nil {
				return err
			}
			if len(es) == 0 && len(users) == 0 {
				out = append(out, id)
			}
		}
		return nil
	})
	return out, err
}

// Leaks says in sentences what lies around that nothing explains, and what has
// a name without being there. What is being made is not among it.
func (s *Shelf[T]) Leaks(ctx context.Context) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var leaks []string
	ids, err := s.unused(ctx)
	for _, id := range ids {
		leaks = append(leaks, fmt.Sprintf("%s %s has no name and no user", s.cfg.Noun, id))
	}
	strays, serr := s.Strays()
	for _, p := range strays {
		leaks = append(leaks, p+" is no "+s.cfg.Noun)
	}
	es, lerr := s.List(ctx)
	for _, e := range es {
		if !s.Has(e.ID) {
			leaks = append(leaks, fmt.Sprintf("%s %s has lost its directory %s", s.cfg.Noun, e.Name, e.ID))
		}
	}
	return leaks, errors.Join(err, serr, lerr)
}

func (s *Shelf[T]) insert(ctx context.Context, tx *sql.Tx, e Entry[T]) error {
	body, err := json.Marshal(e.Body)
	if err != nil {
		return fmt.Errorf("encoding a row: %w", err)
	}
	_, err = tx.ExecContext(ctx, "INSERT OR REPLACE INTO "+s.cfg.Table+" (name, id, body) VALUES (?, ?, ?)", e.Name, e.ID, string(body))
	if err != nil {
		return fmt.Errorf("naming %s %s: %w", s.cfg.Noun, e.Name, err)
	}
	return nil
}

func (s *Shelf[T]) query(ctx context.Context, tx *sql.Tx, where string, args ...any) (es []Entry[T], err error) {
	rows, err := tx.QueryContext(ctx, "SELECT name, id, body FROM "+s.cfg.Table+" "+where, args...)
	if err != nil {
		return nil, fmt.Errorf("looking up a %s: %w", s.cfg.Noun, err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var e Entry[T]
		var body string
		if err := rows.Scan(&e.Name, &e.ID, &body); err != nil {
			return nil, fmt.Errorf("reading a %s: %w", s.cfg.Noun, err)
		}
		// A body that cannot be read stays zero: what it describes can still be
		// seen and deleted.
		_ = json.Unmarshal([]byte(body), &e.Body)
		es = append(es, e)
	}
	return es, rows.Err()
}
