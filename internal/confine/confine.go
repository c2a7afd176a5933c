// Package confine starts a program that can open what it is given and nothing
// else.
//
// It uses Landlock, which needs no privilege and holds for the program and all
// that it may start: no file but those listed can be opened by name, none can be
// made but sockets in a given directory, no TCP port can be reached (Linux 6.7)
// nor processes outside signalled (6.12). Descriptors that are open already are
// no matter of it. What a program may ask of the kernel beside files is for that
// program's own seccomp filter.
package confine

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Rules are what the program may open. Its own file is always among it; if that
// is linked dynamically, so are the directories of libraries.
type Rules struct {
	Files   []*os.File // for what they are open for: the program opens them again, as /proc/self/fd/N
	Sockets *os.File   // the directory in which it may make sockets; none if nil
	Devices []string   // for reading and writing; one that is missing is left out
}

// libraries are where a dynamic program finds what it is linked with.
var libraries = []string{"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/nix/store", "/etc/ld.so.cache"}

const (
	readFile = unix.LANDLOCK_ACCESS_FS_READ_FILE
	readDir  = unix.LANDLOCK_ACCESS_FS_READ_DIR
	write    = unix.LANDLOCK_ACCESS_FS_WRITE_FILE
	execute  = unix.LANDLOCK_ACCESS_FS_EXECUTE
	makeSock = unix.LANDLOCK_ACCESS_FS_MAKE_SOCK
)

// Start starts cmd so confined, and reports whether this kernel could: where it
// has no Landlock the program is started all the same. cmd.Stdin must be a file.
func Start(cmd *exec.Cmd, r Rules) (confined bool, err error) {
	version, err := abi()
	if err != nil {
		return false, cmd.Start()
	}
	rules, err := newRuleset(version)
	if err != nil {
		return false, err
	}
	defer func() { _ = unix.Close(rules) }()
	if err := fill(rules, cmd.Path, r); err != nil {
		return false, err
	}
	// A thread that has restricted itself stays so: it starts the program, which
	// inherits that, and ends with this goroutine, which never unlocks it.
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := restrict(rules); err != nil {
			done <- err
			return
		}
		done <- cmd.Start()
	}()
	return true, <-done
}

// abi is the version of Landlock that the kernel has; an error if it has none,
// or was started without it.
func abi() (int, error) {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0, errno
	}
	return int(v), nil
}

// attributes is struct landlock_ruleset_attr, as far as version 6 has it.
type attributes struct{ files, net, scoped uint64 }

// newRuleset makes a set that allows nothing of what this kernel can forbid. The
// versions are those of landlock(7).
func newRuleset(version int) (int, error) {
	a := attributes{files: 1<<13 - 1} // version 1: execute to make-symlink
	size := unsafe.Sizeof(a.files)
	if version >= 2 {
		a.files |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if version >= 3 {
		a.files |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if version >= 4 {
		a.net, size = unix.LANDLOCK_ACCESS_NET_BIND_TCP|unix.LANDLOCK_ACCESS_NET_CONNECT_TCP, unsafe.Offsetof(a.scoped)
	}
	if version >= 6 {
		a.scoped, size = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET|unix.LANDLOCK_SCOPE_SIGNAL, unsafe.Sizeof(a)
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&a)), size, 0)
	if errno != 0 {
		return 0, fmt.Errorf("confining a program: making rules: %w", errno)
	}
	unix.CloseOnExec(int(fd))
	return int(fd), nil
}

// beneath is struct landlock_path_beneath_attr, which is packed.
type beneath [12]byte

// allow adds a rule for a file, or a directory and all below it.
func allow(rules int, f *os.File, access uint64) error {
	var b beneath
	*(*uint64)(unsafe.Pointer(&b[0])) = access
	*(*int32)(unsafe.Pointer(&b[8])) = int32(f.Fd())
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(rules), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&b[0])), 0, 0, 0)
	runtime.KeepAlive(f)
	if errno != 0 && errno != unix.EBADFD { // a file of no file system, as of memfd_create(2), is never refused
		return fmt.Errorf("confining a program: allowing %s: %w", f.Name(), errno)
	}
	return nil
}

// fill writes down what may be opened.
func fill(rules int, program string, r Rules) error {
	paths := map[string]uint64{program: execute | readFile}
	if dynamic(program) {
		for _, l := range libraries {
			paths[l] = execute | readFile | readDir
		}
	}
	for _, d := range r.Devices {
		paths[d] = readFile | write
	}
	for p, access := range paths {
		if err := allowPath(rules, p, access); err != nil && !(errors.Is(err, os.ErrNotExist) && p != program) {
			return err
		}
	}
	for _, f := range r.Files {
		access := uint64(readFile)
		flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
		if err == nil && flags&unix.O_ACCMODE == unix.O_RDWR {
			access |= write
		}
		if err := allow(rules, f, access); err != nil {
			return err
		}
	}
	if r.Sockets == nil {
		return nil
	}
	return allow(rules, r.Sockets, makeSock)
}

func allowPath(rules int, path string, access uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("confining a program: %w", &os.PathError{Op: "open", Path: path, Err: err})
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		access &^= readDir
	}
	return allow(rules, f, access)
}

// dynamic says whether a program needs others to be run. One that cannot be read
// does not.
func dynamic(program string) bool {
	f, err := elf.Open(program)
	if err != nil {
		return false
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return true
		}
	}
	return false
}

// restrict confines the calling thread for good.
func restrict(rules int) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("confining a program: %w", err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(rules), 0, 0); errno != 0 {
		return fmt.Errorf("confining a program: %w", errno)
	}
	return nil
}
