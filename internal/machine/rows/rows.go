// Package rows is what is kept of a VM: a row of the table machines in the state
// file, and a copy of it beside the VM's disk, from which a lost state file is
// rebuilt. What a VM is told of itself at each boot follows from it.
//
// It knows which state may follow which, and refuses to know how a VM gets from
// one to the other: that is package machine's.
package rows

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger/internal/api"
	"banger/internal/host"
	"banger/internal/lease"
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

	Address netip.Addr `json:"address,omitzero"` // leased; none in user mode
	NAT     bool       `json:"nat,omitempty"`    // it may reach the internet
	// Untold is set while it is not known whether the host goes by NAT: it is
	// being told.
	Untold    bool `json:"untold,omitempty"`
	Autostart bool `json:"autostart,omitempty"`
	// BootID is the time since the host's start in which Autostart was set or
	// heeded last; see procid.
	BootID string `json:"boot_id,omitempty"`
}

// Files in a VM's directory.
const (
	DiskName    = "disk.ext4"
	ConsoleName = "console.log"
	CopyName    = "vm.json"
)

// A Table is where rows are.
type Table struct {
	Store  *store.Store // opened with [Migrations] among others
	Dir    string       // holds one directory per VM, named by its id
	Leases *lease.Pool  // the addresses of VMs; they have none if nil
	Log    *slog.Logger
}

// NewTable returns a table of VMs on a network, which may be nil.
func NewTable(s *store.Store, dir string, n *Net, log *slog.Logger) Table {
	t := Table{Store: s, Dir: dir, Log: log}
	if n != nil {
		t.Leases = lease.New(n.Prefix)
	}
	return t
}

// Migrations are the steps of the table machines; the second has the number
// address. What SQL must see is in columns; the rest of the row is in body, so a
// new field is no migration.
func Migrations(address int) []store.Migration {
	return []store.Migration{{Number: 1, Noun: "machine", SQL: `
		CREATE TABLE machines (
			id        TEXT PRIMARY KEY,
			name      TEXT NOT NULL UNIQUE,
			image_id  TEXT NOT NULL,
			kernel_id TEXT NOT NULL,
			body      TEXT NOT NULL
		) STRICT;
		CREATE INDEX machines_by_image ON machines (image_id);
		CREATE INDEX machines_by_kernel ON machines (kernel_id);`},
		{Number: address, Noun: "machine", SQL: `
		ALTER TABLE machines ADD COLUMN address TEXT;
		CREATE UNIQUE INDEX machines_by_address ON machines (address);`}}
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
	_, err = tx.ExecContext(ctx, "INSERT INTO machines (id, name, image_id, kernel_id, address, body) VALUES (?, ?, ?, ?, ?, ?)",
		r.ID, r.Name, r.Origin.ImageID, r.Origin.KernelID, r.address(), string(body))
	if store.IsUnique(err) {
		return r.clash(err)
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
		_, err := tx.ExecContext(ctx, "UPDATE machines SET name = ?, address = ?, body = ? WHERE id = ?", r.Name, r.address(), string(body), r.ID)
		return err
	})
	if store.IsUnique(err) {
		return r.clash(err)
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

// address is what SQL sees of the address: of two rows with one, the store
// refuses the second.
func (r Row) address() any {
	if !r.Address.IsValid() {
		return nil
	}
	return r.Address.String()
}

// clash says what r has that another row has too.
func (r Row) clash(err error) error {
	if strings.Contains(err.Error(), "machines.address") {
		return &api.Error{Code: api.Conflict, Msg: fmt.Sprintf("the address %v of VM %q is another VM's", r.Address, r.Name)}
	}
	return Taken(r.Name)
}

// Lease is the address that a VM holds, a new one if it has none; none in user
// mode.
func (t Table) Lease(id string) (netip.Addr, error) {
	if t.Leases == nil {
		return netip.Addr{}, nil
	}
	return t.Leases.Take(id)
}

// Unlease gives the VM's address back.
func (t Table) Unlease(id string) {
	if t.Leases != nil {
		t.Leases.Drop(id)
	}
}

// keep has VMs hold the addresses that their rows say. One that cannot be had,
// since the network is another by now, is forgotten unless its VM may run: the
// next start leases another.
func (t Table) keep(all []Row) {
	slices.SortStableFunc(all, runningFirst)
	for i, r := range all {
		if t.Leases == nil || !r.Address.IsValid() {
			continue
		}
		if err := t.Leases.Keep(r.ID, r.Address); err != nil {
			t.Log.Warn("keeping the address of a VM", "vm", r.Name, "err", err)
			if r.Record == nil {
				all[i].Address = netip.Addr{}
			}
		}
	}
}

// runningFirst orders rows: those that may have a VMM have the better right to
// what two of them claim, and then the older.
func runningFirst(a, b Row) int {
	switch {
	case a.Record != nil && b.Record == nil:
		return -1
	case a.Record == nil && b.Record != nil:
		return 1
	}
	return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
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
	t.keep(good)
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
	copies, err := t.copies(ctx, ids)
	if err != nil {
		return err
	}
	called, addresses := map[string]bool{}, map[netip.Addr]bool{}
	for _, r := range copies {
		for called[r.Name] {
			r.Name = names.Random()
		}
		if addresses[r.Address] { // the copy of one of the two is an old one
			r.Address = netip.Addr{}
		}
		called[r.Name], addresses[r.Address] = true, r.Address.IsValid()
		if r.Record == nil {
			r.State = api.Stopped // the copy was made before the state was known
		}
		t.Log.Warn("rebuilding VM from its copy", "id", r.ID, "name", r.Name)
		if err := t.Store.Tx(ctx, func(tx *sql.Tx) error { return Insert(ctx, tx, r) }); err != nil {
			return fmt.Errorf("rebuilding VM %s: %w", r.ID, err)
		}
	}
	return nil
}

// copies reads the copies that the VMs' directories hold.
func (t Table) copies(ctx context.Context, ids []string) (all []Row, err error) {
	for _, id := range ids {
		r, err := t.readCopy(id)
		if err == nil {
			all = append(all, r)
			continue
		}
		// Without a whole copy the VM was never complete, or is beyond us:
		// if there is a disk, it is kept.
		t.Log.Error("rebuilding VM", "id", id, "err", err)
		if _, err := os.Lstat(filepath.Join(t.Dir, id, DiskName)); err == nil {
			if err := t.setAside(ctx, id); err != nil {
				return nil, err
			}
		}
	}
	slices.SortStableFunc(all, runningFirst)
	return all, nil
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
