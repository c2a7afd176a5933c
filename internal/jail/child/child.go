// Package child builds a VM's jail from inside, and becomes the jailer.
//
// It is what runs first in the service that package jail describes, as root and
// with more rights than the root helper has: so it is a program of its own,
// which takes one argument and decides nothing.
package child

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"banger/internal/beneath"
	"banger/internal/jail"

	"golang.org/x/sys/unix"
)

// HoldArg is the argument of the process that [Hold] is.
const HoldArg = "hold"

// Run builds the jail that arg describes and becomes the jailer. It runs as
// root in the VM's service; on success it does not return.
func Run(arg string) error {
	var s jail.Spec
	if err := json.Unmarshal([]byte(arg), &s); err != nil {
		return fmt.Errorf("reading the jail's description: %w", err)
	}
	// Whoever reads the console hears of what goes wrong from here on. A write
	// that would wait for the reader fails instead: no reader may stop a VM. Nor
	// may there be none, while another takes the place of one that has died:
	// Firecracker 1.12.1 hangs for good, its API too, when it prints to a pipe that
	// nobody reads. So this process is a reader itself.
	fd, err := unix.Open(jail.Dir(s.ID).Path("console"), unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err := errors.Join(err, unix.Dup3(fd, 1, 0), unix.Dup3(fd, 2, 0)); err != nil {
		return fmt.Errorf("opening the console: %w", err)
	}
	// Namespaces belong to threads, and exec keeps those of the calling thread.
	runtime.LockOSThread()
	if err := build(s); err != nil {
		return err
	}
	uid := strconv.Itoa(int(s.UID))
	// No --cgroup flags: the service is the cgroup. The jailer closes all but
	// three descriptors and clears the environment. Firecracker's log would come
	// between the lines of the guest's console but for what explains an end.
	argv := []string{s.Jailer, "--id", s.ID, "--exec-file", s.Firecracker, "--uid", uid, "--gid", uid, "--chroot-base-dir", jail.MountPoint,
		"--resource-limit", "no-file=1024", "--", "--api-sock", "/s/" + jail.APISocket, "--level", "Error"}
	return os.NewSyscallError("exec "+s.Jailer, unix.Exec(s.Jailer, argv, nil))
}

// build makes the jail's root directory, in a mount namespace of this thread's.
func build(s jail.Spec) error {
	// A tmpfs of this namespace: new at each start, as the jailer's mknod wants
	// it, and gone with the process.
	err := unix.Unshare(unix.CLONE_NEWNS)
	if err == nil {
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "")
	}
	if err == nil {
		err = unix.Mount("jail", jail.MountPoint, "tmpfs", unix.MS_NOSUID, "size=16m,nr_inodes=128,mode=0755")
	}
	root := filepath.Join(jail.MountPoint, filepath.Base(s.Firecracker), s.ID, "root") // the jailer's choice
	if err == nil {
		err = os.MkdirAll(root+"/s", 0o755)
	}
	if err != nil {
		return fmt.Errorf("mounting the jail: %w", err)
	}
	userns, err := userNamespace(s)
	if err != nil {
		return fmt.Errorf("mapping the owner's id: %w", err)
	}
	defer userns.Close()
	for _, f := range s.Files {
		if err := show(f, root, userns); err != nil {
			return fmt.Errorf("showing %s: %w", f.Name, err)
		}
	}
	sockets, err := beneath.Open(jail.Dir(s.ID).Path(""), "s")
	if err != nil {
		return err
	}
	defer sockets.Close()
	return bind(sockets, root+"/s", unix.MountAttr{})
}

// show makes f visible in the jail, as the VMM's own.
func show(f jail.File, root string, userns *os.File) error {
	found, err := beneath.Open(f.Base, f.Path)
	if err != nil {
		return err
	}
	defer found.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(found.Fd()), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Dev != f.Dev || st.Ino != f.Ino {
		return fmt.Errorf("%s is not the file whose descriptor came with the request", found.Name())
	}
	at := filepath.Join(root, f.Name)
	if err := os.WriteFile(at, nil, 0o600); err != nil {
		return err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())}
	if f.ReadOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	return bind(found, at, attr)
}

// bind mounts what f is at the path at. It goes through a detached clone, so
// the attributes are set before anybody can see the mount, and no name is
// looked up a second time.
func bind(f *os.File, at string, attr unix.MountAttr) error {
	tree, err := unix.OpenTree(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("cloning the mount: %w", err)
	}
	defer unix.Close(tree)
	// ProtectSystem=strict made everything read-only, and a clone inherits that.
	attr.Attr_clr = unix.MOUNT_ATTR_RDONLY &^ attr.Attr_set
	attr.Attr_set |= unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("setting the mount's attributes: %w", err)
	}
	return os.NewSyscallError("move_mount", unix.MoveMount(tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// userNamespace returns one in which the owner's files are the VMM's. It maps
// that one id; all others are nobody's.
func userNamespace(s jail.Spec) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	ids := func(from uint32) []syscall.SysProcIDMap {
		return []syscall.SysProcIDMap{{ContainerID: int(from), HostID: int(s.UID), Size: 1}}
	}
	p, err := os.StartProcess("/proc/self/exe", []string{"banger-jail", HoldArg}, &os.ProcAttr{Files: []*os.File{r},
		Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids(s.Owner), GidMappings: ids(s.OwnerGID)}})
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", p.Pid))
	w.Close() // its end; and unless it is waited for, the VMM would have a dead child
	_, waited := p.Wait()
	return ns, errors.Join(err, waited)
}

// Hold is a process that exists so that its user namespace does. It ends with
// its standard input.
func Hold() error {
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}
