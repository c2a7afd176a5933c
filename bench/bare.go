package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"banger/internal/initramfs"
	"banger/internal/vmm"
	"banger/internal/vmm/qemu"
)

// marker is what the bare guest prints once it is in user space.
const marker = "banger-bench-marker\n"

// A bare boot that takes longer than bareLimit, and crowdLimit for each that
// boots beside it, hangs. One in a hundred does in emulation; that is the VMM's
// affair, not a sample.
const (
	bareLimit  = 60 * time.Second
	crowdLimit = 20 * time.Second
)

// errHung is a bare boot that never printed its marker.
var errHung = errors.New("the bare VMM printed no marker")

// A bare is what banger is measured against: the same VMM, machine, kernel and
// command line with as little around them as can be. It has no disk and no
// channel; its init prints a line on the serial console and waits.
type bare struct {
	argv []string
	hung int
	mu   sync.Mutex
}

// spec is the size of a machine.
type spec struct{ vcpus, memoryMiB int }

// flags are those of `vm run`.
func (s spec) flags() []string {
	return []string{"--vcpu", strconv.Itoa(s.vcpus), "--memory", strconv.Itoa(s.memoryMiB) + "M"}
}

// newBare writes the initramfs into dir and decides on the command line: what
// banger's own driver says, of which it leaves out the disks, the channels, the
// entropy device and the sandbox.
func newBare(ctx context.Context, dir, vmlinux string, d qemu.Driver, s spec) (*bare, error) {
	initrd := filepath.Join(dir, "bare.cpio")
	var archive bytes.Buffer
	if err := initramfs.Build(&archive, initramfs.In{Agent: markerInit()}); err != nil {
		return nil, err
	}
	if err := os.WriteFile(initrd, archive.Bytes(), 0o644); err != nil {
		return nil, fmt.Errorf("writing the bare guest's initramfs: %w", err)
	}
	none := vmm.File{Name: "none"} // channels are left out below
	c := vmm.Config{ID: "bench", VCPUs: s.vcpus, MemoryMiB: int64(s.memoryMiB), Cmdline: vmm.Cmdline,
		Kernel: vmm.File{Name: vmlinux}, Initramfs: vmm.File{Name: initrd}, Agent: none, Console: none, Control: none}
	if !d.KVM {
		khz, err := qemu.TSC(ctx)
		if err != nil {
			return nil, err
		}
		c.TSCKHz = khz
	}
	full, err := d.Argv(c)
	if err != nil {
		return nil, err
	}
	return &bare{argv: append(strip(full), "-serial", "stdio", "-monitor", "none")}, nil
}

// strip keeps the options of a command line of QEMU that make the machine.
func strip(argv []string) []string {
	kept := []string{"-nodefaults", "-no-user-config", "-display", "-no-reboot", "-machine", "-accel", "-cpu", "-smp", "-m", "-kernel", "-initrd", "-append"}
	out := argv[:1:1]
	for i := 1; i < len(argv); i++ {
		if !slices.Contains(kept, argv[i]) {
			continue
		}
		out = append(out, argv[i])
		if i+1 < len(argv) && argv[i+1][0] != '-' {
			out = append(out, argv[i+1])
		}
	}
	return out
}

// boot starts the VMM and returns when the marker has come. stop, never nil,
// ends the VMM and waits until it is gone.
func (b *bare) boot(ctx context.Context, limit time.Duration) (stop func(), err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errHung)
	cmd := exec.CommandContext(ctx, b.argv[0], b.argv[1:]...)
	// A companion is a session of its own. Where the scheduler shares the
	// processors between sessions first (sched(7), autogroup), that is worth
	// something on a busy machine: the bare VMM gets it too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		cancel()
		return func() {}, fmt.Errorf("starting the bare VMM: %w", err)
	}
	if err := cmd.Start(); err != nil {
		cancel()
		return func() {}, fmt.Errorf("starting the bare VMM: %w", err)
	}
	stop = func() {
		cancel()
		_ = cmd.Wait() // it was killed: that is no news
	}
	seen, err := awaitMarker(out)
	switch {
	case err == nil:
		return stop, nil
	case ctx.Err() != nil:
		return stop, context.Cause(ctx)
	}
	stop()
	return func() {}, fmt.Errorf("booting the bare VMM: %w: %s%s", err, stderr.Bytes(), seen)
}

// awaitMarker reads until the marker has come; seen is what came instead.
func awaitMarker(r io.Reader) (seen []byte, err error) {
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		seen = append(seen, buf[:n]...)
		// The console turns a line's end into two bytes.
		if bytes.Contains(seen, []byte(marker[:len(marker)-1])) {
			return seen, nil
		}
		if err != nil {
			return seen, err
		}
	}
}

// one is a side of a pair: one boot. A boot that hangs is begun anew, and its
// time is not the sample's.
func (b *bare) one(ctx context.Context) (outcome, error) { return b.several(ctx, 1) }

// several boots n at once and takes the time until the last marker.
func (b *bare) several(ctx context.Context, n int) (outcome, error) {
	for try := 1; ; try++ {
		began := time.Now()
		stops, errs := make([]func(), n), make([]error, n)
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() { stops[i], errs[i] = b.boot(ctx, bareLimit+time.Duration(n-1)*crowdLimit) })
		}
		wg.Wait()
		o := outcome{wall: time.Since(began)}
		for _, stop := range stops {
			stop()
		}
		err := errors.Join(errs...)
		if !errors.Is(err, errHung) || try == 3 {
			return o, err
		}
		b.mu.Lock()
		b.hung++
		b.mu.Unlock()
	}
}

// note says how often a boot hung.
func (b *bare) note() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hung == 0 {
		return ""
	}
	return fmt.Sprintf("%d bare boots hung and were repeated", b.hung)
}

// markerInit is the smallest init there can be: an ELF program of 173
// bytes that writes the marker to its standard output and sleeps. A compiled
// one would cost the bare side its loading, and flatter us.
func markerInit() []byte {
	const (
		base       = 0x400000
		headerSize = 64
		phdrSize   = 56
		start      = headerSize + phdrSize
	)
	code := []byte{
		0xb8, 1, 0, 0, 0, // mov eax, 1 (write)
		0xbf, 1, 0, 0, 0, // mov edi, 1
		0x48, 0x8d, 0x35, 16, 0, 0, 0, // lea rsi, [rip+16]: behind this code
		0xba, byte(len(marker)), 0, 0, 0, // mov edx, len
		0x0f, 0x05, // syscall
		0xb8, 34, 0, 0, 0, // mov eax, 34 (pause)
		0x0f, 0x05, // syscall
		0xeb, 0xf7, // jmp to the mov before
	}
	code = append(code, marker...)
	size := uint64(start + len(code))
	le := binary.LittleEndian
	// The ELF header, as elf(5) has it: 64 bits, little-endian, x86-64.
	b := append([]byte("\x7fELF"), 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = le.AppendUint16(b, 2)    // ET_EXEC
	b = le.AppendUint16(b, 0x3e) // EM_X86_64
	b = le.AppendUint32(b, 1)
	for _, v := range []uint64{base + start, headerSize, 0} { // entry, program headers, sections
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{headerSize, phdrSize, 1, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	// One segment: the whole file, readable and executable.
	b = le.AppendUint32(b, 1)
	b = le.AppendUint32(b, 5)
	for _, v := range []uint64{0, base, base, size, size, 0x1000} {
		b = le.AppendUint64(b, v)
	}
	return append(b, code...)
}
