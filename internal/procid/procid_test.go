package procid_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"banger/internal/procid"
	"golang.org/x/sys/unix"
)

// cat starts a process that lives until its stdin is closed.
func cat(t *testing.T) (*exec.Cmd, io.Closer) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "cat")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return c, in
}

func TestSelfIsAliveAndOthersAreNot(t *testing.T) {
	self, err := procid.Self()
	if err != nil {
		t.Fatal(err)
	}
	if !self.Alive() {
		t.Errorf("Self().Alive() = false, want true")
	}
	for name, change := range map[string]func(*procid.ID){
		"another start": func(id *procid.ID) { id.Start++ },
		"another boot":  func(id *procid.ID) { id.BootID = "0" },
		"no pid":        func(id *procid.ID) { id.PID = 0 },
		"init's pid":    func(id *procid.ID) { id.PID = 1 },
		"an absent pid": func(id *procid.ID) { id.PID = 1 << 30 },
	} {
		id := self
		change(&id)
		if id.Alive() {
			t.Errorf("%s: Alive() = true, want false", name)
		}
		if p, err := procid.Open(id); !errors.Is(err, procid.ErrDead) {
			t.Errorf("%s: Open() = %v, %v; want ErrDead", name, p, err)
		}
	}
}

// halfEnv makes this test binary a process whose first thread ends at once; the
// others live until its stdin is closed.
const halfEnv = "BANGER_TEST_HALF_DEAD"

func init() {
	if os.Getenv(halfEnv) == "" {
		return
	}
	runtime.LockOSThread() // initialisers run on the first thread
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	_, _, _ = unix.Syscall(unix.SYS_EXIT, 0, 0, 0) // of the thread; exit_group is that of the process
}

// A process that is killed dies thread by thread, and holds its files and locks
// until the last: whoever takes it for dead before meets them.
func TestHalfDeadIsAlive(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), self)
	c.Env = append(os.Environ(), halfEnv+"=1")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for zombie := false; !zombie && t.Context().Err() == nil; runtime.Gosched() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		zombie = strings.Contains(string(b), ") Z ")
	}
	id, err := procid.Of(c.Process.Pid)
	if err != nil || !id.Alive() {
		t.Errorf("Of() = %v, %v, Alive() = %v while a thread lives; want it alive", id, err, id.Alive())
	}
	in.Close()
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
	if id.Alive() {
		t.Error("Alive() = true after the last thread")
	}
}

func TestZombieIsDead(t *testing.T) {
	c, in := cat(t)
	id, err := procid.Of(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	p, err := procid.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	select {
	case <-p.Done():
		t.Fatal("Done() is closed while the process runs")
	default:
	}
	if p.Ended() {
		t.Error("Ended() = true while the process runs")
	}
	in.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := p.Wait(ctx); err != nil {
		t.Fatalf("Wait() = %v", err)
	}
	if !p.Ended() {
		t.Error("Ended() = false after Wait")
	}
	if id.Alive() {
		t.Error("Alive() = true for a zombie, want false")
	}
	if _, err := procid.Of(id.PID); !errors.Is(err, procid.ErrDead) {
		t.Errorf("Of(zombie) = %v, want ErrDead", err)
	}
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(unix.SIGKILL); !errors.Is(err, procid.ErrDead) {
		t.Errorf("Signal() after the end = %v, want ErrDead", err)
	}
}

func TestSignalReachesTheProcess(t *testing.T) {
	c, in := cat(t)
	defer in.Close()
	id, err := procid.Of(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	p, err := procid.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	var exit *exec.ExitError
	if err := c.Wait(); !errors.As(err, &exit) {
		t.Errorf("Wait() = %v, want killed", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := p.Close(); err != nil {
		t.Errorf("second Close() = %v, want nil", err)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	self, err := procid.Self()
	if err != nil {
		t.Fatal(err)
	}
	p, err := procid.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait() = %v, want Canceled", err)
	}
}
