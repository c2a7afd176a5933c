package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"banger/internal/smallimage"
	"banger/internal/testneed"
)

// builds counts the tars that the daemon of a world was sent, from its log.
func (w *world) builds(t *testing.T, what string) int {
	t.Helper()
	return strings.Count(w.must(t, "daemon", "logs"), "path=/v1/"+what+"/build/")
}

// importSmall puts the small image into a world's store.
func (w *world) importSmall(t *testing.T) {
	t.Helper()
	tar := filepath.Join(w.root, "small.tar")
	f, err := os.Create(tar)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(smallimage.Write(f, testneed.Tool(t, "busybox")), f.Close()); err != nil {
		t.Fatal(err)
	}
	w.must(t, "image", "import", "small", tar)
}

// workDirs are where the builds of a world's commands work.
func (w *world) workDirs(t *testing.T) []string {
	t.Helper()
	var dirs []string
	for _, p := range w.processes(t) {
		cwd, err := os.Readlink("/proc/" + p.String() + "/cwd")
		if err != nil {
			continue // it has ended
		}
		for dir := cwd; len(dir) > 1; dir = filepath.Dir(dir) {
			if strings.HasPrefix(filepath.Base(dir), "banger-build-") {
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs
}

// A pull is interrupted or dies in each phase: nothing of it is left, and the
// next one works.
func TestPullEnds(t *testing.T) {
	t.Parallel()
	w := shared.isolated(t)
	for _, tt := range []struct {
		phase  string
		signal syscall.Signal
		want   int
	}{
		{"package lists", syscall.SIGHUP, 130},
		{"download", syscall.SIGINT, 130},
		{"base system", syscall.SIGKILL, 137},
		{"pack", syscall.SIGINT, 130},
		{"pack", syscall.SIGKILL, 137},
	} {
		t.Run(tt.phase+", "+tt.signal.String(), func(t *testing.T) {
			j := w.begin(t, "kernel", "pull")
			j.await(": " + tt.phase)
			dirs := w.workDirs(t)
			if len(dirs) == 0 {
				t.Fatal("nothing works in a build directory")
			}
			j.signal(tt.signal)
			if r := j.wait(); r.code != tt.want {
				t.Errorf("banger kernel pull = %d, want %d\n%s", r.code, tt.want, r.stderr)
			}
			if tt.signal == syscall.SIGKILL { // others clean up, on their own time
				until(t, "the build has ended", func() bool { return len(w.workDirs(t)) == 0 })
			}
			w.nothing(t)
			for _, dir := range dirs {
				if entries, err := os.ReadDir(dir); err == nil && tt.signal != syscall.SIGKILL {
					t.Errorf("%s is left, with %d entries", dir, len(entries))
				}
			}
			if got := w.must(t, "kernel", "list", "--json"); got != "[]\n" {
				t.Errorf("the kernels are %s, want none", got)
			}
		})
	}
	w.must(t, "kernel", "pull")
	if left := w.workDirs(t); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
	w.nothing(t)
}

// Ten VMs and two pulls want a kernel that is not there: it is built once.
func TestTenAtOnceOfAnEmptyStore(t *testing.T) {
	t.Parallel()
	w := shared.isolated(t)
	w.importSmall(t)
	w.ten(t, []*job{w.begin(t, "kernel", "pull"), w.begin(t, "kernel", "pull")})
	if got := w.builds(t, "kernels/debian-6.1"); got != 1 {
		t.Errorf("the kernel was built %d times, want once", got)
	}
}

// pullTogether pulls the default image in three commands: the one that builds
// is killed, the one that waits takes over, a third comes later.
func (w *world) pullTogether(t *testing.T) {
	t.Helper()
	first := w.begin(t, "image", "pull")
	first.await(": download")
	second := w.begin(t, "image", "pull")
	second.await(": waiting")
	first.signal(syscall.SIGKILL)
	if r := first.wait(); r.code != 137 {
		t.Errorf("the pull that was killed = %d, want 137\n%s", r.code, r.stderr)
	}
	second.await(": download")
	third := w.begin(t, "image", "pull")
	third.await(": waiting")
	for _, j := range []*job{second, third} {
		if r := j.wait(); r.code != 0 || !strings.HasPrefix(r.stdout, "debian-bookworm ") {
			t.Errorf("banger image pull = %d, %q, want 0 and the image\n%s", r.code, r.stdout, r.stderr)
		}
	}
	if got := w.builds(t, "images/debian-bookworm"); got != 2 {
		t.Errorf("%d builds were begun, want 2", got)
	}
}

// It takes a minute or more, so all tests of the image share what it makes.
func TestPullTogether(t *testing.T) {
	t.Parallel()
	shared.useGolden(t)
	w := shared
	w.census(t)
	if got := w.must(t, "image", "list", "--json"); !strings.Contains(got, `"debian-bookworm"`) {
		t.Errorf("the images are %s, want debian-bookworm among them", got)
	}
}
