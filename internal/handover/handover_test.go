package handover_test

import (
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"banger/internal/handover"
)

// ends returns both ends of a conversation.
func ends(t *testing.T) (init, agent handover.Conn) {
	t.Helper()
	init, file, err := handover.Pair()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(file.Fd())) // as a child would inherit it
	if err != nil {
		t.Fatal(err)
	}
	_ = file.Close()
	agent = handover.Open(fd)
	t.Cleanup(func() { _ = init.Close(); _ = agent.Close() })
	return init, agent
}

func TestHandOver(t *testing.T) {
	for _, m := range []handover.Mounted{
		{Init: handover.InitSystemd},
		{Init: handover.InitNone, Problems: []string{"loading module x: no", "growing the VM disk: no"}},
	} {
		init, agent := ends(t)
		if err := init.SendMounted(m); err != nil {
			t.Fatal(err)
		}
		got, err := agent.Mounted()
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Problems) == 0 {
			got.Problems = nil
		}
		if diff := cmp.Diff(m, got); diff != "" {
			t.Errorf("Mounted (-want +got):\n%s", diff)
		}
		if err := errors.Join(agent.Go(), init.WaitGo()); err != nil {
			t.Error(err)
		}
		if m.Init == handover.InitNone {
			err = init.Stayed()
		} else {
			err = init.Close() // it has become systemd
		}
		if err := errors.Join(err, agent.WaitGone()); err != nil {
			t.Error(err)
		}
	}
}

func TestDeathOfTheAgent(t *testing.T) {
	init, agent := ends(t)
	_ = agent.Close()
	if err := init.WaitGo(); !errors.Is(err, io.EOF) {
		t.Errorf("WaitGo after the agent's death = %v, want EOF", err)
	}
}

func TestDeathOfInit(t *testing.T) {
	init, agent := ends(t)
	_ = init.Close()
	if _, err := agent.Mounted(); !errors.Is(err, io.EOF) {
		t.Errorf("Mounted after the death of PID 1 = %v, want EOF", err)
	}
}
