package procid_test

import (
	"context"
	"errors"
	"io"
	"os/exec"
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
	in.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := p.Wait(ctx); err != nil {
		t.Fatalf("Wait() = %v", err)
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
