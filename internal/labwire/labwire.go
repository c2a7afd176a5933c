// Package labwire is what the lab machine and the host that boots it say to
// each other, on the one serial channel between them.
//
// A frame is a letter, a length of four bytes, and so many bytes. The host asks,
// one thing at a time; the machine answers, and says hello each time it has
// booted. The package knows nothing of QEMU and of what runs in the lab.
package labwire

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// The channel's name, and what else both sides must call the same.
const (
	// Port is the virtio-serial port.
	Port = "lab"
	// FilesSerial is the disk that holds the tar of the job's files.
	FilesSerial = "lab-files"
	// Dir is where the files are in the machine.
	Dir = "/lab"
	// Out is the directory that goes back to the host.
	Out = Dir + "/out"
	// ShellArg on the kernel's command line asks for a root shell on the console.
	ShellArg = "lab.shell"
)

// Modules are those that the machine loads before it can mount its root, in
// load order.
func Modules() []string {
	return []string{"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci",
		"virtio_blk", "virtio_console", "crc16", "mbcache", "jbd2", "crc32c_generic", "ext4"}
}

// Kind is a frame's letter.
type Kind byte

// The frames: first what the machine says, then what the host asks.
const (
	KindHello     Kind = 'H' // a Hello: the machine has booted
	KindOutput    Kind = 'O' // bytes that the step printed
	KindBeat      Kind = 'B' // nothing: the step goes on, and the machine lives
	KindDone      Kind = 'D' // a Done: the step has ended
	KindFiles     Kind = 'F' // a piece of the tar of Out
	KindCollected Kind = 'C' // the tar is whole; an error as text, or nothing
	KindStep      Kind = 'S' // a Step to run
	KindCollect   Kind = 'G' // send Out
	KindReboot    Kind = 'R' // boot again, in good order
)

// BeatEvery is how often a machine that runs a step says that it lives.
const BeatEvery = 5 * time.Second

// maxFrame bounds a frame's bytes.
const maxFrame = 1 << 20

// Hello is what the machine says when it has booted.
type Hello struct {
	BootID   string `json:"boot_id"`
	UptimeMS int64  `json:"uptime_ms"` // since its kernel began
	State    string `json:"state"`     // what systemctl is-system-running says
	Problem  string `json:"problem"`   // why the files are not there; empty if they are
}

// Step is a command to run.
type Step struct {
	Argv    []string `json:"argv"`
	User    string   `json:"user"` // an account's name; empty is root
	Env     []string `json:"env"`
	Dir     string   `json:"dir"`
	LimitMS int64    `json:"limit_ms"` // then it is ended
}

// Done is how a step ended.
type Done struct {
	Status   int    `json:"status"` // as in a shell: 128 and the signal
	TimedOut bool   `json:"timed_out"`
	Problem  string `json:"problem"` // why it did not run; empty if it did
}

// Write sends a frame with one write.
func Write(w io.Writer, k Kind, body []byte) error {
	if len(body) > maxFrame {
		return fmt.Errorf("sending a frame of %d bytes: at most %d", len(body), maxFrame)
	}
	b := append(binary.BigEndian.AppendUint32([]byte{byte(k)}, uint32(len(body))), body...)
	_, err := w.Write(b)
	return err
}

// WriteJSON sends a frame with a value in it.
func WriteJSON(w io.Writer, k Kind, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return Write(w, k, b)
}

// Read takes the next frame.
func Read(r io.Reader) (Kind, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("reading a frame: %d bytes, at most %d", n, maxFrame)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, fmt.Errorf("reading a frame: %w", err)
	}
	return Kind(head[0]), body, nil
}
