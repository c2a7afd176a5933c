package qemu_test

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/api"
	"banger/internal/vmm"
	"banger/internal/vmm/qemu"

	"github.com/google/go-cmp/cmp"
)

func config() vmm.Config {
	return vmm.Config{
		ID: "0123456789ab", VCPUs: 2, MemoryMiB: 1024, Cmdline: "console=ttyS0 quiet", TSCKHz: 2_596_126,
		Kernel: vmm.File{FD: 3}, Initramfs: vmm.File{FD: 4},
		Disks: []vmm.Disk{
			{File: vmm.File{FD: 5}, Serial: vmm.SerialBase, ReadOnly: true},
			{File: vmm.File{FD: 6}, Serial: vmm.SerialVM},
			{File: vmm.File{Name: "/a,b \"c"}, Serial: vmm.SerialModules, ReadOnly: true},
		},
		Agent: vmm.File{FD: 7}, Console: vmm.File{FD: 8}, Control: vmm.File{FD: 9},
	}
}

// The command lines are in testdata, one argument a line: a change shows as such.
func TestArgv(t *testing.T) {
	few := config()
	few.Disks, few.MemoryMiB, few.VCPUs, few.TSCKHz = nil, 128, 1, 0
	few.Agent = vmm.File{Name: "/run/a,b"}
	for name, tt := range map[string]struct {
		driver qemu.Driver
		config vmm.Config
	}{
		"tcg": {qemu.Driver{Path: "/usr/bin/qemu"}, config()},
		"kvm": {qemu.Driver{Path: "/usr/bin/qemu", KVM: true}, config()},
		"few": {qemu.Driver{Path: "/usr/bin/qemu"}, few},
	} {
		got, err := tt.driver.Argv(tt.config)
		if err != nil {
			t.Fatalf("%s: Argv() = %v", name, err)
		}
		golden := filepath.Join("testdata", name+".argv")
		text := strings.Join(got, "\n") + "\n"
		if os.Getenv("UPDATE_GOLDEN") != "" {
			if err := os.WriteFile(golden, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), text); d != "" {
			t.Errorf("%s: Argv() differs from %s (- want, + got); UPDATE_GOLDEN=1 rewrites it:\n%s", name, golden, d)
		}
	}
}

func TestArgvRefuses(t *testing.T) {
	for name, change := range map[string]func(*vmm.Config){
		"an id with an option in it": func(c *vmm.Config) { c.ID = "x,debug-threads=on" },
		"no id":                      func(c *vmm.Config) { c.ID = "" },
		"no vCPU":                    func(c *vmm.Config) { c.VCPUs = 0 },
		"no memory":                  func(c *vmm.Config) { c.MemoryMiB = 0 },
		"a serial with an option":    func(c *vmm.Config) { c.Disks[0].Serial = "a,b=c" },
		"a serial that is too long":  func(c *vmm.Config) { c.Disks[0].Serial = strings.Repeat("x", 21) },
		"no agent socket":            func(c *vmm.Config) { c.Agent = vmm.File{} },
	} {
		c := config()
		change(&c)
		if argv, err := (qemu.Driver{Path: "q"}).Argv(c); err == nil {
			t.Errorf("%s: Argv() = %q, want an error", name, argv)
		}
	}
}

func TestFindSaysHowToInstall(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := qemu.Driver{}.Argv(config())
	e, ok := errors.AsType[*api.Error](err)
	if !ok || e.Code != api.Missing || !strings.Contains(e.Hint, "apt install qemu-system-x86") {
		t.Errorf("Argv() without QEMU = %#v, want missing with a hint", err)
	}
}

// talk plays QEMU: it sends the lines, the first before anything is said.
func talk(t *testing.T, lines ...string) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		for i, l := range lines {
			if _, err := theirs.Write([]byte(l + "\n")); err != nil {
				return
			}
			if i == 0 {
				if _, err := bufio.NewReader(theirs).ReadString('\n'); err != nil {
					return
				}
			}
		}
	}()
	return ours
}

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22}}, "capabilities": ["oob"]}}`

func TestEnded(t *testing.T) {
	for name, tt := range map[string]struct {
		lines []string
		want  string
	}{
		"power off": {[]string{`{"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-shutdown"}}`}, vmm.EndShutdown},
		"reset":     {[]string{`{"event":"RESUME"}`, `{"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-reset"}}`}, vmm.EndReset},
		"panic": {[]string{`{"event":"GUEST_PANICKED","data":{"action":"pause"}}`,
			`{"event":"SHUTDOWN","data":{"reason":"guest-reset"}}`}, vmm.EndPanic},
		"signal":      {[]string{`{"event":"SHUTDOWN","data":{"guest":false,"reason":"host-signal"}}`}, vmm.EndSignal},
		"nothing":     {nil, ""},
		"new word":    {[]string{`{"event":"SHUTDOWN","data":{"reason":"cosmic-ray"}}`}, ""},
		"garbage":     {[]string{"\x1b]0;x", `{"event":"SHUTDOWN","data":{"reason":"guest-reset"}}`}, ""},
		"over length": {[]string{`{"event":"` + strings.Repeat("x", 1<<20) + `"}`}, ""},
	} {
		c, err := qemu.Driver{}.Attach(t.Context(), talk(t, append([]string{greeting, `{"return": {}}`}, tt.lines...)...))
		if err != nil {
			t.Errorf("%s: Attach() = %v", name, err)
			continue
		}
		if got := c.Ended(t.Context()); got != tt.want {
			t.Errorf("%s: Ended() = %q, want %q", name, got, tt.want)
		}
		if err := c.Close(); err != nil {
			t.Errorf("%s: Close() = %v", name, err)
		}
	}
}

func TestAttachRefuses(t *testing.T) {
	for name, lines := range map[string][]string{
		"no greeting":      {`{"return": {}}`},
		"not JSON":         {"SSH-2.0-OpenSSH"},
		"a refusal":        {greeting, `{"error":{"class":"GenericError","desc":"no"}}`},
		"a closed channel": {greeting},
	} {
		if _, err := (qemu.Driver{}).Attach(t.Context(), talk(t, lines...)); err == nil {
			t.Errorf("%s: Attach() = nil, want an error", name)
		}
	}
}

func TestAttachEndsWithItsContext(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (qemu.Driver{}).Attach(ctx, ours); !errors.Is(err, context.Canceled) {
		t.Errorf("Attach() = %v, want Canceled", err)
	}
}

func TestTSCIsSteady(t *testing.T) {
	var got [2]int64
	for i := range got {
		khz, err := qemu.TSC(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got[i] = khz
	}
	if d := got[0] - got[1]; d > got[0]/1000 || d < -got[0]/1000 {
		t.Errorf("TSC() = %d kHz, then %d: they differ by more than 0.1 %%", got[0], got[1])
	}
	t.Logf("TSC() = %d kHz in %v windows", got, 20*time.Millisecond)
}
