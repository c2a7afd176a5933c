//go:build lab

package install

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/paths"
	"banger/internal/recipe"
	"banger/internal/vmtest"
)

// TestMain is also the owner, where it is told so: it sends the lab's kernel,
// which no mirror is in reach to pull from, to the owner daemon.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "send-kernel" {
		if err := sendKernel(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func sendKernel(ctx context.Context) error {
	l, err := paths.For(os.Getenv, os.Getuid(), os.Getenv("HOME"))
	if err != nil {
		return err
	}
	c, err := client.Connect(ctx, client.Options{Layout: l})
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.PullKernel(ctx, recipe.DefaultKernel, api.PullRequest{}, func(_ context.Context, w io.Writer) error {
		f, err := os.Open(filepath.Join(os.Getenv(vmtest.KernelEnv), "kernel.tar"))
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	}, nil)
	return err
}

// owner runs the installed banger as the owner, which must succeed.
func owner(t *testing.T, args ...string) string {
	t.Helper()
	s := run(t, ownerUID, nil, append([]string{installed}, args...)...)
	if s.status != 0 {
		t.Fatalf("banger %v: status %d\n%s%s", args, s.status, s.out, s.err)
	}
	return strings.TrimSpace(s.out)
}

// A talk is a command in a guest that says each line again.
type talk struct {
	t   *testing.T
	in  io.WriteCloser
	out *bufio.Reader
	cmd *exec.Cmd
}

func converse(t *testing.T, vm string) *talk {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), installed, "vm", "exec", vm, "--", "cat")
	cmd.Env = []string{"HOME=/home/owner", "PATH=/usr/bin:/bin", "GOCOVERDIR=" + os.Getenv("GOCOVERDIR")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: ownerUID, Gid: ownerUID}}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	must(t, err, err2, cmd.Start())
	return &talk{t, in, bufio.NewReader(out), cmd}
}

func (k *talk) again(word string) {
	k.t.Helper()
	_, err := fmt.Fprintln(k.in, word)
	got, err2 := k.out.ReadString('\n')
	if err != nil || err2 != nil || got != word+"\n" {
		k.t.Errorf("the guest says %q (%v, %v), want %q", got, err, err2, word)
	}
}

func (k *talk) end() {
	k.t.Helper()
	if err := k.in.Close(); err != nil {
		k.t.Error(err)
	}
	if err := k.cmd.Wait(); err != nil {
		k.t.Errorf("the command in the guest: %v", err)
	}
}

// upgrade installs programs that differ: each has a byte more, which their
// loader does not see.
func upgrade(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	entries, err := os.ReadDir(filepath.Dir(built))
	must(t, err)
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(built), e.Name()))
		must(t, err, os.WriteFile(filepath.Join(dir, e.Name()), append(b, 0), 0o755))
	}
	running := pids(t)
	s := system(t, dir+"/banger", "", "install")
	if s.status != 0 || !strings.Contains(s.err, "replace      /usr/local/libexec/banger/bangerd-root") || pids(t) == running {
		t.Errorf("upgrade: %+v, processes %q and then %q", s, running, pids(t))
	}
	healthy(t, "after an upgrade")

	// One whose daemon does not start changes nothing.
	false_, err := os.ReadFile("/bin/false")
	must(t, err, os.Remove(dir+"/bangerd"), os.WriteFile(dir+"/bangerd", false_, 0o755))
	good := tree(t, "/etc", "/usr/local")
	s = system(t, dir+"/banger", "", "install")
	if s.status != failure || !strings.Contains(s.err, "bangerd.service does not work") {
		t.Errorf("an upgrade that fails: %+v", s)
	}
	compare(t, "after an upgrade that failed", good, tree(t, "/etc", "/usr/local"))
	healthy(t, "after an upgrade that failed")
}

// An upgrade to other programs and a restart interrupt nothing in a VM; an
// uninstall shuts it down in order, the next install finds it, and a purge, with
// it running, leaves nothing.
func TestWithVMs(t *testing.T) {
	before := prepare(t)
	install(t)
	self, err := os.Executable()
	must(t, err)
	b, err := os.ReadFile(self)
	must(t, err, os.WriteFile(programs+"/test", b, 0o755))
	if s := run(t, ownerUID, []string{vmtest.KernelEnv + "=" + os.Getenv(vmtest.KernelEnv)}, programs+"/test", "send-kernel"); s.status != 0 {
		t.Fatalf("sending the kernel: %+v", s)
	}
	must(t, os.Remove(programs+"/test"))
	owner(t, "image", "import", "small", filepath.Join(os.Getenv(vmtest.GuestEnv), "small.tar"))
	owner(t, "vm", "create", "--name", "a", "--image", "small", "--memory", "256M")
	owner(t, "vm", "exec", "a", "--", "sh", "-c", "echo kept >/root/mark")
	boot := owner(t, "vm", "exec", "a", "--", "cat", "/proc/sys/kernel/random/boot_id")
	k := converse(t, "a")
	k.again("before")

	upgrade(t)
	k.again("after an upgrade, and one that failed")
	if s := system(t, installed, "", "restart"); s.status != 0 {
		t.Errorf("restart: %+v", s)
	}
	k.again("after a restart")
	k.end()
	if now := owner(t, "vm", "exec", "a", "--", "cat", "/proc/sys/kernel/random/boot_id"); now != boot {
		t.Errorf("the guest has booted again: %s, before %s", now, boot)
	}
	if s := system(t, built, "", "install", "--prefix", "10.9.0.0/24"); s.status != failure || !strings.Contains(s.err, "1 VMs") {
		t.Errorf("another prefix with a VM: %+v", s)
	}
	s := system(t, installed, "", "uninstall")
	if s.status != 0 || !strings.Contains(s.err, "shut down    a") {
		t.Fatalf("uninstall: %+v", s)
	}
	if left := do(t, "sh", "-c", "ps -eo comm | grep -E '^(banger|firecracker|jailer)' || true"); left != "" {
		t.Errorf("processes after uninstall: %s", left)
	}
	install(t)
	var m api.Machine
	must(t, json.Unmarshal([]byte(owner(t, "vm", "show", "a", "--json")), &m))
	if m.State != api.Stopped || m.Reason != "" {
		t.Errorf("after uninstall and install: %s, %q; want it stopped as if asked for", m.State, m.Reason)
	}
	owner(t, "vm", "start", "a")
	if mark := owner(t, "vm", "exec", "a", "--", "cat", "/root/mark"); mark != "kept" {
		t.Errorf("the disk says %q", mark)
	}
	if s := system(t, installed, "", "uninstall", "--purge"); s.status != 0 {
		t.Fatalf("uninstall --purge with a running VM: %+v", s)
	}
	// The owner's key is the owner's: it stays, and nothing else does.
	do(t, "sh", "-ec", "cd /home/owner/.local; rm state/banger/ssh/id_ed25519 state/banger/ssh/id_ed25519.pub; rmdir -p state/banger/ssh; rmdir /home/owner/.local")
	same(t, "after uninstall --purge", before)
}
