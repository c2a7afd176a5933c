//go:build lab

package e2e

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"banger/internal/testneed"
)

// lab ends the test unless it is root in the lab machine, and returns the world
// of the owner there, with banger installed.
func labWorld(t *testing.T) *world {
	t.Helper()
	testneed.Lab(t)
	testneed.Root(t)
	shared.start(t)
	return shared
}

// root runs a bash script as root and returns what it prints.
func root(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.CommandContext(context.WithoutCancel(t.Context()), "bash", "-e", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// program runs a program of the host as the owner.
func (w *world) program(t *testing.T, argv ...string) (string, int) {
	t.Helper()
	o := &world{env: w.env, as: w.as, by: argv[:1]}
	cmd := o.command(t.Context())
	cmd.Args = argv
	out, err := cmd.CombinedOutput()
	return string(out), exitCode(t, err)
}

// serve has the guest answer with a word on a port, until the test ends.
func (w *world) serve(t *testing.T, vm, port, word string) {
	t.Helper()
	w.inGuest(t, vm, "mkdir -p /root/www; echo "+word+" >/root/www/index.html")
	j := w.begin(t, "vm", "exec", vm, "--", "sh", "-c", "busybox httpd -f -p "+port+" -h /root/www & echo serving; wait")
	j.await("serving")
}

// stubResolver has programs ask systemd-resolved, as on an ordinary host.
func stubResolver(t *testing.T) {
	t.Helper()
	old, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		old = nil
	}
	root(t, "systemctl start systemd-resolved; ln -sf /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf")
	t.Cleanup(func() {
		_ = os.Remove("/etc/resolv.conf")
		_ = os.WriteFile("/etc/resolv.conf", old, 0o644)
	})
}

// Any program of the host reaches a guest by its name, as long as there is one,
// also right after a restart of the daemon.
func TestLabNames(t *testing.T) {
	w := labWorld(t)
	stubResolver(t)
	vm := w.vm(t, "--name", "web")
	addr := w.show(t, vm).Address.String()
	resolves := func(t *testing.T) {
		t.Helper()
		if out, code := w.program(t, "getent", "hosts", "web.vm"); code != 0 || !strings.HasPrefix(out, addr+" ") {
			t.Errorf("getent hosts web.vm = %d, %q; want %s", code, out, addr)
		}
	}
	resolves(t)
	w.serve(t, vm, "3000", "hello-from-the-guest")
	until(t, "curl reaches the guest by its name", func() bool {
		out, code := w.program(t, "curl", "-sS", "--max-time", "10", "http://web.vm:3000/")
		return code == 0 && out == "hello-from-the-guest\n"
	})
	if _, code := w.program(t, "banger", "ssh-config", "--install"); code != 0 {
		t.Errorf("ssh-config --install: exit %d", code)
	}
	t.Cleanup(func() { w.must(t, "ssh-config", "--uninstall") })
	if out, code := w.program(t, "ssh", "-o", "BatchMode=yes", "web.vm", "echo by-ssh"); code != 0 || out != "by-ssh\n" {
		t.Errorf("ssh web.vm = %d, %q", code, out)
	}
	for what, script := range map[string]string{
		"the owner daemon": "systemctl restart bangerd.service",
		"both daemons":     "systemctl restart bangerd-root.service bangerd.service",
	} {
		root(t, script)
		if out, code := w.program(t, "getent", "hosts", "web.vm"); code != 0 || !strings.HasPrefix(out, addr+" ") {
			t.Errorf("right after a restart of %s: getent = %d, %q; want %s", what, code, out, addr)
		}
	}
	// What others do to the host's network is mended, at the latest by the next command.
	for what, script := range map[string]string{
		"nft flush ruleset":             "nft flush ruleset",
		"the bridge deleted":            "ip link del br-fc",
		"systemd-resolved is restarted": "systemctl restart systemd-resolved",
	} {
		root(t, script)
		w.must(t, "vm", "list")
		until(t, "after "+what+" the guest is reached by its name", func() bool {
			out, code := w.program(t, "curl", "-sS", "--max-time", "2", "http://web.vm:3000/")
			return code == 0 && out == "hello-from-the-guest\n"
		})
	}
	w.must(t, "vm", "delete", vm)
	until(t, "a deleted VM has no name", func() bool {
		_, code := w.program(t, "getent", "hosts", "web.vm")
		return code == 2
	})
}
