// Package rows is what is kept of a VM: a row of the table machines in the state
// file, and a copy of it beside the VM's disk, from which a lost state file is
// rebuilt. What a VM is told of itself at each boot follows from it.
//
// It knows which state may follow which, and refuses to know how a VM gets from
// one to the other: that is package machine's.
package rows

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"banger/internal/api"
	"banger/internal/host"
	"banger/internal/names"
	"banger/internal/store"
)

// An Origin is what a VM was made from; it stays when names move on.
type Origin struct {
	Image    string `json:"image"`
	ImageID  string `json:"image_id"`
	Kernel   string `json:"kernel"`
	KernelID string `json:"kernel_id"`
}

// A Row is one VM.
type Row struct {
	ID        string         `json:"id"`
	Name      string         `json:"name"`
	State     api.State      `json:"state"`
	Reason    string         `json:"reason,omitempty"`
	Made      bool           `json:"made"` // identity and disk are complete
	Ephemeral bool           `json:"ephemeral,omitempty"`
	Origin    Origin         `json:"origin"`
	Spec      api.Spec       `json:"spec"`
	Workspace *api.Workspace `json:"workspace,omitempty"`
	Identity  Identity       `json:"identity"`
	UserKey   string         `json:"user_key,omitempty"` // authorized for the last boot
	Created   time.Time      `json:"created"`
	Started   time.Time      `json:"started,omitzero"`
	Record    *host.Record   `json:"record,omitempty"` // while there may be a VMM
}

// Files in a VM's directory.
const (
	DiskName    = "disk.ext4"
	ConsoleName = "console.log"
	CopyName    = "vm.json"
)

// A Table is where rows are. All fields are required.
type Table struct {
	Store *store.Store // opened with [Migrations] among others
	Dir   string       // holds one directory per VM, named by its id
	Log   *slog.Logger
}

// Migrations are the steps of the table machines. What SQL must see is in
// columns; the rest of the row is in body, so a new field is no migration.
func Migrations() []store.Migration {
	return []store.Migration{{Number: 1, Noun: "machine", SQL: `
		CREATE TABLE machines (
			id        TEXT PRIMARY KEY,
			name      TEXT NOT NULL UNIQUE,
			image_id  TEXT NOT NULL,
			kernel_id TEXT NOT NULL,
			body      TEXT NOT NULL
		) STRICT;
		CREATE INDEX machines_by_image ON machines (image_id);
		CREATE INDEX machines_by_kernel ON machines (kernel_id);`}}
}

// Users returns the names of the VMs that were made from the image or kernel
// with this id, as of the transaction tx.
func Users(ctx context.Context, tx *sql.Tx, id string) (users []string, err error) {
	rows, err := tx.QueryContext(ctx,
		"SELECT name FROM machines WHERE image_id = ?1 OR kernel_id = ?1 ORDER BY name", id)
	if err != nil {
		return nil, fmt.Errorf("reading users of an image: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, fmt.Errorf("reading users of an image: %w", err)
		}
		users = append(users, name)
	}
	return users, rows.Err()
}

// Insert writes a new row. The index knows of a taken name before; the store
// has the last word.
func Insert(ctx context.Context, tx *sql.Tx, r Row) error {
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding row: %w", err)
	}
	_, err = tx.ExecContext(ctx, "INSERT INTO machines (id, name, image_id, kernel_id, body) VALUES (?, ?, ?, ?, ?)",
		r.ID, r.Name, r.Origin.ImageID, r.Origin.KernelID, string(body))
	if store.IsUnique(err) {
		return Taken(r.Name)
	}
	if err != nil {
		return fmt.Errorf("writing row: %w", err)
	}
	return nil
}

// Update writes a row that is there; without one it does nothing, so that the
// last steps of a deletion can be repeated.
func (t Table) Update(ctx context.Context, r Row) error {
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding row: %w", err)
	}
	err = t.Store.Tx(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "UPDATE machines SET name = ?, body = ? WHERE id = ?", r.Name, string(body), r.ID)
		return err
	})
	if store.IsUnique(err) {
		return Taken(r.Name)
	}
	if err != nil {
		return fmt.Errorf("writing row: %w", err)
	}
	return nil
}

// Drop removes a row, if it is there.
func (t Table) Drop(ctx context.Context, id string) error {
	err := t.Store.Tx(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM machines WHERE id = ?", id)
		return err
	})
	if err != nil {
		return fmt.Errorf("removing row: %w", err)
	}
	return nil
}

// Taken is the error for a name that another VM has.
func Taken(name string) error {
	return &api.Error{
		Code: api.Exists,
		Msg:  fmt.Sprintf("VM %q exists already", name),
		Hint: fmt.Sprintf("enter it with: banger vm ssh %s, or start it with: banger vm start %s", name, name),
	}
}

// Load reads all rows; if the state file is new, it rebuilds them from the copies
// before. A row that makes no sense is replaced by its copy, or set aside with
// its directory, and said.
func (t Table) Load(ctx context.Context) (good []Row, err error) {
	if t.Store.Fresh() {
		if err := t.rebuild(ctx); err != nil {
			return nil, err
		}
	}
	bodies := map[string]string{}
	err = t.Store.Tx(ctx, func(tx *sql.Tx) error { return readBodies(ctx, tx, bodies) })
	if err != nil {
		return nil, fmt.Errorf("reading VMs: %w", err)
	}
	for id, body := range bodies {
		var r Row
		if err := json.Unmarshal([]byte(body), &r); err == nil && sound(r, id) {
			good = append(good, r)
			continue
		}
		if r, err := t.readCopy(id); err == nil {
			t.Log.Warn("row of a VM is damaged: using its copy", "id", id)
			good = append(good, r)
			continue
		}
		if err := t.setAside(ctx, id); err != nil {
			return nil, err
		}
	}
	return good, nil
}

func readBodies(ctx context.Context, tx *sql.Tx, bodies map[string]string) (err error) {
	rows, err := tx.QueryContext(ctx, "SELECT id, body FROM machines")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var id, body string
		if err := rows.Scan(&id, &body); err != nil {
			return err
		}
		bodies[id] = body
	}
	return rows.Err()
}

// sound reports whether r can be the row of id: everything that becomes part
// of a path, or that the state table does not know, is checked.
func sound(r Row, id string) bool {
	_, known := transitions()[r.State]
	return r.ID == id && names.IsID(id) && names.CheckVM(r.Name) == nil && known && r.State != ""
}

// readCopy reads the copy of a row in the VM's directory.
func (t Table) readCopy(id string) (Row, error) {
	if !names.IsID(id) {
		return Row{}, fmt.Errorf("reading copy: %q is not an id", id)
	}
	var r Row
	if err := store.ReadCopy(filepath.Join(t.Dir, id, CopyName), &r); err != nil {
		return Row{}, err
	}
	if !sound(r, id) {
		return Row{}, fmt.Errorf("reading copy: it is not that of %s", id)
	}
	return r, nil
}

// setAside takes a VM out of the state that nobody can read any more. Its
// directory, with the disk, stays under another name.
func (t Table) setAside(ctx context.Context, id string) error {
	aside := ""
	if names.IsID(id) {
		aside = filepath.Join(t.Dir, "damaged-"+id)
		err := os.Rename(filepath.Join(t.Dir, id), aside)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("setting VM aside: %w", err)
		}
	}
	t.Log.Error("row of a VM is damaged: setting it aside", "id", id, "directory", aside)
	return t.Drop(ctx, id)
}

// rebuild fills a new state file with what the VMs' directories say, from the
// beginning if an earlier daemon died over it.
func (t Table) rebuild(ctx context.Context) error {
	ids, err := t.IDs()
	if err != nil {
		return err
	}
	if err := t.Store.Tx(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM machines")
		return err
	}); err != nil {
		return fmt.Errorf("beginning to rebuild: %w", err)
	}
	taken := map[string]bool{}
	for _, id := range ids {
		r, err := t.readCopy(id)
		if err != nil {
			// Without a whole copy the VM was never complete, or is beyond us:
			// if there is a disk, it is kept.
			t.Log.Error("rebuilding VM", "id", id, "err", err)
			if _, err := os.Lstat(filepath.Join(t.Dir, id, DiskName)); err == nil {
				if err := t.setAside(ctx, id); err != nil {
					return err
				}
			}
			continue
		}
		for taken[r.Name] {
			r.Name = names.Random()
		}
		taken[r.Name] = true
		if r.Record == nil {
			r.State = api.Stopped // the copy was made before the state was known
		}
		t.Log.Warn("rebuilding VM from its copy", "id", id, "name", r.Name)
		if err := t.Store.Tx(ctx, func(tx *sql.Tx) error { return Insert(ctx, tx, r) }); err != nil {
			return fmt.Errorf("rebuilding VM %s: %w", id, err)
		}
	}
	return nil
}

// IDs lists the ids that have directories.
func (t Table) IDs() ([]string, error) {
	entries, err := os.ReadDir(t.Dir)
	if err != nil {
		return nil, fmt.Errorf("listing VM directories: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if names.IsID(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// Copy writes a row's copy into the VM's directory.
func (t Table) Copy(r Row) error {
	return store.WriteCopy(filepath.Join(t.Dir, r.ID, CopyName), r)
}
