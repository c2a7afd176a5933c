package rootd

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"banger/internal/beneath"
	"banger/internal/jail"
	"banger/internal/rootapi"

	"golang.org/x/sys/unix"
)

// passed turns the descriptors of a launch into what the jail child will look
// for. The descriptors prove the owner's rights; that the names lead to the
// same files is the child's to prove, while they stay open.
func (d *Daemon) passed(l *rootapi.Launch, files []*os.File) ([]jail.File, error) {
	list := make([]jail.File, len(files))
	for i, f := range files {
		name, readOnly := [...]string{"kernel", "initramfs"}[min(i, 1)], true
		if n := i - rootapi.FixedFiles; n >= 0 {
			name, readOnly = "disk"+strconv.Itoa(n), l.ReadOnly&(1<<n) != 0
		}
		var err error
		if list[i], err = look(f, !readOnly, d.Install.Owner.UID); err != nil {
			return nil, rootapi.Errorf(rootapi.Denied, "files: %s: %v", name, err)
		}
		list[i].Name, list[i].ReadOnly = name, readOnly
	}
	return list, nil
}

// look checks that a descriptor gives the right to read, and to write if that
// is wanted, a file of the owner's in the owner's tree.
func look(f *os.File, write bool, owner uint32) (file jail.File, err error) {
	var st unix.Stat_t
	var flags int
	fd, err := rootapi.FD(f)
	if err == nil {
		flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	}
	if err == nil {
		err = unix.Fstat(fd, &st)
	}
	path, linkErr := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	mode := flags & unix.O_ACCMODE
	switch {
	case err != nil || linkErr != nil:
		return file, errors.Join(err, linkErr)
	case flags&unix.O_PATH != 0:
		return file, errors.New("an O_PATH descriptor proves no right")
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return file, errors.New("it is not a regular file")
	case mode == unix.O_WRONLY || write && mode != unix.O_RDWR:
		return file, errors.New("the descriptor is not open for what it is to be used for")
	case st.Uid != owner:
		return file, fmt.Errorf("it belongs to uid %d, not to the owner", st.Uid)
	case st.Nlink == 0 || write && st.Nlink != 1:
		return file, fmt.Errorf("it has %d names", st.Nlink)
	case !rootapi.PlainPath(path):
		return file, fmt.Errorf("its path %.200q has unusual characters", path)
	}
	// The first two names are root's, and what is below them is the owner's.
	for _, base := range []string{"/var/lib", "/var/cache"} {
		if strings.HasPrefix(path, base+"/banger/") {
			return jail.File{Base: base, Path: path[len(base)+1:], Dev: st.Dev, Ino: st.Ino}, nil
		}
	}
	return file, fmt.Errorf("it is at %.200q, not below /var/lib/banger or /var/cache/banger", path)
}

// checkPrograms refuses what somebody else than root could have made, and a
// Firecracker that could not start in a jail.
func checkPrograms(p rootapi.Program) error {
	f, err := elf.Open(p.Firecracker)
	if err := errors.Join(beneath.Program(p.Firecracker), beneath.Program(p.Jailer), err); err != nil {
		return rootapi.Errorf(rootapi.Denied, "%v", err)
	}
	defer f.Close()
	for _, part := range f.Progs {
		if part.Type == elf.PT_INTERP {
			return rootapi.Errorf(rootapi.Denied, "%s is dynamically linked, and a jail has no libraries", p.Firecracker)
		}
	}
	return nil
}
