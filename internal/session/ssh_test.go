package session

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// A signal that only the CLI hears ends its ssh too. It is not a hangup here: who
// runs tests with nohup has children that ignore those.
func TestPass(t *testing.T) {
	child := exec.CommandContext(t.Context(), "cat")
	if _, err := child.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	signals, ended, last := make(chan os.Signal, 1), make(chan struct{}), make(chan syscall.Signal, 1)
	go func() { last <- pass(signals, child.Process, ended) }()
	signals <- syscall.SIGTERM
	_ = child.Wait()
	close(ended)
	if got := <-last; got != syscall.SIGTERM {
		t.Errorf("the last signal is %v, want %v", got, syscall.SIGTERM)
	}
	if ws, ok := child.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGTERM {
		t.Errorf("the child ended with %v, want %v", child.ProcessState, syscall.SIGTERM)
	}
}
