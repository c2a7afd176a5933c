package recipe

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"banger/internal/api"
)

// Check says whether this account can build the recipe here, and returns
// mmdebstrap's path. Each thing that is missing is an [*api.Error] with its
// fix as the hint.
func Check(r Recipe, o Options) (string, error) {
	program, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return "", missing(r, "the program mmdebstrap is not installed", "sudo apt install mmdebstrap (Fedora: sudo dnf install mmdebstrap; Arch: sudo pacman -S mmdebstrap)")
	}
	if os.Getuid() != 0 {
		if err := checkNamespaces(r, "/"); err != nil {
			return "", err
		}
	}
	dir := o.WorkDir
	if dir == "" {
		dir = "/var/tmp"
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return "", fmt.Errorf("building %s: looking at %s: %w", r.Name, dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < r.Room {
		return "", &api.Error{Code: api.NoSpace,
			Msg:  fmt.Sprintf("building %s needs %d MiB in %s, which has %d MiB free", r.Name, r.Room>>20, dir, free>>20),
			Hint: "free some space there, and repeat"}
	}
	return program, nil
}

func missing(r Recipe, what, hint string) error {
	return &api.Error{Code: api.Missing, Msg: fmt.Sprintf("building %s: %s", r.Name, what), Hint: hint}
}

// checkNamespaces looks for what an ordinary account needs to be root in a
// user namespace with many ids, below root.
func checkNamespaces(r Recipe, root string) error {
	for _, p := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(p); err != nil {
			return missing(r, "the program "+p+" is not installed", "sudo apt install uidmap (Fedora: sudo dnf install shadow-utils-subid; Arch: sudo pacman -S shadow)")
		}
	}
	for file, setting := range map[string]string{
		"proc/sys/kernel/unprivileged_userns_clone": "kernel.unprivileged_userns_clone=1",
		"proc/sys/user/max_user_namespaces":         "user.max_user_namespaces=10000",
	} {
		if b, err := os.ReadFile(root + file); err == nil && strings.TrimSpace(string(b)) == "0" {
			return missing(r, "this kernel is set to allow ordinary accounts no user namespaces", "sudo sysctl -w "+setting)
		}
	}
	me, err := user.Current()
	if err != nil {
		return fmt.Errorf("building %s: looking up this account: %w", r.Name, err)
	}
	for _, file := range []string{"etc/subuid", "etc/subgid"} {
		ok, err := hasRange(root+file, me.Username, me.Uid)
		if err != nil {
			return fmt.Errorf("building %s: %w", r.Name, err)
		}
		if !ok {
			return missing(r, fmt.Sprintf("the account %s has no range of ids in /%s", me.Username, file),
				"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 "+me.Username)
		}
	}
	return nil
}

// hasRange says whether a file like /etc/subuid gives an account, by name or
// by number, the 65,536 ids that a Debian system uses.
func hasRange(file, name, id string) (bool, error) {
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		w := strings.Split(sc.Text(), ":")
		if len(w) != 3 || (w[0] != name && w[0] != id) {
			continue
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(w[2]), 10, 64); err == nil && n >= 65536 {
			return true, nil
		}
	}
	return false, sc.Err()
}

// arguments is mmdebstrap's command line. It runs in the work directory, where
// "debs" holds cached packages.
func arguments(r Recipe, mirrors, apt []string) []string {
	args := []string{
		"--verbose", "--format=tar", "--architectures=amd64",
		// As root too: the mounts are then in a namespace of mmdebstrap's own,
		// out of the host's sight, and end with it.
		"--mode=unshare",
		`--setup-hook=mkdir -p "$1/var/cache/apt/archives"`,
		"--setup-hook=sync-in debs /var/cache/apt/archives",
	}
	// Cached packages that the archive no longer has are not worth keeping.
	const autoclean = `APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -q autoclean`
	if r.Kernel {
		// Packages are unpacked, not installed, so the indexes of the modules
		// are missing. Their own depmod makes them. Nothing is ever removed in a
		// hook: directories of the host may be mounted in the tree.
		args = append(args, "--variant=extract", "--skip=chroot/mount,cleanup,output/dev",
			`--extract-hook=set -e; for d in "$1"/lib/modules/*; do chroot "$1" /sbin/depmod "${d##*/}"; done; `+autoclean)
	} else {
		args = append(args, "--variant=apt", "--skip=essential/unlink,cleanup/apt/cache", "--customize-hook="+autoclean)
		for _, opt := range dpkgOptions() {
			args = append(args, "--dpkgopt="+opt)
		}
	}
	for _, opt := range apt {
		args = append(args, "--aptopt="+opt)
	}
	args = append(args, "--include="+strings.Join(r.Packages, ","), r.Suite, "-")
	return append(args, mirrors...)
}

// dpkgOptions hold for the build alone: in the guest, dpkg installs whole packages.
func dpkgOptions() []string {
	return []string{
		"force-unsafe-io", // the directory is thrown away; no need to wait for the disk
		"path-exclude=/usr/share/man/*",
		"path-exclude=/usr/share/info/*",
		"path-exclude=/usr/share/locale/*",
		"path-exclude=/usr/share/doc/*",
		"path-include=/usr/share/doc/*/copyright",
	}
}

// environment is the user's own, with what mmdebstrap needs on top: the
// programs of sbin, a plain language for its messages, its directory, and the
// time that replaces the build's.
func environment(work string) []string {
	return append(os.Environ(),
		"PATH="+os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin",
		"LC_ALL=C.UTF-8",
		"TMPDIR="+work,
		fmt.Sprintf("SOURCE_DATE_EPOCH=%d", builtAt))
}
