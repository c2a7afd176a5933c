package e2e

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"banger/internal/api"
	"banger/internal/testneed"

	_ "modernc.org/sqlite" // looks into the state file
)

// refused checks that a command says in one line what is wrong and in one what
// to type, and nothing else.
func refused(t *testing.T, r result, wants ...string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(r.stderr, "\n"), "\n")
	if r.code != 125 || r.stdout != "" || len(lines) != 2 || !strings.HasPrefix(lines[0], "banger: ") || !strings.HasPrefix(lines[1], "banger: hint: ") {
		t.Errorf("= %d, %q\n%s\nwant 125, a line and a hint", r.code, r.stdout, r.stderr)
	}
	for _, want := range wants {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("%q does not say %q", r.stderr, want)
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	w := shared.stocked(t)
	w.must(t, "vm", "create", "--no-start", "--image", "small", "--memory", "256M", "--name", "web")
	for _, tt := range []struct {
		args  string
		wants []string
	}{
		{"vm show nosuch", []string{`"nosuch"`, "banger ps"}},
		{"vm show ", []string{`no VM ""`}},
		{"vm delete ..", []string{`no VM ".."`}},
		{"vm exec nosuch -- true", []string{`"nosuch"`}},
		{"vm exec web -- true", []string{"stopped", "banger vm start web"}},
		{"vm ssh web", []string{"stopped", "banger vm start web"}},
		{"vm cp web:/etc/hosts /dev/null", []string{"stopped", "banger vm start web"}},
		{"vm kill -s FOO web", []string{`"FOO"`, "TERM"}},
		{"vm stop --timeout -1s web", []string{"-1", "--timeout"}},
		{"vm set web --memory 3Q", []string{`"3Q"`}},
		{"vm run --image nosuch -- true", []string{`"nosuch"`, "debian-bookworm"}},
		{"vm run --image small --name web -- true", []string{`"web"`, "banger vm start web"}},
		{"vm run --image small --name Web -- true", []string{`"Web"`, "lower-case"}},
		{"vm run --image small --memory 1X -- true", []string{`"1X"`}},
		{"vm run --image small --memory 1 -- true", []string{"1 MiB", "128 MiB"}},
		{"vm run --image small --vcpu 0 -- true", []string{"--vcpu"}},
		{"vm run --image small --disk-size 1 -- true", []string{"1 MiB", "256 MiB"}},
		{"vm run --image small --wait never -- true", []string{`"never"`, "agent"}},
		{"vm run --image small /nonexistent -- true", []string{"/nonexistent"}},
		{"vm run --nosuch", []string{"--nosuch"}},
		{"vm run --image small --", []string{"--"}},
		{"nosuch", []string{`"nosuch"`, "--help"}},
		{"image show nosuch", []string{`"nosuch"`}},
		{"image delete small", []string{"web", "banger vm delete web"}},
		{"image import again /nonexistent", []string{"/nonexistent"}},
		{"kernel show nosuch", []string{`"nosuch"`}},
		{"kernel pull nosuch", []string{`"nosuch"`, "debian-6.1"}},
		{"kernel rm debian-6.1", []string{"web"}},
	} {
		t.Run(tt.args, func(t *testing.T) {
			r := w.banger(t, strings.Split(tt.args, " ")...)
			refused(t, r, tt.wants...)
		})
	}
	if c := w.census(t); c.Machines != 1 || len(c.VMMs) != 0 {
		t.Errorf("the census has %+v, want the one VM", c)
	}
}

// Without QEMU or mmdebstrap, the package that is missing is named, at once.
func TestNoQEMU(t *testing.T) {
	t.Parallel()
	w := shared.isolated(t)
	empty := t.TempDir()
	for i, e := range w.env {
		if strings.HasPrefix(e, "PATH=") {
			w.env[i] = "PATH=" + empty
		}
	}
	for _, args := range [][]string{{"vm", "run", "--rm", "--", "true"}, {"vm", "create"}} {
		refused(t, w.banger(t, args...), "qemu-system-x86_64", "apt install qemu-system-x86")
	}
	refused(t, w.banger(t, "kernel", "pull"), "mmdebstrap", "apt install mmdebstrap")
	w.nothing(t)
}

// cramped gives a world a state directory on a small file system, which only
// the world's own commands see, and a function that changes its size.
func (w *world) cramped(t *testing.T, mib int) (o *world, resize func(mib int)) {
	t.Helper()
	testneed.Root(t)
	unshare, nsenter := testneed.Tool(t, "unshare"), testneed.Tool(t, "nsenter")
	o = w.isolated(t)
	state := o.getenv("XDG_STATE_HOME")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("mount -t tmpfs -o mode=700,size=%dm tmpfs %s && echo mounted && read -r _", mib, state)
	// The test's context ends before the cleanups that need the mount.
	keeper := start(t, exec.CommandContext(context.WithoutCancel(t.Context()), unshare, "--mount", "--propagation", "private", "sh", "-c", script))
	keeper.await("mounted")
	o.by = []string{nsenter, "--mount=/proc/" + strconv.Itoa(keeper.cmd.Process.Pid) + "/ns/mnt", "--"}
	o.endWith(t) // before the keeper goes
	to := o.layout(t).State
	o.sh(t, "mkdir "+to+" && cp -r "+w.layout(t).Kernels+" "+to)
	o.must(t, "image", "import", "small", filepath.Join(w.root, "small.tar"))
	return o, func(mib int) { o.sh(t, fmt.Sprintf("mount -o remount,size=%dm %s", mib, state)) }
}

// sh runs a script where the world's commands run.
func (w *world) sh(t *testing.T, script string) string {
	t.Helper()
	argv := append(append([]string{}, w.by...), "sh", "-c", script)
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Env = w.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// A full disk is said with the directory and what is needed, everything is as
// before, and when there is room again so is the daemon.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	w, resize := shared.cramped(t, 400)
	w.must(t, "vm", "create", "--no-start", "--image", "small", "--memory", "256M", "--name", "keep")
	state := w.layout(t).State
	daemon := w.daemonPID(t)
	var used int
	if _, err := fmt.Sscan(w.sh(t, "du -sm "+state), &used); err != nil {
		t.Fatal(err)
	}
	asBefore := func(t *testing.T) {
		t.Helper()
		if got := w.must(t, "vm", "list", "-q"); got != "keep\n" {
			t.Errorf("the VMs are %q, want keep", got)
		}
		if got := w.must(t, "image", "list", "--json"); strings.Count(got, `"name"`) != 1 {
			t.Errorf("the images are %s, want one", got)
		}
		w.census(t)
	}
	run := []string{"vm", "run", "--rm", "--image", "small", "--memory", "256M", "--", "echo", "well"}
	resize(used + 20)
	r := w.banger(t, run...)
	if r.code != 125 || !strings.Contains(r.stderr, state) || !strings.Contains(r.stderr, "64MiB") {
		t.Errorf("vm run = %d, %s; want 125, %s and how much is needed", r.code, r.stderr, state)
	}
	asBefore(t)
	tar := filepath.Join(w.root, "large.tar")
	w.sh(t, "mkdir -p "+w.root+"/large && head -c 40M /dev/urandom >"+w.root+"/large/file && tar -cf "+tar+" -C "+w.root+"/large .")
	for _, from := range []string{tar, "-"} { // "-" has no length to be compared
		stdin, err := os.ReadFile(tar)
		if err != nil {
			t.Fatal(err)
		}
		r = w.with(t, stdin, "image", "import", "large", from)
		if r.code != 125 || !strings.Contains(r.stderr, state) || !strings.Contains(r.stderr, "hint: ") {
			t.Errorf("image import from %s = %d, %s; want 125, %s and a hint", from, r.code, r.stderr, state)
		}
		asBefore(t)
	}
	w.sh(t, "cat /dev/zero >"+state+"/filler 2>/dev/null; test -s "+state+"/filler")
	r = w.banger(t, run...)
	if r.code != 125 || !strings.Contains(r.stderr, state) {
		t.Errorf("vm run with no byte left = %d, %s; want 125 and %s", r.code, r.stderr, state)
	}
	asBefore(t)
	w.sh(t, "rm "+state+"/filler")
	resize(400)
	if got := w.must(t, run...); got != "well\n" {
		t.Errorf("vm run with room again says %q", got)
	}
	asBefore(t)
	if got := w.daemonPID(t); got != daemon {
		t.Errorf("the daemon is %d, was %d", got, daemon)
	}
	w.endOnFullDisk(t, state)
}

// endOnFullDisk ends a VMM and a daemon while there is no room to note it: all
// can be looked at, VMs can be deleted, and it is made up for later.
func (w *world) endOnFullDisk(t *testing.T, state string) {
	t.Helper()
	w.must(t, "vm", "create", "--no-start", "--image", "small", "--memory", "256M", "--name", "gone")
	for _, vm := range []string{"one", "two"} {
		w.must(t, "vm", "create", "--image", "small", "--memory", "256M", "--name", vm)
	}
	one, two := w.show(t, "one"), w.show(t, "two")
	w.sh(t, "cat /dev/zero >"+state+"/filler 2>/dev/null; test -s "+state+"/filler")
	murder(t, one.VMMPID)
	if got := w.must(t, "vm", "exec", "two", "--", "echo", "alive"); got != "alive\n" {
		t.Errorf("the other VM says %q", got)
	}
	daemon := process(t, w.daemonPID(t))
	w.must(t, "daemon", "stop")
	over(t, daemon)
	w.sh(t, "cat /dev/zero >>"+state+"/filler 2>/dev/null || true") // what the daemon's end has freed
	if got := w.must(t, "vm", "list", "-q"); got != "keep\ngone\none\ntwo\n" {
		t.Errorf("after a restart the VMs are %q", got)
	}
	if aside := w.sh(t, "ls "+state); strings.Contains(aside, "damaged") {
		t.Errorf("a sound state file was set aside: %s", aside)
	}
	w.must(t, "vm", "delete", "gone") // its disk makes room
	murder(t, two.VMMPID)
	w.sh(t, "rm "+state+"/filler")
	for _, vm := range []string{"one", "two"} {
		w.must(t, "vm", "start", vm)
		if got := w.must(t, "vm", "exec", vm, "--", "echo", "well"); got != "well\n" {
			t.Errorf("VM %s says %q", vm, got)
		}
	}
	w.census(t)
}

// A state file that is damaged is set aside and made again from the copies; one
// from the future is refused. The VMs' disks stay in any case.
func TestStateFile(t *testing.T) {
	t.Parallel()
	w := shared.stocked(t)
	w.must(t, "vm", "create", "--no-start", "--image", "small", "--memory", "256M", "--name", "keep")
	l := w.layout(t)
	before := w.show(t, "keep")
	damage := func(change func(b []byte) []byte) func(*testing.T) {
		return func(t *testing.T) {
			b, err := os.ReadFile(l.DB)
			if err != nil {
				t.Fatal(err)
			}
			for _, suffix := range []string{"-wal", "-shm"} {
				if err := os.RemoveAll(l.DB + suffix); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(l.DB, change(b), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tt := range []struct {
		name string
		do   func(*testing.T)
		want string // what the refusal says; "" if the state comes back
	}{
		{"gone", func(t *testing.T) { w.sh(t, "rm "+l.DB+"*") }, ""},
		{"empty", damage(func([]byte) []byte { return nil }), ""},
		{"half", damage(func(b []byte) []byte { return b[:len(b)/2] }), ""},
		{"a few bytes", damage(func(b []byte) []byte { return b[:10] }), ""},
		{"garbage", damage(func([]byte) []byte { return []byte(strings.Repeat("garbage ", 4096)) }), ""},
		{"zeroed tail", damage(func(b []byte) []byte { clear(b[4096:]); return b }), ""},
		{"a directory", func(t *testing.T) { w.sh(t, "rm "+l.DB+"* && mkdir "+l.DB) }, ""},
		{"from the future", func(t *testing.T) {
			db, err := sql.Open("sqlite", l.DB)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			var next int
			if err := db.QueryRowContext(t.Context(), "INSERT INTO migrations SELECT max(number) + 1, 'later' FROM migrations RETURNING number").Scan(&next); err != nil {
				t.Fatal(err)
			}
			if _, err := db.ExecContext(t.Context(), fmt.Sprint("PRAGMA user_version = ", next)); err != nil {
				t.Fatal(err)
			}
		}, "newer banger"},
	} {
		if !t.Run(tt.name, func(t *testing.T) {
			daemon := process(t, w.daemonPID(t))
			w.must(t, "daemon", "stop")
			over(t, daemon)
			tt.do(t)
			r := w.banger(t, "vm", "list", "-q")
			if tt.want != "" {
				refused(t, r, tt.want, l.DB)
			} else if r.code != 0 || r.stdout != "keep\n" {
				t.Fatalf("vm list = %d, %q, %s; want keep", r.code, r.stdout, r.stderr)
			} else if m := w.show(t, "keep"); m.ID != before.ID || m.State != api.Stopped || m.Spec != before.Spec {
				t.Errorf("the VM is now %+v, was %+v", m, before)
			} else {
				w.census(t)
			}
			if disks, err := filepath.Glob(filepath.Join(l.VMs, before.ID, "*")); err != nil || len(disks) == 0 {
				t.Errorf("the VM's directory holds %v (%v)", disks, err)
			}
		}) {
			return
		}
	}
	w.sh(t, "mv "+l.DB+" "+l.DB+".newer") // as the hint says
	if got := w.must(t, "vm", "list", "-q"); got != "keep\n" {
		t.Errorf("after the hint was followed the VMs are %q, want keep", got)
	}
}

// freeze stops a process until it is killed.
func freeze(t *testing.T, pid int) {
	t.Helper()
	if err := process(t, pid).Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
}

// A guest whose VMM stands still does not call home, twice: the VM is kept with
// its console until it is deleted. It takes two deadlines, and no processor.
func TestSilentGuest(t *testing.T) {
	t.Parallel()
	w := shared.stocked(t)
	j := w.begin(t, "vm", "run", "--rm", "--name", "silent", "--image", "small", "--memory", "256M", "--", "true")
	for last, n := 0, 0; n < 2; n++ { // attempts
		until(t, "there is another VMM", func() bool {
			var m api.Machine
			if r := w.banger(t, "vm", "show", "--json", "silent"); r.code == 0 {
				decode(t, r.stdout, &m)
			}
			if m.VMMPID == 0 || m.VMMPID == last {
				return false
			}
			last = m.VMMPID
			return true
		})
		freeze(t, last)
	}
	r := j.wait()
	if r.code != 125 || !strings.Contains(r.stderr, "did not call home within") || !strings.Contains(r.stderr, "hint: ") || !strings.Contains(r.stderr, "banger vm logs silent") {
		t.Errorf("vm run = %d\n%s", r.code, r.stderr)
	}
	if m := w.show(t, "silent"); m.State != api.Failed || m.Ephemeral || m.Reason == "" {
		t.Errorf("the VM is %+v, want failed, kept and why", m)
	}
	w.must(t, "vm", "logs", "silent")
	w.census(t)
	w.must(t, "vm", "delete", "silent")
	w.nothing(t)
}
