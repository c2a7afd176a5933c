package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"banger/internal/api"
	"banger/internal/smallimage"
	"banger/internal/testneed"
)

// The default image has what its description says, and it works.
func TestGoldenImage(t *testing.T) {
	t.Parallel()
	w := shared
	vm := w.goldenVM(t)
	t.Run("it runs", func(t *testing.T) {
		if got := w.must(t, "vm", "exec", vm, "--", "systemctl", "is-system-running"); got != "running\n" {
			t.Errorf("is-system-running says %q\n%s", got, w.exec(t, vm, "systemctl", "--failed", "--no-pager").stdout)
		}
		if m := w.show(t, vm); m.State != api.Running || m.Stage != api.StageBoot {
			t.Errorf("the VM is %s at %s, want running at boot", m.State, m.Stage)
		}
	})
	t.Run("tools", func(t *testing.T) {
		if got := w.must(t, "vm", "exec", vm, "--", "mise", "--version"); !regexp.MustCompile(`^\d+\.\d+\.\d+ linux-x64`).MatchString(got) {
			t.Errorf("mise --version says %q", got)
		}
		// A C program, made and run; and one of each other tool.
		got := w.inGuest(t, vm, `set -e; cd "$(mktemp -d)"
			printf '#include <stdio.h>\nint main(void) { puts("built"); }\n' >x.c; printf 'x: x.c\n\tgcc -o x x.c\n' >Makefile
			make -s && ./x; python3 -c 'print(6*7)'; echo '{"a":[1,2]}' | jq -c .a; rg -o uilt x.c; git init -q . && git add . && echo git
			sudo -u nobody id -un; ip -br address show lo | tr -s ' ' | cut -d' ' -f3; curl -sS file://$PWD/Makefile | head -1; tmux -V | cut -c1-4
			for p in less vi file ssh xz ps; do command -v $p >/dev/null || echo no $p; done; test -s /etc/ssl/certs/ca-certificates.crt && echo certificates`)
		if want := "built\n42\n[1,2]\nuilt\ngit\nnobody\n127.0.0.1/8\nx: x.c\ntmux\ncertificates\n"; got != want {
			t.Errorf("the tools say %q, want %q", got, want)
		}
	})
	t.Run("ssh", func(t *testing.T) {
		testneed.Tool(t, "ssh")
		w.sshWorks(t, vm)
		if got := w.must(t, "vm", "ssh", vm, "--", "systemctl is-active ssh.socket; ss -Htln 'sport = 22' | wc -l"); got != "active\n1\n" {
			t.Errorf("the guest's own ssh server: %q", got)
		}
	})
	t.Run("python's server through a forward", func(t *testing.T) {
		w.inGuest(t, vm, "mkdir -p /srv/www && echo from python >/srv/www/index.html && cd /srv/www && systemd-run -q --unit=www -d python3 -m http.server --bind 127.0.0.1 8000")
		j := w.begin(t, "vm", "forward", vm, "0:8000")
		url := "http://" + j.listening(8000) + "/"
		var body []byte
		until(t, "the server answers", func() bool {
			resp, err := http.Get(url)
			if err != nil {
				return false // it does not listen yet
			}
			defer resp.Body.Close()
			body, err = io.ReadAll(resp.Body)
			return err == nil
		})
		if string(body) != "from python\n" {
			t.Errorf("the server answers %q", body)
		}
	})
	t.Run("docker", func(t *testing.T) { w.dockerWorks(t, vm) })
	if got := w.inGuest(t, vm, "systemctl is-system-running; systemctl --failed --no-legend"); got != "running\n" {
		t.Errorf("after all this the system is %q", got)
	}
}

// dockerWorks runs containers of an image that the test makes.
func (w *world) dockerWorks(t *testing.T, vm string) {
	t.Helper()
	var root bytes.Buffer
	if err := smallimage.Write(&root, testneed.Tool(t, "busybox")); err != nil {
		t.Fatal(err)
	}
	if r := w.with(t, root.Bytes(), "vm", "exec", vm, "--", "docker", "import", "-", "tiny"); r.code != 0 || !strings.HasPrefix(r.stdout, "sha256:") {
		t.Fatalf("docker import = %+v", r)
	}
	if got := w.must(t, "vm", "exec", vm, "--", "docker", "info", "--format", "{{.Driver}} {{.CgroupVersion}}"); got != "overlay2 2\n" {
		t.Errorf("docker info says %q, want overlay2 and cgroup 2", got)
	}
	if r := w.exec(t, vm, "docker", "run", "--rm", "tiny", "sh", "-c", "id -u; cat /etc/hostname | wc -c; exit 23"); r.code != 23 || r.stdout != "0\n13\n" {
		t.Errorf("docker run = %+v, want 23", r)
	}
	w.must(t, "vm", "exec", vm, "--", "docker", "run", "-d", "--name", "web", "-p", "127.0.0.1:8080:80", "tiny", "sh", "-c", "echo in a container >/srv/index.html; busybox httpd -f -p 80 -h /srv")
	if got := w.must(t, "vm", "exec", vm, "--", "curl", "-sS", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", "http://127.0.0.1:8080/"); got != "in a container\n" {
		t.Errorf("the container answers %q", got)
	}
	j := w.begin(t, "vm", "forward", vm, "0:8080")
	resp, err := http.Get("http://" + j.listening(8080) + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "in a container\n" {
		t.Errorf("the container answers the host %q, %v", b, err)
	}
	w.must(t, "vm", "exec", vm, "--", "docker", "rm", "-f", "web")
}

// What sshd is told in the default image, whether or not anybody has connected.
const sshdSettings = `permitrootlogin without-password
pubkeyauthentication yes
passwordauthentication no
kbdinteractiveauthentication no
authorizedkeysfile /root/.ssh/authorized_keys
`

// sshdTells gives the five settings in the order above.
func (w *world) sshdTells(t *testing.T, vm string) string {
	t.Helper()
	all := w.must(t, "vm", "exec", vm, "--", "sshd", "-T")
	var b strings.Builder
	for line := range strings.Lines(sshdSettings) {
		key, _, _ := strings.Cut(line, " ")
		for got := range strings.Lines(all) {
			if strings.HasPrefix(got, key+" ") {
				b.WriteString(got)
			}
		}
	}
	return b.String()
}

// diskOf is the file of a VM's disk.
func (w *world) diskOf(t *testing.T, vm string) string {
	t.Helper()
	disk := filepath.Join(w.layout(t).VMs, w.show(t, vm).ID, "disk.ext4")
	if _, err := os.Stat(disk); err != nil {
		t.Fatal(err)
	}
	return disk
}

// cleanDisk fails the test if a disk is not as if it had been unmounted.
func cleanDisk(t *testing.T, disk string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), testneed.Tool(t, "e2fsck"), "-fn", disk).CombinedOutput()
	if err != nil || strings.Contains(string(out), "recovery") {
		t.Errorf("e2fsck -fn: %v\n%s", err, out)
	}
}

// who is what has to be the same at every boot of a VM.
const who = "cat /etc/machine-id /etc/hostname /etc/ssh/ssh_host_ed25519_key.pub; ls /etc/ssh/ssh_host_*; uname -n; grep 127.0.1.1 /etc/hosts; wc -l </root/.ssh/authorized_keys"

// A VM of the default image through its life: it keeps what it has and who it
// is, grows, and stops cleanly however it is told to.
func TestGoldenLife(t *testing.T) {
	t.Parallel()
	w := shared
	w.useGolden(t)
	const vm = "golden-life"
	before := time.Now().Add(-time.Second)
	w.must(t, "vm", "create", "--name", vm, "--memory", "1G", "--vcpu", "1", "--wait", "boot")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console:\n%s", w.banger(t, "vm", "logs", "-n", "30", vm).stdout)
		}
		w.banger(t, "vm", "delete", vm)
	})
	if got := w.sshdTells(t, vm); got != sshdSettings { // before anybody has connected
		t.Errorf("sshd -T says\n%swant\n%s", got, sshdSettings)
	}
	clock, err := strconv.ParseFloat(strings.TrimSpace(w.must(t, "vm", "exec", vm, "--", "date", "+%s.%N")), 64)
	if now := time.UnixMicro(int64(clock * 1e6)); err != nil || now.Before(before) || now.After(time.Now().Add(time.Second)) {
		t.Errorf("the guest's time is %v (%v), want between %v and now", now, err, before)
	}
	identity := w.inGuest(t, vm, who)
	if !strings.Contains(identity, "\ngolden-life\n") || strings.Count(identity, "/etc/ssh/ssh_host_") != 2 {
		t.Errorf("the guest is\n%s", identity)
	}

	// Written just before the stop, and by nobody synced.
	w.inGuest(t, vm, "head -c 8000000 /dev/urandom >/root/data; sha256sum /root/data >/var/tmp/sum; echo on the overlay >/usr/local/mark")
	w.must(t, "vm", "stop", vm)
	if m := w.show(t, vm); m.State != api.Stopped || m.VMMPID != 0 {
		t.Errorf("after vm stop the VM is %s with VMM %d", m.State, m.VMMPID)
	}
	cleanDisk(t, w.diskOf(t, vm))

	w.must(t, "vm", "set", vm, "--disk-size", "12G", "--memory", "1280M", "--vcpu", "2")
	w.must(t, "vm", "start", "--wait", "boot", vm)
	same := func(t *testing.T) {
		t.Helper()
		if got := w.inGuest(t, vm, who); got != identity {
			t.Errorf("the guest is\n%swas\n%s", got, identity)
		}
		if got := w.inGuest(t, vm, "sha256sum --status -c /var/tmp/sum && cat /usr/local/mark && systemctl is-system-running"); got != "on the overlay\nrunning\n" {
			t.Errorf("what was written: %q", got)
		}
	}
	same(t)
	var size, cpus, memory int64
	got := w.inGuest(t, vm, "df -B1 --output=size / | tail -1; nproc; awk '/MemTotal/ {print $2*1024}' /proc/meminfo")
	if _, err := fmt.Sscan(got, &size, &cpus, &memory); err != nil || size < 11<<30 || size > 12<<30 || cpus != 2 || memory < 1100<<20 {
		t.Errorf("disk, CPUs and memory are %q (%v), want nearly 12 GiB, 2 and 1280 MiB", got, err)
	}

	boot := w.bootID(t, vm)
	w.exec(t, vm, "systemctl", "reboot") // it may end before it is answered
	until(t, "the guest has booted again", func() bool {
		m := w.show(t, vm)
		if m.State == api.Starting && m.Stage == api.StageBoot {
			t.Error("a VM that starts again is where the last boot ended")
		}
		if m.State != api.Running || m.Stage != api.StageBoot {
			return false
		}
		r := w.exec(t, vm, "cat", "/proc/sys/kernel/random/boot_id")
		return r.code == 0 && r.stdout != boot
	})
	same(t)

	w.exec(t, vm, "poweroff")
	if m := w.becomes(t, vm, api.Stopped); !strings.Contains(m.Reason, "the guest") {
		t.Errorf("after a poweroff in the guest the reason is %q", m.Reason)
	}
	cleanDisk(t, w.diskOf(t, vm))
}

// The same for an image without an init, where the agent stands in.
func TestSmallLife(t *testing.T) {
	t.Parallel()
	w := shared
	vm := w.vm(t)
	identity := w.inGuest(t, vm, "cat /etc/machine-id; uname -n; cat /run/banger/ssh/host_key.pub")
	w.inGuest(t, vm, "head -c 2000000 /dev/urandom >/root/data; sha256sum /root/data >/var/tmp/sum")
	w.must(t, "vm", "stop", vm)
	disk := w.diskOf(t, vm)
	cleanDisk(t, disk)
	w.must(t, "vm", "set", vm, "--disk-size", "10G")
	w.must(t, "vm", "start", vm)
	if got := w.inGuest(t, vm, "cat /etc/machine-id; uname -n; cat /run/banger/ssh/host_key.pub"); got != identity {
		t.Errorf("the guest is\n%swas\n%s", got, identity)
	}
	w.inGuest(t, vm, "sha256sum -s -c /var/tmp/sum")
	if got := w.inGuest(t, vm, "df -m / | tail -1 | awk '{print ($2 > 9000)}'"); got != "1\n" {
		t.Errorf("the disk has not grown: %s", w.inGuest(t, vm, "df"))
	}
	boot := w.bootID(t, vm)
	w.must(t, "vm", "restart", vm)
	if got := w.bootID(t, vm); got == boot {
		t.Error("vm restart did not boot again")
	}
	if r := w.banger(t, "vm", "set", vm, "--disk-size", "12G"); r.code != 125 || !strings.Contains(r.stderr, "banger vm stop "+vm) {
		t.Errorf("vm set on a running VM = %+v, want a refusal and what to do", r)
	}
	w.must(t, "vm", "stop", vm)
	cleanDisk(t, disk)
	if r := w.banger(t, "vm", "set", vm, "--disk-size", "9G"); r.code != 125 {
		t.Errorf("shrinking = %+v, want a refusal", r)
	}
	w.must(t, "vm", "set", vm, "--name", vm+"-renamed")
	t.Cleanup(func() { w.banger(t, "vm", "delete", vm+"-renamed") })
	w.must(t, "vm", "start", vm+"-renamed")
	if got := w.must(t, "vm", "exec", vm+"-renamed", "--", "uname", "-n"); got != vm+"-renamed\n" {
		t.Errorf("the guest's name is %q", got)
	}
	w.must(t, "vm", "kill", vm+"-renamed")
	w.becomes(t, vm+"-renamed", api.Stopped)
}
