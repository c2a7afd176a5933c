package guestlife

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/agentapi"
	"banger/internal/handover"
)

// An etc writes an identity below root, which is "" in a guest.
type etc struct{ root string }

// install puts the identity in place. What does not work is in the error, and
// the rest is done: a guest without its host key is still of use.
func (e etc) install(id *agentapi.Identity) error {
	return errors.Join(e.secret(id), e.names(id), e.hostKey(id), e.authorized(id), e.files(id))
}

// secret keeps what every later agent has to prove: in /run, root's alone.
func (e etc) secret(id *agentapi.Identity) error {
	if len(id.Secret) == 0 {
		return nil
	}
	return e.write(handover.Secret, 0o600, id.Secret)
}

func (e etc) path(p string) string { return e.root + p }

// write gives the file this content, unless it has it: each file written to an
// overlay costs an emulated guest some milliseconds. A link is replaced. A crash
// may leave a part of it, which the next boot's identity mends.
func (e etc) write(p string, mode os.FileMode, data []byte) error {
	p = e.path(p)
	old, err := os.ReadFile(p)
	exists := err == nil
	if exists && bytes.Equal(old, data) {
		if st, err := os.Lstat(p); err == nil && st.Mode() == mode {
			return nil
		}
	}
	const flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC | unix.O_NOFOLLOW
	f, err := os.OpenFile(p, flags, mode)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ELOOP) {
		if err = os.Remove(p); err == nil || errors.Is(err, os.ErrNotExist) {
			err = os.MkdirAll(filepath.Dir(p), 0o755)
		}
		if err == nil {
			f, err = os.OpenFile(p, flags, mode)
		}
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", p, err)
	}
	_, err = f.Write(data)
	if exists || mode&0o022 != 0 { // the mode that it had, or what the umask left
		err = errors.Join(err, f.Chmod(mode))
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", p, err)
	}
	return nil
}

// replace gives the file this content at once or not at all.
func (e etc) replace(p string, mode os.FileMode, data []byte) error {
	p = e.path(p)
	tmp := p + ".banger"
	_ = os.Remove(tmp)
	err := os.WriteFile(tmp, data, mode)
	if err == nil {
		err = os.Chmod(tmp, mode) // whatever the umask
	}
	if err == nil {
		err = os.Rename(tmp, p)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("writing %s: %w", p, err)
	}
	return nil
}

func (e etc) names(id *agentapi.Identity) error {
	var errs []error
	if id.Hostname != "" {
		former, _ := os.ReadFile(e.path("/etc/hostname"))
		hosts, err := os.ReadFile(e.path("/etc/hosts"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
		var addr netip.Addr
		if id.Net != nil {
			addr = id.Net.Addr
		}
		lines := withHost(hosts, strings.TrimSpace(string(former)), id.Hostname, addr)
		errs = append(errs, e.write("/etc/hostname", 0o644, []byte(id.Hostname+"\n")))
		if !bytes.Equal(lines, hosts) {
			errs = append(errs, e.write("/etc/hosts", 0o644, lines))
		}
	}
	if id.MachineID != "" {
		errs = append(errs, e.write("/etc/machine-id", 0o444, []byte(id.MachineID+"\n")))
	}
	return errors.Join(errs...)
}

// ours ends a line of /etc/hosts that is to go when the VM's address does.
const ours = "# banger"

// withHost is hosts with a line for name, in place of the one for the former
// name. Its address is the VM's, so that what listens where its host's name is
// can be reached from outside; without one 127.0.1.1, where Debian puts a host
// without a lasting address.
func withHost(hosts []byte, former, name string, addr netip.Addr) []byte {
	var out []byte
	local := false
	for line := range strings.Lines(string(hosts)) {
		before, comment, _ := strings.Cut(line, "#")
		f := strings.Fields(before)
		if len(f) == 2 && (f[1] == former || f[1] == name) && (f[0] == "127.0.1.1" || "#"+strings.TrimRight(comment, "\n") == ours) {
			continue
		}
		local = local || len(f) > 1 && slices.Contains(f[1:], "localhost")
		out = append(out, line...)
	}
	if len(out) > 0 && out[len(out)-1] != '\n' {
		out = append(out, '\n')
	}
	if !local {
		out = append(out, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"...)
	}
	if addr.IsValid() {
		return fmt.Appendf(out, "%v\t%s %s\n", addr, name, ours)
	}
	return append(out, "127.0.1.1\t"+name+"\n"...)
}

// hostKey gives sshd this VM's key, by both doors: the agent's own sshd uses
// the one in /run, the listening one those in /etc/ssh. Keys that came with
// the image are the same in every VM, so they are no keys.
func (e etc) hostKey(id *agentapi.Identity) error {
	if id.HostKey == "" {
		return nil
	}
	errs := []error{
		os.MkdirAll(e.path(handover.SSHDir), 0o700),
		e.write(handover.SSHDir+"/host_key", 0o600, []byte(id.HostKey)),
		e.write(handover.SSHDir+"/host_key.pub", 0o644, line(id.HostKeyPub)),
	}
	if _, err := os.Stat(e.path("/etc/ssh")); err != nil {
		return errors.Join(errs...) // no ssh in the image
	}
	const mine = "/etc/ssh/ssh_host_ed25519_key"
	errs = append(errs, e.write(mine, 0o600, []byte(id.HostKey)), e.write(mine+".pub", 0o644, line(id.HostKeyPub)))
	others, err := filepath.Glob(e.path("/etc/ssh/ssh_host_*"))
	errs = append(errs, err)
	for _, p := range others {
		if !strings.HasPrefix(p, e.path(mine)) {
			errs = append(errs, os.Remove(p))
		}
	}
	return errors.Join(errs...)
}

// sshd makes the directory without which no sshd of OpenSSH starts, not even to
// print its settings. Debian's is made by the service that the first connection
// starts.
func (e etc) sshd() error { return os.MkdirAll(e.path("/run/sshd"), 0o755) }

func line(s string) []byte { return []byte(strings.TrimRight(s, "\n") + "\n") }

// authorized adds the keys to root's own list, and makes the agent's list.
func (e etc) authorized(id *agentapi.Identity) error {
	if len(id.AuthorizedKeys) == 0 {
		return nil
	}
	var all []byte
	for _, k := range id.AuthorizedKeys {
		all = append(all, line(k)...)
	}
	errs := []error{os.MkdirAll(e.path(handover.SSHDir), 0o700), e.write(handover.SSHDir+"/authorized_keys", 0o600, all)}
	const dir = "/root/.ssh"
	errs = append(errs, os.MkdirAll(e.path(dir), 0o700), os.Chmod(e.path(dir), 0o700))
	old, err := os.ReadFile(e.path(dir + "/authorized_keys"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return errors.Join(append(errs, err)...) // never replace what cannot be read
	}
	merged := slices.Clone(old)
	if len(merged) > 0 && merged[len(merged)-1] != '\n' {
		merged = append(merged, '\n')
	}
	for _, k := range id.AuthorizedKeys {
		if !slices.Contains(strings.Split(string(old), "\n"), strings.TrimRight(k, "\n")) {
			merged = append(merged, line(k)...)
		}
	}
	if !bytes.Equal(merged, old) {
		errs = append(errs, e.replace(dir+"/authorized_keys", 0o600, merged))
	}
	return errors.Join(append(errs, os.Chmod(e.path(dir+"/authorized_keys"), 0o600))...)
}

func (e etc) files(id *agentapi.Identity) error {
	var errs []error
	for _, f := range id.Files {
		if !filepath.IsAbs(f.Path) || filepath.Clean(f.Path) != f.Path {
			errs = append(errs, fmt.Errorf("writing %q: not a clean absolute path", f.Path))
			continue
		}
		errs = append(errs, e.write(f.Path, os.FileMode(f.Mode)&os.ModePerm, f.Data))
	}
	return errors.Join(errs...)
}

// setClock sets the guest's clock; it does nothing if the host has not said.
func setClock(unixNano int64) error {
	if unixNano == 0 {
		return nil
	}
	ts := unix.NsecToTimespec(unixNano)
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("setting the clock: %w", err)
	}
	return nil
}

// rndAddEntropy is RNDADDENTROPY of linux/random.h: _IOW('R', 3, int[2]).
const rndAddEntropy = 0x40085203

// addSeed credits seed to the kernel's random pool, of 8 bits a byte.
func addSeed(seed []byte) error {
	if len(seed) == 0 {
		return nil
	}
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("seeding the random pool: %w", err)
	}
	defer func() { _ = f.Close() }()
	b := binary.NativeEndian.AppendUint32(nil, uint32(8*len(seed)))
	b = binary.NativeEndian.AppendUint32(b, uint32(len(seed)))
	if err := ioctl(f, rndAddEntropy, append(b, seed...)); err != nil {
		return fmt.Errorf("seeding the random pool: %w", err)
	}
	return nil
}
