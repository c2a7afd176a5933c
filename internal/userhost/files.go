package userhost

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/host"
	"banger/internal/kvm"
	"banger/internal/vmm/firecracker"
	"banger/internal/vmm/qemu"

	"golang.org/x/sys/unix"
)

// The uids of VMMs if we are root: between the range of systemd's containers
// and that of foreign images (systemd's UIDS-GIDS), where nobody allocates.
const (
	firstUID = 0x70000000
	uids     = 0x0ffe0000
	nobody   = 65534
)

// uidOf derives a VMM's uid from the VM's id: no table to keep, and two VMs
// share one as rarely as 28 bits of two ids are equal.
func uidOf(id string) (int, error) {
	n, err := strconv.ParseUint(id, 16, 64)
	if err != nil {
		return 0, fmt.Errorf("deriving a uid: %w", err)
	}
	return firstUID + int(n%uids), nil
}

// uidsOf are the uids that we give to the processes of a VM, if we are root.
func uidsOf(id string) []int {
	uid, err := uidOf(id)
	if err != nil || os.Geteuid() != 0 {
		return nil
	}
	return []int{uid, nobody}
}

// credentials chooses the VMM's uid and gid, if we are root. Where uids are
// mapped and the range is not, as in a container, it is nobody.
func credentials(c *companionapi.Config, euid int) error {
	withKVM := c.Driver == qemu.NameKVM || c.Driver == firecracker.Name
	if euid != 0 || !withKVM && c.Driver != qemu.NameTCG { // the fake one is a test, in directories of its own
		return nil
	}
	uid, err := uidOf(c.ID)
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/uid_map")
	if err != nil {
		return fmt.Errorf("reading the uids that there are: %w", err)
	}
	defer f.Close()
	have, err := mapped(f, uid, nobody)
	if err != nil {
		return err
	}
	c.UID, c.GID = have, have
	if withKVM { // the device is a group's
		if st, err := os.Stat(kvm.Device); err == nil && st.Mode().Perm()&0o060 == 0o060 {
			c.GID = int(st.Sys().(*syscall.Stat_t).Gid)
		}
	}
	return nil
}

// mapped returns the first of uids that a uid_map has (user_namespaces(7)).
func mapped(uidMap io.Reader, uids ...int) (int, error) {
	type span struct{ first, n int }
	var spans []span
	for sc := bufio.NewScanner(uidMap); sc.Scan(); {
		f := strings.Fields(sc.Text())
		if len(f) != 3 {
			continue
		}
		first, err1 := strconv.Atoi(f[0])
		n, err2 := strconv.Atoi(f[2])
		if err1 == nil && err2 == nil {
			spans = append(spans, span{first, n})
		}
	}
	for _, uid := range uids {
		for _, s := range spans {
			if uid >= s.first && uid-s.first < s.n {
				return uid, nil
			}
		}
	}
	return 0, &api.Error{Code: api.Unsupported, Msg: "running as root where no other uid exists: a VMM must not be root",
		Hint: "run banger as an ordinary user"}
}

// readable returns f, or a copy in memory if the VMM's uid could not read it:
// kernel and initramfs are opened again by the VMM, which checks its rights.
func readable(f *os.File, uid int) (*os.File, error) {
	if f == nil {
		return nil, errors.New("starting the VMM: kernel or initramfs is missing")
	}
	if uid == 0 {
		return f, nil
	}
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("looking at %s: %w", f.Name(), err)
	}
	if st.Mode().Perm()&0o004 != 0 {
		return f, nil
	}
	fd, err := unix.MemfdCreate("banger-boot", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("copying %s: %w", f.Name(), err)
	}
	m := os.NewFile(uintptr(fd), f.Name())
	_, err = io.Copy(m, io.NewSectionReader(f, 0, st.Size()))
	if err == nil {
		err = m.Chmod(0o444)
	}
	if err != nil {
		m.Close()
		return nil, fmt.Errorf("copying %s: %w", f.Name(), err)
	}
	return m, nil
}

// admit lets the uid of a VMM, if it is another, open a disk again: one that is
// written to becomes its own, one that is only read everybody's to read. Both are
// in directories that are root's alone.
func admit(d host.Disk, uid int) error {
	if uid == 0 {
		return nil
	}
	if !d.ReadOnly {
		if err := d.File.Chown(uid, -1); err != nil {
			return fmt.Errorf("giving disk %q to the VMM: %w", d.Serial, err)
		}
		return nil
	}
	st, err := d.File.Stat()
	if err == nil && st.Mode().Perm()&0o004 == 0 {
		err = d.File.Chmod(st.Mode().Perm() | 0o004)
	}
	if err != nil {
		return fmt.Errorf("showing disk %q to the VMM: %w", d.Serial, err)
	}
	return nil
}
