// Command bench measures banger against what one would use without it, and
// prints the ratios as a table and as JSON.
//
//	go run ./bench -banger build/bin/banger [-json FILE] [-only NAME,...] [-n PAIRS]
//
// Both sides of a row run in turn in one run, so that a slow machine weighs on
// both; docs/benchmarks.md defines each row. A missed bar is told, never a
// failure: only what could not be measured is. It works in directories of its
// own and leaves nothing but the packages in the cache that the tests share.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"banger/internal/smallimage"
)

// options are the command line.
type options struct {
	banger, json, only string
	pairs              int
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	flag.StringVar(&o.banger, "banger", "build/bin/banger", "the `program` to measure, its daemon beside it")
	flag.StringVar(&o.json, "json", "", "write the JSON to `FILE` instead of behind the table")
	flag.StringVar(&o.only, "only", "", "measure these rows, by `NAME,...`")
	flag.IntVar(&o.pairs, "n", 10, "`PAIRS` of each row of VMs")
	flag.Parse()
	if err := bench(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// bench measures the chosen rows and prints what came of it.
func bench(ctx context.Context, o options) (err error) {
	if flag.NArg() > 0 || o.pairs < 1 {
		return errors.New("reading the command line: there are flags only, and at least one pair; see -h")
	}
	chosen, err := choose(o.only)
	if err != nil {
		return err
	}
	program, err := filepath.Abs(o.banger)
	if err != nil {
		return fmt.Errorf("finding banger: %w", err)
	}
	if missing := lacking(program, chosen); len(missing) > 0 {
		return fmt.Errorf("measuring needs what is not here: %s (make bench installs and builds it)", strings.Join(missing, ", "))
	}
	if err := adopt(); err != nil {
		return err
	}
	l, err := newLab(program, os.Stderr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.end(ctx)) }()
	if err := l.fill(ctx); err != nil {
		return err
	}
	rep := newReport(ctx, l, o.pairs)
	for _, r := range chosen {
		rep.add(r, l.measure(ctx, r, o.pairs))
		if ctx.Err() != nil {
			break
		}
	}
	if err := rep.print(os.Stdout, o.json); err != nil {
		return err
	}
	return rep.failed()
}

// measured is what became of a row.
type measured struct {
	figures
	err error
}

// measure runs one row. What goes wrong there is the row's affair.
func (l *lab) measure(ctx context.Context, r row, n int) measured {
	l.row = r.name
	l.tell("%s: %s", r.name, r.what)
	if r.golden {
		if err := l.needGolden(ctx); err != nil {
			return measured{err: err}
		}
	}
	if err := l.refresh(ctx); err != nil {
		return measured{err: err}
	}
	f, err := r.measure(ctx, l, n)
	if err != nil {
		l.tell("%s: %v", r.name, err)
	}
	return measured{figures: f, err: err}
}

// choose picks rows by name; all, if none are named.
func choose(only string) ([]row, error) {
	all := rows()
	if only == "" {
		return all, nil
	}
	var known []string
	for _, r := range all {
		known = append(known, r.name)
	}
	wanted := strings.Split(only, ",")
	for _, name := range wanted {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("choosing rows: there is no %q; there are %s", name, strings.Join(known, ", "))
		}
	}
	return slices.DeleteFunc(all, func(r row) bool { return !slices.Contains(wanted, r.name) }), nil
}

// lacking names what this machine does not have for the rows.
func lacking(program string, chosen []row) []string {
	var missing []string
	want := slices.Clone(virtual)
	for _, r := range chosen {
		want = append(want, r.needs...)
	}
	slices.Sort(want)
	for _, name := range slices.Compact(want) {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, "the program "+name)
		}
	}
	if _, err := smallimage.Busybox(); err != nil {
		missing = append(missing, "a static busybox")
	}
	for _, sibling := range []string{"", "d", "-companion", "-vsock-agent"} {
		if _, err := os.Stat(program + sibling); err != nil {
			missing = append(missing, program+sibling)
		}
	}
	return missing
}
