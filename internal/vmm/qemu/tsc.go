package qemu

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// rdtsc reads the processor's time stamp counter.
func rdtsc() uint64

// window is how long the counter is watched. Reading both clocks differs by some
// 100 ns, so the rate is right to 10 parts in a million: less than what
// the guest's clock is corrected by anyway.
const window = 20 * time.Millisecond

// TSC measures the rate of this host's time stamp counter in kHz, which takes
// some 20 ms; or ends with ctx's error. /proc/cpuinfo tells a processor's clock,
// which is another thing, and changes.
func TSC(ctx context.Context) (khz int64, err error) {
	t := time.NewTimer(window)
	defer t.Stop()
	ns0, tsc0, err := both()
	if err != nil {
		return 0, err
	}
	select {
	case <-t.C:
	case <-ctx.Done():
		return 0, fmt.Errorf("measuring the time stamp counter: %w", context.Cause(ctx))
	}
	ns1, tsc1, err := both()
	if err != nil {
		return 0, err
	}
	khz = int64(float64(tsc1-tsc0) * 1e6 / float64(ns1-ns0))
	if khz < 100_000 || khz > 20_000_000 {
		return 0, fmt.Errorf("measuring the time stamp counter: %d kHz cannot be", khz)
	}
	return khz, nil
}

// both reads clock and counter at the same moment: the closest of some tries.
func both() (ns int64, tsc uint64, err error) {
	best := uint64(1) << 63
	for range 16 {
		var ts unix.Timespec
		before := rdtsc()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts); err != nil {
			return 0, 0, fmt.Errorf("measuring the time stamp counter: %w", err)
		}
		after := rdtsc()
		if after-before < best {
			best = after - before
			ns, tsc = ts.Nano(), before+(after-before)/2
		}
	}
	return ns, tsc, nil
}
