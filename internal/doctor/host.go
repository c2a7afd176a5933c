package doctor

import (
	"context"
	"errors"
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
	return Host{Arch: runtime.GOARCH, UID: os.Getuid(), Look: look, KVM: probe, Free: free, ReadFile: os.ReadFile, Firecracker: firecracker.Query}
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
