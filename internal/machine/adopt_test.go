package machine_test

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"banger/internal/api"
	"banger/internal/host"
	"banger/internal/host/fakehost"
	"banger/internal/machine"
	"banger/internal/store"
)

func TestRestartOfTheDaemon(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, dir, nil)
	alive, dead, idle := w.mustCreate(t, "alive"), w.mustCreate(t, "dead"), w.mustCreate(t, "idle")
	quiet, brief := w.mustCreate(t, "quiet"), w.mustCreate(t, "reboots")
	if _, err := w.x.Stop(t.Context(), idle.ID, api.StopMachine{}); err != nil {
		t.Fatal(err)
	}
	leased, cancel, over := createEphemeral(t, w)
	if _, err := w.host.TakeLease(leased.ID); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-over; err != nil {
		t.Fatal(err)
	}
	w.stop()
	w.host.End(dead.ID, host.Exit{Reason: "the guest powered off"})
	w.host.End(brief.ID, host.Exit{Reason: "the guest rebooted", Reboot: true})
	if err := os.RemoveAll(filepath.Join(dir, "held", quiet.ID)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "held", "0123456789ab"), 0o700); err != nil {
		t.Fatal(err)
	}

	w = newWorld(t, dir, nil)
	for w.host.Launches(brief.ID) == 0 { // until then its row tells of the last boot
		runtime.Gosched()
	}
	w.eventually(t, "reboots", api.Running)
	for _, tt := range []struct {
		name   string
		state  api.State
		reason string
	}{
		{"alive", api.Running, ""},
		{"dead", api.Stopped, "the guest powered off"},
		{"idle", api.Stopped, ""},
		{"quiet", api.Stopped, "its VMM ended while the daemon was away"},
		{"reboots", api.Running, ""},
		{"brief", api.Running, ""},
	} {
		m, err := w.x.Get(tt.name)
		if err != nil || m.State != tt.state || m.Reason != tt.reason {
			t.Errorf("%s: %q because %q, %v; want %q because %q", tt.name, m.State, m.Reason, err, tt.state, tt.reason)
		}
	}
	if m, err := w.x.Get("alive"); err != nil || m.Stage != api.StageBoot || m.Companion == "" || m.ID != alive.ID {
		t.Errorf("adopted VM = %+v, %v; want its stage and companion", m, err)
	}
	w.clean(t)
}

// A guest that rebooted while there was no daemon boots when the others have been
// found again: nobody who looks at them waits for it.
func TestRebootKeepsNobodyWaiting(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, dir, nil)
	m := w.mustCreate(t, "web")
	w.stop()
	w.host.End(m.ID, host.Exit{Reason: "the guest rebooted", Reboot: true})
	w = newWorld(t, dir, behave(fakehost.Behaviour{Silent: true})) // which waits until it is ready
	w.eventually(t, "web", api.Starting)
	w.mustStop(t, "web")
	w.clean(t)
}

func TestEphemeralWithoutLeaseDoesNotOutliveTheDaemon(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, dir, nil)
	createEphemeral(t, w)
	w.stop()
	w = newWorld(t, dir, nil)
	if got := w.state("brief"); got != "" {
		t.Errorf("the VM is %q, want it gone", got)
	}
	w.clean(t)
}

func TestBootGoesOnWithTheNextDaemon(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, dir, behave(fakehost.Behaviour{Silent: true}))
	over := make(chan error, 1)
	go func() {
		_, _, err := w.create(context.WithoutCancel(t.Context()), api.CreateMachine{Name: "web"})
		over <- err
	}()
	for m, err := w.x.Get("web"); err != nil || m.Companion == ""; m, err = w.x.Get("web") {
	}
	w.stop()
	if err := <-over; api.CodeOf(err) != api.Interrupted || !strings.Contains(err.Error(), "shutting down") {
		t.Errorf("Create = %v, want that the daemon ended", err)
	}
	w = newWorld(t, dir, nil)
	w.eventually(t, "web", api.Running)
	if m, err := w.x.Get("web"); err != nil || w.host.Launches(m.ID) != 0 {
		t.Errorf("%d launches, %v; want the old boot to go on", w.host.Launches(m.ID), err)
	}
	w.clean(t)
}

// TestLostStateIsRebuilt destroys the state file under running VMs.
func TestLostStateIsRebuilt(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, dir, nil)
	run := w.mustCreate(t, "runs")
	w.mustCreate(t, "idle")
	if _, err := w.x.Stop(t.Context(), "idle", api.StopMachine{}); err != nil {
		t.Fatal(err)
	}
	w.stop()
	// What is left of a create that never got far goes.
	if err := os.Mkdir(filepath.Join(dir, "vms", "00000000dead"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "state.db")); err != nil {
		t.Fatal(err)
	}
	// A daemon that dies right after it has made another leaves all to the next.
	st, err := store.Open(t.Context(), store.Config{Path: filepath.Join(dir, "state.db"), Migrations: machine.Migrations(2)})
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	w = newWorld(t, dir, nil)
	if got, err := w.x.Get("runs"); err != nil || got.State != api.Running || got.Spec != run.Spec || got.ImageID != run.ImageID {
		t.Errorf("rebuilt VM = %+v, %v; want it as it was", got, err)
	}
	if got := w.state("idle"); got != api.Stopped {
		t.Errorf("idle is %q, want stopped", got)
	}
	if got := w.knows(); !slices.Equal(got, []string{"idle", "runs"}) {
		t.Errorf("known hosts %v, want both again", got)
	}
	w.clean(t)
}

// TestDamagedRow damages one row: its copy takes over, or the VM is set aside
// with its disk.
func TestDamagedRow(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, dir, nil)
	w.mustCreate(t, "copied")
	lost := w.mustCreate(t, "lost")
	err := w.st.Tx(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.Exec("UPDATE machines SET body = substr(body, 2)")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	w.stop()
	copied := filepath.Join(dir, "vms", lost.ID, "vm.json")
	if err := os.WriteFile(copied, []byte(`{"id":"../../etc"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	w = newWorld(t, dir, nil)
	if got := w.state("copied"); got != api.Running {
		t.Errorf("copied is %q, want running", got)
	}
	if got := w.state("lost"); got != "" {
		t.Errorf("lost is %q, want it set aside", got)
	}
	aside := filepath.Join(dir, "vms", "damaged-"+lost.ID, "disk.ext4")
	if _, err := os.Stat(aside); err != nil {
		t.Errorf("the disk of the VM that was set aside: %v", err)
	}
	if err := os.RemoveAll(filepath.Dir(aside)); err != nil {
		t.Fatal(err)
	}
	w.clean(t)
}

func TestReconcileReleasesWhatNoRowExplains(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, dir, nil)
	m := w.mustCreate(t, "web")
	if _, err := w.x.Stop(t.Context(), "web", api.StopMachine{}); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"held/aaaaaaaaaaaa", "held/" + m.ID, "vms/bbbbbbbbbbbb"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	before, err := w.x.Census(t.Context())
	if err != nil || len(before.Leaks) != 3 {
		t.Errorf("Census = %q, %v; want three leaks", before.Leaks, err)
	}
	after, err := w.x.Reconcile(t.Context())
	if err != nil || len(after.Leaks) != 0 || after.Machines != 1 || len(after.Disks) != 1 {
		t.Errorf("Reconcile = %+v, %v; want one VM and no leaks", after, err)
	}
	if err := os.Remove(filepath.Join(dir, "vms", m.ID, "disk.ext4")); err != nil {
		t.Fatal(err)
	}
	if c, err := w.x.Census(t.Context()); err != nil || len(c.Leaks) != 1 || !strings.Contains(c.Leaks[0], "has no disk") {
		t.Errorf("Census = %q, %v; want the missing disk", c.Leaks, err)
	}
}
