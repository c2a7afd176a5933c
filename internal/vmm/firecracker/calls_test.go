package firecracker_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/vmm"
	"banger/internal/vmm/firecracker"

	"github.com/google/go-cmp/cmp"
)

func config() vmm.Config {
	return vmm.Config{
		ID: "0123456789ab", VCPUs: 2, MemoryMiB: 1024, Cmdline: "console=ttyS0 quiet",
		Kernel: vmm.File{FD: 3}, Initramfs: vmm.File{FD: 4},
		Disks: []vmm.Disk{
			{File: vmm.File{FD: 5}, Serial: vmm.SerialBase, ReadOnly: true},
			{File: vmm.File{FD: 6}, Serial: vmm.SerialVM},
			{File: vmm.File{FD: 7}, Serial: vmm.SerialModules, ReadOnly: true},
		},
		Sockets: vmm.File{FD: 8}, Program: "/opt/firecracker",
	}
}

// jailed is a machine whose files have the names that they have in a jail.
func jailed() vmm.Config {
	c := config()
	c.Kernel, c.Initramfs, c.Sockets = vmm.File{Name: "/kernel"}, vmm.File{Name: "/initramfs"}, vmm.File{Name: "/s"}
	c.Disks = []vmm.Disk{{File: vmm.File{Name: "/disk0"}, Serial: vmm.SerialVM}}
	c.Network = vmm.Network{TAP: "bvm0123456789ab", MAC: "02:fc:ac:10:00:02"}
	return c
}

// The machines are in testdata, one request a line: a change shows as such.
func TestMachine(t *testing.T) {
	few := config()
	few.Disks, few.MemoryMiB, few.VCPUs = nil, 128, 1
	for name, c := range map[string]vmm.Config{"user": config(), "few": few, "jailed": jailed()} {
		argv, err := firecracker.Driver{}.Argv(c)
		if err != nil {
			t.Fatalf("%s: Argv() = %v", name, err)
		}
		calls, err := firecracker.Machine(c)
		if err != nil {
			t.Fatalf("%s: Machine() = %v", name, err)
		}
		text := strings.Join(argv, "\n") + "\n\n"
		for _, call := range append(calls, firecracker.Start()) {
			text += fmt.Sprintf("%v %s\n", call, body(t, call))
		}
		golden := filepath.Join("testdata", name+".machine")
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
			t.Errorf("%s: the machine differs from %s (- want, + got); UPDATE_GOLDEN=1 rewrites it:\n%s", name, golden, d)
		}
	}
}

func body(t *testing.T, c firecracker.Call) string {
	t.Helper()
	if c.Body == nil {
		return ""
	}
	b, err := json.Marshal(c.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestMachineRefuses(t *testing.T) {
	for name, change := range map[string]func(*vmm.Config){
		"an id with an option in it": func(c *vmm.Config) { c.ID = "x --no-seccomp" },
		"no id":                      func(c *vmm.Config) { c.ID = "" },
		"no vCPU":                    func(c *vmm.Config) { c.VCPUs = 0 },
		"too many vCPUs":             func(c *vmm.Config) { c.VCPUs = 33 },
		"no memory":                  func(c *vmm.Config) { c.MemoryMiB = 0 },
		"a serial with a word in it": func(c *vmm.Config) { c.Disks[0].Serial = "a init=/bin/sh" },
		"two serials in one":         func(c *vmm.Config) { c.Disks[0].Serial = "a,b" },
		"no directory for sockets":   func(c *vmm.Config) { c.Sockets = vmm.File{} },
	} {
		c := config()
		change(&c)
		if calls, err := firecracker.Machine(c); err == nil {
			t.Errorf("%s: Machine() = %v, want an error", name, calls)
		}
	}
}

// every is each call that there is, with each field of its body.
func every() map[string]firecracker.Call {
	limit := &firecracker.RateLimiter{Bandwidth: &firecracker.TokenBucket{Size: 1, Burst: 1, RefillMillis: 1}, Operations: &firecracker.TokenBucket{Size: 1, RefillMillis: 1}}
	m := firecracker.MachineConfig{VCPUs: 1, MemoryMiB: 128, TrackDirty: true}
	return map[string]firecracker.Call{
		"GET /": firecracker.GetInstance(), "GET /version": firecracker.GetVersion(), "GET /vm/config": firecracker.GetConfig(),
		"GET /machine-config": firecracker.GetMachine(), "PUT /machine-config": firecracker.PutMachine(m), "PATCH /machine-config": firecracker.PatchMachine(m),
		"PUT /boot-source":                     firecracker.PutBootSource(firecracker.BootSource{Kernel: "/k", Initrd: "/i", Args: "quiet"}),
		"PUT /drives/{drive_id}":               firecracker.PutDrive(firecracker.Drive{ID: "d", Path: "/d", Cache: "Writeback", Limit: limit}),
		"PATCH /drives/{drive_id}":             firecracker.PatchDrive(firecracker.DriveChange{ID: "d", Path: "/d", Limit: limit}),
		"PUT /network-interfaces/{iface_id}":   firecracker.PutNetwork(firecracker.NetworkInterface{ID: "n", HostDevice: "tap0", MAC: "02:fc:00:00:00:01", Receive: limit, Transmit: limit}),
		"PATCH /network-interfaces/{iface_id}": firecracker.PatchNetwork(firecracker.NetworkChange{ID: "n", Receive: limit, Transmit: limit}),
		"PUT /vsock":                           firecracker.PutVsock(firecracker.Vsock{CID: 3, Path: "/v"}),
		"PUT /entropy":                         firecracker.PutEntropy(firecracker.Entropy{Limit: limit}),
		"PUT /logger":                          firecracker.PutLogger(firecracker.Logger{Path: "/l", Level: "Error", Levels: true, Origin: true}),
		"PUT /metrics":                         firecracker.PutMetrics(firecracker.Metrics{Path: "/m"}),
		"PUT /serial":                          firecracker.PutSerial(firecracker.Serial{Path: "/c"}),
		"PUT /balloon":                         firecracker.PutBalloon(firecracker.Balloon{MiB: 1, StatsSeconds: 1}),
		"PATCH /balloon":                       firecracker.PatchBalloon(firecracker.BalloonSize{MiB: 1}),
		"GET /balloon/statistics":              firecracker.GetBalloonStatistics(),
		"PUT /actions":                         firecracker.Start(), "PUT /actions ": firecracker.FlushMetrics(),
		"PATCH /vm": firecracker.Pause(), "PATCH /vm ": firecracker.Resume(),
		"PUT /snapshot/create": firecracker.CreateSnapshot(firecracker.Snapshot{Path: "/s", Memory: "/m", Type: "Full"}),
		"PUT /snapshot/load":   firecracker.LoadSnapshot(firecracker.Restore{Path: "/s", Memory: firecracker.MemoryBackend{Type: "File", Path: "/m"}, Resume: true}),
	}
}

// description is what one version's public API has.
type description struct {
	version firecracker.Version
	calls   map[string]string   // the body of each
	bodies  map[string][]string // the fields of each, those that are required with a star
}

func descriptions(t *testing.T) []description {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", "api.txt"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []description
	for sc := bufio.NewScanner(f); sc.Scan(); {
		w := append(strings.Fields(sc.Text()), "", "", "")
		switch w[0] {
		case "version":
			v, err := firecracker.Parse(w[1])
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, description{v, map[string]string{}, map[string][]string{}})
		case "call":
			all[len(all)-1].calls[w[1]+" "+w[2]] = w[3]
		case "body":
			all[len(all)-1].bodies[w[1]] = w[2:]
		}
	}
	return all
}

// nested are the bodies in bodies.
var nested = map[string]string{"rate_limiter": "RateLimiter", "rx_rate_limiter": "RateLimiter", "tx_rate_limiter": "RateLimiter",
	"bandwidth": "TokenBucket", "ops": "TokenBucket", "mem_backend": "MemoryBackend"}

// fits says what a body has that its description lacks, or the other way round.
func (d description) fits(name string, raw json.RawMessage) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return err
	}
	for f, value := range fields {
		if !slices.Contains(d.bodies[name], f) && !slices.Contains(d.bodies[name], f+"*") {
			return fmt.Errorf("%s has no field %s", name, f)
		}
		if inner := nested[f]; inner != "" {
			if err := d.fits(inner, value); err != nil {
				return err
			}
		}
	}
	for _, f := range d.bodies[name] {
		if field, required := strings.CutSuffix(f, "*"); required && fields[field] == nil {
			return fmt.Errorf("%s must have a field %s", name, field)
		}
	}
	return nil
}

// Each call is one that each version from 1.5 to 1.16 understands, or says that
// the version does not have it.
func TestCallsOfAllVersions(t *testing.T) {
	all := descriptions(t)
	if first, last := all[0].version, all[len(all)-1].version; first.String() != firecracker.MinSupportedVersion || last.Minor != 16 {
		t.Errorf("the versions are %v to %v, want %s to 1.16", first, last, firecracker.MinSupportedVersion)
	}
	for _, d := range all {
		for path, call := range every() {
			name, has := d.calls[strings.TrimSpace(path)]
			if err := call.In(d.version); (err == nil) != has {
				t.Errorf("%v in %v: In() = %v, but that it has it is %v", call, d.version, err, has)
			}
			if !has || call.Body == nil {
				continue
			}
			if err := d.fits(name, json.RawMessage(body(t, call))); err != nil {
				t.Errorf("%v in %v: %v", call, d.version, err)
			}
		}
	}
}

// A machine needs nothing that is younger than the floor.
func TestMachineSuitsTheFloor(t *testing.T) {
	floor, err := firecracker.Parse(firecracker.MinSupportedVersion)
	if err != nil {
		t.Fatal(err)
	}
	calls, err := firecracker.Machine(jailed())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range calls {
		if err := c.In(floor); err != nil {
			t.Error(err)
		}
	}
}
