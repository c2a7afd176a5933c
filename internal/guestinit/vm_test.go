package guestinit_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/agentapi"
	"banger/internal/ext4"
	"banger/internal/mux"
	"banger/internal/recipe"
	"banger/internal/testneed"
	"banger/internal/vmm"
	"banger/internal/vmm/qemu"
	"banger/internal/vmtest"
)

// bootDeadline is for a guest in emulation on a busy machine.
const bootDeadline = 3 * time.Minute

// defaultImage returns the default image's tar. It is built once per account,
// which takes some minutes, unless there is one beside the kernel that
// vmtest.KernelEnv names.
func defaultImage(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv(vmtest.KernelEnv); dir != "" {
		if _, err := os.Stat(dir + "/golden.tar"); err == nil {
			return dir + "/golden.tar"
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "banger-test", recipe.DefaultImage)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "image.tar")
	if _, err := os.Stat(name); err == nil {
		return name
	}
	r, err := recipe.Image(recipe.DefaultImage)
	if err != nil {
		t.Fatal(err)
	}
	o := recipe.Options{CacheDir: filepath.Join(dir, "cache")}
	if _, err := recipe.Check(r, o); err != nil {
		testneed.Missing(t, "the default image, for which something is missing: "+err.Error())
	}
	f, err := os.Create(name + ".part")
	if err != nil {
		t.Fatal(err)
	}
	o.Out = f
	if err := errors.Join(recipe.Run(t.Context(), r, o), f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".part", name); err != nil {
		t.Fatal(err)
	}
	return name
}

func makeImage(t testing.TB, tarball, file string) {
	t.Helper()
	r, err := os.Open(tarball)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	_, err = ext4.Write(t.Context(), r, f, ext4.Options{})
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// A vm is a guest under test.
type vm struct {
	t       testing.TB
	guest   vmtest.Guest
	dir     string
	base    string
	disk    string
	modules string // disk with the kernel's modules, if there is one
	cmd     *exec.Cmd
	exited  chan struct{}
	started time.Time
	session *mux.Session
	conn    net.Conn
	channel string // of the agent; QEMU listens there all its life
	network bool   // a device, at whose other end QEMU plays a host that lets nothing out
}

// start starts QEMU with sockets that exist, and are connected, before it does.
func start(t testing.TB, v *vm, cpus int, memory int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*bootDeadline)
	t.Cleanup(cancel)
	cfg := vmm.Config{ID: "test", VCPUs: cpus, MemoryMiB: memory, Cmdline: vmm.Cmdline,
		Kernel: vmm.File{Name: v.guest.Vmlinux}, Initramfs: vmm.File{Name: v.guest.Initramfs},
		Disks: []vmm.Disk{
			{File: vmm.File{Name: v.base}, Serial: vmm.SerialBase, ReadOnly: true},
			{File: vmm.File{Name: v.disk}, Serial: vmm.SerialVM},
		}}
	if v.modules != "" {
		cfg.Disks = append(cfg.Disks, vmm.Disk{File: vmm.File{Name: v.modules}, Serial: vmm.SerialModules, ReadOnly: true})
	}
	khz, err := qemu.TSC(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cfg.TSCKHz = khz
	var files []*os.File
	var conns []net.Conn
	for i, f := range []*vmm.File{&cfg.Agent, &cfg.Console, &cfg.Control} {
		name := filepath.Join(v.dir, []string{"agent", "console", "control"}[i])
		_ = os.Remove(name)
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		file, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		files, conns = append(files, file), append(conns, conn)
		f.FD = 2 + len(files)
	}
	argv, err := qemu.Driver{}.Argv(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if v.network {
		argv = append(argv, "-netdev", "user,id=net,restrict=on", "-device", "virtio-net-device,netdev=net,mac=02:fc:00:01:02:03")
	}
	v.channel = filepath.Join(v.dir, "agent")
	v.cmd = exec.CommandContext(ctx, argv[0], argv[1:]...)
	v.cmd.ExtraFiles, v.cmd.Stderr, v.cmd.Stdout = files, os.Stderr, os.Stderr
	v.started = time.Now()
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v.exited = make(chan struct{})
	go func() { _ = v.cmd.Wait(); close(v.exited) }()
	t.Cleanup(func() { _ = v.cmd.Process.Kill(); <-v.exited })
	for _, f := range files {
		_ = f.Close()
	}
	go v.console(conns[1])
	go func() { _, _ = io.Copy(io.Discard, conns[2]) }()
	v.conn = conns[0]
	if v.session, err = mux.Dial(v.within(bootDeadline), v.conn); err != nil {
		t.Fatalf("the agent does not answer: %v", err)
	}
	t.Cleanup(func() { _ = v.session.Close() })
}

// console keeps what the guest prints, and shows it if the test fails.
func (v *vm) console(c net.Conn) {
	f, err := os.Create(filepath.Join(v.dir, "console.log"))
	if err != nil {
		return
	}
	_, _ = io.Copy(f, c)
	_ = f.Close()
}

func (v *vm) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(v.t.Context()), d)
	v.t.Cleanup(cancel)
	return ctx
}

// newVM makes a VM of base with a blank disk; it is not started.
func newVM(t testing.TB, base string) *vm {
	t.Helper()
	v := &vm{t: t, guest: vmtest.NeedGuest(t), dir: vmtest.ShortDir(t), base: base}
	if base == "" {
		v.base = v.guest.Base
	}
	v.disk = filepath.Join(v.dir, "disk")
	f, err := os.Create(v.disk)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(ext4.Format(f, 1<<30, ext4.FormatOptions{}), f.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(v.dir, "console.log"))
			t.Logf("console:\n%s", b)
		}
	})
	return v
}

// call opens a stream, sends req and returns what comes back.
func (v *vm) call(req agentapi.Request) (*mux.Stream, *agentapi.Conn, []byte) {
	v.t.Helper()
	st, err := v.session.Open(v.within(bootDeadline))
	if err != nil {
		v.t.Fatalf("%s: %v", req.Op, err)
	}
	c := agentapi.NewConn(st)
	if err := c.WriteJSON(agentapi.KindRequest, req); err != nil {
		v.t.Fatalf("%s: %v", req.Op, err)
	}
	kind, b, err := c.Read()
	if err != nil {
		v.t.Fatalf("%s: %v", req.Op, err)
	}
	if kind != agentapi.KindOK {
		v.t.Fatalf("%s: answered %q %s", req.Op, kind, b)
	}
	return st, c, bytes.Clone(b)
}

// run runs a command in the guest and returns what it prints, and its exit code.
func (v *vm) run(argv ...string) (string, int) {
	v.t.Helper()
	st, c, _ := v.call(agentapi.Request{Op: agentapi.OpExec, Exec: &agentapi.Exec{Argv: argv}})
	defer func() { _ = st.Close() }()
	_ = c.Write(agentapi.KindStdin, nil)
	var out []byte
	for {
		kind, b, err := c.Read()
		if err != nil {
			return string(out) + err.Error(), -1
		}
		switch kind {
		case agentapi.KindStdout, agentapi.KindStderr:
			out = append(out, b...)
		case agentapi.KindExit:
			var e agentapi.Exit
			if err := agentapi.Decode(b, &e); err != nil {
				v.t.Fatal(err)
			}
			return string(out), e.Code
		}
	}
}

// wants runs a shell line and wants it to print want.
func (v *vm) wants(line, want string) {
	v.t.Helper()
	if got, code := v.run("/bin/sh", "-c", line); strings.TrimSpace(got) != want || code != 0 {
		v.t.Errorf("%s: printed %q, exit code %d; want %q, 0", line, strings.TrimSpace(got), code, want)
	}
}

// put unpacks a tar in the guest.
func (v *vm) put(dir string, tar []byte) {
	v.t.Helper()
	st, c, _ := v.call(agentapi.Request{Op: agentapi.OpPut, Put: &agentapi.Put{Dir: dir}})
	defer func() { _ = st.Close() }()
	for b := range slices.Chunk(tar, agentapi.Chunk) {
		if err := c.Write(agentapi.KindData, b); err != nil {
			v.t.Fatal(err)
		}
	}
	_ = c.Write(agentapi.KindData, nil)
	if kind, b, err := c.Read(); err != nil || kind != agentapi.KindDone {
		v.t.Fatalf("putting a tar: %q %s, %v", kind, b, err)
	}
}

// hello asks the agent who it is.
func (v *vm) hello() (h agentapi.Hello) {
	v.t.Helper()
	st, _, b := v.call(agentapi.Request{Op: agentapi.OpHello})
	_ = st.Close()
	if err := agentapi.Decode(b, &h); err != nil {
		v.t.Fatal(err)
	}
	return h
}

// events follows the guest's events on a channel that is closed at their end.
func (v *vm) events() <-chan agentapi.Event {
	v.t.Helper()
	st, c, _ := v.call(agentapi.Request{Op: agentapi.OpWatch})
	out := make(chan agentapi.Event, 100)
	go func() {
		defer close(out)
		defer func() { _ = st.Close() }()
		for {
			_, b, err := c.Read()
			if err != nil {
				return
			}
			var e agentapi.Event
			if agentapi.Decode(b, &e) != nil {
				return
			}
			v.t.Logf("%6d ms, up %6d: %s %s", time.Since(v.started).Milliseconds(), e.Uptime.Milliseconds(), e.Type, e.Text)
			out <- e
		}
	}()
	return out
}

// await waits for an event of type typ.
func (v *vm) await(events <-chan agentapi.Event, typ agentapi.EventType) agentapi.Event {
	v.t.Helper()
	ctx := v.within(bootDeadline)
	for {
		select {
		case e, ok := <-events:
			if !ok {
				v.t.Fatalf("no event %q before the end", typ)
			}
			if e.Type == typ {
				return e
			}
		case <-ctx.Done():
			v.t.Fatalf("no event %q", typ)
		}
	}
}

// awaitExit waits for QEMU's exit.
func (v *vm) awaitExit() {
	v.t.Helper()
	select {
	case <-v.exited:
	case <-v.within(bootDeadline).Done():
		v.t.Fatal("QEMU does not exit")
	}
	if code := v.cmd.ProcessState.ExitCode(); code != 0 {
		v.t.Errorf("QEMU exits with %d, want 0", code)
	}
}

// fsck wants the VM's disk to be clean, without a journal to replay.
func (v *vm) fsck() {
	v.t.Helper()
	out, err := exec.CommandContext(v.t.Context(), testneed.Tool(v.t, "e2fsck"), "-fn", v.disk).CombinedOutput()
	if err != nil {
		v.t.Errorf("e2fsck: %v\n%s", err, out)
	}
	out, err = exec.CommandContext(v.t.Context(), testneed.Tool(v.t, "dumpe2fs"), "-h", v.disk).CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("needs_recovery")) {
		v.t.Errorf("the disk is not clean: %v\n%s", err, out)
	}
}
