package firecracker

import "fmt"

// A Call is one request of Firecracker's API, as a value.
type Call struct {
	Method, Path string
	Body         any     // JSON; nil for none
	Since        Version // the first that has it
}

// String names the call.
func (c Call) String() string { return c.Method + " " + c.Path }

// In is an error if a Firecracker of version v does not have the call.
func (c Call) In(v Version) error {
	if v.Compare(c.Since) < 0 {
		return fmt.Errorf("asking Firecracker %v for %v: it came with %v", v, c, c.Since)
	}
	return nil
}

func get(path string) Call             { return Call{Method: "GET", Path: path} }
func put(path string, body any) Call   { return Call{Method: "PUT", Path: path, Body: body} }
func patch(path string, body any) Call { return Call{Method: "PATCH", Path: path, Body: body} }

// since says that a call is younger than MinSupportedVersion.
func (c Call) since(major, minor int) Call {
	c.Since = Version{Major: major, Minor: minor}
	return c
}

// The states of an instance.
const (
	StateNotStarted = "Not started"
	StateRunning    = "Running"
	StatePaused     = "Paused"
)

// InstanceInfo is who answers.
type InstanceInfo struct {
	ID      string `json:"id"`
	State   string `json:"state"`
	Version string `json:"vmm_version"`
	App     string `json:"app_name"`
}

// GetInstance asks for an [InstanceInfo].
func GetInstance() Call { return get("/") }

// GetVersion asks for a [VersionInfo].
func GetVersion() Call { return get("/version") }

// VersionInfo is the answer to GetVersion.
type VersionInfo struct {
	Version string `json:"firecracker_version"`
}

// GetConfig asks for all that was described, as JSON.
func GetConfig() Call { return get("/vm/config") }

// MachineConfig is the processors and the memory.
type MachineConfig struct {
	VCPUs     int   `json:"vcpu_count"`
	MemoryMiB int64 `json:"mem_size_mib"`
	// TrackDirty makes snapshots of what has changed possible.
	TrackDirty bool `json:"track_dirty_pages,omitempty"`
}

// PutMachine describes processors and memory, before the start.
func PutMachine(m MachineConfig) Call { return put("/machine-config", m) }

// PatchMachine changes some of it, before the start.
func PatchMachine(m MachineConfig) Call { return patch("/machine-config", m) }

// GetMachine asks for a [MachineConfig].
func GetMachine() Call { return get("/machine-config") }

// BootSource is what boots.
type BootSource struct {
	Kernel string `json:"kernel_image_path"`
	Initrd string `json:"initrd_path,omitempty"`
	Args   string `json:"boot_args,omitempty"`
}

// PutBootSource says what boots.
func PutBootSource(b BootSource) Call { return put("/boot-source", b) }

// A Drive is a block device.
type Drive struct {
	ID       string       `json:"drive_id"`
	Path     string       `json:"path_on_host"`
	Root     bool         `json:"is_root_device"` // adds root= to the kernel's command line
	ReadOnly bool         `json:"is_read_only"`
	Cache    string       `json:"cache_type,omitempty"` // Unsafe, which is the default, or Writeback
	Limit    *RateLimiter `json:"rate_limiter,omitempty"`
}

// A RateLimiter bounds what a device may do.
type RateLimiter struct {
	Bandwidth  *TokenBucket `json:"bandwidth,omitempty"` // bytes
	Operations *TokenBucket `json:"ops,omitempty"`
}

// A TokenBucket is refilled with Size tokens each RefillMillis.
type TokenBucket struct {
	Size         int64 `json:"size"`
	Burst        int64 `json:"one_time_burst,omitempty"`
	RefillMillis int64 `json:"refill_time"`
}

// PutDrive adds a block device. They appear in the guest in the order of the calls.
func PutDrive(d Drive) Call { return put("/drives/"+d.ID, d) }

// DriveChange gives a block device of a running machine another file.
type DriveChange struct {
	ID    string       `json:"drive_id"`
	Path  string       `json:"path_on_host,omitempty"`
	Limit *RateLimiter `json:"rate_limiter,omitempty"`
}

// PatchDrive changes a block device of a running machine; with no other file it
// looks at its size again.
func PatchDrive(d DriveChange) Call { return patch("/drives/"+d.ID, d) }

// A NetworkInterface is a network device on a TAP.
type NetworkInterface struct {
	ID         string       `json:"iface_id"`
	HostDevice string       `json:"host_dev_name"`
	MAC        string       `json:"guest_mac,omitempty"`
	Receive    *RateLimiter `json:"rx_rate_limiter,omitempty"`
	Transmit   *RateLimiter `json:"tx_rate_limiter,omitempty"`
}

// PutNetwork adds a network device.
func PutNetwork(n NetworkInterface) Call { return put("/network-interfaces/"+n.ID, n) }

// NetworkChange are the limits of a network device.
type NetworkChange struct {
	ID       string       `json:"iface_id"`
	Receive  *RateLimiter `json:"rx_rate_limiter,omitempty"`
	Transmit *RateLimiter `json:"tx_rate_limiter,omitempty"`
}

// PatchNetwork changes the limits of a running machine.
func PatchNetwork(n NetworkChange) Call { return patch("/network-interfaces/"+n.ID, n) }

// Vsock is the vsock device. Firecracker makes Path, and connects to Path_PORT
// when the guest calls a port.
type Vsock struct {
	CID  uint32 `json:"guest_cid"`
	Path string `json:"uds_path"`
}

// PutVsock adds the vsock device.
func PutVsock(v Vsock) Call { return put("/vsock", v) }

// Entropy is the random number device.
type Entropy struct {
	Limit *RateLimiter `json:"rate_limiter,omitempty"`
}

// PutEntropy adds the random number device.
func PutEntropy(e Entropy) Call { return put("/entropy", e) }

// Logger is where Firecracker logs.
type Logger struct {
	Path   string `json:"log_path,omitempty"`
	Level  string `json:"level,omitempty"` // Error, Warning, Info or Debug
	Levels bool   `json:"show_level,omitempty"`
	Origin bool   `json:"show_log_origin,omitempty"`
}

// PutLogger says where to log.
func PutLogger(l Logger) Call { return put("/logger", l) }

// Metrics is the file that gets a line of numbers now and then.
type Metrics struct {
	Path string `json:"metrics_path"`
}

// PutMetrics says where the numbers go.
func PutMetrics(m Metrics) Call { return put("/metrics", m) }

// Serial is the file that gets the guest's console.
type Serial struct {
	Path string `json:"serial_out_path,omitempty"`
}

// PutSerial sends the console elsewhere than to the standard output.
func PutSerial(s Serial) Call { return put("/serial", s).since(1, 14) }

// Balloon takes memory back from the guest.
type Balloon struct {
	MiB          int64 `json:"amount_mib"`
	DeflateOnOOM bool  `json:"deflate_on_oom"`
	StatsSeconds int   `json:"stats_polling_interval_s,omitempty"`
}

// PutBalloon adds the balloon.
func PutBalloon(b Balloon) Call { return put("/balloon", b) }

// BalloonSize is how large the balloon is to be.
type BalloonSize struct {
	MiB int64 `json:"amount_mib"`
}

// PatchBalloon changes its size, of a running machine.
func PatchBalloon(b BalloonSize) Call { return patch("/balloon", b) }

// GetBalloonStatistics asks what the guest says of its memory.
func GetBalloonStatistics() Call { return get("/balloon/statistics") }

// An action is one of those without parameters.
type action struct {
	Type string `json:"action_type"`
}

// Start starts the machine.
func Start() Call { return put("/actions", action{"InstanceStart"}) }

// FlushMetrics writes a line of numbers now.
func FlushMetrics() Call { return put("/actions", action{"FlushMetrics"}) }

// state is what a running machine is to be.
type state struct {
	State string `json:"state"`
}

// Pause stops the processors.
func Pause() Call { return patch("/vm", state{"Paused"}) }

// Resume lets them go on.
func Resume() Call { return patch("/vm", state{"Resumed"}) }

// Snapshot says where a snapshot of a paused machine goes.
type Snapshot struct {
	Path   string `json:"snapshot_path"`
	Memory string `json:"mem_file_path"`
	Type   string `json:"snapshot_type,omitempty"` // Full, which is the default, or Diff
}

// CreateSnapshot makes a snapshot.
func CreateSnapshot(s Snapshot) Call { return put("/snapshot/create", s) }

// Restore says what a new Firecracker is to go on with.
type Restore struct {
	Path   string        `json:"snapshot_path"`
	Memory MemoryBackend `json:"mem_backend"`
	Resume bool          `json:"resume_vm,omitempty"`
}

// A MemoryBackend is where a restored machine's memory comes from.
type MemoryBackend struct {
	Type string `json:"backend_type"` // File or Uffd
	Path string `json:"backend_path"`
}

// LoadSnapshot restores one.
func LoadSnapshot(r Restore) Call { return put("/snapshot/load", r) }
