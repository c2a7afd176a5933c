package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"

	"banger/internal/kvm"
	"banger/internal/size"
	"banger/internal/vmm/firecracker"
)

// ThisHost is the real host, but for what only a caller can know: Recipes and
// Daemon.
func ThisHost() Host {
	var once sync.Once
	var verdict kvm.Verdict
	probe := func(ctx context.Context) kvm.Verdict {
		once.Do(func() { verdict = kvm.Probe(ctx) })
		return verdict
	}
	return Host{Arch: runtime.GOARCH, UID: os.Getuid(), Look: look, KVM: probe, Free: free, ReadFile: os.ReadFile, Firecracker: ask}
}

// ask asks a Firecracker for its version. As root it first makes sure that nobody
// else could have put it there: under sudo, PATH may be that of the account that
// uses it.
func ask(ctx context.Context, path string) (firecracker.Version, error) {
	if os.Geteuid() == 0 {
		real, err := filepath.EvalSymlinks(path)
		if err == nil {
			err = roots(real)
		}
		if err != nil {
			return firecracker.Version{}, fmt.Errorf("not asking %s for its version as root: %w", path, err)
		}
		path = real
	}
	return firecracker.Query(ctx, path)
}

// roots is an error if others than root can replace what is at a path without
// links. In a sticky directory, such as /tmp, they can add names, and not replace
// root's.
func roots(path string) error {
	for at := path; ; at = filepath.Dir(at) {
		var st syscall.Stat_t
		if err := syscall.Lstat(at, &st); err != nil {
			return err
		}
		sticky := st.Mode&(syscall.S_IFMT|syscall.S_ISVTX) == syscall.S_IFDIR|syscall.S_ISVTX
		if st.Uid != 0 || st.Mode&0o022 != 0 && !sticky {
			return fmt.Errorf("others than root can write %s", at)
		}
		if at == "/" || at == "." {
			return nil
		}
	}
}

// look finds a program in PATH and then in the sbin directories, which ordinary
// accounts do not search.
func look(program string) (string, bool) {
	for _, dir := range []string{"", "/usr/local/sbin/", "/usr/sbin/", "/sbin/"} {
		if p, err := exec.LookPath(dir + program); err == nil {
			return p, true
		}
	}
	return "", false
}

// free is what an ordinary account may still write to the file system of dir,
// or of its first parent that exists.
func free(dir string) (size.Bytes, error) {
	for {
		var st syscall.Statfs_t
		err := syscall.Statfs(dir, &st)
		if err == nil {
			return size.Bytes(int64(st.Bavail) * st.Bsize), nil
		}
		parent := filepath.Dir(dir)
		if parent == dir || !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		dir = parent
	}
}
