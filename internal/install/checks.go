package install

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/api"
	"banger/internal/install/systemctl"
	"banger/internal/kvm"
	"banger/internal/nft"
)

// dnsPort is where the owner daemon answers for the VMs' names.
const dnsPort = 42069

// facts are what an install needs of the host.
type facts struct {
	uid     int
	arch    string
	systemd func() bool
	look    func(program string) bool
	kvm     func(context.Context) kvm.Verdict
	port    func(context.Context) error
}

func thisHost() facts {
	return facts{
		uid: os.Geteuid(), arch: runtime.GOARCH, systemd: systemctl.Running, kvm: kvm.Probe, port: portFree,
		look: func(program string) bool { _, err := exec.LookPath(systemctl.Program(program)); return err == nil },
	}
}

// refuse says what makes an install impossible, as far as that is cheap to know.
func (f facts) refuse(ctx context.Context) error {
	switch {
	case f.arch != "amd64":
		return &api.Error{Code: api.Unsupported, Msg: "banger runs on x86_64 (amd64), and this machine is " + f.arch, Hint: "use a machine with an x86_64 processor"}
	case !f.systemd():
		return &api.Error{Code: api.Unsupported, Msg: "systemd is not this system's init, and system mode is two of its services", Hint: "user mode needs no systemd: banger vm run"}
	}
	for _, need := range [][2]string{{nft.Program, "nftables"}, {"systemctl", "systemd"}, {"getent", "libc-bin"}} {
		if program := need[0]; !f.look(program) {
			return &api.Error{Code: api.Missing, Msg: fmt.Sprintf("there is no %s, which system mode needs", program), Hint: "install it, on Debian with: sudo apt install " + need[1]}
		}
	}
	return f.port(ctx)
}

// virtual refuses where KVM cannot run a guest, which is found out by running one.
func (f facts) virtual(ctx context.Context) error {
	if v := f.kvm(ctx); !v.Usable {
		hint := v.Fix
		if hint == "" {
			hint = "user mode does without KVM, and is slower: banger vm run"
		}
		return &api.Error{Code: api.Unsupported, Msg: "system mode needs KVM, and it is not usable here: " + v.Why, Hint: hint}
	}
	return nil
}

// needRoot refuses who may not change the system.
func needRoot(verb string) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return &api.Error{Code: api.Denied, Msg: fmt.Sprintf("banger system %s needs root", verb), Hint: "sudo banger system " + verb}
}

// portFree refuses if somebody else than our daemon has the port of the names.
func portFree(ctx context.Context) error {
	if u, err := systemctl.Show(ctx, DaemonUnit); err == nil && u.Up() {
		return nil
	}
	at := fmt.Sprintf("127.0.0.1:%d", dnsPort)
	var c net.ListenConfig
	l, err := c.Listen(ctx, "tcp4", at)
	if err == nil {
		l.Close()
		var p net.PacketConn
		if p, err = c.ListenPacket(ctx, "udp4", at); err == nil {
			p.Close()
			return nil
		}
	}
	return &api.Error{Code: api.Conflict, Msg: fmt.Sprintf("the names of the VMs are answered for at %s, and %s listens there", at, listener("/proc", dnsPort)),
		Hint: "end that program, or have it listen elsewhere; then: sudo banger system install", Err: err}
}

// listener names the process that holds a port, as far as proc tells.
func listener(proc string, port int) string {
	inodes := map[string]bool{}
	for _, table := range []string{"tcp", "udp", "tcp6", "udp6"} {
		f, err := os.Open(filepath.Join(proc, "net", table))
		if err != nil {
			continue
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			// sl local_address rem_address st ... uid timeout inode
			if w := strings.Fields(lines.Text()); len(w) > 9 && strings.HasSuffix(w[1], fmt.Sprintf(":%04X", port)) {
				inodes["socket:["+w[9]+"]"] = true
			}
		}
		f.Close()
	}
	fds, err := filepath.Glob(filepath.Join(proc, "[0-9]*/fd/*"))
	if err != nil {
		fds = nil
	}
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil || !inodes[target] {
			continue
		}
		dir := filepath.Dir(filepath.Dir(fd))
		name, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err == nil {
			return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(name)), filepath.Base(dir))
		}
	}
	return "another program"
}

// lockFile is there while somebody changes what is installed. It is for root
// alone to open: what others can open, they can lock for good.
const lockFile = "/run/banger-install.lock"

// lock lets one process at a time change what is installed. The file goes when
// it is given back, so that nothing of the lock is left; so one that was got
// must still be the one that has the name.
func lock(path string) (unlock func(), err error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("locking what is installed: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			return nil, &api.Error{Code: api.Conflict, Msg: "another banger installs or uninstalls right now", Hint: "wait for it, and try again"}
		}
		mine, err1 := f.Stat()
		named, err2 := os.Lstat(path)
		if err1 == nil && err2 == nil && os.SameFile(mine, named) {
			return func() {
				_ = os.Remove(path) // the next one takes it as it is
				f.Close()
			}, nil
		}
		f.Close()
	}
}

const forwardingFile = "/proc/sys/net/ipv4/ip_forward"

// forwarding is whether the host passes on packets: "0", "1", or "" if it is
// not known.
func forwarding() string {
	b, err := os.ReadFile(forwardingFile)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func forward(value string) error {
	if err := os.WriteFile(forwardingFile, []byte(value), 0); err != nil {
		return fmt.Errorf("setting net.ipv4.ip_forward: %w", err)
	}
	return nil
}

func ownerOf(st fs.FileInfo) int {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return int(sys.Uid)
	}
	return -1
}
