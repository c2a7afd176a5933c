package guestlife

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/agentapi"
	"banger/internal/handover"
	"banger/internal/mux"
	"banger/internal/sysmon"
	"banger/internal/vmm"
)

// A Handler serves one operation that is not the life's own, whose request has
// been read from conn already. raw is the stream below conn; it has a method
// CloseWrite() error, and is closed when Serve returns. ctx ends with the
// session.
type Handler interface {
	Serve(ctx context.Context, conn *agentapi.Conn, req agentapi.Request, raw io.ReadWriteCloser)
}

// Config configures [Run]. Only Handler is required.
type Config struct {
	Handler Handler
	Version string      // of the build
	OwnSSH  func() bool // whether the handler serves ssh itself; asked once the root is mounted
	Restart bool        // take the place of an agent that died: handover.Restart
}

// A life is the state of an agent.
type life struct {
	Config
	news    journal
	mounted chan struct{} // closed when the new root is ours; what follows is set then
	init    string
	disk    *os.File // root directory of the VM disk: it has no path in the new root

	identify sync.Mutex
	known    bool          // an identity is in place
	gone     chan struct{} // closed when PID 1 is the image's init
	handOver func()

	shutdown sync.Once
	freezing sync.Once
	saving   sync.Mutex
	saved    bool // what a restart needs is written, and kept up to date
}

// watchSlack is how late the runtime's watch may be: as long as goroutines wait
// at worst while one is in a system call that waits for a disk.
const watchSlack = 20 * time.Millisecond

// Run is the agent. It returns only when it cannot go on: PID 1 or the standby
// then starts another.
func Run(ctx context.Context, cfg Config) error {
	l := &life{Config: cfg, mounted: make(chan struct{}), gone: make(chan struct{})}
	conn := handover.Open(handover.ConnFD)
	_ = sysmon.Slow(watchSlack) // only slower without
	if cfg.Restart {
		protect()
		if err := l.takeOver(ctx); err != nil {
			return err
		}
	}
	dead := make(chan error, 2)
	go func() { dead <- l.listen(ctx) }()
	if !cfg.Restart {
		go func() {
			if err := l.settle(ctx, conn); err != nil {
				dead <- err
			}
		}()
	}
	return <-dead
}

// protect keeps the agent alive in bad times. Its children do not inherit
// handled signals as ignored; the OOM score they do inherit.
func protect() {
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	holdSignals()
}

// settle makes the new root our own once PID 1 has built it, and tells PID 1
// to go on once the host has said who we are.
func (l *life) settle(ctx context.Context, conn handover.Conn) error {
	m, err := conn.Mounted()
	if err != nil {
		return err
	}
	if l.disk, err = os.Open(handover.DiskDir); err != nil {
		return fmt.Errorf("opening the VM disk: %w", err)
	}
	if err := errors.Join(unix.Chroot(handover.NewRoot), unix.Chdir("/")); err != nil {
		return fmt.Errorf("entering the new root: %w", err)
	}
	l.init = m.Init
	for _, p := range m.Problems {
		l.news.add(agentapi.EventProblem, p)
	}
	identified := make(chan struct{})
	l.handOver = sync.OnceFunc(func() { close(identified) })
	if err := l.watchStages(ctx); err != nil {
		l.news.add(agentapi.EventProblem, err.Error())
	}
	close(l.mounted)
	<-identified
	if err := conn.Go(); err != nil {
		return fmt.Errorf("handing over: %w", err)
	}
	if err := conn.WaitGone(); err != nil {
		return fmt.Errorf("handing over: %w", err)
	}
	protect() // nobody else could do us harm before
	l.news.add(agentapi.EventHandover, l.init)
	close(l.gone)
	if l.init != handover.InitSystemd { // nothing will tell of the boot's end
		settled()
	}
	l.save()
	if l.init != handover.InitNone {
		l.keepStandby(ctx)
	}
	return nil
}

// listen serves the host's sessions.
func (l *life) listen(ctx context.Context) error {
	p, err := openChannel()
	if err != nil {
		return err
	}
	ml := mux.NewListener(p)
	for {
		s, err := ml.Accept()
		if err != nil {
			return err
		}
		go l.serve(ctx, s)
	}
}

// openChannel opens the channel to the host: a vsock where the kernel's command
// line says so, else a virtio-serial port.
func openChannel() (mux.Port, error) {
	cmdline, _ := os.ReadFile("/proc/cmdline") // "" in an image without /proc
	if vmm.Word(string(cmdline), vmm.WordChannel) == vmm.ChannelVsock {
		return newCaller(dialVsock), nil
	}
	return openPort(vmm.PortName)
}

func (l *life) serve(ctx context.Context, s *mux.Session) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		st, err := s.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = st.Close() }()
			l.serveStream(ctx, st)
		}()
	}
}

// serveStream reads the request and has the operation done.
func (l *life) serveStream(ctx context.Context, st io.ReadWriteCloser) {
	conn := agentapi.NewConn(st)
	kind, payload, err := conn.Read()
	if err != nil {
		return
	}
	var req agentapi.Request
	if err := agentapi.Decode(payload, &req); err != nil || kind != agentapi.KindRequest {
		refuse(conn, fmt.Errorf("a stream that begins with a %q frame: %w", kind, agentapi.ErrFrame))
		return
	}
	select {
	case <-l.mounted:
	case <-ctx.Done():
		return
	}
	switch req.Op {
	case agentapi.OpHello:
		h := l.hello()
		// None before the first identity, nor where the host has not given one.
		if secret, readErr := os.ReadFile(handover.Secret); readErr == nil && req.Challenge != "" {
			h.Proof = agentapi.Prove(secret, req.Challenge)
		}
		err = conn.WriteJSON(agentapi.KindOK, h)
	case agentapi.OpIdentify:
		err = l.identity(conn, req.Identity)
	case agentapi.OpWatch:
		err = l.watch(ctx, conn, st)
	case agentapi.OpShutdown:
		err = l.end(ctx, conn, req.Shutdown)
	case agentapi.OpClock:
		err = l.clock(conn, req.UnixNano)
	default:
		l.Handler.Serve(ctx, conn, req, st)
	}
	if err != nil {
		refuse(conn, err)
	}
}

// refuse says why an operation was not done; where even that does not get
// through, there is nobody to tell.
func refuse(conn *agentapi.Conn, err error) {
	e := &agentapi.Error{Code: agentapi.CodeFailed, Msg: err.Error()}
	if errors.Is(err, agentapi.ErrFrame) {
		e.Code = agentapi.CodeInvalid
	}
	_ = conn.WriteJSON(agentapi.KindError, e)
}

func (l *life) hello() agentapi.Hello {
	h := agentapi.Hello{Version: agentapi.Version, Agent: l.Version, Init: l.init}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.Release = unix.ByteSliceToString(u.Release[:])
	}
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // "" in an image without /proc
	h.BootID = strings.TrimSpace(string(b))
	if l.OwnSSH != nil {
		h.OwnSSH = l.OwnSSH()
	}
	l.identify.Lock()
	defer l.identify.Unlock()
	h.Identified = l.known
	return h
}

// identity makes the guest this VM, once; later it only sets clock and seed, so
// that a new companion does not tear what the guest has open.
func (l *life) identity(conn *agentapi.Conn, id *agentapi.Identity) error {
	if id == nil {
		return fmt.Errorf("identify without an identity: %w", agentapi.ErrFrame)
	}
	l.identify.Lock()
	first := !l.known
	errs := []error{addSeed(id.Seed), setClock(id.UnixNano)}
	if first {
		errs = append(errs, etc{}.install(id), l.network(id.Net))
		if l.OwnSSH != nil && !l.OwnSSH() {
			errs = append(errs, etc{}.sshd())
		}
		if id.Hostname != "" {
			errs = append(errs, unix.Sethostname([]byte(id.Hostname)))
		}
		l.known = true
	}
	l.identify.Unlock()
	if err := errors.Join(errs...); err != nil {
		l.news.add(agentapi.EventProblem, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	if first {
		l.news.add(agentapi.EventAgent, "")
		if l.init != handover.InitSystemd { // nothing will tell of these
			l.news.add(agentapi.EventSockets, "")
			l.news.add(agentapi.EventBoot, "")
		}
	}
	err := conn.WriteJSON(agentapi.KindOK, l.hello())
	if first && l.handOver != nil {
		l.handOver()
	}
	return err
}

func (l *life) watch(ctx context.Context, conn *agentapi.Conn, st io.Reader) error {
	if err := conn.Write(agentapi.KindOK, []byte("{}")); err != nil {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, st) // the host closes a watch it is tired of
		cancel()
	}()
	_ = l.news.follow(ctx, func(e agentapi.Event) error { return conn.WriteJSON(agentapi.KindNews, e) })
	return nil
}

func (l *life) clock(conn *agentapi.Conn, unixNano int64) error {
	if err := setClock(unixNano); err != nil {
		return err
	}
	return conn.Write(agentapi.KindOK, []byte("{}"))
}

// note records an event, for the host and for an agent after this one.
func (l *life) note(typ agentapi.EventType, text string) {
	l.news.add(typ, text)
	l.saving.Lock()
	again := l.saved
	l.saving.Unlock()
	if again {
		l.save()
	}
}

// A memory is what an agent that takes over must know.
type memory struct {
	Init   string           `json:"init"`
	Events []agentapi.Event `json:"events"`
}

func (l *life) save() {
	l.saving.Lock()
	defer l.saving.Unlock()
	l.saved = true
	b, err := json.Marshal(memory{l.init, l.news.all()})
	if err == nil {
		err = etc{}.replace(handover.LifePath, 0o600, b)
	}
	if err != nil {
		l.news.add(agentapi.EventProblem, err.Error())
	}
}

// takeOver goes on where the agent before this one ended.
func (l *life) takeOver(ctx context.Context) error {
	var m memory
	b, err := os.ReadFile(handover.LifePath)
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		return fmt.Errorf("taking over: %w", err)
	}
	unix.CloseOnExec(handover.DiskFD)
	l.disk = os.NewFile(handover.DiskFD, "disk")
	l.init, l.known, l.saved = m.Init, true, true
	l.news.events = m.Events
	close(l.mounted)
	close(l.gone)
	l.note(agentapi.EventProblem, "the agent ended unexpectedly and was started again")
	if err := l.watchStages(ctx); err != nil {
		l.news.add(agentapi.EventProblem, err.Error())
	}
	if l.init != handover.InitNone {
		go l.keepStandby(ctx)
	}
	return nil
}
