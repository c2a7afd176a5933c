package guestlife

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/agentapi"
	"banger/internal/handover"
)

type echoing struct{}

func (echoing) Serve(_ context.Context, conn *agentapi.Conn, req agentapi.Request, _ io.ReadWriteCloser) {
	_ = conn.WriteJSON(agentapi.KindOK, req)
}

// ask sends one frame to a life and returns the answer's.
func ask(t *testing.T, l *life, kind agentapi.Kind, payload []byte) (agentapi.Kind, string) {
	t.Helper()
	host, guest := net.Pipe()
	defer func() { _ = host.Close() }()
	go l.serveStream(t.Context(), guest)
	c := agentapi.NewConn(host)
	if err := c.Write(kind, payload); err != nil {
		t.Fatal(err)
	}
	k, b, err := c.Read()
	if err != nil {
		t.Fatal(err)
	}
	return k, string(b)
}

func newLife() *life {
	l := &life{Config: Config{Handler: echoing{}, Version: "v1"}, mounted: make(chan struct{}), gone: make(chan struct{}), init: handover.InitNone}
	close(l.mounted)
	return l
}

func TestServeStream(t *testing.T) {
	l := newLife()
	for name, tt := range map[string]struct {
		kind    agentapi.Kind
		payload string
		want    agentapi.Kind
		text    string
	}{
		"hello":               {agentapi.KindRequest, `{"op":"hello"}`, agentapi.KindOK, `"init":"none"`},
		"another's operation": {agentapi.KindRequest, `{"op":"exec"}`, agentapi.KindOK, `"op":"exec"`},
		"no JSON":             {agentapi.KindRequest, `{`, agentapi.KindError, `"code":"invalid"`},
		"not a request":       {agentapi.KindStdin, `x`, agentapi.KindError, `"code":"invalid"`},
		"identify as nobody":  {agentapi.KindRequest, `{"op":"identify"}`, agentapi.KindError, `"code":"invalid"`},
	} {
		kind, text := ask(t, l, tt.kind, []byte(tt.payload))
		if kind != tt.want || !bytes.Contains([]byte(text), []byte(tt.text)) {
			t.Errorf("%s: %q %s, want %q with %s", name, kind, text, tt.want, tt.text)
		}
	}
}

func TestStagesOfSystemd(t *testing.T) {
	l := newLife()
	for _, s := range []struct {
		name string
		made bool
	}{{"other", true}, {handover.StageSockets, true}, {handover.StageBoot, true}, {handover.StageBoot, false},
		{handover.StageSockets, false}, {handover.StageReboot, true}, {handover.StagePowerOff, false}} {
		l.stage(s.name, s.made)
	}
	var got []string
	for _, e := range l.news.all() {
		got = append(got, string(e.Type)+" "+e.Text)
	}
	want := []string{"sockets ", "boot ", "ending ", "ending reboot"}
	if len(got) != len(want) {
		t.Fatalf("events %q, want %q", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("events %q, want %q", got, want)
		}
	}
}

// Stages that were reached before anybody watched are told once.
func TestStagesReachedBefore(t *testing.T) {
	l, dir := newLife(), t.TempDir()
	l.note(agentapi.EventSockets, "")
	for _, name := range []string{handover.StageSockets, handover.StageReboot, "other"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l.reached(dir)
	var got []string
	for _, e := range l.news.all() {
		got = append(got, string(e.Type)+" "+e.Text)
	}
	if want := []string{"sockets ", "ending reboot"}; !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}

func TestKindOf(t *testing.T) {
	for verb, want := range map[string]string{"": "", "poweroff": "poweroff", "halt": "poweroff", "reboot": "reboot", "kexec": "reboot", "exit": "poweroff"} {
		if got := kindOf(verb); got != want {
			t.Errorf("kindOf(%q) = %q, want %q", verb, got, want)
		}
	}
}

// The bare process waits for a process that ends by a signal, and does not wait
// for ever for one that does not.
func TestProcessWait(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	open := func() process {
		fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		return process{fd}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	open().wait(ctx)
	if end, _ := ctx.Deadline(); time.Now().Before(end) {
		t.Error("wait returned before process and context ended")
	}
	p := open()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if p.wait(ctx); ctx.Err() != nil {
		t.Error("wait did not see the end of a process")
	}
}

// A port reads nothing as "nothing yet", as a virtio-serial port without a host
// gives it, and a deadline ends the wait.
func TestPortWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPort(os.NewFile(uintptr(fd), path))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	got := make(chan string, 1)
	go func() {
		b := make([]byte, 10)
		n, err := p.Read(b)
		got <- string(b[:n])
		if err != nil {
			t.Error(err)
		}
	}()
	for _, text := range []string{"", "late"} { // the first writer comes and goes without a word
		w, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteString(text); err != nil {
			t.Fatal(err)
		}
		_ = w.Close()
	}
	if s := <-got; s != "late" {
		t.Errorf("Read = %q, want %q", s, "late")
	}
	if err := p.SetDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if n, err := p.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read past its deadline = %d, %v; want a timeout", n, err)
	}
}
