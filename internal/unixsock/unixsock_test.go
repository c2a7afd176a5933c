package unixsock_test

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"banger/internal/unixsock"

	"golang.org/x/sys/unix"

	"banger/internal/testneed"
)

func TestListenAndPeer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d", "s")
	l, err := unixsock.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		if st, err := os.Lstat(name); err != nil || st.Mode().Perm() != want {
			t.Errorf("mode of %s = %v, %v; want %v", name, st.Mode().Perm(), err, want)
		}
	}
	c, err := unixsock.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got, err := unixsock.Peer(s)
	if want := (unixsock.Cred{UID: os.Getuid(), GID: os.Getgid(), PID: os.Getpid()}); err != nil || got != want {
		t.Errorf("Peer() = %v, %v; want %v", got, err, want)
	}
	if !unixsock.Trusted(got) {
		t.Error("Trusted(self) = false, want true")
	}
	if os.Getuid() != 0 && unixsock.Trusted(unixsock.Cred{UID: os.Getuid() + 1}) {
		t.Error("Trusted(another uid) = true, want false")
	}
	if _, err := unixsock.Listen(path); !errors.Is(err, unixsock.ErrInUse) {
		t.Errorf("second Listen() = %v, want ErrInUse", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there after Close: %v", err)
	}
}

func TestListenReplacesAStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	l, err := unixsock.Listen(path)
	if err != nil {
		t.Fatalf("Listen() over a stale socket = %v", err)
	}
	l.Close()
}

func TestOneOfManyListens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	var mu sync.Mutex
	var won []*unixsock.Listener
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			l, err := unixsock.Listen(path)
			if err != nil {
				if !errors.Is(err, unixsock.ErrInUse) {
					t.Errorf("Listen() = %v, want ErrInUse", err)
				}
				return
			}
			mu.Lock()
			defer mu.Unlock()
			won = append(won, l)
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Errorf("%d listeners at once, want 1", len(won))
	}
	for _, l := range won {
		l.Close()
	}
}

func TestListenRefuses(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ path, want string }{
		"a relative path":    {"s", "not absolute"},
		"a path too long":    {"/" + strings.Repeat("x", 107), "108 bytes, and a unix socket's has at most 107"},
		"a linked directory": {filepath.Join(link, "s"), "not a directory"},
	} {
		if _, err := unixsock.Listen(tt.path); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Listen() = %v, want %q in it", name, err, tt.want)
		}
	}
	if os.Getuid() != 0 {
		return
	}
	theirs := filepath.Join(dir, "theirs")
	if err := os.Mkdir(theirs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(theirs, 4242, 4242); err != nil {
		t.Fatal(err)
	}
	if _, err := unixsock.Listen(filepath.Join(theirs, "s")); err == nil || !strings.Contains(err.Error(), "belongs to uid 4242") {
		t.Errorf("Listen() in another's directory = %v, want a refusal", err)
	}
}

// Somebody who makes the directory that a socket of ours would be in can answer
// in our name: who listens is looked at before a word is said.
func TestDialRefusesAnothersListener(t *testing.T) {
	testneed.Root(t)
	top := t.TempDir()
	theirs := filepath.Join(top, "theirs")
	if err := errors.Join(os.Chmod(filepath.Dir(top), 0o711), os.Chmod(top, 0o711), os.Mkdir(theirs, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(theirs, 4242, 4242); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(theirs, "s")
	listening := make(chan error)
	heard := make(chan []byte, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends as another user's
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 4242, ^uintptr(0)); errno != 0 {
			listening <- errno
			return
		}
		l, err := net.Listen("unix", path)
		listening <- err
		if err != nil {
			return
		}
		defer l.Close()
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b, _ := io.ReadAll(c)
		heard <- b
	}()
	if err := <-listening; err != nil {
		t.Fatal(err)
	}
	c, err := unixsock.Dial(t.Context(), path)
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "uid 4242") {
		t.Errorf("Dial() = %v, want a refusal that names uid 4242", err)
	}
	if err == nil {
		c.Close()
	}
	if b := <-heard; len(b) != 0 {
		t.Errorf("the other user heard %q", b)
	}
}

// Who dials while a dead listener is replaced is refused or served, and never
// finds that there is no socket.
func TestListenLeavesNoGap(t *testing.T) {
	for range 50 {
		path := filepath.Join(t.TempDir(), "s")
		dead, err := unixsock.Bind(path)
		if err != nil {
			t.Fatal(err)
		}
		dead.Close()
		reached := make(chan error, 1)
		go func() {
			for {
				c, err := net.Dial("unix", path)
				if errors.Is(err, unix.ECONNREFUSED) {
					continue
				}
				if err == nil {
					c.Close()
				}
				reached <- err
				return
			}
		}()
		l, err := unixsock.Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := <-reached; err != nil {
			t.Errorf("dialling meanwhile = %v", err)
		}
		l.Close()
	}
}
