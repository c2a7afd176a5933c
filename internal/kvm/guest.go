package kvm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rounds is how often the guest goes through its loop of four instructions.
// A processor needs some 5 ms for them, one that is emulated (nested in
// software emulation) some 100 ms, and a KVM that interprets 16 s: 3.2 us a
// round were measured.
const rounds = 5_000_000

// limit is how long they may take.
const limit = 1500 * time.Millisecond

// Where things are in the guest's memory.
const (
	memSize   = 2 << 20
	codeAddr  = 0x1000
	tableAddr = 0x10000 // three page tables, one after the other
	pageSize  = 0x1000
	resultIO  = 0x42 // the port that the sum is written to
)

// code begins as a processor does, in real mode, and goes to long mode by
// itself, as a kernel does: any step of that can be what a KVM cannot do.
var code = [...]byte{
	0xfa,             //       cli
	0xb9, 0xe8, 0x03, //       mov $1000,%cx
	0x49, 0x75, 0xfd, // 1:    dec %cx; jnz 1b
	0x2e, 0x66, 0x0f, 0x01, 0x16, 0x88, 0x10, // lgdtl %cs:gdtr
	0x0f, 0x20, 0xe0, 0x66, 0x83, 0xc8, 0x20, 0x0f, 0x22, 0xe0, // cr4 |= PAE
	0x66, 0xb8, 0x00, 0x00, 0x01, 0x00, 0x0f, 0x22, 0xd8, // cr3 = tableAddr
	0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, //       rdmsr EFER
	0x66, 0x0d, 0x00, 0x01, 0x00, 0x00, 0x0f, 0x30, //       EFER |= LME; wrmsr
	0x0f, 0x20, 0xc0, 0x66, 0x0d, 0x01, 0x00, 0x00, 0x80, 0x0f, 0x22, 0xc0, // cr0 |= PG|PE
	0x66, 0xea, 0x45, 0x10, 0x00, 0x00, 0x08, 0x00, // ljmpl $8,$0x1045
	0xb8, 0x10, 0x00, 0x00, 0x00, 0x8e, 0xd8, 0x8e, 0xd0, // ds = ss = 16
	0xbc, 0x00, 0x80, 0x00, 0x00, //       mov $0x8000,%esp
	0xb8, rounds & 0xff, rounds >> 8 & 0xff, rounds >> 16 & 0xff, rounds >> 24, // mov $rounds,%eax
	0x31, 0xdb, //       xor %ebx,%ebx
	0x01, 0xc3, // 2:    add %eax,%ebx
	0x89, 0x1c, 0x25, 0x00, 0x90, 0x00, 0x00, //       mov %ebx,0x9000
	0xff, 0xc8, 0x75, 0xf3, //       dec %eax; jnz 2b
	0x89, 0xd8, 0xe7, resultIO, //       mov %ebx,%eax; out %eax,$resultIO
	0xf4, 0x0f, 0x1f, 0x40, 0x00, //       hlt; padding to 0x1070
	0, 0, 0, 0, 0, 0, 0, 0, // gdt: nothing; 64-bit code; data
	0xff, 0xff, 0x00, 0x00, 0x00, 0x9b, 0xaf, 0x00,
	0xff, 0xff, 0x00, 0x00, 0x00, 0x93, 0xcf, 0x00,
	23, 0x00, 0x70, 0x10, 0x00, 0x00, // gdtr
}

// The ioctls of KVM, from linux/kvm.h.
const (
	kvmGetAPIVersion       = 0xae00
	kvmCreateVM            = 0xae01
	kvmGetVCPUMmapSize     = 0xae04
	kvmGetSupportedCPUID   = 0xc008ae05
	kvmCreateVCPU          = 0xae41
	kvmSetUserMemoryRegion = 0x4020ae46
	kvmSetTSSAddr          = 0xae47
	kvmSetIdentityMapAddr  = 0x4008ae48
	kvmRun                 = 0xae80
	kvmSetRegs             = 0x4090ae82
	kvmGetSregs            = 0x8138ae83
	kvmSetSregs            = 0x4138ae84
	kvmSetCPUID2           = 0x4008ae90

	exitIO = 2

	// Offsets in struct kvm_run.
	offImmediateExit = 1
	offExitReason    = 8
	offIOPort        = 34 // io: direction, size, port, count, data_offset
	offIOData        = 40
)

// region is struct kvm_userspace_memory_region.
type region struct {
	slot, flags     uint32
	guestAddr, size uint64
	userspaceAddr   uint64
}

// cpuid is struct kvm_cpuid2 with room for what any processor says.
type cpuid struct {
	n, pad  uint32
	entries [256][10]uint32
}

// regs and sregs are struct kvm_regs and kvm_sregs, seen as far as is needed.
type (
	regs struct {
		_           [6]uint64
		rsp         uint64
		_           [9]uint64
		rip, rflags uint64
	}
	sregs struct {
		csBase  uint64
		csLimit uint32
		csSel   uint16
		_       [312 - 14]byte
	}
)

// guest is a VM with one processor.
type guest struct {
	vm, vcpu int
	mem, run []byte
}

func ioctl(fd int, req uintptr, arg unsafe.Pointer) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(arg))
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

func ioctlInt(fd int, req, arg uintptr) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// newGuest makes a guest that is ready to run.
func newGuest(dev int) (_ *guest, err error) {
	g := &guest{vm: -1, vcpu: -1}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	if v, err := ioctlInt(dev, kvmGetAPIVersion, 0); err != nil || v != 12 {
		return nil, fmt.Errorf("it speaks version %d of the KVM interface, not 12 (%v)", v, err)
	}
	if g.vm, err = ioctlInt(dev, kvmCreateVM, 0); err != nil {
		g.vm = -1
		return nil, fmt.Errorf("making a VM: %w", err)
	}
	// Intel's processors need these two somewhere; others take no notice.
	identity := uint64(0xfffbc000)
	_, _ = ioctl(g.vm, kvmSetIdentityMapAddr, unsafe.Pointer(&identity))
	_, _ = ioctlInt(g.vm, kvmSetTSSAddr, 0xfffbd000)
	if err := g.memory(); err != nil {
		return nil, fmt.Errorf("giving it memory: %w", err)
	}
	if g.vcpu, err = ioctlInt(g.vm, kvmCreateVCPU, 0); err != nil {
		g.vcpu = -1
		return nil, fmt.Errorf("making a virtual processor: %w", err)
	}
	if err := g.processor(dev); err != nil {
		return nil, fmt.Errorf("setting up a virtual processor: %w", err)
	}
	return g, nil
}

// memory gives the guest its memory, with code and page tables: one page of
// 2 MiB, mapped to itself.
func (g *guest) memory() error {
	var err error
	if g.mem, err = unix.Mmap(-1, 0, memSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return err
	}
	copy(g.mem[codeAddr:], code[:])
	const present, writable, user, large = 1, 2, 4, 0x80
	table := func(n int, entry uint64) { binary.LittleEndian.PutUint64(g.mem[tableAddr+n*pageSize:], entry) }
	table(0, tableAddr+pageSize|present|writable|user)
	table(1, tableAddr+2*pageSize|present|writable|user)
	table(2, large|present|writable|user)
	r := region{size: memSize, userspaceAddr: uint64(uintptr(unsafe.Pointer(&g.mem[0])))}
	_, err = ioctl(g.vm, kvmSetUserMemoryRegion, unsafe.Pointer(&r))
	return err
}

// processor puts the virtual processor at the beginning of the code.
func (g *guest) processor(dev int) error {
	var id cpuid
	id.n = uint32(len(id.entries))
	if _, err := ioctl(dev, kvmGetSupportedCPUID, unsafe.Pointer(&id)); err != nil {
		return err
	}
	if _, err := ioctl(g.vcpu, kvmSetCPUID2, unsafe.Pointer(&id)); err != nil {
		return err
	}
	size, err := ioctlInt(dev, kvmGetVCPUMmapSize, 0)
	if err != nil {
		return err
	}
	if g.run, err = unix.Mmap(g.vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return err
	}
	var s sregs
	if _, err := ioctl(g.vcpu, kvmGetSregs, unsafe.Pointer(&s)); err != nil {
		return err
	}
	s.csBase, s.csSel = 0, 0
	if _, err := ioctl(g.vcpu, kvmSetSregs, unsafe.Pointer(&s)); err != nil {
		return err
	}
	r := regs{rip: codeAddr, rsp: 0x8000, rflags: 2}
	_, err = ioctl(g.vcpu, kvmSetRegs, unsafe.Pointer(&r))
	return err
}

func (g *guest) close() {
	if g.run != nil {
		_ = unix.Munmap(g.run) // nothing else could be done about a refusal
	}
	if g.vcpu >= 0 {
		_ = unix.Close(g.vcpu)
	}
	if g.vm >= 0 {
		_ = unix.Close(g.vm)
	}
	if g.mem != nil {
		_ = unix.Munmap(g.mem)
	}
}

// errStopped is the end of a guest that was told to stop.
var errStopped = errors.New("stopped")

// execute runs the guest until it has written its result. It is for a thread of
// its own, which stop can reach.
func (g *guest) execute(stopped <-chan struct{}) error {
	for {
		_, err := ioctlInt(g.vcpu, kvmRun, 0)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			select {
			case <-stopped:
				return errStopped
			default:
				continue // a signal of the Go runtime
			}
		}
		if err != nil {
			return fmt.Errorf("running a guest: %w", err)
		}
		break
	}
	if reason := binary.NativeEndian.Uint32(g.run[offExitReason:]); reason != exitIO {
		return fmt.Errorf("running a guest: it ended with exit reason %d", reason)
	}
	at := binary.NativeEndian.Uint64(g.run[offIOData:])
	if port := binary.NativeEndian.Uint16(g.run[offIOPort:]); port != resultIO || at > uint64(len(g.run)-4) {
		return fmt.Errorf("running a guest: it wrote to port %#x", port)
	}
	const want = uint32(uint64(rounds) * (rounds + 1) / 2 & 0xffffffff)
	if got := binary.NativeEndian.Uint32(g.run[at:]); got != want {
		return fmt.Errorf("running a guest: it computed %d instead of %d", got, want)
	}
	return nil
}

// run is the probe proper. A guest that does not end in time is interrupted by
// a signal to its thread; if even that does not help, the thread is left behind.
func run(ctx context.Context, dev *os.File) Verdict {
	g, err := newGuest(int(dev.Fd()))
	if err != nil {
		return Verdict{Why: Device + " does not work: " + err.Error()}
	}
	stopped, ended, tid := make(chan struct{}), make(chan error, 1), make(chan int, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		tid <- unix.Gettid()
		ended <- g.execute(stopped)
	}()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	v := Verdict{Usable: true}
	select {
	case err := <-ended:
		g.close()
		if err != nil {
			v = Verdict{Why: Device + " does not work: " + err.Error()}
		}
		return v
	case <-ctx.Done():
		v = Verdict{Why: "the probe of " + Device + " was interrupted"}
	case <-deadline.C:
		v = Verdict{Why: fmt.Sprintf("%s is no faster than an interpreter: a guest did not compute in %v what takes some milliseconds", Device, limit)}
	}
	close(stopped)
	g.run[offImmediateExit] = 1
	// The runtime has a handler for SIGURG, which it sends to its threads itself.
	_ = unix.Tgkill(os.Getpid(), <-tid, unix.SIGURG)
	grace := time.NewTimer(500 * time.Millisecond)
	defer grace.Stop()
	select {
	case <-ended:
		g.close()
	case <-grace.C: // its memory stays mapped: the thread may still use it
	}
	return v
}
