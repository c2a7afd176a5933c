package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// An outcome is what one run of a side says of itself. wall is 0 if the side is
// what the run did from beginning to end.
type outcome struct{ wall time.Duration }

// A side is one of the two things that are compared.
type side func(ctx context.Context) (outcome, error)

// A pair is two sides and what happens between their runs, outside the time.
type pair struct {
	a, b  side
	after func(ctx context.Context) error // after each run; may be nil
}

// figures are what a row has measured.
type figures struct {
	a, b   []sample
	values []float64 // instead of ratios
	note   string
}

// interleave runs both sides once to warm up and then n times in turn: what
// the machine does meanwhile weighs on both.
func (l *lab) interleave(ctx context.Context, n int, p pair) (figures, error) {
	var f figures
	for i := range n + 1 {
		for _, s := range []struct {
			name string
			run  side
			to   *[]sample
		}{{"a", p.a, &f.a}, {"b", p.b, &f.b}} {
			got, err := l.timed(ctx, s.run)
			if err == nil && p.after != nil {
				err = p.after(ctx)
			}
			if err != nil {
				return f, fmt.Errorf("run %d of side %s: %w", i, s.name, err)
			}
			if i > 0 {
				*s.to = append(*s.to, got)
			}
		}
		if i > 0 && (n < quick || i == n) {
			l.tell("%s %d/%d: %.3f s against %.3f s", l.row, i, n, f.a[i-1].wall.Seconds(), f.b[i-1].wall.Seconds())
		}
	}
	return f, nil
}

// timed runs one side.
func (l *lab) timed(ctx context.Context, s side) (sample, error) {
	cpu, began := l.cpu(), time.Now()
	o, err := s(ctx)
	wall := time.Since(began)
	if o.wall > 0 {
		wall = o.wall
	}
	return sample{wall: wall, cpu: l.cpu() - cpu}, err
}

// adopt makes this process the parent of every process that is started for it
// and then left alone: daemon, companions, VMMs. So their CPU time is told
// when they end (prctl(2), PR_SET_CHILD_SUBREAPER).
func adopt() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("becoming a subreaper: %w", err)
	}
	return nil
}

// cpu is the processor time that was used so far by this process, by those
// that have ended, and by the ones that are watched with their children. It may
// only be called while no command of ours runs, for it reaps what has ended.
func (l *lab) cpu() time.Duration {
	for {
		if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != nil || pid <= 0 {
			break
		}
	}
	var sum time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	for _, pid := range l.watched {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err == nil {
			sum += statCPU(string(b))
		}
	}
	return sum
}

// userHZ is the unit of times in /proc/PID/stat: 100 on every Linux x86-64.
const userHZ = 100

// statCPU adds up utime, stime, cutime and cstime, fields 14 to 17 of a line of
// /proc/PID/stat (proc(5)). The name before them may hold anything.
func statCPU(line string) time.Duration {
	fields := strings.Fields(line[strings.LastIndexByte(line, ')')+1:])
	const utime = 14 - 3 // the first field behind the name is number 3
	if len(fields) < utime+4 {
		return 0
	}
	var ticks int64
	for _, f := range fields[utime : utime+4] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / userHZ
}
