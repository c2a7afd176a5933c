package guestinit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/handover"
	"banger/internal/initramfs"
	"banger/internal/vmm"
)

// A mount is one call of mount(2); its target is made if it is missing.
type mount struct {
	src, dst, kind string
	flags          uintptr
	data           string
}

func (m mount) do() error {
	if err := os.MkdirAll(m.dst, 0o755); err != nil {
		return fmt.Errorf("mounting %s: %w", m.dst, err)
	}
	if err := unix.Mount(m.src, m.dst, m.kind, m.flags, m.data); err != nil {
		return fmt.Errorf("mounting %s: %w", m.dst, err)
	}
	return nil
}

func bind(src, dst string) error { return mount{src: src, dst: dst, flags: unix.MS_BIND}.do() }

// blockDevices maps the serial of each virtio disk to its node. Where the VMM
// can give a disk no serial, the kernel's command line says which is which, and
// the kernel finds them in that order. Elsewhere names mean nothing: the order is
// not that of the VMM's command line.
func blockDevices(cmdline string) (map[string]string, error) {
	found := map[string]string{}
	if order := vmm.Word(cmdline, vmm.WordDisks); order != "" {
		for i, serial := range strings.Split(order, ",") {
			found[serial] = "/dev/vd" + string(rune('a'+i))
		}
		return found, nil
	}
	for c := 'a'; c <= 'z'; c++ {
		name := "vd" + string(c)
		b, err := os.ReadFile("/sys/block/" + name + "/serial")
		if errors.Is(err, os.ErrNotExist) {
			break
		}
		if err != nil {
			return nil, err
		}
		found[strings.TrimSpace(string(b))] = "/dev/" + name
	}
	return found, nil
}

// root builds the new root: the image below, the VM's disk above, and what
// must lie directly on the disk bound into it.
func (b *boot) root() error {
	b.load(initramfs.DiskModules())
	if hasNetwork("/sys/bus/virtio/devices") {
		b.load(initramfs.NetModules())
	}
	dev, err := blockDevices(b.cmdline)
	if err != nil {
		return fmt.Errorf("looking for disks: %w", err)
	}
	for _, serial := range []string{vmm.SerialBase, vmm.SerialVM} {
		if dev[serial] == "" {
			return fmt.Errorf("there is no disk with the serial %q", serial)
		}
	}
	if err := (mount{src: dev[vmm.SerialBase], dst: handover.BaseDir, kind: "ext4", flags: unix.MS_RDONLY | unix.MS_NOATIME}).do(); err != nil {
		return err
	}
	// No thread that zeroes inode tables: the disk is sparse, they are zero.
	if err := (mount{src: dev[vmm.SerialVM], dst: handover.DiskDir, kind: "ext4", flags: unix.MS_NOATIME, data: "noinit_itable"}).do(); err != nil {
		return err
	}
	b.problem(grow(dev[vmm.SerialVM], handover.DiskDir))
	if err := overlay(); err != nil {
		return err
	}
	b.findInit()
	b.directories()
	if dev[vmm.SerialModules] != "" {
		b.problem(mountModules(dev[vmm.SerialModules]))
	}
	// A tmpfs below the new root travels with it, and systemd keeps it.
	if err := (mount{src: "tmpfs", dst: handover.NewRoot + "/run", kind: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV, data: "mode=755,size=20%"}).do(); err != nil {
		return err
	}
	for _, p := range []string{"/dev", "/proc", "/sys"} {
		if err := bind(p, handover.NewRoot+p); err != nil {
			return err
		}
	}
	b.problem(mount{src: "devpts", dst: handover.NewRoot + "/dev/pts", kind: "devpts",
		flags: unix.MS_NOSUID | unix.MS_NOEXEC, data: "gid=5,mode=620,ptmxmode=666"}.do())
	switch b.init {
	case handover.InitSystemd:
		b.problem(writeUnits(handover.NewRoot, b.cmdline))
		// Already there, systemd need not start mount(8) for it.
		b.problem(mount{src: "mqueue", dst: handover.NewRoot + "/dev/mqueue", kind: "mqueue",
			flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC}.do())
		b.problem(b.hook())
	case handover.InitNone:
		b.comforts(handover.NewRoot)
	}
	return nil
}

// overlay joins image and disk. The upper directory's attributes are those of
// the new root's /, so it gets the image's.
func overlay() error {
	upper, work := handover.DiskDir+"/upper", handover.DiskDir+"/work"
	if _, err := os.Lstat(upper); errors.Is(err, os.ErrNotExist) {
		if err := os.Mkdir(upper, 0o755); err != nil {
			return fmt.Errorf("preparing the VM disk: %w", err)
		}
		if err := copyAttributes(handover.BaseDir, upper); err != nil {
			return fmt.Errorf("preparing the VM disk: %w", err)
		}
	}
	if err := os.MkdirAll(work, 0o755); err != nil {
		return fmt.Errorf("preparing the VM disk: %w", err)
	}
	return mount{src: "overlay", dst: handover.NewRoot, kind: "overlay",
		data: "lowerdir=" + handover.BaseDir + ",upperdir=" + upper + ",workdir=" + work}.do()
}

// directories binds what must not lie on an overlay: root's home, so that
// workspaces are plain ext4, and Docker's data, for its own overlays.
func (b *boot) directories() {
	b.problem(b.ownDirectory("root", "/root", 0o700))
	if b.init != handover.InitSystemd && !exists("/usr/bin/dockerd") && !exists("/usr/local/bin/dockerd") && !exists("/var/lib/docker") {
		return
	}
	b.problem(b.ownDirectory("docker", "/var/lib/docker", 0o710))
	b.problem(b.ownDirectory("containerd", "/var/lib/containerd", 0o711))
}

// exists says whether the image has p.
func exists(p string) bool {
	_, err := os.Lstat(handover.BaseDir + p)
	return err == nil
}

// ownDirectory binds a directory of the disk to path. On the first boot it is
// filled with what the image has there; only a complete copy gets its name.
func (b *boot) ownDirectory(name, path string, mode os.FileMode) error {
	own, target := handover.DiskDir+"/"+name, handover.NewRoot+path
	if _, err := os.Lstat(own); errors.Is(err, os.ErrNotExist) {
		part := own + ".part"
		if err := os.RemoveAll(part); err != nil {
			return fmt.Errorf("preparing %s: %w", path, err)
		}
		if empty(target) { // as in most images, and cheaper
			if err := os.Mkdir(part, mode); err != nil {
				return fmt.Errorf("preparing %s: %w", path, err)
			}
		} else if err := copyTree(target, part); err != nil {
			return fmt.Errorf("copying the image's %s: %w", path, err)
		}
		if err := errors.Join(os.Chmod(part, mode), os.Rename(part, own)); err != nil {
			return fmt.Errorf("preparing %s: %w", path, err)
		}
	}
	return bind(own, target)
}

// empty says whether dir holds nothing, or is not there.
func empty(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	defer func() { _ = f.Close() }()
	_, err = f.Readdirnames(1)
	return errors.Is(err, io.EOF)
}

// inRoot opens a path of the new root as a process in it would: an absolute
// link of the image must not lead into the initramfs.
func inRoot(path string) (*os.File, error) {
	root, err := unix.Open(handover.NewRoot, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the new root: %w", err)
	}
	defer func() { _ = unix.Close(root) }()
	fd, err := unix.Openat2(root, strings.TrimPrefix(path, "/"), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// fdPath names an open file without resolving its name again.
func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// mountModules mounts the kernel's modules where modprobe looks for them. /lib
// may be a link, or missing.
func mountModules(dev string) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fmt.Errorf("mounting the kernel's modules: %w", err)
	}
	at := ""
	for _, name := range []string{"lib", "modules", unix.ByteSliceToString(u.Release[:])} {
		parent, err := inRoot(at + "/.")
		if err != nil {
			return fmt.Errorf("mounting the kernel's modules: %w", err)
		}
		err = unix.Mkdirat(int(parent.Fd()), name, 0o755)
		_ = parent.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("mounting the kernel's modules: %w", err)
		}
		at += "/" + name
	}
	target, err := inRoot(at)
	if err != nil {
		return fmt.Errorf("mounting the kernel's modules: %w", err)
	}
	defer func() { _ = target.Close() }()
	if err := unix.Mount(dev, fdPath(target), "ext4", unix.MS_RDONLY|unix.MS_NOATIME, ""); err != nil {
		return fmt.Errorf("mounting the kernel's modules: %w", err)
	}
	list, err := inRoot(at + "/modules.devname")
	if err != nil {
		return nil // depmod has found nothing to list
	}
	defer func() { _ = list.Close() }()
	text, err := os.ReadFile(fdPath(list))
	if err != nil {
		return fmt.Errorf("reading the kernel's list of nodes: %w", err)
	}
	return staticNodes(string(text), "/dev")
}

// initPaths are where the kernel looks for an init, but for the shell it tries
// last: that is none.
var initPaths = []string{"/sbin/init", "/etc/init", "/bin/init"}

// findInit finds the image's init and its kind.
func (b *boot) findInit() {
	b.init = handover.InitNone
	for _, p := range initPaths {
		f, err := inRoot(p)
		if err != nil {
			continue
		}
		kind := initKind(f)
		_ = f.Close()
		if kind != "" {
			b.init, b.initPath = kind, p
			return
		}
	}
}

// initKind is "" if f is nothing to execute.
func initKind(f *os.File) string {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 == 0 {
		return ""
	}
	if real, err := os.Readlink(fdPath(f)); err == nil && filepath.Base(real) == "systemd" {
		return handover.InitSystemd
	}
	return handover.InitOther
}

// hook makes this program what systemd-shutdown runs last. It is a link to the
// running program, in a directory of the initramfs that is bound to
// /run/initramfs, where systemd unmounts nothing: no copy, no memory. By then it
// is read-only, so the directories that systemd mounts on must be there.
func (b *boot) hook() error {
	for _, d := range []string{"", "/dev", "/proc", "/sys", "/run", "/oldroot"} {
		if err := os.Mkdir(handover.HookDir+d, 0o755); err != nil {
			return fmt.Errorf("placing the shutdown hook: %w", err)
		}
	}
	if err := os.Link(self, handover.HookDir+handover.HookRole); err != nil {
		return fmt.Errorf("placing the shutdown hook: %w", err)
	}
	return bind(handover.HookDir, handover.NewRoot+"/run/initramfs")
}

// switchRoot makes the new root the root. What runs from the initramfs runs on;
// its files are deleted, which frees what nobody uses.
func (b *boot) switchRoot() error {
	disk, err := os.Open(handover.DiskDir)
	if err != nil {
		return fmt.Errorf("changing the root: %w", err)
	}
	b.disk = disk
	if err := unix.Chdir(handover.NewRoot); err != nil {
		return fmt.Errorf("changing the root: %w", err)
	}
	_ = unix.Unlink(self)
	for _, m := range initramfs.ModuleNames() {
		_ = unix.Unlink(initramfs.ModuleDir + "/" + m + ".ko") // built in if there is none
	}
	for _, step := range []func() error{
		func() error { return unix.Mount(".", "/", "", unix.MS_MOVE, "") },
		func() error { return unix.Chroot(".") },
		func() error { return unix.Chdir("/") },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("changing the root: %w", err)
		}
	}
	return nil
}

// comforts are what an init would do and an image without one would miss: none
// is worth a failure.
func (b *boot) comforts(root string) {
	for _, m := range []mount{
		{src: "tmpfs", dst: root + "/dev/shm", kind: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV, data: "mode=1777"},
		{src: "cgroup2", dst: root + "/sys/fs/cgroup", kind: "cgroup2", flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	} {
		b.problem(m.do())
	}
	if err := os.Mkdir(root+"/tmp", 0o777); err == nil {
		b.problem(os.Chmod(root+"/tmp", os.ModeSticky|0o777))
	}
	b.problem(loopbackUp())
}
