package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/agent"
	"banger/internal/agentapi"
	"banger/internal/api"
	"banger/internal/guest"
	"banger/internal/testneed"
)

// An end is one end of a stream, with a switch for the client's death.
type end interface {
	guest.Stream
	CloseWrite() error
}

func socketPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

// open returns a stream that an agent of this configuration serves. The test
// ends only when the agent has let it go.
func open(t *testing.T, c agent.Config) end {
	t.Helper()
	host, inside := socketPair(t)
	if c.Cgroup == "" {
		c.Cgroup = filepath.Join(t.TempDir(), "none") // the host's own is not the test's
	}
	s := agent.New(c)
	served := make(chan struct{})
	go func() {
		defer close(served)
		conn := agentapi.NewConn(inside)
		k, b, err := conn.Read()
		var req agentapi.Request
		if err != nil || k != agentapi.KindRequest || agentapi.Decode(b, &req) != nil {
			inside.Close()
			return
		}
		s.Serve(context.WithoutCancel(t.Context()), conn, req, inside)
	}()
	t.Cleanup(func() {
		host.Close()
		select {
		case <-served:
		case <-time.After(20 * time.Second):
			t.Error("the agent still serves a stream that is closed")
		}
	})
	return host
}

// run runs a command and returns its exit and its output.
func run(t *testing.T, e agentapi.Exec, stdin string) (agentapi.Exit, string, string, error) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if e.Dir == "" {
		e.Dir = "/"
	}
	exit, err := guest.Exec(t.Context(), open(t, agent.Config{}), e, guest.IO{Stdin: strings.NewReader(stdin), Stdout: &stdout, Stderr: &stderr})
	return exit, stdout.String(), stderr.String(), err
}

func sh(script string, args ...string) agentapi.Exec {
	return agentapi.Exec{Argv: append([]string{"sh", "-c", script, "sh"}, args...), Dir: "/"}
}

func TestEveryExitCode(t *testing.T) {
	t.Parallel()
	for code := range 256 {
		exit, _, _, err := run(t, sh("exit $1", strconv.Itoa(code)), "")
		if want := (agentapi.Exit{Code: code}); err != nil || exit != want {
			t.Errorf("exit %d: %+v, %v", code, exit, err)
		}
	}
}

func TestEverySignal(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 2, 3, 6, 9, 15} {
		exit, _, _, err := run(t, sh("kill -$1 $$", strconv.Itoa(n)), "")
		if want := (agentapi.Exit{Code: 128 + n, Signal: n}); err != nil || exit != want {
			t.Errorf("signal %d: %+v, %v; want %+v", n, exit, err, want)
		}
	}
}

func TestSignalsReachTheProcessGroup(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 2, 9, 15} {
		signals := make(chan int, 1)
		// The child of the shell gets it too: else "wait" would go on.
		started := writerFunc(func(b []byte) (int, error) { signals <- n; return len(b), nil })
		exit, err := guest.Exec(t.Context(), open(t, agent.Config{}), agentapi.Exec{Argv: []string{"sh", "-c", "sleep 100 & echo; wait"}, Dir: "/"},
			guest.IO{Stdout: started, Signals: signals})
		if want := (agentapi.Exit{Code: 128 + n, Signal: n}); err != nil || exit != want {
			t.Errorf("signal %d: %+v, %v; want %+v", n, exit, err, want)
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestArgumentsArriveUnchanged(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	pieces := []string{"", " ", "\n", "'", `"`, "`", "$HOME", "$(id)", "\\", "-n", "--", "*", "🙂", "é", "\xff", "\x01", "\x1b[31m", "a", "%s", "\r\n", "<&>", "\u2028"}
	n := 1000
	if testing.Short() {
		n = 100
	}
	for i := range n {
		args := make([]string, rng.IntN(6))
		for j := range args {
			var b strings.Builder
			for range rng.IntN(8) {
				b.WriteString(pieces[rng.IntN(len(pieces))])
			}
			args[j] = b.String()
		}
		if i%50 == 0 {
			args = append(args, strings.Repeat("x", 100_000))
		}
		want := ""
		for _, a := range args {
			want += a + "\x00"
		}
		exit, got, _, err := run(t, sh(`for a; do printf '%s\0' "$a"; done`, args...), "")
		if err != nil || exit != (agentapi.Exit{}) || got != want {
			t.Fatalf("argv %d %.300q: got %.300q, %+v, %v", i, args, got, exit, err)
		}
	}
}

// A pattern makes bytes that can be checked without keeping them.
type pattern struct{ n, bad int64 }

func (p *pattern) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte((p.n + int64(i)) * 31 >> 3)
	}
	p.n += int64(len(b))
	return len(b), nil
}

func (p *pattern) Write(b []byte) (int, error) {
	for i := range b {
		if b[i] != byte((p.n+int64(i))*31>>3) {
			p.bad++
		}
	}
	p.n += int64(len(b))
	return len(b), nil
}

func TestHundredMegabytesBothWays(t *testing.T) {
	t.Parallel()
	const size = 100 << 20
	var in, out pattern
	exit, err := guest.Exec(t.Context(), open(t, agent.Config{}), agentapi.Exec{Argv: []string{"cat"}, Dir: "/"},
		guest.IO{Stdin: io.LimitReader(&in, size), Stdout: &out})
	if err != nil || exit != (agentapi.Exit{}) || out.n != size || out.bad != 0 {
		t.Errorf("cat: %+v, %v; %d bytes came back, %d of them wrong, want %d", exit, err, out.n, out.bad, size)
	}
}

func TestStdoutAndStderrAreApart(t *testing.T) {
	t.Parallel()
	exit, out, errs, err := run(t, sh("echo out; echo err >&2; cat; exit 3"), "stdin")
	if err != nil || exit.Code != 3 || out != "out\nstdin" || errs != "err\n" {
		t.Errorf("got %q, %q, %+v, %v", out, errs, exit, err)
	}
}

// endless is a stdin that always has more.
type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

func TestStdinThatIsNeverRead(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	signals := make(chan int, 1)
	exit, err := guest.Exec(t.Context(), open(t, agent.Config{}), sh("head -c 3000000 /dev/zero; exit 7"), guest.IO{Stdin: endless{}, Stdout: &out})
	if err != nil || exit.Code != 7 || out.Len() != 3_000_000 {
		t.Errorf("%d bytes, %+v, %v; want 3000000 and 7", out.Len(), exit, err)
	}
	// A signal gets past all the stdin that nobody reads.
	started := writerFunc(func(b []byte) (int, error) { signals <- 15; return len(b), nil })
	exit, err = guest.Exec(t.Context(), open(t, agent.Config{}), sh("echo; exec sleep 100"), guest.IO{Stdin: endless{}, Stdout: started, Signals: signals})
	if err != nil || exit.Signal != 15 {
		t.Errorf("%+v, %v; want signal 15", exit, err)
	}
	// One that closes its stdin ends as it likes.
	exit, err = guest.Exec(t.Context(), open(t, agent.Config{}), sh("exec <&-; exit 8"), guest.IO{Stdin: endless{}})
	if err != nil || exit.Code != 8 {
		t.Errorf("%+v, %v; want 8", exit, err)
	}
}

func TestBackgroundChildKeepsStdout(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "alive")
	if err := unix.Mkfifo(file, 0o600); err != nil {
		t.Fatal(err)
	}
	// It holds stdout and writes on, yet the command ends with all of its own
	// output; and it lives on, with a stdout that still takes its lines.
	exit, out, _, err := run(t, sh(`(while read x; do echo noise; echo "$x"; done <"$1" >>"$1.log"; echo late; echo done >"$1.end") & head -c 60000 /dev/zero; exit 5`, file), "")
	if err != nil || exit.Code != 5 || len(out) != 60_000 {
		t.Errorf("%d bytes, %+v, %v; want 60000 and 5", len(out), exit, err)
	}
	if err := unix.Mkfifo(file+".end", 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("line\n"), 0); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(file + ".end") // waits for it
	if err != nil || string(got) != "done\n" {
		t.Errorf("the background process says %q, %v", got, err)
	}
	e := sh("yes & exit 6")
	e.Env = []string{marker()}
	exit, _, _, err = run(t, e, "")
	if err != nil || exit.Code != 6 {
		t.Errorf("with yes in the background: %+v, %v", exit, err)
	}
	// yes writes for ever into a pipe that the agent empties: it is ours to end.
	killChildrenNamed(t, "yes")
}

// killChildrenNamed ends the processes of that name which were started by this
// test's process.
func killChildrenNamed(t *testing.T, name string) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		comm, _ := os.ReadFile(filepath.Join(filepath.Dir(d), "comm"))
		env, _ := os.ReadFile(d)
		if strings.TrimSpace(string(comm)) == name && strings.Contains(string(env), marker()) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(d)))
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// marker is in the environment of commands that outlive their exec.
func marker() string { return fmt.Sprintf("BANGER_TEST_PID=%d", os.Getpid()) }

func TestWhatCannotBeRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, f := range map[string]struct {
		body string
		mode os.FileMode
	}{
		"plain":     {"echo hi\n", 0o644},
		"noshebang": {"echo script $1\nexit 4\n", 0o755},
		"nointerp":  {"#!/no/such/interpreter\n", 0o755},
		"binary":    {"\x7fELF\x00\x00garbage", 0o755},
		"empty":     {"", 0o755},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(f.body), f.mode); err != nil {
			t.Fatal(err)
		}
	}
	path := []string{"PATH=" + dir}
	for _, tt := range []struct {
		name string
		exec agentapi.Exec
		code agentapi.ErrorCode // empty: it runs
		want int
		msg  string
	}{
		{"no command", agentapi.Exec{}, agentapi.CodeInvalid, 0, "no command"},
		{"empty name", agentapi.Exec{Argv: []string{""}}, agentapi.CodeNotFound, 0, "empty"},
		{"not in PATH", agentapi.Exec{Argv: []string{"no-such-program"}}, agentapi.CodeNotFound, 0, "no-such-program"},
		{"no such path", agentapi.Exec{Argv: []string{"/no/such"}}, agentapi.CodeNotFound, 0, "/no/such"},
		{"through a file", agentapi.Exec{Argv: []string{"/etc/passwd/x"}}, agentapi.CodeNotFound, 0, ""},
		{"a directory", agentapi.Exec{Argv: []string{"/etc"}}, agentapi.CodeNotExecutable, 0, "directory"},
		{"no x bit", agentapi.Exec{Argv: []string{dir + "/plain"}}, agentapi.CodeNotExecutable, 0, "not executable"},
		{"no x bit in PATH", agentapi.Exec{Argv: []string{"plain"}, Env: path}, agentapi.CodeNotExecutable, 0, "not executable"},
		{"interpreter missing", agentapi.Exec{Argv: []string{"nointerp"}, Env: path}, agentapi.CodeNotExecutable, 0, "interpreter"},
		{"foreign binary", agentapi.Exec{Argv: []string{"binary"}, Env: path}, agentapi.CodeNotExecutable, 0, "exec format"},
		{"script without #!", agentapi.Exec{Argv: []string{"noshebang", "x"}, Env: path}, "", 4, ""},
		{"empty file", agentapi.Exec{Argv: []string{"./empty"}, Dir: dir}, "", 0, ""},
		{"relative to the directory", agentapi.Exec{Argv: []string{"./noshebang"}, Dir: dir}, "", 4, ""},
		{"relative PATH", agentapi.Exec{Argv: []string{"noshebang"}, Dir: dir, Env: []string{"PATH="}}, agentapi.CodeNotFound, 0, ""},
		{"dot in PATH", agentapi.Exec{Argv: []string{"noshebang"}, Dir: dir, Env: []string{"PATH=/bin:."}}, "", 4, ""},
		{"no directory", agentapi.Exec{Argv: []string{"true"}, Dir: "/no/such/dir"}, agentapi.CodeInvalid, 0, "/no/such/dir"},
		{"directory is a file", agentapi.Exec{Argv: []string{"true"}, Dir: "/etc/passwd"}, agentapi.CodeInvalid, 0, "/etc/passwd"},
		{"no user", agentapi.Exec{Argv: []string{"true"}, User: "no-such-user"}, agentapi.CodeNoUser, 0, "no-such-user"},
		{"no group", agentapi.Exec{Argv: []string{"true"}, User: "root:no-such-group"}, agentapi.CodeNoUser, 0, "no-such-group"},
		{"NUL", agentapi.Exec{Argv: []string{"true", "a\x00b"}}, agentapi.CodeInvalid, 0, "NUL"},
		{"one argument of 200 KB", agentapi.Exec{Argv: []string{"true", strings.Repeat("x", 200_000)}}, agentapi.CodeNotExecutable, 0, "longer than"},
	} {
		exit, _, errs, err := run(t, tt.exec, "")
		if tt.code == "" {
			if err != nil || exit.Code != tt.want {
				t.Errorf("%s: %+v, %v, %q; want %d", tt.name, exit, err, errs, tt.want)
			}
			continue
		}
		g, ok := errors.AsType[*agentapi.Error](err)
		if !ok || g.Code != tt.code || !strings.Contains(g.Msg, tt.msg) {
			t.Errorf("%s: %v, want %s with %q", tt.name, err, tt.code, tt.msg)
		}
	}
	_, _, _, err := run(t, agentapi.Exec{Argv: []string{"true", strings.Repeat("x", 2<<20)}}, "")
	if api.CodeOf(err) != api.Invalid {
		t.Errorf("2 MiB of arguments: %v, want code invalid", err)
	}
}

func TestEnvironment(t *testing.T) {
	t.Parallel()
	_, out, _, err := run(t, agentapi.Exec{Argv: []string{"env"}, Env: []string{"A=1", "LANG=C", "A=2", "EMPTY=", "nothing"}}, "")
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSpace(out), "\n")
	slices.Sort(got)
	want := []string{
		"A=2", "EMPTY=", "HOME=/root", "LANG=C", "LOGNAME=root",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "SHELL=" + shell(t), "USER=root",
	}
	if !slices.Equal(got, want) {
		t.Errorf("env: %q, want %q", got, want)
	}
}

// shell is root's, from this machine's own file.
func shell(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "root:") {
			return strings.TrimSpace(line[strings.LastIndex(line, ":")+1:])
		}
	}
	return "/bin/sh"
}

func TestUsers(t *testing.T) {
	t.Parallel()
	testneed.Root(t)
	for _, tt := range []struct{ user, want string }{
		{"", "0 0 0"},
		{"root", "0 0 0"},
		{"0", "0 0 0"},
		{"nobody", "65534 65534 65534"},
		{"daemon", "1 1 1"},
		{"4242", "4242 4242 4242"},
		{"4242:17", "4242 17 17"},
		{"daemon:0", "1 0 0"},
	} {
		e := sh(`echo $(id -u) $(id -g) $(id -G)`)
		e.User = tt.user
		_, out, errs, err := run(t, e, "")
		if got := strings.TrimSpace(out); err != nil || got != tt.want {
			t.Errorf("as %q: %q, %q, %v; want %q", tt.user, got, errs, err, tt.want)
		}
	}
}

func TestUnknownOperation(t *testing.T) {
	t.Parallel()
	for _, req := range []agentapi.Request{{Op: "dance"}, {Op: agentapi.OpExec}, {Op: agentapi.OpHello}} {
		s := open(t, agent.Config{})
		conn := agentapi.NewConn(s)
		if err := conn.WriteJSON(agentapi.KindRequest, req); err != nil {
			t.Fatal(err)
		}
		k, b, err := conn.Read()
		if err != nil || k != agentapi.KindError || !strings.Contains(string(b), string(agentapi.CodeInvalid)) {
			t.Errorf("%+v: %q %s, %v; want an error", req, byte(k), b, err)
		}
	}
}
