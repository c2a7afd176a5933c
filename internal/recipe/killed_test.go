package recipe

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// killedEnv makes the test binary a process that builds and is killed.
const killedEnv = "BANGER_TEST_RECIPE_KILLED"

// TestRunKilled has a process die by SIGKILL in the middle of a build: what it
// started must end, and its work directory go.
func TestRunKilled(t *testing.T) {
	if dir := os.Getenv(killedEnv); dir != "" {
		err := Run(t.Context(), Recipe{Name: "thing", Suite: "bookworm"}, Options{CacheDir: filepath.Join(dir, "cache"), WorkDir: filepath.Join(dir, "work"), Out: io.Discard})
		t.Fatalf("the build ended: %v", err)
	}
	base := t.TempDir()
	work, fifo := filepath.Join(base, "work"), filepath.Join(base, "fifo")
	if err := os.Mkdir(work, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	// As long as it or a child of it lives, somebody holds the pipe.
	t.Setenv("FIFO", fifo)
	fakeMmdebstrap(t, `exec 9>"$FIFO"; trap 'exit 1' TERM; echo begun >&9; sleep 600 & wait $!`)
	deleted := watchDeletes(t, work)

	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestRunKilled$")
	cmd.Env = append(os.Environ(), killedEnv+"="+base)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// This waits for the writer.
	pipe, err := os.OpenFile(fifo, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	if _, err := io.ReadFull(pipe, make([]byte, len("begun\n"))); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it says that it was killed
	if err := pipe.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(pipe); err != nil || len(rest) != 0 {
		t.Errorf("the build's processes: got %q, %v, want their end", rest, err)
	}
	if err := deleted.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := deleted.Read(make([]byte, 4096)); err != nil {
		t.Errorf("the work directory: got %d bytes, %v, want the news that it is gone", n, err)
	}
	nothingIn(t, work)
}

// watchDeletes gives a file that has something to read when something in dir
// was deleted.
func watchDeletes(t *testing.T, dir string) *os.File {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	t.Cleanup(func() { f.Close() })
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_DELETE); err != nil {
		t.Fatal(err)
	}
	return f
}
