package agent_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/agent"
	"banger/internal/guest"
	"banger/internal/testneed"
)

// TestMain is also the ProxyCommand: with BANGER_TEST_PROXY it connects its
// stdin and stdout with that socket.
func TestMain(m *testing.M) {
	path := os.Getenv("BANGER_TEST_PROXY")
	if path == "" {
		// An agent's commands hear of hangups, also if whoever runs the tests, with
		// nohup, does not: what is caught is not ignored by children.
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
		os.Exit(m.Run())
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go func() {
		_, _ = io.Copy(c, os.Stdin)
		_ = c.(*net.UnixConn).CloseWrite()
	}()
	_, _ = io.Copy(os.Stdout, c)
}

// sshHost serves ssh on a unix socket through guest and agent, and returns the
// options that OpenSSH's client needs to reach it.
func sshHost(t *testing.T, sshd string) []string {
	t.Helper()
	keygen := testneed.Tool(t, "ssh-keygen")
	dir := t.TempDir()
	for _, name := range []string{"host", "user"} {
		cmd := exec.CommandContext(t.Context(), keygen, "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	pub, err := os.ReadFile(filepath.Join(dir, "host.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "known"), append([]byte("test.vm "), pub...), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c := agent.Config{HostKey: filepath.Join(dir, "host"), AuthorizedKeys: filepath.Join(dir, "user.pub"), Sshd: sshd}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			raw, err := guest.SSH(context.WithoutCancel(t.Context()), open(t, c))
			if err != nil {
				t.Errorf("SSH: %v", err)
				conn.Close()
				return
			}
			go func() {
				_, _ = io.Copy(raw, conn)
				_ = raw.CloseWrite()
			}()
			go func() {
				_, _ = io.Copy(conn, raw)
				_ = conn.(*net.UnixConn).CloseWrite()
			}()
		}
	}()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{
		"-F", "none", "-o", "ProxyCommand=env BANGER_TEST_PROXY=" + l.Addr().String() + " " + self,
		"-o", "UserKnownHostsFile=" + filepath.Join(dir, "known"), "-o", "StrictHostKeyChecking=yes",
		"-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i", filepath.Join(dir, "user"),
	}
}

// client runs OpenSSH's client.
func client(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, testneed.Tool(t, "ssh"), args...)
	cmd.Env = append(os.Environ(), "TERM=vt220")
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	_ = cmd.Run()
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

func TestOwnSSH(t *testing.T) {
	t.Parallel()
	testneed.Root(t) // it logs in as root
	opts := append(sshHost(t, "-"), "root@test.vm")
	big := strings.Repeat("0123456789abcdef", 200_000)
	for _, tt := range []struct {
		name  string
		args  []string
		stdin string
		code  int
		out   string
	}{
		{"command", []string{"--", "echo out; echo err >&2; exit 42"}, "", 42, "out\n"},
		{"stdin to its end", []string{"--", "cat"}, big, 0, big},
		{"environment", []string{"-o", "SetEnv=BANGER_X=y", "--", "echo $BANGER_X $HOME $USER"}, "", 0, "y /root root\n"},
		{"shell", nil, "echo from a shell; exit 3\n", 3, "from a shell\n"},
		{"signal", []string{"--", "kill -9 $$"}, "", 255, ""},
		{"terminal", []string{"-tt", "--", "tty >/dev/null && echo $TERM"}, "", 0, "vt220\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			args := append([]string{}, opts...)
			if len(tt.args) > 0 && tt.args[0] != "--" { // options go before the host
				for i, a := range tt.args {
					if a == "--" {
						args = append(append(append([]string{}, tt.args[:i]...), opts...), tt.args[i+1:]...)
						break
					}
				}
			} else if len(tt.args) > 0 {
				args = append(args, tt.args[1:]...)
			}
			code, out, errs := client(t, tt.stdin, args...)
			if code != tt.code || out != tt.out {
				t.Errorf("ssh %.80q: exit %d, %d bytes %.80q, %q; want %d, %.80q", tt.args, code, len(out), out, errs, tt.code, tt.out)
			}
		})
	}
	t.Run("wrong key", func(t *testing.T) {
		t.Parallel()
		other := filepath.Join(t.TempDir(), "other")
		if out, err := exec.CommandContext(t.Context(), testneed.Tool(t, "ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", other).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
		args := append([]string{}, opts...)
		args[len(args)-2] = other
		if code, _, errs := client(t, "", append(args, "true")...); code != 255 || !strings.Contains(errs, "Permission denied") {
			t.Errorf("with an unknown key: exit %d, %s", code, errs)
		}
	})
	t.Run("forward", func(t *testing.T) {
		t.Parallel()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			if c, err := l.Accept(); err == nil {
				fmt.Fprint(c, "forwarded")
				c.Close()
			}
		}()
		args := append([]string{"-W", l.Addr().String()}, opts...)
		if code, out, errs := client(t, "", args...); code != 0 || out != "forwarded" {
			t.Errorf("ssh -W: exit %d, %q, %s", code, out, errs)
		}
	})
	t.Run("sftp", func(t *testing.T) {
		t.Parallel()
		src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
		if err := os.WriteFile(src, []byte(big), 0o600); err != nil {
			t.Fatal(err)
		}
		args := append(append([]string{}, opts[:len(opts)-1]...), src, "root@test.vm:"+dst)
		if out, err := exec.CommandContext(t.Context(), testneed.Tool(t, "scp"), args...).CombinedOutput(); err != nil {
			t.Fatalf("scp: %v\n%s", err, out)
		}
		if b, err := os.ReadFile(dst); string(b) != big {
			t.Errorf("scp brought %d bytes, %v; want %d", len(b), err, len(big))
		}
	})
}
