// Package fake is a root helper without root: it speaks as the real one does, and
// what it starts are fake VMMs, without a jail and without a network.
//
// Only tests use it. Both helpers are held to one contract by host/hosttest, which
// package systemhost passes with either.
package fake

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"banger/internal/hostnet"
	"banger/internal/procid"
	"banger/internal/rootapi"
	"banger/internal/rootclient"
	"banger/internal/unixsock"
	"banger/internal/vmm"
	vmmfake "banger/internal/vmm/fake"

	"golang.org/x/sys/unix"
)

// Firecrackers are the programs in the install record, unless [Helper.Record]
// says others. The helper runs none of them.
var Firecrackers = []string{"/opt/one/firecracker", "/opt/two/firecracker"}

// A Helper serves requests until its test has ended.
type Helper struct {
	rootclient.Client
	dir string

	verbs [256]sync.Mutex // as the real one: one verb at a time on a VM

	mu     sync.Mutex // guards what follows
	words  string     // on each guest's command line
	record []string   // the Firecrackers in the install record
	vms    map[string]*vm
	lost   map[rootapi.Verb]int // replies that are still to be lost
	failed map[rootapi.Verb]int // requests that are still to fail
	asked  []rootapi.Request
	serves sync.WaitGroup
}

// vm is a VMM and its directory.
type vm struct {
	h          *Helper // whose mu guards cmd and id where they are set
	dir        string
	addr       netip.Addr // zero without a network
	invocation string
	cmd        *exec.Cmd // nil if it could not be started
	id         procid.ID
	ended      chan struct{} // closed when cmd has been waited for
}

// Start starts a helper in a directory with a short path.
func Start(t testing.TB, dir string) *Helper {
	t.Helper()
	h := &Helper{Client: rootclient.Client{Socket: filepath.Join(dir, "root.sock")}, dir: dir, record: Firecrackers, vms: map[string]*vm{}, lost: map[rootapi.Verb]int{}, failed: map[rootapi.Verb]int{}}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: h.Socket, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	h.serves.Go(func() { h.serve(context.WithoutCancel(t.Context()), l) })
	t.Cleanup(func() {
		l.Close()
		h.serves.Wait()
		for id := range h.vms {
			if err := h.release(id); err != nil {
				t.Error(err)
			}
		}
	})
	return h
}

// Tell makes guests that are launched from now on misbehave: see vmm/fake.
func (h *Helper) Tell(words string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.words = words
}

// Record changes the Firecrackers in the install record.
func (h *Helper) Record(programs ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.record = programs
}

// Lose makes the next n requests of a verb be done and not answered, as by a
// helper that is killed.
func (h *Helper) Lose(v rootapi.Verb, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lost[v] = n
}

// Fail makes the next n requests of a verb fail, as while systemd does not answer.
func (h *Helper) Fail(v rootapi.Verb, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failed[v] = n
}

// Asked are the requests so far.
func (h *Helper) Asked() []rootapi.Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]rootapi.Request(nil), h.asked...)
}

// serve accepts connections until the listener is closed.
func (h *Helper) serve(ctx context.Context, l *net.UnixListener) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		h.serves.Go(func() {
			defer c.Close()
			h.answer(ctx, c)
		})
	}
}

// answer serves one connection: one request, one reply.
func (h *Helper) answer(ctx context.Context, c *net.UnixConn) {
	var q rootapi.Request
	var r rootapi.Reply
	files, err := rootapi.Receive(c, &q)
	defer rootapi.CloseAll(files)
	if err == nil {
		err = q.Check(len(files), h.install())
	}
	var ends []*os.File
	if err == nil {
		h.mu.Lock()
		h.asked = append(h.asked, q)
		h.failed[q.Verb]--
		fail := h.failed[q.Verb] >= 0
		h.mu.Unlock()
		if err = errors.New("dialing /run/systemd/private: connection refused"); !fail {
			ends, err = h.do(ctx, q, &r)
		}
	}
	defer rootapi.CloseAll(ends)
	if err != nil {
		refusal, ok := errors.AsType[*rootapi.Error](err)
		if !ok {
			refusal = &rootapi.Error{Code: rootapi.Failed, Message: err.Error()}
		}
		r = rootapi.Reply{Error: refusal}
	}
	h.mu.Lock()
	h.lost[q.Verb]--
	lose := h.lost[q.Verb] >= 0
	h.mu.Unlock()
	if !lose {
		_ = rootapi.Send(c, r, ends...) // who asked may have left
	}
}

// install is the record that there is none of.
func (h *Helper) install() rootapi.Install {
	in := rootapi.Install{Owner: rootapi.Owner{UID: uint32(os.Geteuid())}, Prefix: netip.MustParsePrefix("172.16.0.0/24"), Bridge: "br-fc", Zone: "vm"}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.record {
		in.Programs = append(in.Programs, rootapi.Program{Firecracker: p, Jailer: p + "-jailer"})
	}
	return in
}

// do runs a checked request.
func (h *Helper) do(ctx context.Context, q rootapi.Request, r *rootapi.Reply) (ends []*os.File, err error) {
	if b, err := hex.DecodeString(q.ID); err == nil && q.ID != "" {
		h.verbs[b[0]].Lock()
		defer h.verbs[b[0]].Unlock()
	}
	switch q.Verb {
	case rootapi.Hello:
		r.Version = &rootapi.Version{Protocol: rootapi.Protocol, Build: "fake", Install: h.install()}
	case rootapi.Start:
		r.VM, ends, err = h.launch(ctx, q.ID, q.Launch.Addr)
	case rootapi.Adopt:
		r.VM, ends, err = h.adopt(ctx, q.ID)
	case rootapi.Release:
		err = h.release(q.ID)
	case rootapi.SetPolicy:
		if v := h.vm(q.ID); v == nil || !v.addr.IsValid() {
			err = rootapi.Errorf(rootapi.NotFound, "VM %s has no network", q.ID)
		}
	case rootapi.Census:
		r.Held = h.census()
	}
	return ends, err
}

// vm finds a VM, nil if there is none.
func (h *Helper) vm(id string) *vm {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.vms[id]
}

var wiring = vmmfake.Driver{Calling: true}.Wiring()

func (v *vm) path(name string) string { return filepath.Join(v.dir, name) }

// launch starts a fake VMM.
func (h *Helper) launch(ctx context.Context, id string, addr netip.Addr) (*rootapi.VM, []*os.File, error) {
	v := &vm{h: h, dir: filepath.Join(h.dir, id), addr: addr, invocation: hex.EncodeToString([]byte(rand.Text()))[:32], ended: make(chan struct{})}
	if err := os.Mkdir(v.dir, 0o700); err != nil {
		return nil, nil, rootapi.Errorf(rootapi.Exists, "id: there is a VM %s already", id)
	}
	h.mu.Lock()
	words := h.words
	h.vms[id] = v
	h.mu.Unlock()
	reply, ends, err := v.start(ctx, id, words)
	if err != nil {
		err = errors.Join(err, h.release(id))
	}
	return reply, ends, err
}

// start does launch's work; what is left of a failure is release's to remove.
func (v *vm) start(ctx context.Context, id, words string) (*rootapi.VM, []*os.File, error) {
	agent, err := v.listen()
	if err != nil {
		return nil, nil, err
	}
	if err := unix.Mkfifo(v.path("console"), 0o600); err != nil {
		return nil, nil, errors.Join(err, agent.Close())
	}
	console, err := v.console()
	if err != nil {
		return nil, nil, errors.Join(err, agent.Close())
	}
	if err := v.exec(ctx, id, words); err != nil {
		return nil, nil, errors.Join(err, agent.Close(), console.Close())
	}
	return v.reply(ctx, id, agent, console)
}

// console opens the reading end of what the VMM prints, and waits for no writer.
func (v *vm) console() (*os.File, error) {
	return os.OpenFile(v.path("console"), os.O_RDONLY|unix.O_NONBLOCK, 0)
}

// exec starts the process. Its channels are found by name in its directory.
func (v *vm) exec(ctx context.Context, id, words string) error {
	out, err := os.OpenFile(v.path("console"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer out.Close()
	sockets, err := os.Open(v.dir)
	if err != nil {
		return err
	}
	defer sockets.Close()
	argv, err := vmmfake.Driver{Calling: true}.Argv(vmm.Config{ID: id, Cmdline: words, Sockets: vmm.File{FD: 3}})
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = []*os.File{sockets}, out, out
	cmd.Env = []string{"BANGER_VM_DIR=" + v.dir, "PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	pid, err := procid.Of(cmd.Process.Pid)
	v.h.mu.Lock()
	v.cmd, v.id = cmd, pid
	v.h.mu.Unlock()
	go func() {
		defer close(v.ended)
		_ = cmd.Wait() // its state is looked at
	}()
	return err
}

// listen makes the agent's socket, in the place of any that is there.
func (v *vm) listen() (*os.File, error) {
	l, err := unixsock.Bind(v.path("new"))
	if err != nil {
		return nil, err
	}
	defer l.Close()
	if err := os.Rename(v.path("new"), v.path(wiring.Agent.Name)); err != nil {
		return nil, err
	}
	return l.File()
}

// reply takes hold of the process and of its control socket.
func (v *vm) reply(ctx context.Context, id string, agent, console *os.File) (*rootapi.VM, []*os.File, error) {
	ends := make([]*os.File, rootapi.VMFiles)
	ends[rootapi.FileAgent], ends[rootapi.FileConsole] = agent, console
	control, err := v.connect(ctx, console)
	ends[rootapi.FileAPI] = control
	fd := -1
	if err == nil {
		fd, err = unix.PidfdOpen(v.id.PID, unix.PIDFD_NONBLOCK)
	}
	if err != nil {
		rootapi.CloseAll(ends)
		return nil, nil, err
	}
	ends[rootapi.FilePidfd] = os.NewFile(uintptr(fd), "pidfd")
	r := &rootapi.VM{UID: uint32(os.Geteuid()), Unit: "banger-vm-" + id + ".service", InvocationID: v.invocation, PID: v.id.PID, StartTime: v.id.Start}
	if v.addr.IsValid() {
		mac := hostnet.MAC(v.addr)
		r.TAP, r.MAC = hostnet.TAP(id), net.HardwareAddr(mac[:]).String()
	}
	return r, ends, nil
}

// connect dials until the VMM listens or has ended.
func (v *vm) connect(ctx context.Context, console *os.File) (*os.File, error) {
	for {
		c, err := unixsock.Dial(ctx, v.path(wiring.Control.Name))
		if err == nil {
			defer c.Close()
			return c.File()
		}
		select {
		case <-v.ended:
			said := make([]byte, 1000)
			n, _ := console.Read(said) // its writer has gone
			return nil, rootapi.Errorf(rootapi.NotFound, "the VMM has ended: %v, saying %q", v.cmd.ProcessState, said[:n])
		default:
		}
	}
}

// adopt gives again what launch gave.
func (h *Helper) adopt(ctx context.Context, id string) (*rootapi.VM, []*os.File, error) {
	v := h.vm(id)
	if v == nil || v.over() {
		return nil, nil, rootapi.Errorf(rootapi.NotFound, "there is no VMM")
	}
	agent, err := v.listen()
	if err != nil {
		return nil, nil, err
	}
	console, err := v.console()
	if err != nil {
		return nil, nil, errors.Join(err, agent.Close())
	}
	return v.reply(ctx, id, agent, console)
}

// over reports whether the VMM has ended, or never began.
func (v *vm) over() bool {
	select {
	case <-v.ended:
		return true
	default:
		return v.cmd == nil
	}
}

// release ends a VM and removes what there is of it.
func (h *Helper) release(id string) error {
	v := h.vm(id)
	if v == nil {
		return nil
	}
	if v.cmd != nil {
		_ = v.cmd.Process.Kill() // dead is as good
		<-v.ended
	}
	if err := os.RemoveAll(v.dir); err != nil {
		return fmt.Errorf("removing the VM's directory: %w", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.vms, id)
	return nil
}

// census tells of all VMs.
func (h *Helper) census() (all []rootapi.Held) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, v := range h.vms {
		held := rootapi.Held{ID: id, Dir: true, Network: v.addr.IsValid(), Addr: v.addr}
		if v.cmd != nil {
			held.Unit = v.unit()
		}
		all = append(all, held)
	}
	return all
}

// unit is what systemd would say.
func (v *vm) unit() *rootapi.Unit {
	if !v.over() {
		return &rootapi.Unit{Active: "active", Sub: "running", Result: "success", PID: uint32(v.id.PID), InvocationID: v.invocation}
	}
	ws, _ := v.cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case ws.Signaled():
		return &rootapi.Unit{Active: "failed", Sub: "failed", Result: "signal", Code: 2, Status: uint32(ws.Signal())}
	case ws.ExitStatus() != 0:
		return &rootapi.Unit{Active: "failed", Sub: "failed", Result: "exit-code", Code: 1, Status: uint32(ws.ExitStatus())}
	}
	return &rootapi.Unit{Active: "active", Sub: "exited", Result: "success", Code: 1}
}
