// Package rootd is the helper that runs as root for one owner: it checks a
// request, does it as one transaction, undoes it if a step fails, and logs who
// asked.
//
// It keeps no state: what there is, it reads back from the kernel, from systemd
// and from /run, so it may be killed at any point and started again.
package rootd

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"banger/internal/beneath"
	"banger/internal/hostnet"
	"banger/internal/jail"
	"banger/internal/rootapi"

	"golang.org/x/sys/unix"
)

// Network joins VMs to the host's network. Everything it does may be done
// again, and Detach from any half-state.
type Network interface {
	Attach(ctx context.Context, id string, addr netip.Addr, uid uint32, nat bool) error
	Detach(ctx context.Context, id string) error
	Policy(ctx context.Context, id string, addr netip.Addr, nat bool) error
	Repair(ctx context.Context) (mended []string, err error)
	Census(ctx context.Context) (ids []string, err error)
}

// Resolver routes the zone's names to a port of 127.0.0.1; port 0 takes it back.
type Resolver interface {
	Route(ctx context.Context, port uint16) error
}

// A Daemon serves requests.
type Daemon struct {
	Install  rootapi.Install
	Network  Network
	Resolver Resolver
	Log      *slog.Logger

	claims sync.Mutex      // from the look at who has which uid to the claim of one
	verbs  [256]sync.Mutex // by the first byte of the id: one verb at a time on a VM
}

const (
	maxConns = 64
	patience = 5 * time.Second  // with who has connected and sends no packet, or takes none
	limit    = 60 * time.Second // of a verb
)

// Activated returns the socket that systemd has made and passed.
func Activated() (*net.UnixListener, error) {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) || os.Getenv("LISTEN_FDS") != "1" {
		return nil, errors.New("taking over the socket: systemd passed none")
	}
	f := os.NewFile(3, "socket") // SD_LISTEN_FDS_START
	defer f.Close()
	l, err := net.FileListener(f)
	if u, ok := l.(*net.UnixListener); ok && u.Addr().Network() == "unixpacket" {
		u.SetUnlinkOnClose(false) // the name is systemd's
		return u, nil
	}
	return nil, fmt.Errorf("taking over the socket: it is not a unix SOCK_SEQPACKET (%v)", err)
}

// Serve answers on l until ctx ends, and then finishes what has begun.
func (d *Daemon) Serve(ctx context.Context, l *net.UnixListener) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var all sync.WaitGroup
	defer all.Wait()
	for slots := make(chan struct{}, maxConns); ; {
		slots <- struct{}{}
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accepting: %w", err)
		}
		all.Go(func() {
			d.answer(ctx, c)
			c.Close()
			<-slots
		})
	}
}

// answer serves one connection: one request, one reply.
func (d *Daemon) answer(ctx context.Context, c *net.UnixConn) {
	start := time.Now()
	c.SetDeadline(start.Add(patience))
	peer, req := &unix.Ucred{}, rootapi.Request{}
	var files, out []*os.File
	var reply rootapi.Reply
	fd, err := rootapi.FD(c)
	if err == nil {
		peer, err = unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	}
	// Ids are those of the helper's user namespace: root of another one is not 0.
	if err == nil && peer.Uid != d.Install.Owner.UID && peer.Uid != 0 {
		err = rootapi.Errorf(rootapi.Denied, "uid %d may not ask the helper of uid %d", peer.Uid, d.Install.Owner.UID)
	}
	if err == nil {
		files, err = rootapi.Receive(c, &req)
	}
	if err == nil {
		err = req.Check(len(files), d.Install)
	}
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, limit)
		reply, out, err = d.do(ctx, &req, files)
		cancel()
	}
	rootapi.CloseAll(files)
	log := d.Log.With("uid", peer.Uid, "pid", peer.Pid, "verb", req.Verb, "vm", req.ID)
	if err != nil {
		refusal := &rootapi.Error{Code: rootapi.Failed}
		if errors.Is(err, hostnet.ErrNone) {
			refusal.Code = rootapi.NotFound
		}
		errors.As(err, &refusal)
		reply = rootapi.Reply{Error: &rootapi.Error{Code: refusal.Code, Message: strings.ToValidUTF8(err.Error(), "?")}}
		log.Warn("refused", "code", refusal.Code, "err", err)
	} else if req.Verb != rootapi.Census || len(reply.Mended) > 0 { // a mere look comes every few seconds
		log.Info("done", "took", time.Since(start))
	}
	c.SetDeadline(time.Now().Add(patience))
	if err := rootapi.Send(c, reply, out...); err != nil {
		log.Warn("replying", "err", err) // what was launched stays: a census finds it
	}
	rootapi.CloseAll(out)
}

// do runs a checked request, one at a time for each VM.
func (d *Daemon) do(ctx context.Context, r *rootapi.Request, files []*os.File) (reply rootapi.Reply, out []*os.File, err error) {
	if r.ID != "" {
		n, _ := strconv.ParseUint(r.ID[:2], 16, 8) // it is hex: Check has looked
		d.verbs[n].Lock()
		defer d.verbs[n].Unlock()
	}
	var sd jail.Systemd
	if r.Verb != rootapi.Hello && r.Verb != rootapi.Resolve {
		if sd, err = jail.Dial(ctx); err != nil {
			return reply, nil, err
		}
		defer sd.Close()
	}
	switch r.Verb {
	case rootapi.Hello:
		reply.Version = &rootapi.Version{Protocol: rootapi.Protocol, Install: d.Install}
		if info, ok := debug.ReadBuildInfo(); ok {
			reply.Version.Build = info.Main.Version
		}
	case rootapi.Start:
		reply.VM, out, err = d.launch(ctx, sd, jail.Dir(r.ID), r.Launch, files)
	case rootapi.Adopt:
		reply.VM, out, err = d.adopt(ctx, sd, jail.Dir(r.ID))
	case rootapi.Release:
		err = d.release(ctx, sd, jail.Dir(r.ID))
	case rootapi.SetPolicy:
		err = d.Network.Policy(ctx, r.ID, d.Install.Addr(jail.Dir(r.ID).UID()), r.NAT)
	case rootapi.Resolve:
		err = d.Resolver.Route(ctx, r.Port)
	case rootapi.Census:
		reply.Held, reply.Mended, err = d.census(ctx, sd)
	}
	return reply, out, err
}

// passed turns the descriptors of a launch into what the jail child will look
// for. The descriptors prove the owner's rights; that the names lead to the
// same files is the child's to prove, while they stay open.
func (d *Daemon) passed(l *rootapi.Launch, files []*os.File) ([]jail.File, error) {
	list := make([]jail.File, len(files))
	for i, f := range files {
		name, readOnly := [...]string{"kernel", "initramfs"}[min(i, 1)], true
		if n := i - rootapi.FixedFiles; n >= 0 {
			name, readOnly = "disk"+strconv.Itoa(n), l.ReadOnly&(1<<n) != 0
		}
		var err error
		if list[i], err = look(f, !readOnly, d.Install.Owner.UID); err != nil {
			return nil, rootapi.Errorf(rootapi.Denied, "files: %s: %v", name, err)
		}
		list[i].Name, list[i].ReadOnly = name, readOnly
	}
	return list, nil
}

// look checks that a descriptor gives the right to read, and to write if that
// is wanted, a file of the owner's in the owner's tree.
func look(f *os.File, write bool, owner uint32) (file jail.File, err error) {
	var st unix.Stat_t
	var flags int
	fd, err := rootapi.FD(f)
	if err == nil {
		flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	}
	if err == nil {
		err = unix.Fstat(fd, &st)
	}
	path, linkErr := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	mode := flags & unix.O_ACCMODE
	switch {
	case err != nil || linkErr != nil:
		return file, errors.Join(err, linkErr)
	case flags&unix.O_PATH != 0:
		return file, errors.New("an O_PATH descriptor proves no right")
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return file, errors.New("it is not a regular file")
	case mode == unix.O_WRONLY || write && mode != unix.O_RDWR:
		return file, errors.New("the descriptor is not open for what it is to be used for")
	case st.Uid != owner:
		return file, fmt.Errorf("it belongs to uid %d, not to the owner", st.Uid)
	case st.Nlink == 0 || write && st.Nlink != 1:
		return file, fmt.Errorf("it has %d names", st.Nlink)
	case !rootapi.PlainPath(path):
		return file, fmt.Errorf("its path %.200q has unusual characters", path)
	}
	// The first two names are root's, and what is below them is the owner's.
	for _, base := range []string{"/var/lib", "/var/cache"} {
		if strings.HasPrefix(path, base+"/banger/") {
			return jail.File{Base: base, Path: path[len(base)+1:], Dev: st.Dev, Ino: st.Ino}, nil
		}
	}
	return file, fmt.Errorf("it is at %.200q, not below /var/lib/banger or /var/cache/banger", path)
}

// checkPrograms refuses what somebody else than root could have made, and a
// Firecracker that could not start in a jail.
func checkPrograms(p rootapi.Program) error {
	f, err := elf.Open(p.Firecracker)
	if err := errors.Join(beneath.Program(p.Firecracker), beneath.Program(p.Jailer), err); err != nil {
		return rootapi.Errorf(rootapi.Denied, "%v", err)
	}
	defer f.Close()
	for _, part := range f.Progs {
		if part.Type == elf.PT_INTERP {
			return rootapi.Errorf(rootapi.Denied, "%s is dynamically linked, and a jail has no libraries", p.Firecracker)
		}
	}
	return nil
}
