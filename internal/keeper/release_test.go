package keeper_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"sync"
	"testing"

	"banger/internal/companionapi"
	"banger/internal/host"
	"banger/internal/keeper"
	"banger/internal/procid"
	"banger/internal/testneed"
	"banger/internal/vmtest"
)

// vmms have one VMM: the process that vmm is, dead if it is nil.
type vmms struct {
	keeper.VMMs
	vmm    *procid.ID
	looked chan struct{} // closed when somebody has seen that it is dead
	once   *sync.Once
}

func (v vmms) Open(context.Context, host.Record) (*procid.Process, error) {
	if v.vmm != nil {
		return procid.Open(*v.vmm)
	}
	v.once.Do(func() { close(v.looked) })
	return nil, procid.ErrDead
}

func (vmms) End(context.Context, host.Record) error { return nil }

// A companion whose VMM has ended may be sending its clients the rest, and ends
// when it has: Release does not kill it. With a VMM, it is killed at once.
func TestReleaseLetsTheCompanionFinish(t *testing.T) {
	cat := testneed.Tool(t, "cat")
	self, err := procid.Self()
	if err != nil {
		t.Fatal(err)
	}
	for name, vmm := range map[string]*procid.ID{"an ended VMM": nil, "a VMM": &self} {
		t.Run(name, func(t *testing.T) {
			v := vmms{vmm: vmm, looked: make(chan struct{}), once: new(sync.Once)}
			k, err := keeper.New(keeper.Config{RunDir: vmtest.ShortDir(t), CompanionPath: cat, VMMs: v})
			if err != nil {
				t.Fatal(err)
			}
			const id = "0123456789ab"
			companion := exec.CommandContext(t.Context(), cat)
			rest, err := companion.StdinPipe()
			if err == nil {
				err = errors.Join(k.Make(id), companion.Start())
			}
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			rec := host.Record{ID: id, VMM: self}
			rec.Companion, err = procid.Of(companion.Process.Pid)
			go func() { ended <- companion.Wait() }()
			dir, derr := k.Dir(id)
			if err := errors.Join(err, derr, companionapi.Save(dir, companionapi.RecordName, rec)); err != nil {
				t.Fatal(err)
			}
			released := make(chan error, 1)
			go func() { released <- k.Release(t.Context(), id) }()
			select {
			case <-v.looked: // now it waits
				if err := rest.Close(); err != nil {
					t.Error(err)
				}
				err = <-released
			case err = <-released:
			}
			if err != nil {
				t.Errorf("Release() = %v", err)
			}
			if err := <-ended; (err != nil) != (vmm != nil) {
				t.Errorf("the companion ended with %v; killed it should be: %v", err, vmm != nil)
			}
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("Stat(%s) = %v, want that it is removed", dir, err)
			}
		})
	}
}
