package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/initramfs"
	"banger/internal/labwire"
	"banger/internal/vmm/qemu"
)

// Descriptors of QEMU's, in the order of vm.argv's ExtraFiles.
const (
	fdPort = 3 + iota
	fdQMP
	fdInitramfs
	fdFiles
)

// vm is a running lab machine.
type vm struct {
	cmd     *exec.Cmd
	port    net.Conn
	qmp     net.Conn
	console *console
	stderr  bytes.Buffer // read after exited
	frames  chan frame
	exited  chan struct{}
	read    chan struct{} // closed when nothing reads the port any more
}

// frame is one of the machine's, or the error that ended them.
type frame struct {
	kind labwire.Kind
	body []byte
	err  error
}

// start starts QEMU. It ends with this process, however that ends, and leaves
// nothing: all that it opens for writing has no name.
func start(ctx context.Context, m *files, j Job) (_ *vm, err error) {
	v := &vm{frames: make(chan frame), exited: make(chan struct{}), read: make(chan struct{})}
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
		if err != nil {
			err = errors.Join(fmt.Errorf("booting the lab machine: %w", err), v.close())
		}
	}()
	for _, conn := range []*net.Conn{&v.port, &v.qmp} {
		ours, other, err := pair()
		if err != nil {
			return nil, err
		}
		*conn, theirs = ours, append(theirs, other)
	}
	for _, write := range []func(io.Writer) error{
		func(w io.Writer) error { return writeInitramfs(ctx, w, m) },
		func(w io.Writer) error { return writeFiles(w, j.Files) },
	} {
		f, err := unnamed(write)
		if err != nil {
			return nil, err
		}
		theirs = append(theirs, f)
	}
	argv, err := argv(ctx, m, j)
	if err != nil {
		return nil, err
	}
	v.cmd = exec.CommandContext(context.WithoutCancel(ctx), argv[0], argv[1:]...) // end ends it
	v.cmd.ExtraFiles = theirs
	v.cmd.Stderr = &v.stderr
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: !j.Shell}
	if v.console, err = newConsole(j.consolePath()); err != nil {
		return nil, err
	}
	v.cmd.Stdout = v.console
	if j.Shell {
		v.cmd.Stdin, v.cmd.Stdout, v.cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	}
	started := make(chan error)
	go v.run(started)
	if err := <-started; err != nil {
		return nil, err
	}
	go v.readFrames()
	return v, nil
}

// run starts QEMU and waits for its end, on one thread: what the kernel takes
// for QEMU's parent, and kills it with, is the thread.
func (v *vm) run(started chan<- error) {
	runtime.LockOSThread()
	err := v.cmd.Start()
	started <- err
	if err == nil {
		_ = v.cmd.Wait() // how it ended shows in its words
	}
	close(v.exited)
}

// kernelArgs are for speed, save the first. For why the clock is told, see
// [qemu.Driver]; hz is that of Debian's kernel.
const (
	kernelArgs = "console=ttyS0 loglevel=4 systemd.show_status=false mitigations=off cryptomgr.notests 8250.nr_uarts=1 " +
		"rcupdate.rcu_expedited=1 tsc_early_khz=%d lpj=%d tsc=reliable"
	hz = 250
)

// argv is QEMU's command line. "-cpu max" has AMD's virtualization for the
// machine's own guests; without erms and fsrm the kernel copies in loops, which
// emulation runs faster. There is no network device. A guest's flushes are not
// carried out: nobody will read the disk again.
func argv(ctx context.Context, m *files, j Job) ([]string, error) {
	program, err := qemu.Find()
	if err != nil {
		return nil, err
	}
	khz, err := qemu.TSC(ctx)
	if err != nil {
		return nil, err
	}
	cpus, memory := j.CPUs, j.MemoryMiB
	if cpus == 0 {
		cpus = defaultCPUs
	}
	if memory == 0 {
		memory = defaultMemory
	}
	cmdline := fmt.Sprintf(kernelArgs, khz, khz*1000/hz)
	out := []string{program, "-name", "banger-lab", "-nodefaults", "-no-user-config", "-display", "none",
		"-M", "q35", "-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max,-erms,-fsrm",
		"-smp", strconv.Itoa(cpus), "-m", strconv.Itoa(memory), "-nic", "none", "-device", "virtio-rng-pci",
		"-kernel", m.kernel, "-initrd", fmt.Sprintf("/dev/fd/%d", fdInitramfs),
		"-drive", "if=none,id=root,format=raw,cache=unsafe,snapshot=on,file=" + comma(m.root),
		"-device", "virtio-blk-pci,drive=root,serial=lab-root",
		"-add-fd", fmt.Sprintf("fd=%d,set=1", fdFiles),
		"-drive", "if=none,id=files,format=raw,readonly=on,file=/dev/fdset/1",
		"-device", "virtio-blk-pci,drive=files,serial=" + labwire.FilesSerial,
		"-device", "virtio-serial-pci",
		"-chardev", fmt.Sprintf("socket,id=port,fd=%d", fdPort), "-device", "virtserialport,chardev=port,name=" + labwire.Port,
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", fdQMP), "-mon", "chardev=qmp,mode=control",
	}
	for _, d := range j.Disks {
		out = append(out, "-drive", "if=none,id=disk-"+d.Name+",format=raw,readonly=on,file="+comma(d.Path),
			"-device", "virtio-blk-pci,drive=disk-"+d.Name+",serial="+d.Name)
	}
	if j.Shell {
		out = append(out, "-serial", "mon:stdio")
		cmdline += " " + labwire.ShellArg
	} else {
		out = append(out, "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console")
	}
	return append(out, "-append", cmdline), nil
}

// comma is a file's name as a value in one of QEMU's lists.
func comma(name string) string { return strings.ReplaceAll(name, ",", ",,") }

// pair is a connection: our end, and the one that QEMU inherits.
func pair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a socket: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "lab"), os.NewFile(uintptr(fds[1]), "lab")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("making a socket: %w", err)
	}
	return conn, theirs, nil
}

// unnamed is a file with some content and no name, open for reading.
func unnamed(write func(io.Writer) error) (*os.File, error) {
	f, err := os.CreateTemp("/var/tmp", "banger-lab-")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return nil, err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	if err := errors.Join(write(w), w.Flush()); err != nil {
		return nil, err
	}
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// writeInitramfs builds the machine's own part of the lab into an initramfs.
func writeInitramfs(ctx context.Context, w io.Writer, m *files) error {
	dir, err := os.MkdirTemp("", "banger-lab-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // nothing depends on it
	program := filepath.Join(dir, "labguest")
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-o", program, "banger/internal/cmd/labguest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the lab's init: %w\n%s", err, out)
	}
	b, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	return initramfs.Build(w, initramfs.In{Agent: b, Modules: m.modules})
}

// readFrames passes the machine's frames on until the port closes.
func (v *vm) readFrames() {
	defer close(v.read)
	in := bufio.NewReaderSize(v.port, 1<<20)
	for {
		k, body, err := labwire.Read(in)
		select {
		case v.frames <- frame{k, body, err}:
		case <-v.exited:
			return
		}
		if err != nil {
			return
		}
	}
}

// send says something to the machine.
func (v *vm) send(k labwire.Kind, body any) error {
	if err := labwire.WriteJSON(v.port, k, body); err != nil {
		return v.hang("talking to it", err.Error())
	}
	return nil
}

// next waits for a frame, at most so long.
func (v *vm) next(ctx context.Context, during string, limit time.Duration) (frame, error) {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case f := <-v.frames:
		if f.err != nil {
			select { // the port's end says less than QEMU's
			case <-v.exited:
			case <-t.C:
			}
			return f, v.hang(during, v.verdict(f.err))
		}
		return f, nil
	case <-v.exited:
		return frame{}, v.hang(during, v.verdict(nil))
	case <-v.console.panicked:
		return frame{}, v.hang(during, panicked)
	case <-t.C:
		return frame{}, &HangError{During: during, Why: fmt.Sprintf("no answer for %v", limit.Round(time.Second)), Console: v.console.tail(), Mute: true}
	case <-ctx.Done():
		return frame{}, v.hang(during, context.Cause(ctx).Error())
	}
}

// wait waits for the machine's own end.
func (v *vm) wait(ctx context.Context) error {
	for {
		select {
		case <-v.frames: // of boots that the shell's user made
		case <-v.exited:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// verdict says why the port closed.
func (v *vm) verdict(err error) string {
	select {
	case <-v.exited:
		return fmt.Sprintf("QEMU has ended (%v) %s", v.cmd.ProcessState, strings.TrimSpace(v.stderr.String()))
	default:
		return err.Error()
	}
}

func (v *vm) hang(during, why string) error {
	return &HangError{During: during, Why: why, Console: v.console.tail(), InGuest: v.console.brokeInGuest()}
}

// reset cuts the machine's power.
func (v *vm) reset() error {
	if _, err := io.WriteString(v.qmp, `{"execute":"qmp_capabilities"}{"execute":"system_reset"}`); err != nil {
		return v.hang("cutting its power", err.Error())
	}
	return nil
}

// end ends QEMU, by its pid, and waits for it.
func (v *vm) end() error {
	err := v.cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	<-v.exited
	err = errors.Join(err, v.close())
	<-v.read
	return err
}

// close closes what this process has of the machine, or of a part of one.
func (v *vm) close() (err error) {
	for _, c := range []net.Conn{v.port, v.qmp} {
		if c != nil {
			err = errors.Join(err, c.Close())
		}
	}
	if v.console != nil {
		err = errors.Join(err, v.console.close())
	}
	return err
}
