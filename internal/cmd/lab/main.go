// Command lab runs the tests that need a machine of their own, in the lab
// machine: see docs/lab.md.
//
//	go run ./internal/cmd/lab [flags] [test]    the tests of lab.txt
//	go run ./internal/cmd/lab [flags] run FILE  a bash script
//	go run ./internal/cmd/lab shell             a root shell; poweroff ends it
//
// In all three the machine has banger's binaries in /lab/bin, Firecracker in
// /lab/firecracker, and a small guest in /lab/guest, its image's tar included.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/internal/lab"
	"banger/internal/smallimage"
	"banger/internal/vmtest"
)

// options are the command line.
type options struct {
	run     string // a pattern, as for go test
	list    string // the file that names the packages
	results string // a directory
	cover   bool
	limit   time.Duration // of all
	disks   []lab.Disk
	args    []string // the verb, and what it works on
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	flag.StringVar(&o.run, "run", "", "run only tests that match, as go test -run")
	flag.StringVar(&o.list, "list", "lab.txt", "file with the packages")
	flag.StringVar(&o.results, "results", "build/lab", "directory for results; what it held is removed")
	flag.BoolVar(&o.cover, "cover", false, "build for coverage; the data come to RESULTS/out/cover")
	flag.DurationVar(&o.limit, "limit", 35*time.Minute, "how long all of it may take")
	flag.Func("disk", "`NAME=FILE`: a file of this host that the machine reads as /dev/disk/by-id/virtio-NAME", func(v string) error {
		name, path, ok := strings.Cut(v, "=")
		if !ok {
			return errors.New("want NAME=FILE")
		}
		o.disks = append(o.disks, lab.Disk{Name: name, Path: path})
		return nil
	})
	flag.Parse()
	o.args = flag.Args()
	if err := do(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

// do puts a job together, has the lab do it, and says how it went.
func do(ctx context.Context, o options) error {
	work, err := os.MkdirTemp("", "banger-lab-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work) //nolint:errcheck // nothing depends on it
	if err := os.RemoveAll(o.results); err != nil {
		return err
	}
	j := lab.Job{Results: o.results, Print: os.Stdout, Limit: o.limit, KeepGoing: true, Disks: o.disks}
	if j.Files, err = kit(ctx, o, work); err != nil {
		return err
	}
	switch verb := append(o.args, "test")[0]; {
	case verb == "test" && len(o.args) <= 1:
		err = o.tests(ctx, &j, work)
	case verb == "run" && len(o.args) == 2:
		err = script(&j, o.args[1])
	case verb == "shell" && len(o.args) == 1:
		j.Shell, j.Results = true, ""
	default:
		return errors.New("usage: lab [flags] [test | run FILE | shell]")
	}
	if err != nil {
		return err
	}
	r, err := doAgain(ctx, j)
	if err != nil {
		return err
	}
	fmt.Printf("lab: %d steps in %.1f s, boots", len(r.Steps), r.Took.Seconds())
	for _, b := range r.Boots {
		fmt.Printf(" %.1f s", b.Took.Seconds())
	}
	fmt.Println()
	return r.Err()
}

// The emulator is not perfect: see docs/lab.md, "When it fails". What it breaks is
// done again in a new machine, and said.
const (
	mostMachines = 4 // for one job
	mostAgain    = 4 // times that a step of a job may be done again
)

// resets are what banger says, to one or another, when a guest has reset; none
// does by itself in these tests but in those that say so.
var resets = []string{"the guest rebooted", "the connection to the guest was lost", "did not call home"}

// resetting takes what a job prints, and knows in which steps a guest reset.
type resetting struct {
	io.Writer
	mu    sync.Mutex // guards what follows
	step  string
	among map[string]bool
}

// Write takes whole lines, as a job prints them; what the lab itself has to say
// is one of its own.
func (r *resetting) Write(line []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if name, ok := bytes.CutPrefix(line, []byte("lab: == ")); ok {
		r.step = strings.TrimSpace(string(name))
		r.among[r.step] = false
	}
	for _, word := range resets {
		r.among[r.step] = r.among[r.step] || bytes.Contains(line, []byte(word))
	}
	return r.Writer.Write(line)
}

// during reports whether a guest reset in the last run of a step.
func (r *resetting) during(step string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.among[step]
}

// doAgain does a job, and the steps that failed with a guest that reset once more
// in a new machine. Who fails without one has failed.
func doAgain(ctx context.Context, j lab.Job) (all lab.Result, err error) {
	steps, out := j.Steps, &resetting{Writer: j.Print, among: map[string]bool{}}
	j.Print = out
	all, err = onward(ctx, j)
	again := 0
	for i := 0; i < len(all.Steps) && err == nil; i++ {
		for ; all.Steps[i].Err() != nil && out.during(steps[i].Name) && again < mostAgain && err == nil; again++ {
			fmt.Printf("lab: %v\nlab: a guest has reset: once more, in a new machine\n", all.Steps[i].Err())
			first := begins(steps, i)
			j.Steps = steps[first : i+1]
			var r lab.Result
			if r, err = onward(ctx, j); err == nil {
				all.Steps[i] = r.Steps[i-first]
			}
			all.Boots, all.Took = append(all.Boots, r.Boots...), all.Took+r.Took
		}
	}
	return all, err
}

// onward does a job, and what is left of it in a new machine where one falls
// silent or panics by the emulator's fault.
func onward(ctx context.Context, j lab.Job) (all lab.Result, err error) {
	for n := 1; ; n++ {
		r, err := lab.Do(ctx, j)
		all.Steps, all.Boots, all.Took = append(all.Steps, r.Steps...), append(all.Boots, r.Boots...), all.Took+r.Took
		hang, ok := errors.AsType[*lab.HangError](err)
		if !ok || !hang.Emulated() || len(r.Steps) == len(j.Steps) || n == mostMachines {
			return all, err
		}
		next := begins(j.Steps, len(r.Steps))
		all.Steps = all.Steps[:len(all.Steps)-len(r.Steps)+next]
		fmt.Printf("lab: %v\nlab: once more, in a new machine, from step %q on\n", err, j.Steps[next].Name)
		j.Steps = j.Steps[next:]
	}
}

// begins is the step that must be done for step i to be: what comes after a
// reboot goes on from what was before.
func begins(steps []lab.Step, i int) int {
	for i > 0 && steps[i].Before != lab.Nothing {
		i--
	}
	return i
}

// kit is what every job has: banger's binaries, Firecracker, and a guest.
func kit(ctx context.Context, o options, work string) ([]lab.File, error) {
	bin := filepath.Join(work, "bin")
	if err := goCommand(ctx, o, "build", "-o", bin+"/", "./cmd/..."); err != nil {
		return nil, err
	}
	files, err := lab.Firecracker(ctx)
	if err != nil {
		return nil, err
	}
	k, err := vmtest.MakeKernel(ctx)
	if err != nil {
		return nil, err
	}
	guest := filepath.Join(work, "guest")
	if err := os.Mkdir(guest, 0o755); err != nil {
		return nil, err
	}
	g, err := vmtest.MakeGuest(ctx, k, guest)
	if err != nil {
		return nil, err
	}
	busybox, err := smallimage.Busybox()
	if err != nil {
		return nil, err
	}
	var small bytes.Buffer
	if err := smallimage.Write(&small, busybox); err != nil {
		return nil, err
	}
	return append(files, lab.File{Name: "bin", Path: bin}, lab.File{Name: "guest/small.tar", Body: small.Bytes(), Mode: 0o644},
		lab.File{Name: "kernel/vmlinux", Path: g.Vmlinux}, lab.File{Name: "kernel/kernel.tar", Path: k.Tar},
		lab.File{Name: "guest/initramfs", Path: g.Initramfs}, lab.File{Name: "guest/base", Path: g.Base}), nil
}

// environment tells tests where things are.
var environment = []string{vmtest.KernelEnv + "=" + lab.Dir + "/kernel", vmtest.GuestEnv + "=" + lab.Dir + "/guest"}

// goCommand builds for the lab: static, with the tag.
func goCommand(ctx context.Context, o options, verb string, args ...string) error {
	argv := []string{verb, "-buildvcs=false", "-trimpath", "-tags", "lab", "-ldflags", "-s -w"} // as make build does
	if o.cover {
		argv = append(argv, "-cover", "-coverpkg=banger/...")
	}
	cmd := exec.CommandContext(ctx, "go", append(argv, args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go %s: %w", strings.Join(cmd.Args[1:], " "), err)
	}
	return nil
}

// script makes a file the job's only step.
func script(j *lab.Job, name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	j.Steps = []lab.Step{{Name: name, Script: string(b), Env: environment, Limit: j.Limit}}
	return nil
}

// tests compiles the packages of the list, each a step.
func (o options) tests(ctx context.Context, j *lab.Job, work string) error {
	f, err := os.Open(o.list)
	if err != nil {
		return err
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		words := strings.Fields(sc.Text())
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		if err := o.pkg(ctx, j, work, append(words, "")); err != nil {
			return err
		}
	}
	if len(j.Steps) == 0 {
		return fmt.Errorf("%s names no package", o.list)
	}
	return nil
}

// pkg compiles the tests of one package: words are its path and a pattern, and
// before them what happens first and who runs them.
func (o options) pkg(ctx context.Context, j *lab.Job, work string, words []string) error {
	step := lab.Step{Limit: o.limit, Env: environment}
	for ; !strings.HasPrefix(words[0], "./"); words = words[1:] {
		switch words[0] {
		case "reboot":
			step.Before = lab.Reboot
		case "powercut":
			step.Before = lab.PowerCut
		case lab.Owner, lab.Other:
			step.User = words[0]
		default:
			return fmt.Errorf("%s: %q means nothing", o.list, words[0])
		}
	}
	rel := strings.TrimPrefix(filepath.Clean(words[0]), "./")
	at := "test/" + rel
	if err := o.compile(ctx, j, work, rel); err != nil {
		return err
	}
	argv := []string{"./lab.test", "-test.v", "-test.timeout=0"}
	pattern := words[1]
	if o.run != "" {
		pattern = o.run
	}
	if pattern != "" {
		argv = append(argv, "-test.run="+pattern)
	}
	if o.cover {
		argv = append(argv, "-test.gocoverdir="+lab.Out+"/cover")
	}
	step.Name, step.Argv, step.Dir = strings.TrimSpace(step.User+" "+rel+" "+pattern), argv, lab.Dir+"/"+at
	j.Steps = append(j.Steps, step)
	return nil
}

// compile adds the test binary of a package and its testdata to the files, once.
func (o options) compile(ctx context.Context, j *lab.Job, work, rel string) error {
	at, binary := "test/"+rel, filepath.Join(work, "test", rel, "lab.test")
	if _, err := os.Stat(binary); err == nil {
		return nil // an earlier line has named it
	}
	if err := os.MkdirAll(filepath.Dir(binary), 0o755); err != nil {
		return err
	}
	if err := goCommand(ctx, o, "test", "-c", "-o", binary, "./"+rel); err != nil {
		return err
	}
	if _, err := os.Stat(binary); err != nil {
		return fmt.Errorf("%s of %s has no tests with the tag lab", rel, o.list)
	}
	j.Files = append(j.Files, lab.File{Name: at + "/lab.test", Path: binary})
	if data := filepath.Join(rel, "testdata"); isDir(data) {
		j.Files = append(j.Files, lab.File{Name: at + "/testdata", Path: data})
	}
	return nil
}

func isDir(name string) bool {
	fi, err := os.Stat(name)
	return err == nil && fi.IsDir()
}
