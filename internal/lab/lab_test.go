package lab

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestJob boots one machine and has it do one of each thing.
func TestJob(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "data"), []byte("from the host\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	results := t.TempDir()
	j := Job{
		Files:   []File{{Name: "in", Path: dir}, {Name: "tool", Body: []byte("#!/bin/sh\necho \"tool says $1\"\n")}},
		Results: results, Print: t.Output(), KeepGoing: true,
		Steps: []Step{
			{Name: "files", Script: "cat in/data; ./tool hi; echo result > " + Out + "/mine; stat -c %a in/data"},
			{Name: "owner", User: Owner, Script: "id; echo $HOME $XDG_RUNTIME_DIR; cd; touch here; ! touch /root/x; echo o > " + Out + "/owners"},
			{Name: "init", Script: `cat /proc/1/comm; systemctl is-system-running; systemctl --failed --no-legend; ls /sys/class/net; findmnt -no FSTYPE,OPTIONS /; df -h /; systemd-analyze blame | head -20; systemd-analyze`},
			{Name: "kvm", Script: "modprobe kvm-amd; ls -l /dev/kvm"},
			{Name: "seven", Script: "echo to the end; exit 7", Want: 7},
			{Name: "hangs", Script: "echo before; sleep 1000 & wait", Limit: 2 * time.Second},
			{Name: "persists", Script: "sync; echo kept > /var/kept; sync"},
			{Name: "reboot", Before: Reboot, Script: "cat /var/kept in/data"},
			{Name: "cut", Before: PowerCut, Script: "cat /var/kept"},
		},
	}
	r, err := Do(t.Context(), j)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", r.Boots)
	t.Log(r.Took)
	for _, o := range r.Steps {
		t.Log(o.Name, o.Status, o.TimedOut, o.Took)
		if (o.Err() != nil) != (o.Name == "hangs") {
			t.Error(o.Err())
		}
	}
	for _, name := range []string{"console.txt", "out/mine", "out/owners", "out/journal.txt"} {
		if b, err := os.ReadFile(filepath.Join(results, name)); err != nil || len(b) == 0 {
			t.Errorf("result %s: %d bytes, %v", name, len(b), err)
		}
	}
}

func TestHang(t *testing.T) {
	j := Job{Limit: 40 * time.Second, Print: t.Output(), Steps: []Step{{Script: "echo c > /proc/sysrq-trigger"}}}
	_, err := Do(t.Context(), j)
	var hang *HangError
	if !errors.As(err, &hang) || !strings.Contains(hang.Console, "sysrq") {
		t.Errorf("got error %v, want a HangError with the console's end", err)
	}
}
