package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/agentapi"
)

// sshdPaths is where distributions have their ssh server.
var sshdPaths = [...]string{"/usr/sbin/sshd", "/usr/local/sbin/sshd", "/usr/bin/sshd", "/sbin/sshd"}

// OwnSSH reports that the image has no ssh server, so that ssh streams are
// served by the agent.
func (s *Server) OwnSSH() bool { return s.sshd() == "" }

// sshd is the path of the image's ssh server, or empty.
func (s *Server) sshd() string {
	if s.Sshd == "-" {
		return ""
	}
	paths := sshdPaths[:]
	if s.Sshd != "" {
		paths = []string{s.Sshd}
	}
	for _, p := range paths {
		if runnable(p, "/") == nil {
			return p
		}
	}
	return ""
}

// ssh serves an ssh connection on the stream.
func (s *Server) ssh(ctx context.Context, st Stream, conn *agentapi.Conn) error {
	path := s.sshd()
	if path == "" {
		return s.ownSSH(ctx, st, conn)
	}
	// sshd insists on its directory, which is made late in a boot.
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		return fmt.Errorf("making sshd's directory: %w", err)
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer ours.Close()
	pid, err := s.startSSHD(path, theirs)
	_ = theirs.Close()
	if err != nil {
		return fmt.Errorf("starting %s: %w", path, err)
	}
	// However the connection ends, sshd sees it and hangs its session up; it is
	// waited for, so that nothing of it is left behind as a zombie.
	defer reap(pid)
	if err := ok(conn, struct{}{}); err != nil {
		return err
	}
	splice(ctx, st, ours)
	return nil
}

// startSSHD starts the image's sshd for one connection. Its configuration is
// the image's (with PAM where that says so, hence logind sessions), except for
// what makes the VM's own key the way in: options on the command line win.
func (s *Server) startSSHD(path string, socket *os.File) (int, error) {
	argv := []string{
		path, "-i",
		"-h", s.HostKey,
		"-o", "AuthorizedKeysFile=" + s.AuthorizedKeys + " .ssh/authorized_keys",
		"-o", "PubkeyAuthentication=yes",
		"-o", "PermitRootLogin=prohibit-password",
		"-o", "UseDNS=no",
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	root, err := findAccount("")
	if err != nil {
		return 0, err
	}
	pid, err := spawn(path, argv, &syscall.ProcAttr{
		Dir:   "/",
		Env:   environment(root, false, nil),
		Files: []uintptr{socket.Fd(), socket.Fd(), null.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err == nil {
		p := &process{pid: pid}
		p.normal()
	}
	return pid, err
}

// socketPair is a connection within this process: one end for Go, one for a
// child.
func socketPair() (ours Stream, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a socket pair: %w", err)
	}
	f := os.NewFile(uintptr(fds[0]), "ssh")
	defer f.Close() // FileConn has a copy
	theirs = os.NewFile(uintptr(fds[1]), "sshd")
	c, err := net.FileConn(f)
	if err != nil {
		_ = theirs.Close()
		return nil, nil, fmt.Errorf("making a socket pair: %w", err)
	}
	u, isUnix := c.(*net.UnixConn)
	if !isUnix {
		return nil, nil, errors.Join(fmt.Errorf("%T is no unix socket", c), c.Close(), theirs.Close())
	}
	return u, theirs, nil
}

// reapPatience is how long an sshd whose connection has ended may take to end.
const reapPatience = 10 * time.Second

// reap waits for a child, which gets a SIGKILL when it takes too long.
func reap(pid int) {
	p, err := os.FindProcess(pid)
	if err != nil {
		return
	}
	t := time.AfterFunc(reapPatience, func() { _ = p.Kill() })
	defer t.Stop()
	_, _ = p.Wait()
}
