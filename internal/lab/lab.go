// Package lab boots a throw-away Debian machine whose KVM works, and runs things
// in it as root.
//
// Most of banger's system mode changes the machine that it runs on, and needs
// what few machines offer: systemd as PID 1, a KVM that runs guests, a network of
// one's own. The lab machine has all of that anywhere: it is emulated by QEMU,
// its processor has AMD's virtualization, and it has no network device. Its image
// is built by our own recipe and ext4 code, kept in the user's cache by content,
// and never changed: what a job writes is gone when the machine ends.
//
// A [Job] brings files in, runs steps, and takes results out. The package knows
// nothing of what is tested; internal/cmd/lab says which tests run here. Only
// tests and that program use it. See docs/lab.md.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/labwire"
	"banger/internal/testneed"
)

// Places in the machine.
const (
	// Dir is where a job's files are.
	Dir = labwire.Dir
	// Out is the directory that comes back. All accounts may write there.
	Out = labwire.Out
)

// Limits where a job says nothing.
const (
	defaultLimit     = 15 * time.Minute
	defaultStepLimit = 5 * time.Minute
	bootLimit        = 3 * time.Minute // on a machine that does much else
	defaultMemory    = 4096
	defaultCPUs      = 2
)

// A Job is what one lab machine does. It boots, takes the files in, runs the
// steps one after the other, and is gone.
type Job struct {
	Files []File
	Disks []Disk
	Steps []Step
	// KeepGoing runs the steps after one that failed, too.
	KeepGoing bool
	// Limit is for all of it, with the boots but without building the machine;
	// zero is 15 minutes.
	Limit time.Duration
	// Silence is how long a machine that runs a step may say nothing at all before
	// it is taken for dead; zero is 2 minutes. It says that it lives every few
	// seconds, on a busy host ten times later.
	Silence time.Duration
	// Print gets what the steps print and what the lab itself has to say, line by
	// line. It may be nil.
	Print io.Writer
	// Results is a directory that gets "out", which is [Out] with the journal as
	// journal.txt, and console.txt. Empty: nothing is brought back.
	Results string
	// Shell gives the caller's terminal to a root shell on the console, after the
	// steps, until the machine is powered off. There is no limit then.
	Shell bool
	// MemoryMiB and CPUs are the machine's; zero is 4096 and 2.
	MemoryMiB, CPUs int
}

// A File goes to Dir/Name in the machine, owned by root.
type File struct {
	Name string
	// Path is a file of this host, or a directory with all that is in it. Links
	// are followed. If it is empty, Body is the content.
	Path string
	Body []byte
	// Mode is the permission bits; zero takes those of Path, or 0755.
	Mode os.FileMode
}

// A Disk is a file of this host that the machine reads as a disk, for what is too
// large to be copied: /dev/disk/by-id/virtio-NAME there.
type Disk struct {
	Name string // letters, digits and hyphens, at most 20
	Path string // of a multiple of 512 bytes
}

// Before is what happens to the machine before a step.
type Before int

const (
	// Nothing happens; this is the zero Before.
	Nothing Before = iota
	// Reboot has systemd reboot it in good order.
	Reboot
	// PowerCut resets it without a word, as a power failure would.
	PowerCut
)

// A Step is a command: Argv, or Script for "bash -e".
type Step struct {
	Name   string // for people; the command if empty
	Argv   []string
	Script string
	User   string   // an account, as [Owner]; empty is root
	Env    []string // on top of what a login gives, BANGER_LAB=1, and GOCOVERDIR
	Dir    string   // where it runs; empty is [Dir]
	Before Before
	// Limit ends it with SIGQUIT, so that Go programs say where they hang; zero
	// is 5 minutes.
	Limit time.Duration
	// Want is the exit status that is right.
	Want int
}

func (s Step) name() string {
	switch {
	case s.Name != "":
		return s.Name
	case s.Script != "":
		line, _, _ := strings.Cut(strings.TrimSpace(s.Script), "\n")
		return line
	}
	return strings.Join(s.Argv, " ")
}

// An Outcome is how a step ended.
type Outcome struct {
	Name     string
	Status   int    // as in a shell: 128 and the signal
	TimedOut bool   // it met its limit
	Problem  string // why it could not run; empty if it did
	Tail     string // the end of what it printed
	Took     time.Duration
	Want     int
}

// Err is nil if the step did what it should.
func (o Outcome) Err() error {
	switch {
	case o.TimedOut:
		return fmt.Errorf("step %q was ended at its limit, after %v; it printed last:\n%s", o.Name, o.Took.Round(time.Second), o.Tail)
	case o.Problem != "":
		return fmt.Errorf("step %q: %s", o.Name, o.Problem)
	case o.Status != o.Want:
		return fmt.Errorf("step %q: exit status %d, want %d; it printed last:\n%s", o.Name, o.Status, o.Want, o.Tail)
	}
	return nil
}

// A Boot is one time that the machine booted.
type Boot struct {
	Took   time.Duration // from QEMU's start, or from the reboot's
	Inside time.Duration // from its kernel's start
	State  string        // what systemctl is-system-running says
	ID     string        // the kernel's boot id
}

// A Result is what a job came to.
type Result struct {
	Steps []Outcome // those that ran
	Boots []Boot
	Took  time.Duration // without building the machine
}

// Err says which steps went wrong.
func (r Result) Err() error {
	var errs []error
	for _, o := range r.Steps {
		errs = append(errs, o.Err())
	}
	return errors.Join(errs...)
}

// A HangError says that the machine itself did not get on: it did not boot, or
// did not answer, or its kernel panicked, or QEMU ended.
type HangError struct {
	During  string // what was being waited for
	Why     string
	Console string // the console's last lines
	Mute    bool   // it lives, as far as can be seen, and says nothing
	InGuest bool   // its console tells of a fault while KVM ran a guest
}

// Emulated reports whether this is what QEMU's emulation of a processor that
// virtualizes does now and then, with nobody at fault (docs/lab.md): both
// processors are busy and nothing happens, or the kernel panics while KVM runs a
// guest.
func (e *HangError) Emulated() bool { return e.Mute || e.Why == panicked && e.InGuest }

// panicked is the Why of a machine whose kernel did.
const panicked = "its kernel panicked"

// Error has all of it.
func (e *HangError) Error() string {
	return fmt.Sprintf("lab machine, %s: %s; the console's last lines:\n%s", e.During, e.Why, e.Console)
}

// Run does a job for a test, which fails if a step goes wrong. It ends the test
// where the lab cannot be: see [testneed.Missing]. The results are in a
// directory of the test's if the job names none.
func Run(t testing.TB, j Job) Result {
	t.Helper()
	testneed.QEMU(t)
	testneed.Tool(t, "mmdebstrap")
	if j.Print == nil {
		j.Print = t.Output()
	}
	r, err := Do(t.Context(), j)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	return r
}

// Do does a job. The error is nil if the machine did what it was asked,
// whatever the steps came to: that is in the Result.
func Do(ctx context.Context, j Job) (_ Result, err error) {
	if j.Print == nil {
		j.Print = io.Discard
	}
	m, err := prepare(ctx, func(s string) { say(j.Print, "%s", s) })
	if err != nil {
		return Result{}, err
	}
	defer m.lock.Close()
	limit := j.Limit
	if limit == 0 {
		limit = defaultLimit
	}
	if !j.Shell {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("the job's limit of %v has passed", limit))
		defer cancel()
	}
	if j.Results != "" {
		if err := os.MkdirAll(j.Results, 0o755); err != nil {
			return Result{}, err
		}
	}
	began := time.Now()
	v, err := start(ctx, m, j)
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, v.end()) }()
	say(j.Print, "booting")
	d := &doing{vm: v, job: j}
	err = d.all(ctx)
	d.result.Took = time.Since(began)
	return d.result, err
}

// say prints a line of the lab's own.
func say(w io.Writer, format string, args ...any) {
	fmt.Fprintf(w, "lab: "+format+"\n", args...) //nolint:errcheck // it is for people
}

// consolePath is where the console goes, or "".
func (j Job) consolePath() string {
	if j.Results == "" {
		return ""
	}
	return filepath.Join(j.Results, "console.txt")
}
