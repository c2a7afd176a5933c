//go:build lab

package e2e

import (
	"strings"
	"testing"

	"banger/internal/api"
)

// mainPID is the process of a service.
func mainPID(t *testing.T, unit string) string {
	t.Helper()
	return strings.TrimSpace(root(t, "systemctl show -p MainPID --value "+unit))
}

// The daemons are killed, restarted and replaced while two VMs run: both live on
// with the same boot, and commands and ssh sessions in them notice nothing.
func TestLabDaemonsEnd(t *testing.T) {
	w := labWorld(t)
	vms := []string{w.vm(t), w.vm(t)}
	var boots []string
	for _, vm := range vms {
		boots = append(boots, w.bootID(t, vm))
	}
	for _, tt := range []struct{ name, script string }{
		{"owner daemon killed", "kill -9 $(systemctl show -p MainPID --value bangerd.service)"},
		{"root helper killed", "banger=$(systemctl show -p MainPID --value bangerd-root.service); [ $banger = 0 ] || kill -9 $banger"},
		{"both killed", "kill -9 $(systemctl show -p MainPID --value bangerd.service); p=$(systemctl show -p MainPID --value bangerd-root.service); [ $p = 0 ] || kill -9 $p"},
		{"both restarted", "/usr/local/bin/banger system restart"},
		{"upgraded in place", "/lab/bin/banger system install --owner owner --firecracker /lab/firecracker/firecracker"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var jobs []*job
			for _, vm := range vms {
				jobs = append(jobs, w.quiet(t, vm)...)
			}
			root(t, tt.script)
			undisturbed(t, jobs)
			for i, vm := range vms {
				if got := w.bootID(t, vm); got != boots[i] {
					t.Errorf("guest %s has booted again", vm)
				}
			}
			w.census(t)
		})
	}
	t.Run("companion killed", func(t *testing.T) {
		mine, others := w.quiet(t, vms[0]), w.quiet(t, vms[1])
		murder(t, w.record(t, vms[0]).Companion.PID)
		broken(t, mine)
		undisturbed(t, others)
		if got := w.bootID(t, vms[0]); got != boots[0] {
			t.Error("the guest whose companion died has booted again")
		}
		w.census(t)
	})
	t.Run("VMM killed", func(t *testing.T) {
		mine, others := w.quiet(t, vms[0]), w.quiet(t, vms[1])
		murder(t, w.record(t, vms[0]).VMM.PID)
		broken(t, mine)
		undisturbed(t, others)
		if m := w.becomes(t, vms[0], api.Stopped); !strings.Contains(m.Reason, "killed by signal 9") {
			t.Errorf("it stopped because %q", m.Reason)
		}
		w.must(t, "vm", "start", vms[0])
		w.census(t)
	})
	for _, vm := range vms {
		w.must(t, "vm", "delete", vm)
	}
	w.nothing(t)
	if got := root(t, "systemctl list-units --all --plain --no-legend 'banger-vm-*'; ls /run/banger-root/vm 2>/dev/null; ip -br link | grep bvm || true"); strings.TrimSpace(got) != "" {
		t.Errorf("this is left of deleted VMs:\n%s", got)
	}
}

// The daemon dies between any two steps of a run. The VM is whole or gone, and
// the same command works.
func TestLabCrashPoints(t *testing.T) {
	w := labWorld(t)
	const dropIn = "/run/systemd/system/bangerd.service.d/crash.conf"
	t.Cleanup(func() { root(t, "rm -f "+dropIn+"; systemctl daemon-reload; systemctl restart bangerd.service") })
	for _, point := range []string{"launch.dir-made", "launch.started", "launch.companion-started", "release.killed", "launch.config-sent"} {
		t.Run(point, func(t *testing.T) {
			root(t, "mkdir -p /run/systemd/system/bangerd.service.d; printf '[Service]\\nEnvironment=BANGER_CRASH="+point+"\\n' >"+dropIn+
				"; systemctl daemon-reload; systemctl restart bangerd.service")
			died := mainPID(t, "bangerd.service")
			r := w.banger(t, "vm", "run", "--rm", "--image", "small", "--memory", "256M", "--", "echo", "ok")
			t.Logf("exit %d %q %s", r.code, r.stdout, r.stderr)
			if mainPID(t, "bangerd.service") == died {
				t.Errorf("the daemon did not die at %s", point)
			}
			root(t, "rm -f "+dropIn+"; systemctl daemon-reload; systemctl restart bangerd.service")
			if got := w.must(t, "vm", "run", "--rm", "--image", "small", "--memory", "256M", "--", "echo", "ok"); got != "ok\n" {
				t.Errorf("the same command again printed %q", got)
			}
			for _, vm := range strings.Fields(w.must(t, "vm", "list", "-q")) {
				w.must(t, "vm", "delete", vm)
			}
			w.nothing(t)
		})
	}
}
