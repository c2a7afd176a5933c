//go:build lab

package roothelper

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"banger/internal/rootapi"
	"banger/internal/rootclient"

	"golang.org/x/sys/unix"
)

const vm = "0123456789ab"

// status reads /proc/PID/status.
func status(t *testing.T, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	m := map[string]string{}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		m[key] = strings.Join(strings.Fields(value), " ")
	}
	return m
}

func unitOf(t *testing.T, c rootclient.Client, id string) *rootapi.Unit {
	t.Helper()
	held, err := c.Census(t.Context())
	must(t, err)
	for _, h := range held {
		if h.ID == id {
			return h.Unit
		}
	}
	return nil
}

// The whole way: the owner launches, the VMM has the rights it should and no
// others, the guest calls, writes to its own disk and not to the base, prints,
// ends, and nothing is left.
func TestLaunchRunsAGuest(t *testing.T) {
	c := install(t)
	v := launch(t, c, vm)
	t.Logf("launched: %+v", v.VM)
	uid := strconv.Itoa(int(v.UID))
	if v.UID < rootapi.FirstUID || v.Unit != "banger-vm-"+vm+".service" || v.TAP != "" {
		t.Errorf("launched as %+v", v.VM)
	}
	got := status(t, v.PID)
	for key, want := range map[string]string{
		"Name": "firecracker", "Uid": strings.Join([]string{uid, uid, uid, uid}, " "), "Gid": strings.Join([]string{uid, uid, uid, uid}, " "), "Groups": "",
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2",
	} {
		if got[key] != want {
			t.Errorf("/proc/PID/status: %s is %q, want %q", key, got[key], want)
		}
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", v.PID))
	must(t, err)
	if n := strings.Count(string(mounts), "\n"); n != 6 {
		t.Errorf("%d lines of mounts, want 6", n)
	}
	for at, want := range map[string]string{"/": "rw", "/kernel": "ro", "/initramfs": "ro", "/disk0": "ro", "/disk1": "rw", "/s": "rw"} {
		if !regexp.MustCompile(` ` + at + ` ` + want + `,`).Match(mounts) {
			t.Errorf("%s is not mounted %s:\n%s", at, want, mounts)
		}
	}
	cgroup := fmt.Sprintf("/sys/fs/cgroup/banger.slice/%s/", v.Unit)
	for name, want := range map[string]string{"memory.max": strconv.Itoa((256 + 160) << 20), "memory.swap.max": "0", "pids.max": "33", "cpu.weight": "100",
		"cgroup.procs": strconv.Itoa(v.PID)} {
		b, err := os.ReadFile(cgroup + name)
		if s := strings.TrimSpace(string(b)); err != nil || s != want {
			t.Errorf("%s is %q, %v; want %q", name, s, err, want)
		}
	}
	g := boot(t, v)
	if got := g.ask("write vda hello"); !strings.Contains(got, "not permitted") && !strings.Contains(got, "read-only") {
		t.Errorf("writing to the base = %s, want a refusal", got)
	}
	if got := g.ask("write vdb written by the guest"); got != "<nil>" {
		t.Errorf("writing to the disk = %s", got)
	}
	b, err := os.ReadFile(state + "/vms/" + vm + "/disk")
	if err != nil || !strings.HasPrefix(string(b), "written by the guest") {
		t.Errorf("the owner's file begins with %.40q, %v", b, err)
	}
	var st unix.Stat_t
	must(t, unix.Stat(state+"/vms/"+vm+"/disk", &st))
	if st.Uid != ownerUID || st.Mode&0o777 != 0o600 {
		t.Errorf("the disk is uid %d's, mode %o; want the owner's as it was", st.Uid, st.Mode&0o777)
	}
	g.ask("say spoken on the console")
	said := make([]byte, 1<<16)
	n, err := io.ReadAtLeast(v.Console, said, 1)
	must(t, err)
	if !strings.Contains(string(said[:n]), "spoken on the console") {
		t.Errorf("the console has %q", said[:n])
	}
	if got := g.ask("eat 150"); got != "ate 150" {
		t.Errorf("eating = %s", got)
	}
	peak, err := os.ReadFile(cgroup + "memory.peak")
	must(t, err)
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", v.PID))
	must(t, err)
	var guest int // KiB of the largest mapping that are there: the guest's memory
	for _, m := range regexp.MustCompile(`(?m)^Rss: +(\d+) kB`).FindAllSubmatch(maps, -1) {
		n, _ := strconv.Atoi(string(m[1]))
		guest = max(guest, n)
	}
	all, err := strconv.Atoi(strings.TrimSpace(string(peak)))
	must(t, err)
	t.Logf("memory.peak is %d MiB, of which %d are the guest's: %d MiB above, of 160 allowed", all>>20, guest>>10, all>>20-guest>>10)
	fmt.Fprintln(g.conn, "quit")
	ended(t, v.Pidfd)
	u := unitOf(t, c, vm)
	if u == nil || u.Active != "active" || u.Sub != "exited" || u.Result != "success" || u.Status != 0 {
		t.Errorf("after the guest's end the unit is %+v, want it to tell of success", u)
	}
	if _, err := c.Adopt(t.Context(), vm); code(err) != rootapi.NotFound || !strings.Contains(err.Error(), "ended") {
		t.Errorf("Adopt() of an ended VM = %v", err)
	}
	must(t, c.Release(t.Context(), vm), c.Release(t.Context(), vm))
	if left := leftovers(t.Context(), c); left != "" {
		t.Errorf("after release: %s", left)
	}
}

// The owner's daemon is a unit with a mount namespace of its own: the paths of
// its descriptors are those that the jail child finds.
func TestLaunchFromASandboxedUnit(t *testing.T) {
	c := install(t)
	disk(t, vm)
	self, err := os.Executable()
	must(t, err)
	must(t, exec.CommandContext(t.Context(), "cp", self, programs+"/daemon").Run())
	out := do(t, "systemd-run", "--wait", "--pipe", "--quiet", "--collect", "-p", "User=owner", "-p", "ProtectSystem=strict", "-p", "ProtectHome=read-only",
		"-p", "ReadWritePaths="+state+" "+cache, "-p", "PrivateTmp=yes", "-p", "PrivateDevices=yes", "-p", "ProtectProc=invisible", "-p", "ProcSubset=pid",
		"-p", "RestrictNamespaces=yes", "-p", "NoNewPrivileges=yes", "-p", "CapabilityBoundingSet=", programs+"/daemon", "launch-as-owner", vm)
	if !strings.Contains(out, "launched, and its files are mine") {
		t.Errorf("the daemon says %q", out)
	}
	if u := unitOf(t, c, vm); !u.Running() {
		t.Errorf("the VM is %+v after its daemon's end, want it running", u)
	}
}

// launchAsOwner is the daemon of the test above.
func launchAsOwner(id string) int {
	var files []*os.File
	for _, name := range []string{cache + "/vmlinux", cache + "/initramfs", cache + "/base", state + "/vms/" + id + "/disk"} {
		f, err := os.OpenFile(name, map[bool]int{true: os.O_RDWR}[filepath.Base(name) == "disk"], 0)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		files = append(files, f)
	}
	v, err := rootclient.Client{}.Launch(context.Background(), id, small, files...)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Printf("%d launched, and its files are mine\n", v.PID)
	return 0
}

// A VM outlives the helper, however that ends, and PID 1's own restart; its
// new reader, listener and API connection are as good as the first.
func TestAdopt(t *testing.T) {
	c := install(t)
	v := launch(t, c, vm)
	g := boot(t, v)
	for _, how := range []string{"kill -9 $(systemctl show -p MainPID --value bangerd-root)", "systemctl restart bangerd-root", "systemctl daemon-reexec", ":"} {
		do(t, "sh", "-c", how)
		w, err := as(ownerUID, func() (*rootclient.VM, error) { return c.Adopt(t.Context(), vm) })
		if err != nil {
			t.Fatalf("%s: Adopt() = %v", how, err)
		}
		defer closeVM(w)
		if w.VM != v.VM {
			t.Errorf("%s: adopted %+v, launched %+v", how, w.VM, v.VM)
		}
		if got := g.ask("echo still here"); got != "still here" {
			t.Errorf("%s: the first call says %q", how, got)
		}
		v.Console.Close() // its reader has gone, and the guest prints on
		g.ask("say to the new reader")
		b := make([]byte, 1<<16)
		n, err := io.ReadAtLeast(w.Console, b, 1)
		if err != nil || !strings.Contains(string(b[:n]), "to the new reader") {
			t.Errorf("%s: the console has %q, %v", how, b[:n], err)
		}
		g.conn.Close() // the guest calls again, and the new listener hears it
		again := accept(t, w.Agent)
		if again.boot != g.boot {
			t.Errorf("%s: the guest that calls is another one", how)
		}
		g = again
		put(t, w.API, "/vm", object{"state": "Paused"}, "PATCH")
		put(t, w.API, "/vm", object{"state": "Resumed"}, "PATCH")
		v.Console = w.Console
	}
	do(t, "kill", "-9", strconv.Itoa(v.PID))
	ended(t, v.Pidfd)
	if u := unitOf(t, c, vm); u == nil || u.Active != "failed" || u.Result != "signal" || u.Status != 9 {
		t.Errorf("after kill -9 the unit is %+v, want it to tell of the signal", u)
	}
	if _, err := c.Adopt(t.Context(), vm); code(err) != rootapi.NotFound {
		t.Errorf("Adopt() of a killed VM = %v", err)
	}
	if _, err := c.Adopt(t.Context(), "ffffffffffff"); code(err) != rootapi.NotFound {
		t.Errorf("Adopt() of none = %v", err)
	}
	// A failed unit's name does not stand in the way of the next start.
	must(t, c.Release(t.Context(), vm))
	launch(t, c, vm)
}

// The helper's unit and the VMs' are as hard as they should be. The second
// starts as root, for the jailer; what it is afterwards is tested above.
func TestExposure(t *testing.T) {
	c := install(t)
	launch(t, c, vm)
	dir := t.TempDir()
	for name, tt := range map[string]struct {
		from string
		most float64
	}{
		"bangerd-root.service": {unit, 2.5},
		"vm.service":           {"/run/systemd/transient/banger-vm-" + vm + ".service", 3.1},
	} {
		b, err := os.ReadFile(tt.from)
		must(t, err, os.WriteFile(dir+"/"+name, b, 0o644))
		out := do(t, "systemd-analyze", "security", "--offline=true", "--no-pager", dir+"/"+name)
		m := regexp.MustCompile(`exposure level for \S+: ([0-9.]+)`).FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("systemd-analyze says\n%s", out)
		}
		score, err := strconv.ParseFloat(m[1], 64)
		t.Logf("exposure of %s: %v", name, score)
		if err != nil || score > tt.most {
			t.Errorf("exposure of %s is %v, at most %v:\n%s", name, score, tt.most, out)
		}
	}
}

// The zone's names go to the port that the owner says, by the bridge's link,
// until he takes it back.
func TestResolver(t *testing.T) {
	c := install(t)
	l := small
	l.Addr = netip.MustParseAddr("172.16.0.9")
	_, err := tryLaunch(t, c, vm, l, ends(t, vm)...)
	must(t, err)
	_, err = as(ownerUID, func() (any, error) { return nil, c.Resolver(t.Context(), 5300) })
	must(t, err)
	if got := do(t, "resolvectl", "dns", "br-fc"); !strings.Contains(got, "127.0.0.1:5300") {
		t.Errorf("resolvectl dns: %s", got)
	}
	if got := do(t, "resolvectl", "domain", "br-fc"); !strings.Contains(got, "~vm") {
		t.Errorf("resolvectl domain: %s", got)
	}
	must(t, c.Resolver(t.Context(), 0))
	if got := do(t, "resolvectl", "dns", "br-fc"); strings.Contains(got, "127.0.0.1") {
		t.Errorf("resolvectl dns after it: %s", got)
	}
}
