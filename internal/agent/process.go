package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/agentapi"
	"banger/internal/sysmon"
)

// A process is a command of the guest with its stdin, stdout and stderr, the
// leader of a session and of a process group.
type process struct {
	pid    int
	handle int // a descriptor of the process, or -1: see awaitEnd
	group  *cgroup
	grace  time.Duration
	stdin  *os.File   // a pipe's end, or the terminal
	pty    *os.File   // the terminal, if there is one
	output []*os.File // stdout and stderr, or the terminal

	mu   sync.Mutex // guards what follows
	done bool       // waited for: pid may be another's
	lost bool       // the client is gone
	kill *time.Timer
}

// start starts a command. argv0, if not empty, is what the program is told as
// its own name (a login shell's begins with a dash).
func (s *Server) start(x agentapi.Exec, argv0 string) (_ *process, err error) {
	if len(x.Argv) == 0 {
		return nil, refuse(agentapi.CodeInvalid, "there is no command")
	}
	who, err := findAccount(x.User)
	if err != nil {
		return nil, err
	}
	env := environment(who, x.TTY, x.Env)
	dir, err := workdir(x.Dir, who.home)
	if err != nil {
		return nil, err
	}
	program, err := lookup(x.Argv[0], getenv(env, "PATH"), dir)
	if err != nil {
		return nil, err
	}
	p := &process{grace: s.Grace, handle: -1}
	ends, err := p.connect(x, who)
	if err != nil {
		return nil, err
	}
	defer closeAll(ends)
	attr := &syscall.ProcAttr{Dir: dir, Env: env, Sys: &syscall.SysProcAttr{Setsid: true, Setctty: x.TTY, PidFD: &p.handle}}
	for _, f := range ends {
		attr.Files = append(attr.Files, f.Fd())
	}
	if x.User != "" {
		attr.Sys.Credential = &syscall.Credential{Uid: who.uid, Gid: who.gid, Groups: who.groups}
	}
	if p.group = s.groups.make(); p.group != nil {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(p.group.fd.Fd())
	}
	argv := append([]string(nil), x.Argv...)
	if argv0 != "" {
		argv[0] = argv0
	}
	if p.pid, err = fork(program, argv, attr); err != nil {
		p.group.close()
		closeAll(append(p.output, p.stdin))
		return nil, startError(x.Argv[0], program, dir, err)
	}
	p.normal()
	return p, nil
}

// workdir is the directory that a command runs in.
func workdir(dir, home string) (string, error) {
	if dir == "" {
		if fi, err := os.Stat(home); err == nil && fi.IsDir() {
			return home, nil
		}
		return "/", nil
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(home, dir)
	}
	fi, err := os.Stat(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", refuse(agentapi.CodeInvalid, "no directory %q in the guest", dir)
	case err != nil:
		return "", refuse(agentapi.CodeInvalid, "the working directory: %v", err)
	case !fi.IsDir():
		return "", refuse(agentapi.CodeInvalid, "%q is not a directory in the guest", dir)
	}
	return dir, nil
}

// connect makes pipes or a terminal and returns the process's three ends,
// which the caller closes.
func (p *process) connect(x agentapi.Exec, who account) (ends []*os.File, err error) {
	if x.TTY {
		master, slave, err := openPTY(x.Size)
		if err != nil {
			return nil, err
		}
		// A user's own programs may open it again by name.
		_ = withFD(slave, func(fd int) error { return unix.Fchown(fd, int(who.uid), -1) })
		p.pty, p.stdin, p.output = master, master, []*os.File{master}
		return []*os.File{slave, slave, slave}, nil
	}
	var ours []*os.File
	for i := range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(append(ours, ends...))
			return nil, fmt.Errorf("making pipes: %w", err)
		}
		if i == 0 {
			r, w = w, r
		}
		ours, ends = append(ours, r), append(ends, w)
	}
	p.stdin, p.output = ours[0], ours[1:]
	return ends, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // one that is in the list twice is closed already
	}
}

// fork starts a program; a script without "#!" is given to sh, and where the
// kernel refuses the cgroup, the command runs without.
func fork(program string, argv []string, attr *syscall.ProcAttr) (int, error) {
	pid, err := spawn(program, argv, attr)
	if attr.Sys.UseCgroupFD && (errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)) {
		attr.Sys.UseCgroupFD = false
		pid, err = spawn(program, argv, attr)
	}
	if !errors.Is(err, unix.ENOEXEC) {
		return pid, err
	}
	path := program
	if !filepath.IsAbs(path) {
		path = filepath.Join(attr.Dir, path)
	}
	if !isScript(path) {
		return 0, err
	}
	return spawn("/bin/sh", append([]string{"sh", program}, argv[1:]...), attr)
}

// spawning is held while a child begins.
var spawning sync.Mutex

// spawn starts a program that the OOM killer finds, which the agent itself is
// kept from. A child has its parent's score, and hands it on to its own before
// anybody could change it from outside: so for this moment it is the agent's.
func spawn(program string, argv []string, attr *syscall.ProcAttr) (int, error) {
	spawning.Lock()
	defer spawning.Unlock()
	const score = "/proc/self/oom_score_adj"
	if own, err := os.ReadFile(score); err == nil && strings.TrimSpace(string(own)) != "0" {
		_ = os.WriteFile(score, []byte("0"), 0)
		defer func() { _ = os.WriteFile(score, own, 0) }()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	sysmon.Prompt()
	pid, _, err := syscall.StartProcess(program, argv, attr)
	return pid, err
}

// startError says why a program that was found did not start.
func startError(name, program, dir string, err error) error {
	switch {
	case errors.Is(err, unix.E2BIG):
		return refuse(agentapi.CodeNotExecutable, "the arguments and the environment of %q are longer than the guest's kernel takes", name)
	case errors.Is(err, unix.EINVAL):
		return refuse(agentapi.CodeInvalid, "an argument, the environment or the directory of %q has a NUL byte", name)
	case errors.Is(err, unix.ENOENT):
		return refuse(agentapi.CodeNotExecutable, "%q cannot be executed: its interpreter or loader is missing", program)
	case errors.Is(err, unix.EACCES):
		return refuse(agentapi.CodeNotExecutable, "%q cannot be executed by this user, or not in %q: permission denied", program, dir)
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM):
		return refuse(agentapi.CodeFailed, "starting %q: %v", name, err)
	}
	return refuse(agentapi.CodeNotExecutable, "%q cannot be executed: %v", program, err)
}

// nofile is the limit of open files that commands get where the agent's own is
// lower: the values of systemd.
var nofile = unix.Rlimit{Cur: 1024, Max: 512 << 10}

// normal gives a process that has just started what the agent itself does
// without: many descriptors. It may find the process ended.
func (p *process) normal() {
	var own unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &own) == nil && own.Max < nofile.Max {
		_ = unix.Prlimit(p.pid, unix.RLIMIT_NOFILE, &nofile, nil)
	}
}

// awaitEnd waits until the process has ended, and leaves its status to be asked
// for. With a descriptor no thread has to block for that: on a single processor
// the others would have to wait until the runtime sees that it does.
func (p *process) awaitEnd() {
	if p.handle >= 0 && unix.SetNonblock(p.handle, true) == nil {
		f := os.NewFile(uintptr(p.handle), "pidfd")
		defer func() { _ = f.Close() }()
		if raw, err := f.SyscallConn(); err == nil {
			_ = raw.Read(func(fd uintptr) bool {
				return !again(unix.Waitid(unix.P_PIDFD, int(fd), nil, unix.WEXITED|unix.WNOWAIT, nil))
			})
		}
	}
	// It has ended; or the kernel is older than 5.4 or 5.10 and knows no such
	// descriptor, or none to wait for in this way.
	for {
		if err := unix.Waitid(unix.P_PID, p.pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
			return
		}
	}
}

// again says that a system call would have waited.
func again(err error) bool { return err == unix.EAGAIN || err == unix.EINTR }

// wait returns how the process ended, after everything that it started has
// been ended too if the client is gone.
func (p *process) wait() agentapi.Exit {
	p.awaitEnd()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lost {
		p.killAll()
	}
	if p.kill != nil {
		p.kill.Stop()
	}
	p.done = true
	p.group.close()
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(p.pid, &ws, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil { // somebody else waited for it: see Reaper
			return agentapi.Exit{Code: 255}
		}
		break
	}
	if ws.Signaled() {
		n := int(ws.Signal())
		return agentapi.Exit{Code: 128 + n, Signal: n}
	}
	return agentapi.Exit{Code: ws.ExitStatus()}
}

// signal sends a signal to the process group.
func (p *process) signal(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.done && n > 0 && n <= 64 {
		_ = unix.Kill(-p.pid, syscall.Signal(n))
	}
}

// resize sets the terminal's size.
func (p *process) resize(size agentapi.Winsize) {
	if p.pty != nil {
		_ = setSize(p.pty, size)
	}
}

// hangup is the client's end: SIGHUP, and SIGKILL for what is left when the
// process has ended or the grace is over.
func (p *process) hangup() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done || p.lost {
		return
	}
	p.lost = true
	_ = unix.Kill(-p.pid, unix.SIGHUP)
	_ = unix.Kill(-p.pid, unix.SIGCONT) // a stopped one shall see it too
	p.kill = time.AfterFunc(p.grace, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.done {
			p.killAll()
		}
	})
}

// killAll kills what the process started: its cgroup, or else its session.
func (p *process) killAll() {
	if !p.group.kill() {
		killSession(p.pid)
	}
	_ = unix.Kill(-p.pid, unix.SIGKILL)
}

// killSession kills every process of a session, job by job of a shell.
func killSession(sid int) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		if of, err := unix.Getsid(pid); err == nil && of == sid {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}
