package daemon_test

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/daemon"
	"banger/internal/host/fakehost"
)

// create asks for a small VM.
func create(name string) api.CreateMachine {
	return api.CreateMachine{
		Name: name, Image: "small", Spec: api.Spec{VCPUs: 1, MemoryMiB: 128, DiskBytes: 1 << 30},
		AuthorizedKey: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0dP0kI3xWgqXWFsvEQ4cGiIfm8F8kXfVqxMXx8YtUC",
	}
}

// types collects the kinds of events of a request.
func types(got *[]api.EventType) func(api.Event) error {
	return func(ev api.Event) error {
		*got = append(*got, ev.Type)
		return nil
	}
}

func TestMachineLife(t *testing.T) {
	w := newWorld(t)
	c := w.serve(t, func(cfg *daemon.Config) {
		cfg.Host.(*fakehost.Host).Behave = func(string, int) fakehost.Behaviour { return fakehost.Behaviour{Console: "Linux version 6.1\n"} }
	})
	im, k := stock(t, c)
	var got []api.EventType
	m, err := c.CreateMachine(t.Context(), create("web"), types(&got))
	if err != nil {
		t.Fatalf("CreateMachine() = %v", err)
	}
	if m.Name != "web" || m.State != api.Running || m.ImageID != im.ID || m.Kernel != k.Name {
		t.Errorf("CreateMachine() = %+v", m)
	}
	for _, want := range []api.EventType{api.EventMachine, api.EventStarted, api.EventStage} {
		if !slices.Contains(got, want) {
			t.Errorf("events of a create = %v, want %s among them", got, want)
		}
	}
	if _, err := c.CreateMachine(t.Context(), create("web"), nil); api.CodeOf(err) != api.Exists {
		t.Errorf("second CreateMachine() = %v, want exists", err)
	}
	known, err := os.ReadFile(w.layout.KnownHosts)
	if err != nil || !strings.HasPrefix(string(known), "web.vm ssh-ed25519 ") {
		t.Errorf("known_hosts = %q, %v", known, err)
	}
	for name, f := range map[string]func() ([]string, error){
		"image":  func() ([]string, error) { i, err := c.Image(t.Context(), "small"); return i.Machines, err },
		"kernel": func() ([]string, error) { k, err := c.Kernel(t.Context(), k.Name); return k.Machines, err },
	} {
		if users, err := f(); err != nil || !slices.Equal(users, []string{"web"}) {
			t.Errorf("users of the %s = %v, %v; want web", name, users, err)
		}
	}
	if _, err := c.DeleteImage(t.Context(), "small"); api.CodeOf(err) != api.Conflict || !strings.Contains(err.Error(), "web") {
		t.Errorf("DeleteImage() in use = %v, want a conflict that names web", err)
	}
	if _, err := c.DeleteKernel(t.Context(), k.ID[:8]); api.CodeOf(err) != api.Conflict {
		t.Errorf("DeleteKernel() in use = %v, want a conflict", err)
	}
	console(t, c)
	routesOf(t, c, m)
	clean(t, c)
	if _, err := c.DeleteMachine(t.Context(), "www"); err != nil {
		t.Errorf("DeleteMachine() = %v", err)
	}
	if known, err := os.ReadFile(w.layout.KnownHosts); err != nil || len(known) != 0 {
		t.Errorf("known_hosts after delete = %q, %v; want nothing", known, err)
	}
	if _, err := c.DeleteImage(t.Context(), "small"); err != nil {
		t.Errorf("DeleteImage() = %v", err)
	}
	if _, err := c.DeleteKernel(t.Context(), k.Name); err != nil {
		t.Errorf("DeleteKernel() = %v", err)
	}
	clean(t, c)
}

func console(t *testing.T, c *client.Client) {
	t.Helper()
	r, err := c.Console(t.Context(), "web")
	if err != nil {
		t.Fatalf("Console() = %v", err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != "Linux version 6.1\n" {
		t.Errorf("Console() = %q, %v", b, err)
	}
}

// routesOf passes through the other routes of a running VM, which ends
// stopped, with the name www.
func routesOf(t *testing.T, c *client.Client, m api.Machine) {
	t.Helper()
	ctx := t.Context()
	start := api.StartMachine{AuthorizedKey: create("").AuthorizedKey}
	name, cpus := "www", 2
	for _, step := range []struct {
		what string
		do   func() (api.Machine, error)
		want api.State
	}{
		{"show", func() (api.Machine, error) { return c.Machine(ctx, m.ID[:6]) }, api.Running},
		{"stop", func() (api.Machine, error) { return c.StopMachine(ctx, "web", api.StopMachine{TimeoutSeconds: 5}) }, api.Stopped},
		{"start", func() (api.Machine, error) { return c.StartMachine(ctx, "web", start, nil) }, api.Running},
		{"restart", func() (api.Machine, error) { return c.RestartMachine(ctx, "web", start, nil) }, api.Running},
		{"kill", func() (api.Machine, error) { return c.KillMachine(ctx, "web", api.KillMachine{Signal: "KILL"}) }, api.Stopped},
		{"set", func() (api.Machine, error) {
			return c.SetMachine(ctx, "web", api.SetMachine{Name: &name, VCPUs: &cpus})
		}, api.Stopped},
	} {
		got, err := step.do()
		if err != nil || got.State != step.want || got.ID != m.ID {
			t.Errorf("%s = %+v, %v; want it %s", step.what, got, err, step.want)
		}
	}
	ms, err := c.Machines(ctx)
	if err != nil || len(ms) != 1 || ms[0].Name != "www" || ms[0].Spec.VCPUs != 2 {
		t.Errorf("Machines() = %+v, %v", ms, err)
	}
}

// A create without an image says which, so that the CLI can pull it.
func TestCreateNeedsImageAndKernel(t *testing.T) {
	w := newWorld(t)
	c := w.serve(t, nil)
	if _, err := c.CreateMachine(t.Context(), create("web"), nil); api.CodeOf(err) != api.NotFound || !strings.Contains(err.Error(), `"small"`) {
		t.Errorf("CreateMachine() without images = %v, want not_found of small", err)
	}
	clean(t, c)
}

// The client goes away while the VM boots: nothing is left.
func TestCreateThatIsCalledOff(t *testing.T) {
	w := newWorld(t)
	c := w.serve(t, func(cfg *daemon.Config) {
		cfg.Host.(*fakehost.Host).Behave = func(string, int) fakehost.Behaviour { return fakehost.Behaviour{Silent: true} }
	})
	stock(t, c)
	enough := errors.New("the user has had enough")
	_, err := c.CreateMachine(t.Context(), create("web"), func(ev api.Event) error {
		if ev.Type == api.EventStarted {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Errorf("CreateMachine() = %v, want %v", err, enough)
	}
	waitGone(t, c)
}

// waitGone waits until no VM is left; the end of a connection has to reach the
// daemon first.
func waitGone(t *testing.T, c *client.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		ms, err := c.Machines(ctx)
		if err != nil {
			t.Fatalf("Machines() = %v", err)
		}
		if len(ms) == 0 {
			clean(t, c)
			return
		}
	}
}

// The daemon is told to end while a VM boots: the client hears of it.
func TestShutdownDuringACreate(t *testing.T) {
	w := newWorld(t)
	c := w.serve(t, func(cfg *daemon.Config) {
		cfg.Host.(*fakehost.Host).Behave = func(string, int) fakehost.Behaviour { return fakehost.Behaviour{Silent: true} }
	})
	stock(t, c)
	_, err := c.CreateMachine(t.Context(), create("web"), func(ev api.Event) error {
		if ev.Type == api.EventStarted {
			return c.Shutdown(t.Context())
		}
		return nil
	})
	if api.CodeOf(err) != api.Interrupted {
		t.Errorf("CreateMachine() = %v (%s), want interrupted", err, api.CodeOf(err))
	}
}
