package userhost_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/crash"
	"banger/internal/host"
	"banger/internal/host/hosttest"
	"banger/internal/procid"
	"banger/internal/userhost"
	"banger/internal/vmm/fake"
	"banger/internal/vmtest"
)

// launchEnv makes this test binary a process that launches a VM and dies.
const launchEnv = "BANGER_TEST_LAUNCH"

func TestMain(m *testing.M) {
	ctx := context.Background()
	if code, ours := vmtest.Main(ctx); ours {
		os.Exit(code)
	}
	if spec := os.Getenv(launchEnv); spec != "" {
		os.Exit(launch(ctx, spec))
	}
	os.Exit(m.Run())
}

// job is what the launching process is told.
type job struct{ RunDir, ID, Work string }

func launch(ctx context.Context, spec string) int {
	var j job
	if err := json.Unmarshal([]byte(spec), &j); err != nil {
		return 2
	}
	self, err := os.Executable()
	if err != nil {
		return 3
	}
	h, err := userhost.New(userhost.Config{RunDir: j.RunDir, CompanionPath: self, Driver: fake.Name})
	if err != nil {
		return 4
	}
	file, err := os.Open(self)
	if err != nil {
		return 5
	}
	r, err := h.Launch(ctx, host.Spec{ID: j.ID, VCPUs: 1, MemoryMiB: 1, Kernel: file, Initramfs: file, ConsolePath: j.Work + "/console"})
	if err != nil {
		return 6
	}
	if err := json.NewEncoder(os.Stdout).Encode(r.Record()); err != nil {
		return 7
	}
	if h.Release(ctx, j.ID) != nil {
		return 8
	}
	return 0
}

func TestContractWithTheFake(t *testing.T) {
	dir := vmtest.ShortDir(t)
	hosttest.Suite{
		New:  func(t *testing.T) host.Host { return vmtest.Host(t, userhost.Config{RunDir: dir}) },
		Spec: func(t *testing.T) host.Spec { return vmtest.FakeSpec(t, "") },
	}.Run(t)
}

// The same with the channels laid as Firecracker has them.
func TestContractWithACallingFake(t *testing.T) {
	dir := vmtest.ShortDir(t)
	hosttest.Suite{
		New: func(t *testing.T) host.Host {
			return vmtest.Host(t, userhost.Config{RunDir: dir, Driver: fake.NameCalling})
		},
		Spec: func(t *testing.T) host.Spec { return vmtest.FakeSpec(t, "") },
	}.Run(t)
}

// The launching process dies between any two steps; the next one finds what
// there is, by the id alone, and can go on with it or remove it.
func TestDeathOfTheLauncher(t *testing.T) {
	for _, point := range []string{"launch.dir-made", "launch.companion-started", "launch.config-sent", "launch.started", "release.killed"} {
		for _, adopt := range []bool{false, true} {
			name := point + " then release"
			if adopt {
				name = point + " then adopt"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				j := job{RunDir: vmtest.ShortDir(t), ID: vmtest.ID(t), Work: t.TempDir()}
				spec, err := json.Marshal(j)
				if err != nil {
					t.Fatal(err)
				}
				cmd := exec.CommandContext(t.Context(), vmtest.Companion(t))
				cmd.Env = append(os.Environ(), launchEnv+"="+string(spec), crash.Env+"="+point)
				out, err := cmd.CombinedOutput()
				if cmd.ProcessState == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("the launcher did not die at the point: %v\n%s", err, out)
				}
				h := vmtest.Host(t, userhost.Config{RunDir: j.RunDir})
				if held := hosttest.Find(t, h, j.ID); held == nil {
					t.Error("the census does not see what is left")
				}
				if adopt {
					r, err := h.Adopt(t.Context(), host.Record{ID: j.ID})
					if err != nil && !errors.Is(err, host.ErrGone) {
						t.Errorf("Adopt() = %v, want a run or ErrGone", err)
					}
					if err == nil && !r.Record().VMM.Alive() {
						t.Error("Adopt() found a dead VMM")
					}
				}
				hosttest.Release(t, h, j.ID)
			})
		}
	}
}

// The companion dies between any two steps of its start: Launch says so and
// leaves nothing; or, right after it has answered, another takes over.
func TestDeathOfTheCompanion(t *testing.T) {
	for _, point := range []string{"companion.listening", "companion.ready", "companion.vmm-started", "companion.recorded"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			h, spec := vmtest.Host(t, userhost.Config{Env: []string{crash.Env + "=" + point}}), vmtest.FakeSpec(t, "")
			if _, err := h.Launch(t.Context(), spec); err == nil {
				t.Error("Launch() = nil, want an error")
			}
			if held := hosttest.Find(t, h, spec.ID); held != nil {
				t.Errorf("Launch() failed and left %+v", *held)
			}
		})
	}
	t.Run("always", func(t *testing.T) {
		t.Parallel()
		h, spec := vmtest.Host(t, userhost.Config{Env: []string{crash.Env + "=companion.told"}}), vmtest.FakeSpec(t, "")
		r := hosttest.Launch(t, h, spec)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if e := hosttest.Ended(ctx, t, r); e.Reason != "its companions kept dying" {
			t.Errorf("Exit() = %+v, want its companions kept dying", e)
		}
	})
}

// A VMM that is killed with its companion may answer nobody for a moment before
// it is gone: that is its end, not that of its companions.
func TestVMMThatIsDying(t *testing.T) {
	t.Parallel()
	log, lost := vmtest.Heard(t, "a companion is lost")
	h, spec := vmtest.Host(t, userhost.Config{Log: log}), vmtest.FakeSpec(t, "")
	r := hosttest.Launch(t, h, spec)
	hosttest.Home(t.Context(), t, r, api.StageAgent)
	rec := r.Record()
	if err := os.Remove(filepath.Join(filepath.Dir(r.Companion()), companionapi.AgentSocketName)); err != nil {
		t.Fatal(err)
	}
	signal(t, rec.Companion, syscall.SIGKILL)
	for range 2 { // the second follows a companion that could not be started
		<-lost
	}
	signal(t, rec.VMM, syscall.SIGKILL)
	if e := hosttest.Ended(t.Context(), t, r); e.Reason == "its companions kept dying" {
		t.Errorf("Exit() = %+v, want that the VMM has ended", e)
	}
	hosttest.Release(t, h, spec.ID)
}

// A companion that is stopped, or hangs, does not answer: it is replaced.
func TestAdoptReplacesACompanionThatHangs(t *testing.T) {
	t.Parallel()
	dir := vmtest.ShortDir(t)
	first, spec := vmtest.Host(t, userhost.Config{RunDir: dir}), vmtest.FakeSpec(t, "")
	r := hosttest.Launch(t, first, spec)
	hosttest.Home(t.Context(), t, r, api.StageAgent)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	p, err := procid.Open(r.Record().Companion)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	awaitStop(t, r.Record().Companion.PID)
	second := vmtest.Host(t, userhost.Config{RunDir: dir})
	again, err := second.Adopt(t.Context(), r.Record())
	if err != nil {
		t.Fatalf("Adopt() = %v", hosttest.Explain(err))
	}
	if again.Record().Companion == r.Record().Companion || again.Record().VMM != r.Record().VMM {
		t.Errorf("Adopt() = %+v after %+v, want another companion", again.Record(), r.Record())
	}
	hosttest.Home(t.Context(), t, again, api.StageAgent)
	hosttest.Release(t, second, spec.ID)
}

// A companion that is just being started in the place of a dead one is on no
// record, but holds the socket: who adopts the VM meanwhile gets past it.
func TestAdoptWhileACompanionIsReplaced(t *testing.T) {
	t.Parallel()
	h, spec := vmtest.Host(t, userhost.Config{}), vmtest.FakeSpec(t, "")
	r := hosttest.Launch(t, h, spec)
	hosttest.Home(t.Context(), t, r, api.StageAgent)
	rec := r.Record()
	signal(t, rec.VMM, syscall.SIGSTOP) // a busy host: who takes over has to wait
	awaitStop(t, rec.VMM.PID)
	signal(t, rec.Companion, syscall.SIGKILL)
	second := awaitCompanion(t, h, spec.ID, nil, rec.Companion.PID)
	adopted := make(chan error, 1)
	go func() {
		_, err := h.Adopt(t.Context(), rec)
		adopted <- err
	}()
	awaitCompanion(t, h, spec.ID, adopted, rec.Companion.PID, second)
	signal(t, rec.VMM, syscall.SIGCONT)
	if err := <-adopted; err != nil {
		t.Fatalf("Adopt() = %v", hosttest.Explain(err))
	}
	hosttest.Home(t.Context(), t, r, api.StageAgent)
	hosttest.Release(t, h, spec.ID)
}

// The daemon dies while it replaces a companion: the next one is not kept out by
// what it has started.
func TestAdoptAfterADeathInATakeover(t *testing.T) {
	t.Parallel()
	dir := vmtest.ShortDir(t)
	first, spec := vmtest.Host(t, userhost.Config{RunDir: dir}), vmtest.FakeSpec(t, "")
	r := hosttest.Launch(t, first, spec)
	hosttest.Home(t.Context(), t, r, api.StageAgent)
	rec := r.Record()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	signal(t, rec.Companion, syscall.SIGKILL)
	second := vmtest.Host(t, userhost.Config{RunDir: dir, Env: []string{crash.Env + "=companion.listening=stop"}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := second.Adopt(ctx, rec)
		done <- err
	}()
	awaitStop(t, awaitCompanion(t, second, spec.ID, done, rec.Companion.PID))
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Adopt() = %v, want that its context ended", err)
	}
	third := vmtest.Host(t, userhost.Config{RunDir: dir})
	again, err := third.Adopt(t.Context(), rec)
	if err != nil {
		t.Fatalf("Adopt() = %v", hosttest.Explain(err))
	}
	hosttest.Home(t.Context(), t, again, api.StageAgent)
	hosttest.Release(t, third, spec.ID)
}

// A logout takes the runtime directory away, and a later daemon has another: a
// VM that cannot be taken over is ended, since nobody could find it again.
func TestAdoptWithoutTheDirectory(t *testing.T) {
	t.Parallel()
	dir := vmtest.ShortDir(t)
	first, spec := vmtest.Host(t, userhost.Config{RunDir: dir}), vmtest.FakeSpec(t, "")
	r := hosttest.Launch(t, first, spec)
	if err := errors.Join(first.Close(), os.RemoveAll(dir)); err != nil {
		t.Fatal(err)
	}
	second := vmtest.Host(t, userhost.Config{})
	if _, err := second.Adopt(t.Context(), r.Record()); err == nil {
		t.Error("Adopt() = nil without a directory")
	}
	hosttest.Release(t, second, spec.ID)
	if rec := r.Record(); rec.VMM.Alive() || rec.Companion.Alive() {
		t.Errorf("VMM %v or companion %v lives on, and nobody knows of it", rec.VMM, rec.Companion)
	}
}

// signal sends sig to a process.
func signal(t *testing.T, id procid.ID, sig syscall.Signal) {
	t.Helper()
	p, err := procid.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// awaitCompanion waits until a VM has a companion that is none of known, or
// until over, which keeps what it holds.
func awaitCompanion(t *testing.T, h host.Host, id string, over chan error, known ...int) int {
	t.Helper()
	for len(over) == 0 {
		if t.Context().Err() != nil {
			t.Fatal("no companion comes")
		}
		if v := hosttest.Find(t, h, id); v != nil && v.Companion != 0 && !slices.Contains(known, v.Companion) {
			return v.Companion
		}
	}
	return 0
}

// awaitStop waits until no thread of a process runs any more.
func awaitStop(t *testing.T, pid int) {
	t.Helper()
	for {
		if t.Context().Err() != nil {
			t.Fatal("the process does not stop")
		}
		names, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		running := false
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err == nil && !strings.Contains(string(b), ") T ") {
				running = true
			}
		}
		if !running {
			return
		}
		runtime.Gosched()
	}
}

// Records are lost, too: /proc is enough.
func TestReleaseWithoutRecords(t *testing.T) {
	t.Parallel()
	dir := vmtest.ShortDir(t)
	h, spec := vmtest.Host(t, userhost.Config{RunDir: dir}), vmtest.FakeSpec(t, "")
	r := hosttest.Launch(t, h, spec)
	if err := os.RemoveAll(filepath.Join(dir, spec.ID)); err != nil {
		t.Fatal(err)
	}
	other := vmtest.Host(t, userhost.Config{RunDir: dir})
	if v := hosttest.Find(t, other, spec.ID); v == nil || v.VMM != r.Record().VMM.PID {
		t.Errorf("the census has %+v, want VMM %d", v, r.Record().VMM.PID)
	}
	hosttest.Release(t, h, spec.ID)
}

func TestLaunchRefuses(t *testing.T) {
	t.Parallel()
	h := vmtest.Host(t, userhost.Config{})
	for name, tt := range map[string]struct {
		change func(*host.Spec)
		want   string
	}{
		"no id":                {func(s *host.Spec) { s.ID = "" }, `"" is not a VM's id`},
		"no kernel":            {func(s *host.Spec) { s.Kernel = nil }, "kernel or initramfs is missing"},
		"no disk file":         {func(s *host.Spec) { s.Disks[0].File = nil }, `disk "base" has no file`},
		"a base to be written": {func(s *host.Spec) { s.Disks[0].ReadOnly = false }, `disk "base" is not open for reading and writing`},
		"a disk not writable":  {func(s *host.Spec) { s.Disks[1].ReadOnly = true }, `disk "vm" is not open for reading only`},
		"a console nowhere":    {func(s *host.Spec) { s.ConsolePath = "/nowhere/console" }, "opening console"},
		"a VMM that refuses":   {func(s *host.Spec) { s.Cmdline = fake.Refuse }, "refusing, as told"},
	} {
		s := vmtest.FakeSpec(t, "")
		tt.change(&s)
		_, err := h.Launch(t.Context(), s)
		if err == nil || !strings.Contains(hosttest.Explain(err), tt.want) {
			t.Errorf("%s: Launch() = %v, want %q", name, err, tt.want)
		}
		if s.ID != "" && hosttest.Find(t, h, s.ID) != nil {
			t.Errorf("%s: Launch() left something", name)
		}
	}
}

func TestNewRefusesALongPath(t *testing.T) {
	_, err := userhost.New(userhost.Config{RunDir: "/" + strings.Repeat("x", userhost.MaxRunDir)})
	if e, ok := errors.AsType[*api.Error](err); !ok || !strings.Contains(e.Hint, "XDG_RUNTIME_DIR") {
		t.Errorf("New() = %v, want a hint at XDG_RUNTIME_DIR", err)
	}
	if len("/0123456789ab/"+companionapi.SocketName)+userhost.MaxRunDir != 107 {
		t.Error("MaxRunDir does not use what there is")
	}
}

// The verdict is asked of the probe once per boot of the host.
func TestDriverIsRemembered(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "kvm.json")
	boot, err := procid.BootID()
	if err != nil {
		t.Fatal(err)
	}
	ask := func(content map[string]any) (string, string) {
		if content != nil {
			b, err := json.Marshal(content)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(cache, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		h, err := userhost.New(userhost.Config{RunDir: vmtest.ShortDir(t), KVMCache: cache})
		if err != nil {
			t.Fatal(err)
		}
		return h.Driver(t.Context())
	}
	said := map[string]any{"why": "somebody said so"}
	if name, why := ask(map[string]any{"boot_id": boot, "uid": os.Geteuid(), "verdict": said}); name != "qemu-tcg" || why != "somebody said so" {
		t.Errorf("Driver() = %q, %q; want the remembered", name, why)
	}
	if _, why := ask(map[string]any{"boot_id": "another", "uid": os.Geteuid(), "verdict": said}); why == "somebody said so" {
		t.Error("Driver() remembers another boot")
	}
	name, why := ask(nil)
	if (name == "qemu-kvm") != (why == "") {
		t.Errorf("Driver() = %q, %q; want KVM, or why not", name, why)
	}
}
