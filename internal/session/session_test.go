package session

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/agentapi"
	"banger/internal/api"
)

func TestParsePlace(t *testing.T) {
	for s, want := range map[string]Place{
		"file":           {Path: "file"},
		"./a:b":          {Path: "./a:b"},
		"dir/a:b":        {Path: "dir/a:b"},
		"../a:b":         {Path: "../a:b"},
		"/etc/x:y":       {Path: "/etc/x:y"},
		".a:b":           {Path: ".a:b"},
		":x":             {Path: ":x"},
		"-":              {Path: "-"},
		"":               {},
		"web:":           {VM: "web", Path: "/root", Into: true},
		"web:x":          {VM: "web", Path: "/root/x"},
		"web:~":          {VM: "web", Path: "/root", Into: true},
		"web:~/x":        {VM: "web", Path: "/root/x"},
		"web:~/":         {VM: "web", Path: "/root", Into: true},
		"web:~x":         {VM: "web", Path: "/root/~x"},
		"web:x/":         {VM: "web", Path: "/root/x", Into: true},
		"web:./x/../y":   {VM: "web", Path: "/root/y"},
		"web:../etc":     {VM: "web", Path: "/etc"},
		"web:/etc/hosts": {VM: "web", Path: "/etc/hosts"},
		"web:/":          {VM: "web", Path: "/", Into: true},
		"web:a:b":        {VM: "web", Path: "/root/a:b"},
		"0123abcd:/x":    {VM: "0123abcd", Path: "/x"},
	} {
		if got := ParsePlace(s); got != want {
			t.Errorf("ParsePlace(%q) = %+v, want %+v", s, got, want)
		}
	}
}

func TestParseForward(t *testing.T) {
	for text, want := range map[string]Forward{
		"8080:80":           {"127.0.0.1:8080", 80},
		"0:80":              {"127.0.0.1:0", 80},
		"127.0.0.2:1:65535": {"127.0.0.2:1", 65535},
		"localhost:1:2":     {"127.0.0.1:1", 2},
		"0.0.0.0:8080:80":   {"0.0.0.0:8080", 80},
		"[::1]:8080:80":     {"[::1]:8080", 80},
		"::1:8080:80":       {"[::1]:8080", 80},
	} {
		if got, err := ParseForward(text); err != nil || got != want {
			t.Errorf("ParseForward(%q) = %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "80", ":80", "80:", "80:0", "8080:65536", "-1:80", "x:80", "80:x", "host:8080:80", ":8080:80", "1.2.3:8080:80", "8080:80/tcp"} {
		if got, err := ParseForward(text); api.CodeOf(err) != api.Invalid || err == nil {
			t.Errorf("ParseForward(%q) = %+v, %v; want an invalid error", text, got, err)
		}
	}
}

// TestShellQuote asks a shell.
func TestShellQuote(t *testing.T) {
	words := []string{"", "plain", "two words", "it's", "'", "''", `"`, `\`, "$HOME", "`id`", "a\nb\n", "*", "~", "-n", "\t", "日本", "a;b&c|d>e", "!", "#"}
	line := "printf '%s\\0'"
	for _, w := range words {
		line += " " + ShellQuote(w)
	}
	out, err := exec.CommandContext(t.Context(), "sh", "-c", line).Output()
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	if diff := cmp.Diff(words, got); diff != "" {
		t.Errorf("a shell reads (-want +got):\n%s", diff)
	}
}

// TestPassSignals: the first of each kind is passed on, a second within a
// second ends, and different ones are not taken for a repetition.
func TestPassSignals(t *testing.T) {
	ended := make(chan error, 1)
	numbers, stop := passSignals(func(err error) { ended <- err })
	defer stop()
	send := func(sig syscall.Signal) {
		t.Helper()
		if err := syscall.Kill(syscall.Getpid(), sig); err != nil {
			t.Fatal(err)
		}
	}
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP} {
		send(sig)
		select {
		case n := <-numbers:
			if n != int(sig) {
				t.Errorf("passed on %d, want %d", n, sig)
			}
		case err := <-ended:
			t.Fatalf("ended with %v after %v, want it passed on", err, sig)
		case <-limit.C:
			t.Fatal("nothing was passed on")
		}
	}
	send(syscall.SIGHUP)
	select {
	case err := <-ended:
		if api.CodeOf(err) != api.Interrupted {
			t.Errorf("ended with %v, want interrupted", err)
		}
	case <-limit.C:
		t.Fatal("a repeated signal did not end")
	}
}

// TestRefused: the guest's own word, and what to type.
func TestRefused(t *testing.T) {
	var web Session
	web.Machine.Name = "web"
	other := errors.New("other")
	if err := web.refused(Command{}, other); err != other {
		t.Errorf("refused(%v) = %v, want it as it is", other, err)
	}
	run := func(argv ...string) Command { return Command{Argv: argv} }
	for _, c := range []struct {
		code agentapi.ErrorCode
		c    Command
		is   error
		hint string
	}{
		{agentapi.CodeNotFound, run("nosuch"), ErrNotFound, "bring a program along: banger vm cp FILE web:/usr/local/bin/"},
		{agentapi.CodeNotFound, run("ls | wc"), ErrNotFound, "a line for a shell needs one: -- sh -c 'ls | wc'"},
		{agentapi.CodeNotFound, run("./x.sh", "y"), ErrNotFound, "only a repository brings files of this host: banger vm run PATH -- ./x.sh"},
		{agentapi.CodeNotFound, Command{Argv: []string{"./x.sh"}, Dir: "/root/repo"}, ErrNotFound, "see what is there: banger vm exec web -- ls -l '.'"},
		{agentapi.CodeNotFound, run("/opt/x"), ErrNotFound, "see what is there: banger vm exec web -- ls -l '/opt'"},
		{agentapi.CodeNotExecutable, run("/etc/passwd"), ErrNotExecutable, "see what it is: banger vm exec web -- ls -ld '/etc/passwd'"},
		{agentapi.CodeNoUser, run("id"), nil, "see who there is: banger vm exec web -- cut -d: -f1 /etc/passwd"},
		{agentapi.CodeInvalid, Command{Argv: []string{"id"}, Dir: "/x"}, nil, "begin somewhere else: banger vm exec web --workdir / -- id"},
	} {
		in := &api.Error{Code: api.GuestFailed, Msg: "running it", Err: &agentapi.Error{Code: c.code, Msg: "its own word"}}
		err := web.refused(c.c, in)
		got := api.AsError(err)
		if got.Msg != "its own word" || got.Hint != c.hint || got.Code != api.GuestFailed {
			t.Errorf("refused(%v %+v) = %+v, want the guest's own word and hint %q", c.code, c.c, got, c.hint)
		}
		if c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("refused(%v) is no %v", c.code, c.is)
		}
	}
	web.Machine.Ephemeral = true // gone by the time that the hint is read
	in := &agentapi.Error{Code: agentapi.CodeNotExecutable}
	if got, want := api.AsError(web.refused(run("/x"), in)).Hint, "see what it is: banger vm exec NAME -- ls -ld '/x'"; got != want {
		t.Errorf("of a VM that will be gone: hint %q, want %q", got, want)
	}
}

// TestInterruptedBefore: a command does not begin for one who has left.
func TestInterruptedBefore(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Session{Machine: api.Machine{Companion: t.TempDir() + "/none"}}.Exec(ctx, Command{Argv: []string{"true"}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Exec() = %v, want that the context has ended", err)
	}
}
