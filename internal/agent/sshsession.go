package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"banger/internal/agentapi"
)

// A session is one session channel: at most one command, with what was asked
// for before it.
type session struct {
	s    *Server
	ch   ssh.Channel
	x    agentapi.Exec
	p    *process // nil before the command
	used bool     // by sftp
	in   *inlet
	wg   sync.WaitGroup
	stop func() bool // ends the context's hold on the process
}

func (s *Server) session(ctx context.Context, user string, nc ssh.NewChannel) {
	ch, requests, err := nc.Accept()
	if err != nil {
		return
	}
	ses := &session{s: s, ch: ch, x: agentapi.Exec{User: user}}
	for r := range requests { // ends when the client closes the channel
		done := ses.request(ctx, r)
		if r.WantReply {
			_ = r.Reply(done, nil)
		}
		if done && ses.p != nil && ses.stop == nil {
			ses.run(ctx)
		}
	}
	if ses.p != nil {
		ses.p.hangup()
	}
	ses.wg.Wait()
	_ = ch.Close()
}

// request handles one request and reports whether it was granted.
func (ses *session) request(ctx context.Context, r *ssh.Request) bool {
	switch r.Type {
	case "env":
		var kv struct{ Name, Value string }
		if ssh.Unmarshal(r.Payload, &kv) != nil || ses.p != nil {
			return false
		}
		ses.x.Env = append(ses.x.Env, kv.Name+"="+kv.Value)
		return true
	case "pty-req":
		var pty struct {
			Term                      string
			Cols, Rows, Width, Height uint32
			Modes                     string
		}
		if ssh.Unmarshal(r.Payload, &pty) != nil || ses.p != nil {
			return false
		}
		ses.x.TTY, ses.x.Size = true, winsize(pty.Rows, pty.Cols)
		if pty.Term != "" {
			ses.x.Env = append(ses.x.Env, "TERM="+pty.Term)
		}
		return true
	case "window-change":
		var w struct{ Cols, Rows, Width, Height uint32 }
		if ssh.Unmarshal(r.Payload, &w) != nil || ses.p == nil {
			return false
		}
		ses.p.resize(winsize(w.Rows, w.Cols))
		return true
	case "signal":
		var sig struct{ Name string }
		if ssh.Unmarshal(r.Payload, &sig) != nil || ses.p == nil {
			return false
		}
		ses.p.signal(signalNumber(sig.Name))
		return true
	case "shell":
		return ses.start(nil)
	case "exec":
		var cmd struct{ Line string }
		return ssh.Unmarshal(r.Payload, &cmd) == nil && ses.start(&cmd.Line)
	case "subsystem":
		var sub struct{ Name string }
		return ssh.Unmarshal(r.Payload, &sub) == nil && sub.Name == "sftp" && ses.sftp()
	}
	return false
}

// sftp serves files, as root and for root alone: the server is part of the
// agent and has no other user's rights.
func (ses *session) sftp() bool {
	who, err := findAccount(ses.x.User)
	if err != nil || who.uid != 0 || ses.p != nil || ses.used {
		return false
	}
	server, err := sftp.NewServer(ses.ch, sftp.WithServerWorkingDirectory(who.home))
	if err != nil {
		return false
	}
	ses.used = true
	ses.wg.Go(ses.s.guarded(func() {
		_ = server.Serve() // until the client closes
		ses.exit(agentapi.Exit{})
	}))
	return true
}

// start starts the user's shell, for a command line or as a login shell.
func (ses *session) start(line *string) bool {
	if ses.p != nil || ses.used {
		return false
	}
	who, err := findAccount(ses.x.User)
	if err == nil {
		argv0 := ""
		ses.x.Argv = []string{who.shell}
		if line != nil {
			ses.x.Argv = append(ses.x.Argv, "-c", *line)
		} else {
			argv0 = "-" + filepath.Base(who.shell)
		}
		ses.p, err = ses.s.start(ses.x, argv0)
	}
	if err != nil {
		_, _ = fmt.Fprintln(ses.ch.Stderr(), err)
		return false
	}
	return true
}

// run lets the command go on while the session takes further requests.
func (ses *session) run(ctx context.Context) {
	ses.stop = context.AfterFunc(ctx, ses.p.hangup)
	room := make(chan struct{}, 1) // a token when the queue of stdin has shrunk
	ses.in = newInlet(ses.p.stdin, ses.p.pty != nil, func(int) {
		select {
		case room <- struct{}{}:
		default:
		}
	})
	ended := make(chan struct{})
	ses.wg.Go(ses.s.guarded(func() {
		defer ses.stop()
		outs := []io.Writer{ses.ch, ses.ch.Stderr()}
		exit := ses.s.run(ses.p, ses.in, func(i int, b []byte) { _, _ = outs[i].Write(b) })
		close(ended)
		ses.exit(exit)
	}))
	ses.wg.Go(ses.s.guarded(func() { ses.feed(room, ended) }))
}

// feed queues stdin. It may wait: ssh has windows of its own, and requests
// come another way.
func (ses *session) feed(room, ended <-chan struct{}) {
	buf := make([]byte, 32<<10)
	for {
		n, err := ses.ch.Read(buf)
		for n > 0 && errors.Is(ses.in.add(buf[:n]), errWindow) {
			select {
			case <-room:
			case <-ended:
				return
			}
		}
		if err != nil { // the client's end of file, or of the channel
			_ = ses.in.add(nil)
			return
		}
	}
}

// exit tells the client how the command ended, and closes the channel.
func (ses *session) exit(e agentapi.Exit) {
	if e.Signal != 0 {
		status := struct {
			Name    string
			Core    bool
			Message string
			Lang    string
		}{Name: signalName(e.Signal)}
		_, _ = ses.ch.SendRequest("exit-signal", false, ssh.Marshal(status))
	} else {
		status := struct{ Code uint32 }{uint32(e.Code)}
		_, _ = ses.ch.SendRequest("exit-status", false, ssh.Marshal(status))
	}
	_ = ses.ch.Close()
}

func winsize(rows, cols uint32) agentapi.Winsize {
	const most = 1<<16 - 1
	return agentapi.Winsize{Rows: uint16(min(rows, most)), Cols: uint16(min(cols, most))}
}

// signals are the names of RFC 4254, section 6.10.
func signals() map[string]syscall.Signal {
	return map[string]syscall.Signal{
		"ABRT": syscall.SIGABRT, "ALRM": syscall.SIGALRM, "FPE": syscall.SIGFPE, "HUP": syscall.SIGHUP,
		"ILL": syscall.SIGILL, "INT": syscall.SIGINT, "KILL": syscall.SIGKILL, "PIPE": syscall.SIGPIPE,
		"QUIT": syscall.SIGQUIT, "SEGV": syscall.SIGSEGV, "TERM": syscall.SIGTERM,
		"USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2,
	}
}

func signalNumber(name string) int { return int(signals()[name]) }

func signalName(n int) string {
	for name, sig := range signals() {
		if int(sig) == n {
			return name
		}
	}
	return fmt.Sprintf("%d@banger", n)
}
