package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"banger/internal/labwire"
	"banger/internal/tartree"
)

// slack is what an answer may take beyond the time that it was given.
const slack = 30 * time.Second

// defaultSilence is what Job.Silence says.
const defaultSilence = 2 * time.Minute

// doing is a job under way.
type doing struct {
	vm     *vm
	job    Job
	result Result
}

// all takes the job through its boot, its steps, and the way home.
func (d *doing) all(ctx context.Context) error {
	if err := d.booted(ctx, time.Now()); err != nil {
		return err
	}
	var failed error
	for _, s := range d.job.Steps {
		o, err := d.step(ctx, s)
		if err != nil {
			return err
		}
		d.result.Steps = append(d.result.Steps, o)
		if failed = o.Err(); failed != nil && !d.job.KeepGoing {
			break
		}
	}
	if d.job.Shell {
		return d.vm.wait(ctx)
	}
	if d.job.Results == "" {
		return nil
	}
	return d.collect(ctx)
}

// booted waits for the machine's hello.
func (d *doing) booted(ctx context.Context, since time.Time) error {
	f, err := d.vm.next(ctx, "booting", bootLimit)
	if err != nil {
		return err
	}
	var h labwire.Hello
	if f.kind != labwire.KindHello || json.Unmarshal(f.body, &h) != nil {
		return d.vm.hang("booting", fmt.Sprintf("it says %q instead of hello", byte(f.kind)))
	}
	if h.Problem != "" {
		return d.vm.hang("booting", h.Problem)
	}
	b := Boot{Took: time.Since(since), Inside: time.Duration(h.UptimeMS) * time.Millisecond, State: h.State, ID: h.BootID}
	d.result.Boots = append(d.result.Boots, b)
	say(d.job.Print, "booted in %.1f s (systemd says %s)", b.Took.Seconds(), b.State)
	return nil
}

// step runs one step, after what is to happen before it.
func (d *doing) step(ctx context.Context, s Step) (Outcome, error) {
	name := s.name()
	var err error
	since := time.Now()
	switch s.Before {
	case Reboot:
		say(d.job.Print, "rebooting")
		err = d.vm.send(labwire.KindReboot, nil)
	case PowerCut:
		say(d.job.Print, "cutting the power")
		err = d.vm.reset()
	}
	if err == nil && s.Before != Nothing {
		err = d.booted(ctx, since)
	}
	if err != nil {
		return Outcome{}, err
	}
	limit := s.Limit
	if limit == 0 {
		limit = defaultStepLimit
	}
	// The machine shall end it, and not the job's limit the machine: then there
	// is a result to bring home.
	if end, ok := ctx.Deadline(); ok {
		left := time.Until(end)
		limit = max(min(limit, left-min(2*slack, left/4)), time.Second)
	}
	argv := s.Argv
	if s.Script != "" {
		argv = []string{"bash", "-e", "-c", s.Script, name}
	}
	say(d.job.Print, "== %s", name)
	begun := time.Now()
	err = d.vm.send(labwire.KindStep, labwire.Step{Argv: argv, User: s.User, Dir: s.Dir, LimitMS: limit.Milliseconds(),
		Env: append([]string{"BANGER_LAB=1", "CI=true"}, s.Env...)})
	if err != nil {
		return Outcome{}, err
	}
	o := Outcome{Name: name, Want: s.Want}
	out, silence := &lines{w: d.job.Print}, cmp.Or(d.job.Silence, defaultSilence)
	for {
		f, err := d.vm.next(ctx, fmt.Sprintf("running step %q", name), min(silence, time.Until(begun.Add(limit+slack))))
		if err != nil {
			out.flush()
			return o, err
		}
		if f.kind == labwire.KindBeat {
			continue
		}
		if f.kind == labwire.KindOutput {
			out.add(f.body)
			continue
		}
		out.flush()
		var done labwire.Done
		if f.kind != labwire.KindDone || json.Unmarshal(f.body, &done) != nil {
			return o, d.vm.hang("running step "+name, fmt.Sprintf("it says %q", byte(f.kind)))
		}
		o.Status, o.TimedOut, o.Problem = done.Status, done.TimedOut, done.Problem
		o.Took, o.Tail = time.Since(begun), out.tail()
		if err := o.Err(); err != nil {
			first, _, _ := strings.Cut(err.Error(), ";")
			say(d.job.Print, "FAIL: %s", first)
		} else {
			say(d.job.Print, "ok (%.1f s)", o.Took.Seconds())
		}
		return o, nil
	}
}

// collect brings the results home.
func (d *doing) collect(ctx context.Context) error {
	if err := d.vm.send(labwire.KindCollect, nil); err != nil {
		return err
	}
	r, w := io.Pipe()
	unpacked := make(chan error, 1)
	go func() {
		_, err := tartree.Unpack(ctx, d.job.Results, r, tartree.Options{As: "", Foreign: true})
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		r.CloseWithError(err)
		unpacked <- err
	}()
	err := func() error {
		for {
			f, err := d.vm.next(ctx, "bringing the results home", 2*time.Minute)
			switch {
			case err != nil:
				return err
			case f.kind == labwire.KindFiles:
				if _, err := w.Write(f.body); err != nil {
					return err
				}
			case f.kind == labwire.KindCollected && len(f.body) == 0:
				return nil
			default:
				return fmt.Errorf("bringing the results home: the machine says %q %s", byte(f.kind), f.body)
			}
		}
	}()
	w.CloseWithError(err)
	return errors.Join(err, <-unpacked)
}

// lines passes whole lines on, and remembers the end of all.
type lines struct {
	w    io.Writer
	part []byte
	last []byte
}

const tailBytes = 16 << 10

func (l *lines) add(b []byte) {
	if l.last = append(l.last, b...); len(l.last) > 2*tailBytes {
		l.last = append([]byte(nil), l.last[len(l.last)-tailBytes:]...)
	}
	l.part = append(l.part, b...)
	if i := strings.LastIndexByte(string(l.part), '\n'); i >= 0 {
		_, _ = l.w.Write(l.part[:i+1]) // it is for people
		l.part = append([]byte(nil), l.part[i+1:]...)
	}
}

func (l *lines) flush() {
	if len(l.part) > 0 {
		_, _ = l.w.Write(append(l.part, '\n'))
		l.part = nil
	}
}

func (l *lines) tail() string { return string(l.last[max(0, len(l.last)-tailBytes):]) }
