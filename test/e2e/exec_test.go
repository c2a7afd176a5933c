package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"banger/internal/session"
)

// exec runs a command in a VM.
func (w *world) exec(t *testing.T, vm string, argv ...string) result {
	t.Helper()
	return w.banger(t, append([]string{"vm", "exec", vm, "--"}, argv...)...)
}

// inGuest runs a script that has to succeed in a VM and returns its stdout.
func (w *world) inGuest(t *testing.T, vm, script string, args ...string) string {
	t.Helper()
	return w.must(t, append([]string{"vm", "exec", vm, "--", "sh", "-c", script, "sh"}, args...)...)
}

// Every exit status comes through, and so does every signal, with nothing said
// about it.
func TestExitStatuses(t *testing.T) {
	t.Parallel()
	w := shared
	vm := w.small(t)
	type ending struct {
		script string
		want   int
	}
	var all []ending
	for code := range 256 {
		all = append(all, ending{fmt.Sprint("exit ", code), code})
	}
	for _, sig := range []int{1, 2, 9, 15} {
		all = append(all, ending{fmt.Sprintf("kill -%d $$", sig), 128 + sig})
	}
	var wg sync.WaitGroup
	next := make(chan ending)
	for range 4 {
		wg.Go(func() {
			for e := range next {
				out, err := w.command(t.Context(), "vm", "exec", vm, "--", "sh", "-c", e.script).CombinedOutput()
				if got := exitCode(t, err); got != e.want || len(out) > 0 {
					t.Errorf("%s: exit status %d and %q, want %d and no output", e.script, got, out, e.want)
				}
			}
		})
	}
	for _, e := range all {
		next <- e
	}
	close(next)
	wg.Wait()
}

// A hundred megabytes go in and come back, hashed in the guest as they pass.
func TestMuchInputAndOutput(t *testing.T) {
	t.Parallel()
	w := shared
	vm := w.small(t)
	const size = 100_000_000
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := w.command(ctx, "vm", "exec", vm, "--", "sh", "-c",
		"mkfifo /run/pass && { sha256sum </run/pass >&2 & tee /run/pass; wait; rm /run/pass; }")
	sent, got := sha256.New(), sha256.New()
	var stderr bytes.Buffer
	cmd.Stdin = io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{7}), size), sent)
	cmd.Stdout, cmd.Stderr = got, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("banger vm exec: %v\n%s", err, stderr.String())
	}
	want := fmt.Sprintf("%x", sent.Sum(nil))
	if inside, _, _ := strings.Cut(stderr.String(), " "); inside != want {
		t.Errorf("the guest read %s, want %s", inside, want)
	}
	if back := fmt.Sprintf("%x", got.Sum(nil)); back != want {
		t.Errorf("what came back is %s, want %s", back, want)
	}
}

// randomArgument is a word such as no shell would leave alone.
func randomArgument(r *rand.Rand) string {
	pieces := []string{"a", "Z", "0", " ", "\n", "\t", "'", `"`, "`", "$HOME", "$(id)", `\`, "%s", "*", "?", "[a]", "{}", "|", "&", ";", ">", "<",
		"#", "!", "~", "-", "--", "=", "😀", "é", "e\u0301", "日本", "\u202e", "\x01", "\x1b[31m", "\x7f", "\xff\xfe"}
	var b strings.Builder
	for range r.IntN(12) { // none of them now and then: an empty argument
		b.WriteString(pieces[r.IntN(len(pieces))])
	}
	return b.String()
}

// argvs are random argument vectors, and some that were thought up.
func argvs(n int) [][]string {
	r := rand.New(rand.NewPCG(3, 4))
	all := [][]string{
		{strings.Repeat("100 KB 😀\n", 100<<10/12), ""},
		{"--rm", "-t", "--", "--help", "-e", "A=B"}, // nobody's flags but the command's
		{""},
	}
	for len(all) < n {
		var vector []string
		for range 1 + r.IntN(8) {
			vector = append(vector, randomArgument(r))
		}
		all = append(all, vector)
	}
	return all
}

// A thousand random argument vectors arrive as they are, five in a command:
// some through the whole program, most through the code of `vm exec` alone.
func TestArgumentsArrive(t *testing.T) {
	t.Parallel()
	w := shared
	vm := w.small(t)
	m := w.show(t, vm)
	commands := 0
	for five := range slices.Chunk(argvs(1000), 5) {
		var vector []string
		for _, v := range five {
			vector = append(append(vector, v...), "the end of a vector")
		}
		// printf repeats its format for each argument.
		argv := append([]string{"printf", `%s\0`}, vector...)
		var out, stderr bytes.Buffer
		code := 0
		if commands++; commands <= 50 {
			cmd := w.command(t.Context(), append([]string{"vm", "exec", vm, "--"}, argv...)...)
			cmd.Stdout, cmd.Stderr = &out, &stderr
			code = exitCode(t, cmd.Run())
		} else {
			s := session.Session{Machine: m, Stdout: &out, Stderr: &stderr}
			exit, err := s.Exec(t.Context(), session.Command{Argv: argv})
			if err != nil {
				t.Fatalf("command %d: %v", commands, err)
			}
			code = exit.Code
		}
		got := strings.Split(strings.TrimSuffix(out.String(), "\x00"), "\x00")
		if code != 0 || stderr.Len() > 0 || !slices.Equal(got, vector) {
			t.Fatalf("command %d: exit status %d, %s\n got %.300q\nwant %.300q", commands, code, stderr.String(), got, vector)
		}
	}
}

// What a command is started with, and what it says when it cannot be.
func TestExecEnvironment(t *testing.T) {
	t.Parallel()
	w := shared
	vm := w.small(t)
	w.inGuest(t, vm, "echo text >/tmp/plain; chmod 644 /tmp/plain; mkdir -p /srv/odd\\ dir; printf 'echo no interpreter line\n' >/tmp/script; chmod 755 /tmp/script")
	for _, tt := range []struct {
		name           string
		flags, argv    []string
		code           int
		stdout, stderr string // stderr: a part of it
	}{
		{name: "the environment is fixed", argv: []string{"env"}, stdout: "HOME=/root\nUSER=root\nLOGNAME=root\nSHELL=/bin/sh\n" +
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nLANG=C.UTF-8\n"},
		{name: "env sets, overrides and passes on", flags: []string{"--env", "A=1=2", "-e", "HOME=/x", "-e", "BANGER_TEST_PASS"},
			argv: []string{"sh", "-c", `echo "$A|$HOME|$BANGER_TEST_PASS"`}, stdout: "1=2|/x|passed on\n"},
		{name: "env may hold newlines", flags: []string{"--env", "A=1\n2 😀"}, argv: []string{"sh", "-c", `printf %s "$A"`}, stdout: "1\n2 😀"},
		{name: "env needs a name", flags: []string{"--env", "=x"}, argv: []string{"true"}, code: 125, stderr: "hint: "},
		{name: "the home is the directory", argv: []string{"pwd"}, stdout: "/root\n"},
		{name: "workdir", flags: []string{"--workdir", "/srv/odd dir"}, argv: []string{"pwd"}, stdout: "/srv/odd dir\n"},
		{name: "workdir below the home", flags: []string{"-w", "../srv"}, argv: []string{"pwd"}, stdout: "/srv\n"},
		{name: "no workdir", flags: []string{"-w", "/nowhere"}, argv: []string{"pwd"}, code: 125, stderr: `no directory "/nowhere"`},
		{name: "a user", flags: []string{"--user", "user"}, argv: []string{"sh", "-c", "id -u; id -g; id -G; pwd; echo $HOME $USER"},
			stdout: "1000\n1000\n1000 100\n/home/user\n/home/user user\n"},
		{name: "a user and group by number", flags: []string{"-u", "4242:4343"}, argv: []string{"sh", "-c", "id -u; id -g; id -G; pwd"},
			stdout: "4242\n4343\n4343\n/\n"},
		{name: "no user", flags: []string{"-u", "nobody-here"}, argv: []string{"true"}, code: 125, stderr: `no user "nobody-here"`},
		{name: "a user cannot write what is root's", flags: []string{"-u", "user"}, argv: []string{"touch", "/etc/x"}, code: 1, stderr: "Permission denied"},
		{name: "not found", argv: []string{"no-such-program"}, code: 127, stderr: `no program "no-such-program" in the guest`},
		{name: "not found by path", argv: []string{"/bin/none/x"}, code: 127, stderr: "/bin/none/x"},
		{name: "the empty command", argv: []string{""}, code: 127, stderr: "empty"},
		{name: "not executable", argv: []string{"/tmp/plain"}, code: 126, stderr: "not executable"},
		{name: "a directory", argv: []string{"/tmp"}, code: 126, stderr: "is a directory"},
		{name: "a script without an interpreter", argv: []string{"/tmp/script"}, stdout: "no interpreter line\n"},
		{name: "stdin ends at once", argv: []string{"cat"}},
		{name: "both outputs", argv: []string{"sh", "-c", "echo out; echo err >&2"}, stdout: "out\n", stderr: "err\n"},
		{name: "output without a newline", argv: []string{"printf", "x"}, stdout: "x"},
		{name: "a terminal for a script", flags: []string{"-t"}, argv: []string{"sh", "-c", "test -t 0 && test -t 1 && stty size"}, stdout: "24 80\r\n"},
		{name: "no terminal", argv: []string{"tty"}, code: 1, stdout: "not a tty\n"},
		{name: "a background process does not hold the command", argv: []string{"sh", "-c", "sleep 1000 & echo $! >/run/sleeper; echo done"}, stdout: "done\n"},
		{name: "its own words for a failure", argv: []string{"sh", "-c", "echo banger: no; exit 125"}, code: 125, stdout: "banger: no\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{"vm", "exec", vm}, tt.flags...)
			cmd := w.command(t.Context(), append(append(args, "--"), tt.argv...)...)
			cmd.Env = append(slices.Clone(cmd.Env), "BANGER_TEST_PASS=passed on")
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			code := exitCode(t, cmd.Run())
			if code != tt.code || stdout.String() != tt.stdout || !strings.Contains(stderr.String(), tt.stderr) || tt.stderr == "" && stderr.Len() > 0 {
				t.Errorf("exit status %d, %q, %q\nwant %d, %q, %q", code, stdout.String(), stderr.String(), tt.code, tt.stdout, tt.stderr)
			}
		})
	}
	w.inGuest(t, vm, "kill $(cat /run/sleeper)") // it has lived on
}

// Each direction goes on when the other stands still.
func TestOneSidedStreams(t *testing.T) {
	t.Parallel()
	w := shared
	vm := w.small(t)
	t.Run("output while stdin is not read", func(t *testing.T) {
		r := w.with(t, make([]byte, 20<<20), "vm", "exec", vm, "--", "sh", "-c", "head -c 20000000 /dev/zero; read -r -n 1 _; exit 3")
		if r.code != 3 || len(r.stdout) != 20_000_000 {
			t.Errorf("exit status %d and %d bytes, want 3 and 20000000: %s", r.code, len(r.stdout), r.stderr)
		}
	})
	t.Run("stdin that nobody reads", func(t *testing.T) {
		if r := w.with(t, make([]byte, 20<<20), "vm", "exec", vm, "--", "sh", "-c", "exec <&-; echo out"); r.code != 0 || r.stdout != "out\n" {
			t.Errorf("got %+v, want out", r)
		}
	})
	t.Run("a stdin that stays open", func(t *testing.T) {
		j := w.begin(t, "vm", "exec", vm, "--", "sh", "-c", "exit 9")
		if r := j.wait(); r.code != 9 {
			t.Errorf("got %+v, want 9", r)
		}
	})
	t.Run("stdin line by line", func(t *testing.T) {
		j := w.begin(t, "vm", "exec", vm, "--", "sh", "-c", `while read -r l; do echo "<$l>"; done; echo end; exit 4`)
		for _, line := range []string{"one", "two"} {
			j.say(line)
			j.await("<" + line + ">")
		}
		_ = j.in.Close()
		if r := j.wait(); r.code != 4 || r.stdout != "<one>\n<two>\nend\n" {
			t.Errorf("got %+v, want 4 and the lines", r)
		}
	})
	t.Run("a reader that goes away", func(t *testing.T) {
		head := exec.CommandContext(t.Context(), "sh", "-c", `"$0" "$@" | head -c 5`, w.bin+"/banger", "vm", "exec", vm, "--", "sh", "-c", "echo $$ >/run/yes; exec yes")
		head.Env = w.env
		out, err := head.Output()
		if err != nil || string(out) != "y\ny\ny" {
			t.Fatalf("got %q, %v; want some of it", out, err)
		}
		until(t, "the command in the guest has ended", func() bool {
			return w.exec(t, vm, "sh", "-c", "kill -0 $(cat /run/yes) 2>/dev/null").code != 0
		})
	})
}

// Signals are the guest's process's, and its exit status is the answer.
func TestSignalsReachTheGuest(t *testing.T) {
	t.Parallel()
	w := shared
	vm := w.small(t)
	for sig, name := range map[syscall.Signal]string{syscall.SIGINT: "INT", syscall.SIGTERM: "TERM", syscall.SIGHUP: "HUP", syscall.SIGQUIT: "QUIT"} {
		t.Run(name, func(t *testing.T) {
			j := w.begin(t, "vm", "exec", vm, "--", "sh", "-c", `trap 'echo caught; exit 42' `+name+`; echo ready; while :; do sleep 1; done`)
			j.await("ready")
			j.signal(sig)
			if r := j.wait(); r.code != 42 || r.stdout != "ready\ncaught\n" {
				t.Errorf("got %+v, want 42 and what the trap says", r)
			}
		})
		t.Run(name+" without a trap", func(t *testing.T) {
			j := w.begin(t, "vm", "exec", vm, "--", "cat") // no shell: busybox's ignores SIGQUIT
			j.say("ready")
			j.await("ready")
			j.signal(sig)
			if r := j.wait(); r.code != 128+int(sig) {
				t.Errorf("got %+v, want %d", r, 128+int(sig))
			}
		})
	}
	t.Run("twice", func(t *testing.T) {
		j := w.begin(t, "vm", "exec", vm, "--", "sh", "-c", `trap 'echo $$ ignored >&2' INT; echo ready; while :; do sleep 1; done`)
		j.await("ready")
		// Two are more than a second apart where the machine is busy: then it
		// takes another one.
		for n, ended := 1, false; !ended; n++ {
			j.signal(syscall.SIGINT)
			for !ended {
				said, more := j.err.look()
				if strings.Count(said, "ignored\n") == n {
					break
				}
				select {
				case <-more:
				case <-j.done:
					ended = true
				}
			}
		}
		r := j.wait()
		if r.code != 130 || !strings.Contains(r.stderr, "interrupted twice") {
			t.Errorf("got %+v, want 130", r)
		}
		pid, _, _ := strings.Cut(r.stderr, " ")
		until(t, "the command in the guest has ended", func() bool { return w.exec(t, vm, "kill", "-0", pid).code != 0 })
	})
}

// Nothing is left of a `vm run --rm`, and its status is the command's.
func TestRunRemoves(t *testing.T) {
	t.Parallel()
	w := shared
	w.start(t)
	r := w.with(t, []byte("from stdin\n"), "vm", "run", "--rm", "--name", "gone", "--image", "small", "--memory", "256M", "--", "sh", "-c", "cat; hostname; exit 3")
	if r.code != 3 || r.stdout != "from stdin\ngone\n" {
		t.Errorf("got %+v, want 3, stdin and the name", r)
	}
	if r := w.banger(t, "vm", "show", "gone"); r.code != 125 || !strings.Contains(r.stderr, `"gone"`) {
		t.Errorf("vm show gone = %+v, want it not found", r)
	}
	if _, err := os.Stat(w.layout(t).VMs + "/gone"); err == nil {
		t.Error("its directory is there")
	}
}
