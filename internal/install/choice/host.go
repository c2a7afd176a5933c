package choice

import (
	"context"
	"debug/elf"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/beneath"
	"banger/internal/install/systemctl"
	"banger/internal/rootapi"
	"banger/internal/rtnl"
	"banger/internal/vmm/firecracker"
)

// ThisHost is the real one.
func ThisHost(ctx context.Context, before *rootapi.Install) Host {
	osRelease, err := os.ReadFile("/etc/os-release")
	if err != nil {
		osRelease = nil // no hint for this system, then
	}
	return Host{
		Before: before, OSRelease: string(osRelease), Find: find, Trust: trust, Version: firecracker.Query, Routes: routes,
		Account: func(name string) (rootapi.Owner, error) { return account(ctx, name) },
	}
}

func routes() (list []netip.Prefix, err error) {
	c, err := rtnl.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Routes()
}

// find looks in PATH, and where root's PATH may not lead.
func find(name string) (list []string) {
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/local/bin", "/usr/bin", "/usr/local/sbin", "/usr/sbin") {
		p := filepath.Join(dir, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && filepath.IsAbs(p) && !slices.Contains(list, p) {
			list = append(list, p)
		}
	}
	return list
}

// hidden are the directories that the root helper's service does not see.
var hidden = []string{"/home", "/root", "/run/user", "/tmp", "/var/tmp"}

// trust resolves links once, for good, and refuses what the helper would refuse
// at each launch: what others than root can replace, what it does not see, what
// a jail cannot run.
func trust(path string, inJail bool) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("using %s: the path is not absolute", path)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", fmt.Errorf("using %s: %w", path, err)
	}
	for _, dir := range hidden {
		if strings.HasPrefix(real, dir+"/") {
			return "", fmt.Errorf("using %s: the root helper sees nothing of %s; install it as root's below /usr/local", real, dir)
		}
	}
	if err := beneath.Program(real); err != nil {
		return "", err
	}
	f, err := elf.Open(real)
	if err != nil {
		return "", fmt.Errorf("using %s: it is no program of this machine's, such as a script: %w", real, err)
	}
	defer f.Close()
	if inJail && slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return "", fmt.Errorf("using %s: it is dynamically linked, and a jail has no libraries", real)
	}
	return real, nil
}

// account asks the system's name service, which knows more than /etc/passwd.
func account(ctx context.Context, name string) (o rootapi.Owner, err error) {
	out, err := exec.CommandContext(ctx, systemctl.Program("getent"), "passwd", "--", name).Output()
	if err != nil {
		return o, fmt.Errorf("asking getent: %w", err)
	}
	return parseAccount(strings.TrimSuffix(string(out), "\n"))
}

// parseAccount reads a line of passwd(5).
func parseAccount(line string) (o rootapi.Owner, err error) {
	f := strings.Split(line, ":")
	if len(f) != 7 || f[0] == "" {
		return o, fmt.Errorf("reading %q: it is no account", line)
	}
	uid, err := strconv.ParseUint(f[2], 10, 32)
	if err != nil {
		return o, fmt.Errorf("reading the uid of %s: %w", f[0], err)
	}
	gid, err := strconv.ParseUint(f[3], 10, 32)
	if err != nil {
		return o, fmt.Errorf("reading the gid of %s: %w", f[0], err)
	}
	return rootapi.Owner{UID: uint32(uid), GID: uint32(gid), Name: f[0], Home: f[5]}, nil
}
