package fake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/internal/agentapi"
	"banger/internal/mux"
	"banger/internal/vmm"
)

// Main is the VMM, if this process was started to be it (then ours is set): it
// returns when the machine has ended, with the code to exit with at once.
// TestMain calls it first.
func Main(ctx context.Context) (code int, ours bool) { return MainWith(ctx, nil) }

// A Guest performs what the fake one does not do by itself: all but the boot and
// its end. Package agent's Server is one.
type Guest interface {
	Serve(ctx context.Context, conn *agentapi.Conn, req agentapi.Request, stream io.ReadWriteCloser)
}

// MainWith is Main with a guest for commands, files and connections. It is made
// when the guest gets its identity; dir is an empty directory for it, which goes
// away with the VM. Nil is a guest that can only run simple commands.
func MainWith(ctx context.Context, guest func(dir string, id agentapi.Identity) (Guest, error)) (code int, ours bool) {
	if len(os.Args) < 4 || os.Args[1] != verb {
		return 0, false
	}
	m := &machine{more: make(chan struct{}), power: make(chan string, 1), watchers: map[*agentapi.Conn]int{}, makeGuest: guest}
	if err := m.run(ctx, os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "fake:", err)
		return 1, true
	}
	return 0, true
}

type machine struct {
	cfg     vmm.Config
	words   []string
	console io.Writer
	control *port
	channel *channel // the agent's
	dir     string   // where commands run

	makeGuest func(string, agentapi.Identity) (Guest, error)

	mu         sync.Mutex
	guest      Guest
	identified bool
	secret     []byte
	events     []agentapi.Event
	more       chan struct{}          // closed when events grows, or a watcher has got further
	watchers   map[*agentapi.Conn]int // how many events each has been sent
	power      chan string            // the reason of the end
}

func (m *machine) told(word string) bool { return slices.Contains(m.words, word) }

func (m *machine) run(ctx context.Context, config string) error {
	if err := json.Unmarshal([]byte(config), &m.cfg); err != nil {
		return err
	}
	m.words = strings.Fields(m.cfg.Cmdline)
	if m.told(Refuse) {
		return errors.New("refusing, as told")
	}
	for _, f := range files(m.cfg) {
		if _, err := os.NewFile(uintptr(f.FD), "file").Stat(); err != nil {
			return fmt.Errorf("a file is missing: %w", err)
		}
	}
	var err error
	if m.dir, err = os.MkdirTemp(os.Getenv(dirEnv), "fake-"); err != nil {
		return err
	}
	defer os.RemoveAll(m.dir)
	agent, err := m.wire()
	if err != nil {
		return err
	}
	m.control.greeting = "\n"
	go func() { _, _ = m.control.Read(make([]byte, 1)) }() // hosts are let in, and say nothing
	m.printf("%s\r\n", Hello)
	if m.told(Die) {
		die()
	}
	go m.misbehave()
	go m.serve(ctx, agent)
	return m.end(<-m.power)
}

// calling says whether the channels are as Firecracker has them.
func (m *machine) calling() bool { return m.cfg.Sockets.FD != 0 }

// wire lays the machine's ends of the channels, and returns the agent's.
func (m *machine) wire() (agent *port, err error) {
	if m.calling() {
		dir := fmt.Sprintf("/proc/self/fd/%d/", m.cfg.Sockets.FD)
		m.console = os.Stdout
		if m.control, err = servePort(dir + servedName); err != nil {
			return nil, err
		}
		return callPort(dir + calledName), nil
	}
	console, err := newPort(m.cfg.Console)
	if err != nil {
		return nil, err
	}
	m.console = console
	if m.control, err = newPort(m.cfg.Control); err != nil {
		return nil, err
	}
	return newPort(m.cfg.Agent)
}

func files(c vmm.Config) []vmm.File {
	fs := []vmm.File{c.Kernel, c.Initramfs}
	for _, d := range c.Disks {
		fs = append(fs, d.File)
	}
	return slices.DeleteFunc(fs, func(f vmm.File) bool { return f.FD == 0 })
}

func (m *machine) printf(format string, args ...any) {
	_, _ = fmt.Fprintf(m.console, format, args...) // a port has no lasting errors
}

// die is what a VMM does that is killed from outside.
func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

func (m *machine) misbehave() {
	if m.told(Panic) {
		_, _ = m.control.host() // a kernel gets that far only when the VMM is in control
		m.printf("[    1.0] Kernel panic - not syncing: \x1b[31mfake\r\n")
		m.off(vmm.EndReset)
	}
	if m.told(Off) {
		_, _ = m.control.host()
		m.off(vmm.EndShutdown)
	}
	for m.told(Flood) {
		m.printf("%s\r\n", strings.Repeat("flood ", 1000))
	}
	for i := range 100_000 {
		if !m.told(Gossip) {
			return
		}
		m.happen(agentapi.Event{Type: agentapi.EventProblem, Text: fmt.Sprintf("problem %d \x1b]0;title\a", i)})
	}
}

// off ends the machine, once.
func (m *machine) off(reason string) {
	select {
	case m.power <- reason:
	default:
	}
}

// end tells the host why, if it is there to hear it.
func (m *machine) end(reason string) error {
	if m.calling() {
		return nil
	}
	b, err := json.Marshal(last{Ended: reason})
	if err != nil {
		return err
	}
	if err := m.control.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	_, _ = m.control.Write(append(b, '\n')) // nobody may listen
	return nil
}

func (m *machine) happen(e agentapi.Event) {
	m.progress(func() { m.events = append(m.events, e) })
}

func (m *machine) serve(ctx context.Context, agent *port) {
	if m.told(Silent) || m.told(Panic) {
		return
	}
	for b := []byte(strings.Repeat("\x1b\x01garbage", 1000)); m.told(Garbage); {
		_, _ = agent.Write(b)
	}
	m.channel = &channel{port: agent, deaf: make(chan struct{})}
	for l := mux.NewListener(m.channel); ; {
		s, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			for {
				st, err := s.Accept()
				if err != nil {
					return
				}
				go m.stream(ctx, st)
			}
		}()
	}
}

func (m *machine) stream(ctx context.Context, st *mux.Stream) {
	defer st.Close()
	c := agentapi.NewConn(st)
	var q agentapi.Request
	if _, b, err := c.Read(); err != nil || agentapi.Decode(b, &q) != nil {
		return
	}
	if m.lies(q, c, st) {
		return
	}
	if g := m.guestFor(q.Op); g != nil {
		g.Serve(ctx, c, q, st)
		return
	}
	var err error
	switch q.Op {
	case agentapi.OpHello:
		h := m.hello()
		m.mu.Lock()
		h.Proof = agentapi.Prove(m.secret, q.Challenge)
		m.mu.Unlock()
		err = c.WriteJSON(agentapi.KindOK, h)
	case agentapi.OpIdentify:
		err = m.identify(c, q.Identity)
	case agentapi.OpWatch:
		err = m.watch(c)
	case agentapi.OpShutdown:
		err = m.shutdown(c, q.Shutdown)
	case agentapi.OpExec:
		err = m.exec(ctx, c, q.Exec)
	case agentapi.OpClock:
		err = c.WriteJSON(agentapi.KindOK, struct{}{})
	default:
		err = c.WriteJSON(agentapi.KindError, agentapi.Error{Code: agentapi.CodeInvalid, Msg: "the fake guest cannot " + string(q.Op)})
	}
	if err != nil {
		m.printf("fake guest: %s: %v\r\n", q.Op, err)
	}
}

func (m *machine) hello() agentapi.Hello {
	m.mu.Lock()
	defer m.mu.Unlock()
	return agentapi.Hello{Version: agentapi.Version, Agent: "fake", Release: "0.0.0-fake", BootID: m.cfg.ID, Init: "none", Identified: m.identified}
}

// guestFor is the guest that performs op, if that is not this file's business.
func (m *machine) guestFor(op agentapi.Op) Guest {
	switch op {
	case agentapi.OpHello, agentapi.OpIdentify, agentapi.OpWatch, agentapi.OpShutdown, agentapi.OpClock:
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.guest
}

func (m *machine) identify(c *agentapi.Conn, id *agentapi.Identity) error {
	m.mu.Lock()
	first := !m.identified
	m.identified = true
	if first && id != nil {
		m.secret = id.Secret
	}
	var err error
	if first && m.makeGuest != nil && id != nil {
		m.guest, err = m.makeGuest(m.dir, *id)
	}
	m.mu.Unlock()
	if err != nil {
		return c.WriteJSON(agentapi.KindError, agentapi.Error{Code: agentapi.CodeFailed, Msg: err.Error()})
	}
	if first && m.told(DieHome) {
		die()
	}
	if first {
		stages := []agentapi.EventType{agentapi.EventAgent, agentapi.EventHandover, agentapi.EventSockets, agentapi.EventBoot}
		if m.told(Slow) {
			stages = stages[:1]
		}
		for _, s := range stages {
			m.happen(agentapi.Event{Type: s})
		}
	}
	if first && m.told(Reboot) {
		defer m.off(vmm.EndReset)
	}
	return c.WriteJSON(agentapi.KindOK, m.hello())
}

func (m *machine) watch(c *agentapi.Conn) error {
	if err := c.WriteJSON(agentapi.KindOK, struct{}{}); err != nil {
		return err
	}
	defer m.progress(func() { delete(m.watchers, c) })
	for told := 0; ; {
		m.mu.Lock()
		if before, ok := m.watchers[c]; !ok || before != told {
			m.watchers[c] = told
			m.wake()
		}
		news, more := m.events[told:], m.more
		m.mu.Unlock()
		for _, e := range news {
			if err := c.WriteJSON(agentapi.KindNews, e); err != nil {
				return nil // the watcher left
			}
		}
		if told += len(news); len(news) == 0 {
			<-more
		}
	}
}

// progress changes something that others wait for.
func (m *machine) progress(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
	m.wake()
}

// wake wakes whoever waits for progress. The caller holds mu.
func (m *machine) wake() {
	close(m.more)
	m.more = make(chan struct{})
}

// flush waits until all watchers know all, a second at most.
func (m *machine) flush() {
	limit := time.NewTimer(time.Second)
	defer limit.Stop()
	for {
		m.mu.Lock()
		more, behind := m.more, false
		for _, told := range m.watchers {
			behind = behind || told < len(m.events)
		}
		m.mu.Unlock()
		if !behind {
			return
		}
		select {
		case <-more:
		case <-limit.C:
			return
		}
	}
}

func (m *machine) shutdown(c *agentapi.Conn, q *agentapi.Shutdown) error {
	if err := c.WriteJSON(agentapi.KindOK, struct{}{}); err != nil || m.told(Hang) {
		return err
	}
	end, kind := vmm.EndShutdown, "poweroff"
	if q != nil && q.Reboot {
		end, kind = vmm.EndReset, "reboot"
	}
	m.happen(agentapi.Event{Type: agentapi.EventEnding, Text: kind})
	m.printf("%s\r\n", Bye) // an init's last words come before the disk is frozen
	m.happen(agentapi.Event{Type: agentapi.EventFrozen})
	m.flush() // as a kernel takes some time to power off, for which a host need not wait
	m.off(end)
	return nil
}

// exec runs a command on the host, without a terminal and without signals.
func (m *machine) exec(ctx context.Context, c *agentapi.Conn, q *agentapi.Exec) error {
	if q == nil || len(q.Argv) == 0 {
		return c.WriteJSON(agentapi.KindError, agentapi.Error{Code: agentapi.CodeInvalid, Msg: "no command"})
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, q.Argv[0], q.Argv[1:]...)
	cmd.Dir, cmd.Env = m.dir, append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + m.dir}, q.Env...)
	cmd.Stdout, cmd.Stderr = frames{c, agentapi.KindStdout}, frames{c, agentapi.KindStderr}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return c.WriteJSON(agentapi.KindError, agentapi.Error{Code: agentapi.CodeNotFound, Msg: err.Error()})
	}
	if err := c.WriteJSON(agentapi.KindOK, agentapi.Started{PID: cmd.Process.Pid}); err != nil {
		return errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	go func() {
		stdin(c, in)
		in.Close()
	}()
	_ = cmd.Wait() // its state tells all
	exit := agentapi.Exit{Code: cmd.ProcessState.ExitCode()}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		exit = agentapi.Exit{Signal: int(ws.Signal())}
	}
	return c.WriteJSON(agentapi.KindExit, exit)
}

// stdin feeds a command until the host says that this was all.
func stdin(c *agentapi.Conn, in io.Writer) {
	for {
		k, b, err := c.Read()
		if err != nil || k == agentapi.KindStdin && len(b) == 0 {
			return
		}
		if k != agentapi.KindStdin {
			continue
		}
		if _, err := in.Write(b); err != nil {
			return
		}
	}
}

// frames writes a command's output as frames of one kind.
type frames struct {
	c *agentapi.Conn
	k agentapi.Kind
}

func (f frames) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		n := min(len(rest), agentapi.Chunk)
		if err := f.c.Write(f.k, rest[:n]); err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	return len(b), nil
}
