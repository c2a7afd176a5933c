package daemon_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/image"
	"banger/internal/kernel"
	"banger/internal/machine"
	"banger/internal/store"
)

func TestManyClientsStartOneDaemon(t *testing.T) {
	w := newWorld(t)
	defer w.end(t)
	const n = 20
	pids := make([]int, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			c, err := client.Connect(t.Context(), w.options())
			if err != nil {
				t.Errorf("Connect() = %v", err)
				return
			}
			defer c.Close()
			pids[i] = c.Greeting().PID
			if _, err := c.Machines(t.Context()); err != nil {
				t.Errorf("Machines() = %v", err)
			}
		})
	}
	wg.Wait()
	for _, pid := range pids {
		if pid == 0 || pid != pids[0] {
			t.Fatalf("clients met the daemons %v, want one", pids)
		}
	}
	if got := strings.Count(w.log(), "daemon is ready"); got != 1 {
		t.Errorf("%d daemons became ready, want 1\n%s", got, w.log())
	}
}

func TestDaemonIsADaemon(t *testing.T) {
	w := newWorld(t)
	defer w.end(t)
	// What a careless shell leaves open must not stay open with the daemon.
	r, p, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	left, err := syscall.Dup(int(p.Fd())) // not close-on-exec
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	defer func() {
		syscall.Close(left)
		if err := r.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Error(err)
		}
		if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("a pipe of who started the daemon ends with %v, want EOF while it runs", err)
		}
	}()
	pid := w.connect(t).Greeting().PID
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err != nil || cwd != "/" {
		t.Errorf("its directory is %q, %v; want /", cwd, err)
	}
	for fd, want := range map[int]string{0: "/dev/null", 1: "/dev/null", 2: w.layout.Log} {
		if got, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd)); err != nil || got != want {
			t.Errorf("its descriptor %d is %q, %v; want %q", fd, got, err, want)
		}
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(stat), ") ")
	if f := strings.Fields(rest); err != nil || len(f) < 4 || f[3] != fmt.Sprint(pid) {
		t.Errorf("its session is not its own: %q, %v", rest, err)
	}
}

// Daemons started by hand, all at once, with nobody to keep them apart.
func TestManyDaemonsOneServes(t *testing.T) {
	w := newWorld(t)
	defer w.end(t)
	const n = 6
	said := make([]string, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			r, p, err := os.Pipe()
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env, cmd.ExtraFiles = w.env, []*os.File{p}
			err = cmd.Start()
			p.Close()
			if err != nil {
				t.Error(err)
				return
			}
			said[i], err = bufio.NewReader(r).ReadString('\n')
			if err != nil {
				t.Errorf("a daemon ended without a word: %v", err)
			}
			if strings.TrimSpace(said[i]) != api.ReadyLine {
				_ = cmd.Wait()
				return
			}
			t.Cleanup(func() { _ = cmd.Wait() })
		})
	}
	wg.Wait()
	ready := 0
	for _, s := range said {
		switch {
		case s == api.ReadyLine+"\n":
			ready++
		case !strings.Contains(s, `"conflict"`) || !strings.Contains(s, w.layout.State):
			t.Errorf("a daemon said %q, want that another serves the state", s)
		}
	}
	if ready != 1 {
		t.Errorf("%d daemons became ready, want 1: %q", ready, said)
	}
}

func TestConnectWithoutStart(t *testing.T) {
	w := newWorld(t)
	_, err := client.Connect(t.Context(), client.Options{Layout: w.layout})
	if !errors.Is(err, client.ErrNotRunning) || api.CodeOf(err) != api.NotFound {
		t.Errorf("Connect() = %v, want ErrNotRunning", err)
	}
	if _, err := os.Stat(w.layout.State); err == nil {
		t.Error("Connect() without Start made directories")
	}
}

func TestDaemonThatCannotStartSaysWhy(t *testing.T) {
	for name, tt := range map[string]struct {
		prepare func(t *testing.T, w world, o *client.Options)
		code    api.Code
		say     string
	}{
		"a bad configuration": {func(t *testing.T, w world, _ *client.Options) {
			if err := os.MkdirAll(w.layout.Config, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(w.layout.ConfigFile, []byte("log_level = 'loud'\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, api.Invalid, "log_level"},
		"no program": {func(_ *testing.T, w world, o *client.Options) {
			o.DaemonPath = filepath.Join(w.layout.State, "bangerd")
		}, api.Missing, "bangerd"},
		"a program that ends": {func(_ *testing.T, _ world, o *client.Options) {
			o.DaemonPath = "/bin/false"
		}, api.Internal, "before it was ready"},
		"another program": {func(t *testing.T, w world, o *client.Options) {
			o.DaemonPath = filepath.Join(t.TempDir(), "other")
			if err := os.WriteFile(o.DaemonPath, []byte("#!/bin/sh\necho hello >&3\n"), 0o700); err != nil {
				t.Fatal(err)
			}
		}, api.VersionSkew, "hello"},
		"a state file from the future": {func(t *testing.T, w world, _ *client.Options) {
			if err := w.layout.Make(); err != nil {
				t.Fatal(err)
			}
			var future []store.Migration
			for i := range 9 {
				future = append(future, store.Migration{Number: i + 1, Noun: "future", SQL: fmt.Sprintf("CREATE TABLE t%d (a ANY) STRICT", i)})
			}
			db, err := store.Open(t.Context(), store.Config{Path: w.layout.DB, Migrations: future})
			if err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}, api.VersionSkew, "newer"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			defer w.end(t)
			o := w.options()
			tt.prepare(t, w, &o)
			_, err := client.Connect(t.Context(), o)
			if err == nil || api.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("Connect() = %v (%s), want %s and %q", err, api.CodeOf(err), tt.code, tt.say)
			}
		})
	}
}

// A client that comes just as the daemon ends gets the next one, not an error.
func TestRestarts(t *testing.T) {
	w := newWorld(t)
	defer w.end(t)
	last := 0
	for range 8 {
		c := w.connect(t)
		if pid := c.Greeting().PID; pid == last {
			t.Errorf("the daemon %d answers after its end", pid)
		}
		last = c.Greeting().PID
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := c.Shutdown(t.Context()); err != nil {
				t.Errorf("Shutdown() = %v", err)
			}
		})
		for range 3 {
			wg.Go(func() {
				o, err := client.Connect(t.Context(), w.options())
				if err != nil {
					t.Errorf("Connect() during the end = %v", err)
					return
				}
				o.Close()
			})
		}
		wg.Wait()
		c.Close()
		// One of the three may have met the old daemon and the others none.
		if err := w.connect(t).Shutdown(t.Context()); err != nil {
			t.Errorf("Shutdown() = %v", err)
		}
	}
}

// A logout takes the runtime directory away, and the daemon's socket with it: the
// next command waits until that daemon has noticed, and gets another.
func TestLostRuntimeDirectory(t *testing.T) {
	w := newWorld(t)
	defer w.end(t)
	c := w.connect(t)
	stock(t, c)
	c.Close()
	if err := os.RemoveAll(w.layout.Runtime); err != nil {
		t.Fatal(err)
	}
	again := w.connect(t)
	if again.Greeting().PID == c.Greeting().PID {
		t.Errorf("the daemon %d answers without a socket", c.Greeting().PID)
	}
	if is, err := again.Images(t.Context()); err != nil || len(is) != 1 {
		t.Errorf("Images() = %v, %v; want the state as it was", is, err)
	}
}

// A state file that was lost is made again from what lies beside it, also if the
// first daemon that tries dies when it has just made an empty one.
func TestLostStateIsRebuilt(t *testing.T) {
	w := newWorld(t)
	defer w.end(t)
	c := w.connect(t)
	stock(t, c)
	if _, err := c.CreateMachine(t.Context(), create("web"), nil); err != nil {
		t.Fatal(err)
	}
	w.end(t)
	if err := os.Remove(w.layout.DB); err != nil {
		t.Fatal(err)
	}
	if !w.fresh(t) {
		t.Error("a new state file is not fresh")
	}
	c = w.connect(t)
	if m, err := c.Machine(t.Context(), "web"); err != nil || m.State != api.Running {
		t.Errorf("Machine() = %+v, %v; want it running", m, err)
	}
	is, err := c.Images(t.Context())
	ks, kerr := c.Kernels(t.Context())
	if err != nil || kerr != nil || len(is) != 1 || len(ks) != 1 {
		t.Errorf("Images() = %v, %v, Kernels() = %v, %v; want one of each", is, err, ks, kerr)
	}
	if _, err := c.DeleteMachine(t.Context(), "web"); err != nil {
		t.Errorf("DeleteMachine() = %v", err)
	}
	clean(t, c)
	w.end(t)
	if w.fresh(t) {
		t.Error("the state file is to be rebuilt again")
	}
}

// fresh opens the state as a daemon would that dies at once.
func (w world) fresh(t *testing.T) bool {
	t.Helper()
	steps := append(append(machine.Migrations(4), image.Migrations(2)...), kernel.Migrations(3)...)
	db, err := store.Open(t.Context(), store.Config{Path: w.layout.DB, Migrations: steps})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	return db.Fresh()
}

func TestKilledDaemonIsReplacedAndFindsItsVMs(t *testing.T) {
	w := newWorld(t)
	defer w.end(t)
	c := w.connect(t)
	stock(t, c)
	m, err := c.CreateMachine(t.Context(), create("web"), nil)
	if err != nil {
		t.Fatalf("CreateMachine() = %v", err)
	}
	for range 3 {
		pid := c.Greeting().PID
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w.waitUnlocked(t)
		c = w.connect(t)
		if c.Greeting().PID == pid {
			t.Fatalf("the daemon %d lives on", pid)
		}
		if s, err := c.Reconcile(t.Context()); err != nil || s.Running != 1 || len(s.Leaks) != 0 {
			t.Errorf("Reconcile() = %+v, %v; want the VM running and no leak", s, err)
		}
		got, err := c.Machine(t.Context(), "web")
		if err != nil || got.ID != m.ID || got.State != api.Running {
			t.Errorf("Machine() after kill -9 = %+v, %v; want it running", got, err)
		}
	}
	if _, err := c.DeleteMachine(t.Context(), "web"); err != nil {
		t.Errorf("DeleteMachine() = %v", err)
	}
	clean(t, c)
}
