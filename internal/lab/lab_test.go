package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/testneed"
)

// orphanEnv makes this test binary a process that boots a lab, until its end.
const orphanEnv = "BANGER_LAB_TEST_ORPHAN"

func TestMain(m *testing.M) {
	if os.Getenv(orphanEnv) == "" {
		os.Exit(m.Run())
	}
	_, err := Do(context.Background(), Job{Print: os.Stdout, Steps: []Step{{Script: "sleep 1000"}}})
	fmt.Println(err)
	os.Exit(1)
}

// machine ends the test where there can be no lab.
func machine(t *testing.T) {
	t.Helper()
	testneed.QEMU(t)
	testneed.Tool(t, "mmdebstrap")
}

// TestJob has one machine do one of each thing: a boot takes long.
func TestJob(t *testing.T) {
	machine(t)
	dir, results, disk := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "disk,1")
	if err := os.WriteFile(filepath.Join(dir, "data"), []byte("from the host\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(disk, []byte(strings.Repeat("on disk\n", 64)), 0o600); err != nil {
		t.Fatal(err)
	}
	j := Job{
		Files:   []File{{Name: "in", Path: dir}, {Name: "tool", Body: []byte("#!/bin/sh\necho \"tool says $1\"\n")}},
		Disks:   []Disk{{Name: "large", Path: disk}},
		Results: results, Print: t.Output(), KeepGoing: true,
		Steps: []Step{
			{Name: "files", Script: "cat in/data; stat -c '%a %U' in/data tool; ./tool hi; head -n 1 /dev/disk/by-id/virtio-large; echo result > " + Out + "/mine"},
			{Name: "owner", User: Owner, Script: "id -un; pwd; echo $HOME $XDG_RUNTIME_DIR $BANGER_LAB; touch ~/here; ! touch /root/x; ! sudo -n true; echo o > " + Out + "/owners"},
			{Name: "other", User: Other, Dir: "/tmp", Env: []string{"A=b c"}, Script: `id -u; pwd; echo "$A"; ! ls /home/owner`},
			{Name: "seven", Script: "echo to the end; exit 7", Want: 7},
			{Name: "wrong", Argv: []string{"sh", "-c", "echo no newline >&2; kill -9 $$"}},
			{Name: "absent", Argv: []string{"/no/such/program"}},
			{Name: "hangs", Script: "echo before; sleep 1000 & wait", Limit: time.Second},
			{Name: "keeps", Script: "cat /proc/sys/kernel/random/boot_id; echo kept > /var/kept; sync"},
			{Name: "rebooted", Before: Reboot, Script: "cat /proc/sys/kernel/random/boot_id /var/kept in/data; ! pgrep sleep"},
			{Name: "cut", Before: PowerCut, Script: "cat /proc/sys/kernel/random/boot_id /var/kept in/data"},
		},
	}
	before := fingerprint(t)
	r, err := Do(t.Context(), j)
	if err != nil {
		t.Fatal(err)
	}
	if after := fingerprint(t); after != before {
		t.Errorf("the image was %s, is %s: want it unchanged", before, after)
	}
	checkOutcomes(t, r)
	for _, b := range r.Boots {
		t.Logf("booted in %v, %v of it inside", b.Took.Round(100*time.Millisecond), b.Inside.Round(100*time.Millisecond))
		if b.State != "running" {
			t.Errorf("systemd says %q after a boot, want running", b.State)
		}
	}
	for name, want := range map[string]string{"console.txt": "", "out/mine": "result\n", "out/owners": "o\n", "out/journal.txt": "Runs the steps of a lab job"} {
		if b, err := os.ReadFile(filepath.Join(results, name)); err != nil || !strings.Contains(string(b), want) {
			t.Errorf("result %s: %d bytes (%v), want %q in it", name, len(b), err, want)
		}
	}
}

// checkOutcomes looks at the steps of TestJob.
func checkOutcomes(t *testing.T, r Result) {
	t.Helper()
	got := map[string]Outcome{}
	for _, o := range r.Steps {
		got[o.Name] = o
	}
	for name, want := range map[string]string{
		"files": "from the host\n640 root\n755 root\ntool says hi\non disk\n",
		"owner": "owner\n/lab\n/home/owner /run/user/1000 1\n",
		"other": "1001\n/tmp\nb c\n",
		"seven": "to the end\n",
	} {
		if o := got[name]; !strings.HasPrefix(o.Tail, want) || o.Err() != nil {
			t.Errorf("step %s printed %q (%v), want %q and success", name, o.Tail, o.Err(), want)
		}
	}
	for name, want := range map[string]string{
		"wrong":  "exit status 137, want 0; it printed last:\nno newline",
		"absent": "no such file",
		"hangs":  "was ended at its limit",
	} {
		if err := got[name].Err(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("step %s: got %v, want %q in it", name, err, want)
		}
	}
	if len(r.Boots) != 3 {
		t.Fatalf("got %d boots, want 3", len(r.Boots))
	}
	for i, name := range []string{"keeps", "rebooted", "cut"} {
		want := r.Boots[i].ID + "\n"
		if i > 0 {
			want += "kept\nfrom the host\n"
		}
		if o := got[name]; o.Err() != nil || o.Tail != want {
			t.Errorf("step %s printed %q (%v), want %q", name, o.Tail, o.Err(), want)
		}
	}
}

// fingerprint is what changes with a file that is written to.
func fingerprint(t *testing.T) string {
	t.Helper()
	m, err := prepare(t.Context(), func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	defer m.lock.Close()
	fi, err := os.Stat(m.root)
	if err != nil {
		t.Fatal(err)
	}
	return fi.ModTime().String() + " " + strconv.FormatInt(fi.Sys().(*syscall.Stat_t).Blocks, 10)
}

func TestMachineThatPanics(t *testing.T) {
	machine(t)
	_, err := Do(t.Context(), Job{Print: t.Output(), Steps: []Step{{Name: "crash", Script: "echo c > /proc/sysrq-trigger"}}})
	var hang *HangError
	if !errors.As(err, &hang) || !strings.Contains(hang.During, `"crash"`) || !strings.Contains(hang.Console, "sysrq triggered crash") {
		t.Errorf("got %v, want a HangError that names the step, with the console's end", err)
	}
}

func TestMachineThatFallsSilent(t *testing.T) {
	machine(t)
	_, err := Do(t.Context(), Job{Print: t.Output(), Silence: 15 * time.Second, Steps: []Step{
		{Name: "talks", Script: "true"},
		{Name: "mute", Script: "kill -STOP $PPID; sleep infinity"}, // what speaks for it is its parent
	}})
	var hang *HangError
	if !errors.As(err, &hang) || !hang.Mute || !strings.Contains(hang.During, `"mute"`) {
		t.Errorf("got %v, want a HangError that is mute and names the step", err)
	}
}

func TestMachineThatMeetsTheLimit(t *testing.T) {
	machine(t)
	fingerprint(t) // the limit is not for making the image
	before := leftovers(t)
	_, err := Do(t.Context(), Job{Print: t.Output(), Limit: 3 * time.Second})
	var hang *HangError
	if !errors.As(err, &hang) || hang.During != "booting" || !strings.Contains(hang.Why, "the job's limit of 3s has passed") {
		t.Errorf("got %v, want a HangError that names the boot and the limit", err)
	}
	if after := leftovers(t); !slices.Equal(before, after) {
		t.Errorf("got %q afterwards, want %q as before", after, before)
	}
}

// leftovers are the files that a lab might leave in the directories it uses.
func leftovers(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"/var/tmp/banger-lab-*", "/var/tmp/vl.*", filepath.Join(os.TempDir(), "banger-lab-*"), filepath.Join(os.TempDir(), "vl.*")} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, names...)
	}
	return all
}

func TestNothingOutlivesTheCaller(t *testing.T) {
	machine(t)
	fingerprint(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), orphanEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for sc := bufio.NewScanner(out); sc.Scan() && !strings.Contains(sc.Text(), "lab: booting"); {
	}
	qemu := childOf(t, cmd.Process.Pid)
	fd, err := unix.PidfdOpen(qemu, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	const patience = 30_000 // ms
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, patience); n != 1 {
		t.Errorf("QEMU lives on after its caller was killed (%v)", err)
	}
}

// childOf is the one child of a process: QEMU.
func childOf(t *testing.T, pid int) int {
	t.Helper()
	names, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, strings.Fields(string(b))...)
	}
	if len(all) != 1 {
		t.Fatalf("got children %q, want QEMU alone", all)
	}
	child, err := strconv.Atoi(all[0])
	if err != nil {
		t.Fatal(err)
	}
	return child
}
