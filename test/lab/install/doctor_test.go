//go:build lab

package install

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"banger/internal/doctor"
)

// systemRows are the rows of doctor that an installed system makes pass or fail.
var systemRows = strings.Fields("kvm firecracker daemon system-mode systemd tun kernel-modules nft cgroup2 subnet ip-forwarding forward-policy firecracker-path units root-helper network names resolver")

// diagnosed are doctor's rows by name, for an account.
func diagnosed(t *testing.T, uid int, env ...string) map[string]doctor.Row {
	t.Helper()
	s := run(t, uid, env, installed, "doctor", "--json")
	var rows []doctor.Row
	if err := json.Unmarshal([]byte(s.out), &rows); err != nil {
		t.Fatalf("doctor: %v in %+v", err, s)
	}
	byName := map[string]doctor.Row{}
	for _, r := range rows {
		byName[r.Check] = r
	}
	if (s.status != 0) != doctor.Failed(rows) {
		t.Errorf("doctor exits with %d, and rows that fail: %v", s.status, doctor.Failed(rows))
	}
	return byName
}

// TestDoctor breaks an installed system, has the owner's doctor name what is
// wrong, and types what it says.
func TestDoctor(t *testing.T) {
	prepare(t)
	install(t, "--owner", "owner")
	sound := func(when string) map[string]doctor.Row {
		t.Helper()
		rows := diagnosed(t, ownerUID)
		for _, name := range systemRows {
			if r := rows[name]; r.Status != doctor.Pass {
				t.Errorf("%s: %s: %+v, want PASS", when, name, r)
			}
		}
		return rows
	}
	sound("after install")
	const slice = "/etc/systemd/system/banger.slice"
	unit, err := os.ReadFile(slice)
	must(t, err)
	for _, b := range []struct {
		check  string
		want   doctor.Status
		spoil  []string
		detail string
		fix    string // is typed; the fix of doctor's begins with it
	}{
		{"root-helper", doctor.Fail, []string{"systemctl", "stop", "bangerd-root.socket", "bangerd-root.service"}, "does not answer", "sudo banger system restart"},
		{"daemon", doctor.Fail, []string{"systemctl", "stop", "bangerd.service"}, "", "sudo banger system restart"},
		{"names", doctor.Fail, []string{"systemctl", "stop", "bangerd.service"}, "nobody answers for .vm", "sudo banger system restart"},
		{"units", doctor.Warn, []string{"sh", "-c", "echo MemoryMax=1G >>" + slice}, "banger.slice is not as", "sudo banger system install"},
		{"units", doctor.Fail, []string{"rm", slice}, "there is no banger.slice", "sudo banger system install"},
		{"firecracker-path", doctor.Fail, []string{"chmod", "0777", firecracker}, "written by others", ""},
		{"ip-forwarding", doctor.Warn, []string{"sysctl", "-qw", "net.ipv4.ip_forward=0"}, "do not reach", "sudo sysctl -w net.ipv4.ip_forward=1"},
		{"user-namespaces", doctor.Fail, []string{"sysctl", "-qw", "user.max_user_namespaces=0"}, "cannot build as an ordinary user", "sudo sysctl user.max_user_namespaces=10000"},
		{"resolver", doctor.Warn, []string{"sh", "-c", "rm /etc/resolv.conf; echo nameserver 192.0.2.1 >/etc/resolv.conf"}, "asked by nobody",
			"sudo ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf"},
		{"subnet", doctor.Warn, []string{"ip", "route", "add", "172.16.0.0/16", "dev", "lo"}, "by way of lo", ""},
	} {
		do(t, b.spoil...)
		r := diagnosed(t, ownerUID)[b.check]
		if r.Status != b.want || !strings.Contains(r.Detail, b.detail) || !strings.HasPrefix(r.Fix, b.fix) || r.Fix == "" {
			t.Errorf("after %v: %+v, want %s with %q and the fix %q", b.spoil, r, b.want, b.detail, b.fix)
		}
		switch {
		case b.fix != "":
			do(t, strings.Fields(strings.TrimPrefix(b.fix, "sudo "))...)
		case b.check == "firecracker-path":
			do(t, "chmod", "0755", firecracker)
		case b.check == "subnet":
			do(t, "ip", "route", "del", "172.16.0.0/16", "dev", "lo")
		}
		if b.check == "units" { // put back byte for byte
			if now, err := os.ReadFile(slice); err != nil || string(now) != string(unit) {
				t.Errorf("%s is %q, %v", slice, now, err)
			}
		}
		if r := sound("when it is mended")[b.check]; r.Status != doctor.Pass {
			t.Errorf("mended: %+v, want PASS", r)
		}
	}

	// What needs no root is typed by doctor itself; here in a home of its own.
	home, err := os.MkdirTemp("", "home")
	must(t, err)
	defer os.RemoveAll(home)
	must(t, os.Chown(home, ownerUID, ownerUID))
	if r := diagnosed(t, ownerUID, "HOME="+home)["ssh-config"]; r.Status != doctor.Warn || r.Fix != "banger ssh-config --install" {
		t.Errorf("%+v, want a WARN with its command", r)
	}
	s := run(t, ownerUID, []string{"HOME=" + home}, installed, "doctor", "--fix")
	if r := diagnosed(t, ownerUID, "HOME="+home)["ssh-config"]; r.Status != doctor.Pass {
		t.Errorf("%+v after %+v", r, s)
	}

	// The others: one row, which does not fail.
	for name, rows := range map[string]map[string]doctor.Row{
		"another":               diagnosed(t, otherUID),
		"the owner's user mode": diagnosed(t, ownerUID, "BANGER_MODE=user"),
	} {
		if r := rows["system-mode"]; r.Status != doctor.Pass || !strings.Contains(r.Detail, "installed for owner") || rows["units"].Check != "" {
			t.Errorf("%s: %+v, %+v", name, r, rows["units"])
		}
	}
}
