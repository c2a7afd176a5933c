package machine_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"testing"
	"time"

	"banger/internal/api"
	"banger/internal/crash"
	"banger/internal/host"
	"banger/internal/host/fakehost"
	"banger/internal/machine"
)

// TestCrashPointsAreListed holds the list to the source, both ways.
func TestCrashPointsAreListed(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	call := regexp.MustCompile(`crash\.Point\("([^"]+)"\)`)
	var inSource []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range call.FindAllSubmatch(b, -1) {
			inSource = append(inSource, string(m[1]))
		}
	}
	listed := machine.CrashPoints()
	slices.Sort(inSource)
	slices.Sort(listed)
	if !slices.Equal(inSource, listed) {
		t.Errorf("points in the source %v\nlisted %v; want the same, once each", inSource, listed)
	}
}

// An operation is one row of the kill matrix.
type operation struct {
	name   string
	before func(t *testing.T, w *world) // what is there when it begins; may be nil
	do     func(ctx context.Context, w *world) error
	points []string // that it passes
}

// operations is the matrix. All are about one VM called web.
func operations() []operation {
	exists := func(t *testing.T, w *world) {
		if _, _, err := w.create(t.Context(), api.CreateMachine{Name: "web", NoStart: true}); err != nil {
			t.Fatal(err)
		}
	}
	runs := func(t *testing.T, w *world) { w.mustCreate(t, "web") }
	create := func(req api.CreateMachine) func(context.Context, *world) error {
		req.Name = "web"
		return func(ctx context.Context, w *world) error { _, _, err := w.create(ctx, req); return err }
	}
	making := []string{"create.row", "create.directory", "create.disk", "create.known", "create.made", "create.copied"}
	booting := []string{"boot.opened", "boot.launched", "boot.recorded", "boot.called", "boot.running"}
	settling := []string{"settle.released", "settle.done"}
	deleting := []string{"delete.row", "delete.released", "delete.files", "delete.forgotten", "delete.done"}
	return []operation{
		{"create", nil, create(api.CreateMachine{}), slices.Concat(making, booting)},
		{"create without start", nil, create(api.CreateMachine{NoStart: true}), making},
		{"create ephemeral", nil, func(ctx context.Context, w *world) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			return w.x.Create(ctx, api.CreateMachine{Name: "web", Ephemeral: true, Spec: spec()}, func(e api.Event) {
				if e.Type == api.EventResult {
					cancel()
				}
			})
		}, slices.Concat(making, booting, deleting)},
		{"create silent", nil, func(ctx context.Context, w *world) error {
			w.host.Behave = func(string, int) fakehost.Behaviour { return fakehost.Behaviour{Silent: true} }
			err := create(api.CreateMachine{})(ctx, w)
			if api.CodeOf(err) == api.Timeout {
				return nil
			}
			return fmt.Errorf("got %w, want a timeout", err)
		}, []string{"boot.retry", "boot.failed"}},
		{"start", exists, func(ctx context.Context, w *world) error {
			return w.x.Start(ctx, "web", api.StartMachine{}, nil)
		}, slices.Concat([]string{"start.row"}, booting)},
		{"restart", runs, func(ctx context.Context, w *world) error {
			return w.x.Restart(ctx, "web", api.StartMachine{}, nil)
		}, slices.Concat([]string{"stop.row", "stop.ended", "start.row"}, settling, booting)},
		{"stop", runs, func(ctx context.Context, w *world) error {
			_, err := w.x.Stop(ctx, "web", api.StopMachine{})
			return err
		}, slices.Concat([]string{"stop.row", "stop.ended"}, settling)},
		{"kill", runs, func(ctx context.Context, w *world) error {
			_, err := w.x.Kill(ctx, "web", api.KillMachine{})
			return err
		}, slices.Concat([]string{"kill.sent"}, settling)},
		{"set nat", runs, func(ctx context.Context, w *world) error {
			nat := true
			if m, err := w.x.Get("web"); err == nil && m.NAT { // it came to pass before the crash
				nat = false
			}
			_, err := w.x.Set(ctx, "web", api.SetMachine{NAT: &nat})
			return err
		}, []string{"set.row", "set.told"}},
		{"delete", runs, func(ctx context.Context, w *world) error {
			_, err := w.x.Delete(ctx, "web")
			return err
		}, deleting},
		{"adopt what ended", func(t *testing.T, w *world) {
			m := w.mustCreate(t, "web")
			w.stop()
			w.host.End(m.ID, host.Exit{Reason: "the guest powered off"})
		}, func(context.Context, *world) error { return nil }, settling},
	}
}

// Variables by which the test tells its child what to do.
const (
	childOperation = "MACHINE_TEST_OPERATION"
	childDir       = "MACHINE_TEST_DIR"
)

// hasty makes silent guests fail soon.
func hasty() machine.Limits { return machine.Limits{Agent: 50 * time.Millisecond} }

// TestCrashChild is the daemon that dies; it runs only as a child of
// [TestKillMatrix].
func TestCrashChild(t *testing.T) {
	name := os.Getenv(childOperation)
	if name == "" {
		return // not asked for: nothing to test
	}
	for _, o := range operations() {
		if o.name != name {
			continue
		}
		w, err := enter(t.Context(), os.Getenv(childDir), hasty())
		if err != nil {
			t.Fatal(err)
		}
		w.run(t.Context())
		<-w.x.Ready()
		if err := o.do(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		w.stop()
	}
}

// TestKillMatrix kills a daemon at each point of each operation and looks at
// what the next daemon makes of it: no row half made, nothing that no row
// explains, and the same operation succeeds.
func TestKillMatrix(t *testing.T) {
	passed := map[string]bool{}
	for _, o := range operations() {
		for _, point := range o.points {
			passed[point] = true
			t.Run(o.name+"/"+point, func(t *testing.T) {
				t.Parallel()
				killAt(t, o, point)
			})
		}
	}
	for _, point := range machine.CrashPoints() {
		if !passed[point] {
			t.Errorf("no operation of the matrix passes %s", point)
		}
	}
}

func killAt(t *testing.T, o operation, point string) {
	dir := t.TempDir()
	if o.before != nil {
		w := newWorld(t, dir, nil)
		o.before(t, w)
		w.stop()
	}
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCrashChild$", "-test.count=1")
	child.Env = append(os.Environ(), childOperation+"="+o.name, childDir+"="+dir, crash.Env+"="+point)
	out, err := child.CombinedOutput()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child ended with %v, want it killed at %s\n%s", err, point, out)
	}

	w := newLimitedWorld(t, dir, hasty(), nil)
	for _, m := range w.x.List() {
		switch m.State {
		case api.Starting:
			w.eventually(t, m.ID, api.Running) // the boot goes on
		case api.Stopping:
			w.eventually(t, m.ID, api.Stopped) // the stop goes on
		}
	}
	for _, m := range w.x.List() {
		switch m.State {
		case api.Running, api.Stopped, api.Failed:
		default:
			t.Errorf("after a crash VM %q is %q, want it at rest", m.Name, m.State)
		}
		if n := w.host.Net(m.ID); m.State == api.Running && (n == nil || n.NAT != m.NAT || n.Addr != m.Address) {
			t.Errorf("after a crash VM %q has NAT %v and %v, and the host goes by %+v", m.Name, m.NAT, m.Address, n)
		}
		if m.Ephemeral {
			t.Errorf("after a crash the ephemeral VM %q is %q, want it gone: nobody leases it", m.Name, m.State)
		}
	}
	w.clean(t)
	again(t, w, o)
	w.clean(t)
}

// again repeats the operation after the crash.
func again(t *testing.T, w *world, o operation) {
	t.Helper()
	if w.state("web") == "" && o.before != nil {
		return // the crash came after the deletion
	}
	err := o.do(t.Context(), w)
	if api.CodeOf(err) == api.Exists && o.before == nil {
		// The VM was complete: the user sees it and may delete it.
		if _, err := w.x.Delete(t.Context(), "web"); err != nil {
			t.Fatalf("deleting what the crash left: %v", err)
		}
		err = o.do(t.Context(), w)
	}
	if err != nil {
		t.Errorf("%s after the crash: %v", o.name, err)
	}
}
