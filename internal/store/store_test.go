package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"banger/internal/api"
	"banger/internal/store"
)

var steps = []store.Migration{
	{Number: 2, Noun: "thing", SQL: `ALTER TABLE things ADD COLUMN note TEXT NOT NULL DEFAULT ''`},
	{Number: 1, Noun: "thing", SQL: `CREATE TABLE things (name TEXT PRIMARY KEY) STRICT; CREATE INDEX byName ON things (name)`},
}

func open(t *testing.T, path string, m []store.Migration) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Path: path, Migrations: m})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func insert(ctx context.Context, s *store.Store, name string) error {
	return s.Tx(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO things (name) VALUES (?)", name)
		return err
	})
}

func count(t *testing.T, s *store.Store) (n int) {
	t.Helper()
	if err := s.Tx(t.Context(), func(tx *sql.Tx) error {
		return tx.QueryRowContext(t.Context(), "SELECT count(*) FROM things WHERE note = ''").Scan(&n)
	}); err != nil {
		t.Fatalf("counting: %v", err)
	}
	return n
}

// filled is the bytes of a closed state file with n rows.
func filled(t *testing.T, n int) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path, steps)
	if err := s.Tx(t.Context(), func(tx *sql.Tx) error {
		for i := range n {
			if _, err := tx.Exec("INSERT INTO things (name) VALUES (?)", fmt.Sprintf("%d-%s", i, strings.Repeat("x", 100))); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestMigratesForward(t *testing.T) {
	path := filepath.Join(t.TempDir(), "odd ?%#name", "state.db")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	first := open(t, path, steps[1:])
	if !first.Fresh() || first.SetAside() != "" {
		t.Errorf("Fresh, SetAside = %v, %q; want true and nothing", first.Fresh(), first.SetAside())
	}
	if err := insert(t.Context(), first, "a"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(first.Rebuilt(t.Context()), first.Close()); err != nil {
		t.Fatal(err)
	}
	if s := open(t, path, steps); count(t, s) != 1 || s.Fresh() {
		t.Errorf("after migrating: %d rows, fresh %v; want the row kept", count(t, s), s.Fresh())
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the file is not where it was asked for: %v", err)
	}
}

// A file is fresh until all rows are there, however often it is opened.
func TestFreshUntilRebuilt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	for _, rebuilt := range []bool{false, true} {
		s := open(t, path, steps)
		if !s.Fresh() {
			t.Error("Fresh() = false before Rebuilt")
		}
		if rebuilt {
			if err := s.Rebuilt(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if open(t, path, steps).Fresh() {
		t.Error("Fresh() = true after Rebuilt")
	}
}

func TestRefusesTheFuture(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	if err := open(t, path, steps).Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = store.Open(t.Context(), store.Config{Path: path, Migrations: steps[1:]})
	if api.CodeOf(err) != api.VersionSkew || api.AsError(err).Hint == "" || !strings.Contains(err.Error(), "newer banger") {
		t.Errorf("Open = %v, want a refusal with a hint", err)
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("the refused file was changed (%v)", err)
	}
}

func TestRefusesGapsInMigrations(t *testing.T) {
	_, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "s"), Migrations: steps[:1]})
	if err == nil {
		t.Error("Open with migration 2 alone = nil, want an error")
	}
}

// TestDamageIsSetAside damages a state file in many ways. Whatever happens,
// Open gives a usable store and the damaged bytes are still there.
func TestDamageIsSetAside(t *testing.T) {
	t.Parallel()
	whole := filled(t, 200)
	damages := map[string][]byte{
		"text":     []byte(strings.Repeat("this is not a database\n", 100)),
		"one byte": {0},
	}
	for _, n := range []int{1, 15, 16, 99, 100, 101, 512, 4095, 4096, 4097, 8192, len(whole) / 2, len(whole) - 4096, len(whole) - 1} {
		damages[fmt.Sprintf("truncated to %d", n)] = whole[:n]
	}
	for _, n := range []int{1, 100, 4096, 8192, len(whole) - 4096, len(whole) - 100, len(whole)} {
		b := append([]byte(nil), whole...)
		clear(b[len(b)-n:])
		damages[fmt.Sprintf("last %d zeroed", n)] = b
	}
	for name, data := range damages {
		s := opened(t, name, data)
		if s.SetAside() == "" && !s.Fresh() && count(t, s) != 200 {
			t.Errorf("%s: opened as sound with %d of 200 rows", name, count(t, s))
		}
		if aside := s.SetAside(); aside != "" {
			got, err := os.ReadFile(aside)
			if err != nil || string(got) != string(data) {
				t.Errorf("%s: what was set aside is not what was there (%v)", name, err)
			}
		}
		s.Close()
	}
}

// TestFlippedBits flips one bit at a time in every 199th byte and in the whole
// header. A flip may go unnoticed (in unused space, in a text), never be fatal.
func TestFlippedBits(t *testing.T) {
	t.Parallel()
	whole := filled(t, 60)
	noticed := 0
	for at := 0; at < len(whole); at++ {
		if at >= 100 && at%199 != 0 {
			continue
		}
		b := append([]byte(nil), whole...)
		b[at] ^= 1 << (at % 8)
		s := opened(t, fmt.Sprintf("bit %d of byte %d", at%8, at), b)
		if s.SetAside() != "" {
			noticed++
		}
		s.Close()
	}
	if noticed < 10 {
		t.Errorf("only %d flips were noticed", noticed)
	}
}

// opened opens a file of this content and proves that the store can be used.
func opened(t *testing.T, name string, data []byte) *store.Store {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.db")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), store.Config{Path: path, Migrations: steps})
	if err != nil {
		t.Fatalf("%s: Open: %v", name, err)
	}
	if err := insert(t.Context(), s, "new"); err != nil {
		t.Errorf("%s: the store is not usable: %v", name, err)
	}
	if err := s.Tx(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.Exec("DELETE FROM things WHERE name = 'new'")
		return err
	}); err != nil {
		t.Errorf("%s: the store is not usable: %v", name, err)
	}
	return s
}

func TestUnreadableIsSetAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if s := open(t, path, steps); s.SetAside() == "" {
		t.Error("a directory in place of the file was not set aside")
	}
	if os.Getuid() == 0 {
		return // root can read everything
	}
	path = filepath.Join(t.TempDir(), "state.db")
	if err := os.WriteFile(path, filled(t, 1), 0); err != nil {
		t.Fatal(err)
	}
	if s := open(t, path, steps); s.SetAside() == "" {
		t.Error("a file that may not be read was not set aside")
	}
}

func TestUnwritableDirectory(t *testing.T) {
	// Nobody, root included, can make files in a directory of /proc.
	_, err := store.Open(t.Context(), store.Config{Path: "/proc/self/state.db", Migrations: steps})
	if api.CodeOf(err) != api.Denied || api.AsError(err).Hint == "" {
		t.Errorf("Open = %v, want a denied error with a hint", err)
	}
}

func TestTransactions(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"), steps)
	boom := errors.New("boom")
	err := s.Tx(t.Context(), func(tx *sql.Tx) error {
		if _, err := tx.Exec("INSERT INTO things (name) VALUES ('x')"); err != nil {
			t.Error(err)
		}
		return boom
	})
	if !errors.Is(err, boom) || count(t, s) != 0 {
		t.Errorf("Tx = %v with %d rows, want %v and none", err, count(t, s), boom)
	}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := insert(t.Context(), s, fmt.Sprint(i)); err != nil {
				t.Errorf("insert: %v", err)
			}
		})
	}
	wg.Wait()
	if got := count(t, s); got != 20 {
		t.Errorf("%d rows, want 20", got)
	}
	if err := insert(t.Context(), s, "7"); !store.IsUnique(err) {
		t.Errorf("second insert = %v, want a unique violation", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := insert(ctx, s, "late"); !errors.Is(err, context.Canceled) {
		t.Errorf("Tx after cancel = %v, want %v", err, context.Canceled)
	}
}

// SQLite keeps no file of shared memory, whether the state file is new or not.
func TestNoSharedMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	for range 2 {
		s, err := store.Open(t.Context(), store.Config{Path: path, Migrations: []store.Migration{{Number: 1, Noun: "machine", SQL: "CREATE TABLE t (x)"}}})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Tx(t.Context(), func(tx *sql.Tx) error {
			_, err := tx.ExecContext(t.Context(), "INSERT INTO t VALUES (1)")
			return err
		}); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path + "-shm"); err == nil {
			t.Error("there is a file of shared memory")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A statement that finds the disk full ends the transaction by itself; what is
// said is that the disk is full, and the next transaction works.
func TestFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path, steps)
	limit := func(tx *sql.Tx) error {
		_, err := tx.ExecContext(t.Context(), "PRAGMA max_page_count = 20")
		return err
	}
	if err := s.Tx(t.Context(), limit); err != nil {
		t.Fatal(err)
	}
	err := insert(t.Context(), s, strings.Repeat("x", 200_000))
	if api.CodeOf(err) != api.NoSpace || !store.IsFull(err) || !strings.HasPrefix(err.Error(), filepath.Dir(path)+" is full") {
		t.Errorf("Tx() on a full disk = %v (%s), want which directory is full", err, api.CodeOf(err))
	}
	if err := insert(t.Context(), s, "small"); err != nil || count(t, s) != 1 {
		t.Errorf("Tx() after that = %v, %d rows; want the one", err, count(t, s))
	}
}
