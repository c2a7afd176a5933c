package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/agentapi"
	"banger/internal/tartree"
	"banger/internal/testneed"
)

func TestPanicIsAnErrorOfItsOperation(t *testing.T) {
	t.Parallel()
	var logged string
	s := New(Config{Log: func(m string) { logged = m }})
	err := func() (err error) {
		defer s.recovered(&err)
		panic("oh")
	}()
	if e, ok := errors.AsType[*agentapi.Error](err); !ok || e.Code != agentapi.CodeFailed || !strings.Contains(e.Msg, "oh") {
		t.Errorf("a panic became %v", err)
	}
	s.guarded(func() { panic("again") })()
	if !strings.Contains(logged, "again") || !strings.Contains(logged, "internal_test.go") {
		t.Errorf("the log says %q", logged)
	}
}

func TestWireErrorHasACode(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err  error
		want agentapi.ErrorCode
	}{
		{fmt.Errorf("writing: %w", unix.ENOSPC), agentapi.CodeNoSpace},
		{&os.PathError{Op: "open", Err: unix.EDQUOT}, agentapi.CodeNoSpace},
		{fmt.Errorf("x: %w", os.ErrNotExist), agentapi.CodeNotFound},
		{fmt.Errorf("x: %w", tartree.ErrUnsafe), agentapi.CodeInvalid},
		{refuse(agentapi.CodeNoUser, "x"), agentapi.CodeNoUser},
		{errors.New("x"), agentapi.CodeFailed},
	} {
		if got := wireError(tt.err); got.Code != tt.want || got.Msg == "" {
			t.Errorf("wireError(%v) = %+v, want code %s", tt.err, got, tt.want)
		}
	}
}

func TestRing(t *testing.T) {
	t.Parallel()
	r := newRing(1000)
	want := bytes.Repeat([]byte("0123456789"), 10_007)
	go func() {
		for b := want; len(b) > 0; {
			n := min(len(b), 333)
			r.write(b[:n])
			b = b[n:]
		}
		r.closeWrite(io.EOF)
	}()
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v; want %d unchanged", len(got), err, len(want))
	}
	r = newRing(10)
	r.closeRead()
	r.write(want) // must not wait
}

// The agent is kept from the OOM killer; nothing that it starts is, from its
// first instruction on.
func TestCommandsAreFoundByTheOOMKiller(t *testing.T) {
	const score = "/proc/self/oom_score_adj"
	before, err := os.ReadFile(score)
	if err != nil {
		t.Fatal(err)
	}
	const own = "7\n" // any but 0, and one that needs no right to come back from
	if err := os.WriteFile(score, []byte(own), 0); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.WriteFile(score, before, 0); err != nil {
			t.Error(err)
		}
	}()
	s := New(Config{})
	for range 50 {
		p, err := s.start(agentapi.Exec{Argv: []string{"cat", score}}, "")
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		s.run(p, newInlet(p.stdin, false, func(int) {}), func(_ int, b []byte) { got = append(got, b...) })
		if string(got) != "0\n" {
			t.Fatalf("a command's score is %q, want 0", got)
		}
	}
	if b, err := os.ReadFile(score); err != nil || string(b) != own {
		t.Errorf("the agent's score is %q, %v; want %q as before", b, err, own)
	}
}

func TestCgroupEndsWhatACommandStarted(t *testing.T) {
	t.Parallel()
	base := ""
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC && unix.Access(dir, unix.W_OK) == nil {
			base = dir
		}
	}
	if base == "" || os.Getuid() != 0 {
		testneed.Missing(t, "cgroup v2, and root to write to it")
	}
	dir := filepath.Join(base, fmt.Sprintf("banger-test-%d", os.Getpid()))
	s := New(Config{Cgroup: dir})
	defer os.Remove(dir)
	held := filepath.Join(t.TempDir(), "held")
	if err := unix.Mkfifo(held, 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := s.start(agentapi.Exec{Argv: []string{"sh", "-c", `exec 9>"$1"; (trap '' HUP; exec setsid sleep 1000) & echo >&9; wait`, "sh", held}}, "")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(held)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if p.group == nil {
		t.Fatal("the command has no cgroup")
	}
	p.hangup()
	in := newInlet(p.stdin, false, func(int) {})
	if exit := s.run(p, in, func(int, []byte) {}); exit.Signal != int(unix.SIGHUP) {
		t.Errorf("the command ended with %+v, want signal 1", exit)
	}
	if _, err := io.Copy(io.Discard, f); err != nil { // ends when the child in a session of its own has
		t.Error(err)
	}
	if s.groups.sweep(); len(s.groups.left) > 1 {
		t.Errorf("cgroups left: %q", s.groups.left)
	}
}
