package machine_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/api"
	"banger/internal/host"
	"banger/internal/host/fakehost"
	"banger/internal/machine"
)

func TestCreateTellsWhatHappens(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	m, events, err := w.create(t.Context(), api.CreateMachine{Name: "web", Wait: api.StageBoot, AuthorizedKey: "ssh-ed25519 A"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"phase resolve", "phase row", "machine", "phase disk", "phase launch", "started 1", "phase guest",
		"stage agent", "stage sockets", "stage boot", "result",
	}
	if diff := cmp.Diff(want, types(events)); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if m.State != api.Running || m.Companion == "" || m.VMMPID == 0 || m.Driver != "fake" || m.DiskUsed == 0 || m.Network != api.NetworkHost || !m.Address.IsValid() {
		t.Errorf("result = %+v, want a running VM with all there is to know", m)
	}
	if fi, err := os.Stat(filepath.Join(w.dir, "vms", m.ID, "disk.ext4")); err != nil || fi.Mode() != 0o600 {
		t.Errorf("disk: %v, %v; want mode 0600", fi, err)
	}
	if got := w.knows(); !slices.Equal(got, []string{"web"}) {
		t.Errorf("known hosts %v, want web", got)
	}
	w.clean(t)
}

func TestCreateRefuses(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	w.mustCreate(t, "taken")
	small := spec()
	small.DiskBytes = 1
	for _, tt := range []struct {
		req  api.CreateMachine
		want api.Code
	}{
		{api.CreateMachine{Name: "Bad"}, api.Invalid},
		{api.CreateMachine{Name: "taken"}, api.Exists},
		{api.CreateMachine{Image: "none"}, api.NotFound},
		{api.CreateMachine{Spec: small}, api.Invalid},
		{api.CreateMachine{Wait: "never"}, api.Invalid},
		{api.CreateMachine{NoStart: true, Ephemeral: true}, api.Invalid},
	} {
		if _, _, err := w.create(t.Context(), tt.req); api.CodeOf(err) != tt.want {
			t.Errorf("Create(%+v) = %v, want code %s", tt.req, err, tt.want)
		}
	}
	if got := len(w.x.List()); got != 1 {
		t.Errorf("%d VMs, want only the first", got)
	}
	w.clean(t)
}

func TestCreateUndoesAFailedLaunch(t *testing.T) {
	missing := &api.Error{Code: api.Missing, Msg: "no QEMU", Hint: "apt install"}
	w := newWorld(t, t.TempDir(), behave(fakehost.Behaviour{LaunchErr: missing}))
	_, _, err := w.create(t.Context(), api.CreateMachine{Name: "web"})
	if api.CodeOf(err) != api.Missing || api.AsError(err).Hint != missing.Hint {
		t.Errorf("Create = %v, want the host's own error", err)
	}
	if w.state("web") != "" || len(w.knows()) != 0 {
		t.Errorf("left: VM %q, known hosts %v; want nothing", w.state("web"), w.knows())
	}
	w.clean(t)
}

func TestLife(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	ctx := t.Context()
	m, _, err := w.create(ctx, api.CreateMachine{Name: "web", NoStart: true})
	if err != nil || m.State != api.Stopped {
		t.Fatalf("Create = %q, %v; want it stopped", m.State, err)
	}
	check := func(doing string, err error, want api.State) {
		t.Helper()
		if got := w.state("web"); err != nil || got != want {
			t.Errorf("%s: %v, state %q; want %q", doing, err, got, want)
		}
		w.clean(t)
	}
	check("start", w.x.Start(ctx, "web", api.StartMachine{}, nil), api.Running)
	check("start again", w.x.Start(ctx, "web", api.StartMachine{Wait: api.StageBoot}, nil), api.Running)
	check("restart", w.x.Restart(ctx, "web", api.StartMachine{}, nil), api.Running)
	if n := w.host.Launches(m.ID); n != 2 {
		t.Errorf("%d launches, want 2", n)
	}
	stop := func() error { _, err := w.x.Stop(ctx, "web", api.StopMachine{}); return err }
	check("stop", stop(), api.Stopped)
	check("stop again", stop(), api.Stopped)
	check("start", w.x.Start(ctx, "web", api.StartMachine{}, nil), api.Running)
	kill := func(sig string) error { _, err := w.x.Kill(ctx, "web", api.KillMachine{Signal: sig}); return err }
	check("kill", kill("sigterm"), api.Stopped)
	check("kill again", kill(""), api.Stopped)
	if err := kill("SEGV"); api.CodeOf(err) != api.Invalid {
		t.Errorf("Kill SEGV = %v, want invalid", err)
	}
	was, err := w.x.Delete(ctx, "web")
	check("delete", err, "")
	if was.ID != m.ID || len(w.knows()) != 0 {
		t.Errorf("Delete = %+v, known hosts %v", was, w.knows())
	}
	for doing, err := range map[string]error{
		"start": w.x.Start(ctx, "web", api.StartMachine{}, nil), "stop": stop(), "kill": kill(""),
	} {
		if api.CodeOf(err) != api.NotFound || api.AsError(err).Hint == "" {
			t.Errorf("%s of a deleted VM = %v, want not found with a hint", doing, err)
		}
	}
}

func TestRefs(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	a, b := w.mustCreate(t, "a"), w.mustCreate(t, "b")
	// A name that looks like the other's prefix wins.
	if _, err := w.x.Set(t.Context(), "b", api.SetMachine{Name: new(a.ID[:5])}); err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]string{
		"a": a.ID, a.ID: a.ID, a.ID[:11]: a.ID, b.ID[:8]: b.ID, a.ID[:5]: b.ID,
	} {
		if m, err := w.x.Get(ref); err != nil || m.ID != want {
			t.Errorf("Get(%q) = %s, %v; want %s", ref, m.ID, err, want)
		}
	}
	for _, ref := range []string{"", "b", a.ID[:3], "zzzz", strings.Repeat("x", 500)} {
		if _, err := w.x.Get(ref); api.CodeOf(err) != api.NotFound || len(err.Error()) > 200 {
			t.Errorf("Get(%q) = %v, want not found, shortly", ref, err)
		}
	}
}

func TestAmbiguousRefNamesCandidates(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, dir, nil)
	m := w.mustCreate(t, "one")
	w.stop()
	// A second VM whose id differs in the last digit only, by way of its copy.
	id := m.ID[:11] + string("0123456789abcdef"[(strings.IndexByte("0123456789abcdef", m.ID[11])+1)%16])
	vms := filepath.Join(dir, "vms")
	b, err := os.ReadFile(filepath.Join(vms, m.ID, "vm.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(vms, id), os.DirFS(filepath.Join(vms, m.ID))); err != nil {
		t.Fatal(err)
	}
	twin := strings.ReplaceAll(strings.ReplaceAll(string(b), m.ID, id), `"one"`, `"two"`)
	if err := os.WriteFile(filepath.Join(vms, id, "vm.json"), []byte(twin), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "state.db"), []byte("garbage that is no database"), 0o600); err != nil {
		t.Fatal(err)
	}
	w = newWorld(t, dir, nil)
	_, err = w.x.Get(m.ID[:11])
	if api.CodeOf(err) != api.Ambiguous || !strings.Contains(err.Error(), "one") || !strings.Contains(err.Error(), "two") {
		t.Errorf("Get = %v, want ambiguous with both names", err)
	}
	if w.state("one") != api.Running {
		t.Errorf("the VM that ran through the damage is %q, want %q", w.state("one"), api.Running)
	}
	w.clean(t)
}

func TestSet(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	ctx := t.Context()
	w.mustCreate(t, "other")
	w.mustCreate(t, "web")
	for _, tt := range []struct {
		name string
		req  api.SetMachine
		want api.Code
	}{
		{"vcpus while it runs", api.SetMachine{VCPUs: new(2)}, api.Conflict},
		{"no vcpus", api.SetMachine{VCPUs: new(0)}, api.Invalid},
		{"a bad name", api.SetMachine{Name: new("-")}, api.Invalid},
		{"a taken name", api.SetMachine{Name: new("other")}, api.Exists},
	} {
		if _, err := w.x.Set(ctx, "web", tt.req); api.CodeOf(err) != tt.want || err == nil {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
		}
	}
	space := &api.Workspace{GuestPath: "/root/repo", Source: "/src"}
	if m, err := w.x.Set(ctx, "web", api.SetMachine{Workspace: space}); err != nil || m.Workspace.Source != "/src" {
		t.Errorf("Set workspace = %+v, %v", m.Workspace, err)
	}
	if _, err := w.x.Stop(ctx, "web", api.StopMachine{}); err != nil {
		t.Fatal(err)
	}
	m, err := w.x.Set(ctx, "web", api.SetMachine{
		Name: new("www"), VCPUs: new(4), MemoryMiB: new(int64(512)), DiskBytes: new(int64(512 << 20)),
	})
	want := api.Spec{VCPUs: 4, MemoryMiB: 512, DiskBytes: 512 << 20}
	if err != nil || m.Spec != want || m.Name != "www" {
		t.Errorf("Set = %+v, %v; want %+v and www", m, err, want)
	}
	if _, err := w.x.Set(ctx, "www", api.SetMachine{DiskBytes: new(int64(300 << 20))}); api.CodeOf(err) != api.Invalid {
		t.Errorf("shrinking = %v, want invalid", err)
	}
	if got := w.knows(); !slices.Equal(got, []string{"other", "www"}) {
		t.Errorf("known hosts %v, want the new name", got)
	}
	w.mustCreate(t, "web") // the old name is free
	w.clean(t)
}

func TestVMMEnds(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	m := w.mustCreate(t, "web")
	w.host.End(m.ID, host.Exit{Reason: "QEMU was killed by signal 9"})
	w.eventually(t, "web", api.Stopped)
	if got, err := w.x.Get("web"); err != nil || got.Reason != "QEMU was killed by signal 9" || got.Companion != "" {
		t.Errorf("after the end: %+v, %v; want the reason and no companion", got, err)
	}
	if err := w.x.Start(t.Context(), "web", api.StartMachine{}, nil); err != nil {
		t.Errorf("Start: %v", err)
	}
	w.host.End(m.ID, host.Exit{Reason: "the guest rebooted", Reboot: true})
	for w.host.Launches(m.ID) < 3 {
		w.eventually(t, "web", api.Running)
	}
	w.eventually(t, "web", api.Running)
	w.clean(t)
}

func TestCompanionIsReplaced(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	m := w.mustCreate(t, "web")
	w.host.KillCompanion(m.ID)
	// The new one answers; the old one would not, and force would be a reason.
	for {
		if _, err := w.host.Companion(m.Companion).Status(t.Context()); err == nil {
			break
		}
	}
	got, err := w.x.Stop(t.Context(), "web", api.StopMachine{})
	if err != nil || got.State != api.Stopped || got.Reason != "" {
		t.Errorf("Stop = %q because %q, %v; want an orderly stop", got.State, got.Reason, err)
	}
	w.clean(t)
}

func TestHundredClientsOneName(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	var wg sync.WaitGroup
	results := make(chan error, 100)
	for range 100 {
		wg.Go(func() {
			_, _, err := w.create(context.WithoutCancel(t.Context()), api.CreateMachine{Name: "web"})
			results <- err
		})
	}
	wg.Wait()
	close(results)
	made := 0
	for err := range results {
		switch {
		case err == nil:
			made++
		case api.CodeOf(err) != api.Exists:
			t.Errorf("Create = %v, want success or exists", err)
		}
	}
	if made != 1 || len(w.x.List()) != 1 {
		t.Errorf("%d were made, %d are there; want one", made, len(w.x.List()))
	}
	w.clean(t)
}

func TestCreateAndDeleteRace(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	var wg sync.WaitGroup
	for i := range 20 {
		name := fmt.Sprintf("vm-%d", i%5)
		wg.Go(func() {
			_, _, err := w.create(t.Context(), api.CreateMachine{Name: name})
			if c := api.CodeOf(err); err != nil && c != api.Exists && c != api.Interrupted && c != api.GuestLost {
				t.Errorf("Create: %v (%s)", err, c)
			}
		})
		wg.Go(func() {
			for range 5 {
				if _, err := w.x.Delete(t.Context(), name); err != nil && api.CodeOf(err) != api.NotFound {
					t.Errorf("Delete: %v", err)
				}
			}
		})
		wg.Go(func() { w.x.List() })
	}
	wg.Wait()
	for _, m := range w.x.List() {
		if m.State != api.Running {
			t.Errorf("%s is %s, want running or nothing", m.Name, m.State)
		}
		if _, err := w.x.Delete(t.Context(), m.ID); err != nil {
			t.Errorf("Delete: %v", err)
		}
	}
	w.clean(t)
	if got := w.knows(); len(got) != 0 {
		t.Errorf("known hosts %v, want none", got)
	}
}

func TestClaimFails(t *testing.T) {
	w := newWorld(t, t.TempDir(), nil)
	w.mustCreate(t, "web")
	if got := w.x.Users("d1"); !slices.Equal(got, []string{"web"}) {
		t.Errorf("Users(image) = %v, want web", got)
	}
	if got := w.x.Users("k1"); !slices.Equal(got, []string{"web"}) {
		t.Errorf("Users(kernel) = %v, want web", got)
	}
	x, err := machine.Open(t.Context(), machine.Config{Store: w.st, Host: w.host, Images: images{gone: true}, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error)
	go func() { over <- x.Run(ctx) }()
	err = x.Create(ctx, api.CreateMachine{Name: "late", Spec: spec()}, nil)
	if api.CodeOf(err) != api.NotFound {
		t.Errorf("Create of a deleted image = %v, want not found", err)
	}
	cancel()
	if err := <-over; err != nil {
		t.Errorf("Run = %v", err)
	}
	if _, err := x.Get("late"); !errors.As(err, new(*api.Error)) {
		t.Errorf("Get = %v, want not found", err)
	}
}
