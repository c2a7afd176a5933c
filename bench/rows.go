package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"banger/internal/vmm/qemu"
)

// A row is one benchmark: what is measured, what it is measured against, and
// what was aimed at. docs/benchmarks.md defines each.
type row struct {
	name, what string
	unit       string // of the figure; "" is a ratio
	bar, goal  float64
	needs      []string // programs, besides those that every row needs
	golden     bool     // the default image
	measure    func(ctx context.Context, l *lab, n int) (figures, error)
}

// virtual are the programs without which there is no VM.
var virtual = []string{qemu.Program, "mmdebstrap"}

// rows are the benchmarks in the order in which they run. The one that traces
// the daemon is the last.
func rows() []row {
	ssh := []string{"ssh"}
	return []row{
		{name: "cold", what: "vm run --rm -- true, small image / bare VMM", bar: 1.8, goal: 1.25, measure: coldRow(small)},
		{name: "golden-agent", what: "the same, default image, --wait agent / bare VMM", bar: 2.0, goal: 1.6, golden: true, measure: coldRow(golden, "--wait", "agent")},
		{name: "golden-sockets", what: "the same, --wait sockets / bare VMM", bar: 4.0, golden: true, measure: coldRow(golden, "--wait", "sockets")},
		{name: "burst", what: "10 cold runs at once / 10 bare VMMs at once", bar: 1.5, goal: 1.1, measure: burstRow},
		{name: "exec", what: "vm exec -- true / a fresh ssh of the same guest", bar: 0.3, goal: 0.1, needs: ssh, golden: true, measure: execRow},
		{name: "workspace", what: "11,000 files, 130 MB into a guest / tar over a fresh ssh", bar: 1.1, goal: 0.4, needs: []string{"ssh", "git", "tar", "sh"}, golden: true, measure: workspaceRow},
		{name: "disk-small", what: "disk of a VM after vm run -- true, small image", unit: "MiB", bar: 8, goal: 1, measure: diskRow(small)},
		{name: "disk-golden", what: "the same, default image", unit: "MiB", bar: 8, goal: 1, golden: true, measure: diskRow(golden)},
		{name: "version", what: "banger --version, beside /bin/true", unit: "ms", bar: 10, goal: 3, measure: versionRow},
		{name: "list", what: "vm list with 100 VMs / banger --version", bar: 4, goal: 1.7, measure: listRow},
		{name: "processes", what: "programs executed by vm run --rm -- true, daemon running", unit: "execs", bar: 4, goal: 4, needs: []string{"strace"}, measure: processesRow},
	}
}

// oneShot is a `vm run` that leaves nothing.
func oneShot(image string, flags ...string) []string {
	s := smallSpec
	if image == golden {
		s = goldenSpec
	}
	args := append([]string{"vm", "run", "--rm", "--image", image}, s.flags()...)
	return append(append(args, flags...), "--", "true")
}

func coldRow(image string, flags ...string) func(context.Context, *lab, int) (figures, error) {
	return func(ctx context.Context, l *lab, n int) (figures, error) {
		f, err := l.interleave(ctx, n, pair{a: l.doing(oneShot(image, flags...)...), b: l.bare.one})
		f.note = l.bare.note()
		return f, err
	}
}

// atOnce is how many VMs a burst has.
const atOnce = 10

func burstRow(ctx context.Context, l *lab, n int) (figures, error) {
	f, err := l.interleave(ctx, n, pair{
		a: func(ctx context.Context) (outcome, error) {
			errs := make([]error, atOnce)
			var wg sync.WaitGroup
			for i := range atOnce {
				wg.Go(func() { _, errs[i] = l.run(ctx, oneShot(small)...) })
			}
			wg.Wait()
			return outcome{}, errors.Join(errs...)
		},
		b: func(ctx context.Context) (outcome, error) { return l.bare.several(ctx, atOnce) },
	})
	f.note = l.bare.note()
	return f, err
}

// diskSamples is how many VMs are looked at: they differ by a block or two.
const diskSamples = 3

// diskRow looks at the VM's directory while the VM runs and after it was shut
// down, when everything the guest held back is written, and takes the larger.
func diskRow(image string) func(context.Context, *lab, int) (figures, error) {
	return func(ctx context.Context, l *lab, _ int) (f figures, err error) {
		for range diskSamples {
			used, err := l.diskOf(ctx, image)
			if err != nil {
				return f, err
			}
			f.values = append(f.values, float64(used)/(1<<20))
		}
		return f, nil
	}
}

func (l *lab) diskOf(ctx context.Context, image string) (used int64, err error) {
	const name = "disk"
	s := smallSpec
	if image == golden {
		s = goldenSpec
	}
	args := append([]string{"vm", "run", "--name", name, "--image", image}, s.flags()...)
	if _, err := l.run(ctx, append(args, "--", "true")...); err != nil {
		return 0, err
	}
	defer func() {
		_, derr := l.run(context.WithoutCancel(ctx), "vm", "delete", name)
		err = errors.Join(err, derr)
	}()
	var m struct {
		ID string `json:"id"`
	}
	if err := l.ask(ctx, &m, "vm", "show", name); err != nil {
		return 0, err
	}
	dir := filepath.Join(l.layout.VMs, m.ID)
	running, err := allocated(dir)
	if err != nil {
		return 0, err
	}
	if _, err := l.run(ctx, "vm", "stop", name); err != nil {
		return 0, err
	}
	stopped, err := allocated(dir)
	return max(running, stopped), err
}

// allocated is what du says: bytes of the blocks below dir, holes left out.
func allocated(dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			sum += st.Blocks * 512 // the unit of st_blocks, whatever the file system's (stat(2))
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("adding up the VM's files: %w", err)
	}
	return sum, nil
}

// quick is how many pairs commands of milliseconds get.
const quick = 30

func versionRow(ctx context.Context, l *lab, _ int) (figures, error) {
	f, err := l.interleave(ctx, quick, pair{
		a: l.doing("--version"),
		b: func(ctx context.Context) (outcome, error) {
			_, err := output(l.command(ctx, "/bin/true"))
			return outcome{}, err
		},
	})
	for _, s := range f.a {
		f.values = append(f.values, s.wall.Seconds()*1000)
	}
	return f, err
}

// listed is how many VMs there are when they are listed.
const listed = 100

func listRow(ctx context.Context, l *lab, _ int) (f figures, err error) {
	var made []string
	defer func() {
		if len(made) > 0 {
			_, derr := l.run(context.WithoutCancel(ctx), append([]string{"vm", "delete"}, made...)...)
			err = errors.Join(err, derr)
		}
	}()
	for i := range listed {
		name := fmt.Sprintf("listed-%03d", i)
		args := append([]string{"vm", "create", "--no-start", "--image", small, "--name", name}, smallSpec.flags()...)
		if _, err := l.run(ctx, args...); err != nil {
			return f, err
		}
		made = append(made, name)
	}
	out, err := l.run(ctx, "vm", "list", "-q")
	if err != nil {
		return f, err
	}
	if got := len(strings.Fields(out)); got < listed {
		return f, fmt.Errorf("counting the VMs: vm list has %d, want %d", got, listed)
	}
	return l.interleave(ctx, quick, pair{a: l.doing("vm", "list"), b: l.doing("--version")})
}
