package companion

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/internal/agentapi"
	"banger/internal/agentlink"
	"banger/internal/host"
	"banger/internal/vmm"
)

// Reasons that are told in more than one place.
const (
	leaseEnded = "its lease ended"
	stopped    = "it was stopped"
	poweredOff = "the guest powered off"
)

// panicMark begins the last words of a Linux kernel. It is only believed where
// the guest reset without a shutdown: whoever prints it to look so deceives
// nobody but the reader of a reason.
const panicMark = "Kernel panic - not syncing"

// farewell collects what an ended VMM left and says why it ended.
func (c *companion) farewell(ctx context.Context) host.Exit {
	ctx, cancel := context.WithTimeout(ctx, drainLimit)
	defer cancel()
	word := c.vmm.control.Ended(ctx)
	c.link.Drained(ctx)
	select {
	case <-c.vmm.printed:
	case <-ctx.Done():
	}
	e := ending{label: vmm.Label(c.cfg.Driver), word: word, mute: c.driver.Wiring().Mute, stderr: c.vmm.stderr.last()}
	if c.vmm.cmd != nil {
		<-c.vmm.reaped
		e.status, _ = c.vmm.cmd.ProcessState.Sys().(syscall.WaitStatus)
		e.known = true
	}
	if c.cfg.Handed != nil && !c.state.intended() {
		end, known := c.verdict(ctx)
		e.status, e.known, e.fault = end.Status, known, end.String()
	}
	e.panicked = bytes.Contains(c.console.Tail(8<<10), []byte(panicMark))
	c.state.mu.Lock()
	defer c.state.mu.Unlock()
	e.intent, e.asked, e.began, e.clean = c.state.intent, c.state.asked, c.state.ending, c.state.frozen
	e.kind = c.state.kind
	return e.exit()
}

// ending is all that is known about an end.
type ending struct {
	label    string
	intent   *intent
	word     string // of the VMM itself
	status   syscall.WaitStatus
	known    bool   // status is
	fault    string // what the root helper makes of it
	stderr   string // the VMM's last line
	asked    bool   // a stop was asked for
	mute     bool   // the VMM has no words
	began    bool   // the guest has said that it ends
	kind     string // and how: poweroff, halt or reboot
	clean    bool   // and that its disk is clean
	panicked bool   // its console ends so
}

// guess is the word that a mute VMM would have said. It has ended by itself only
// if its status is 0, which is not known of one that was adopted.
func (e ending) guess() string {
	switch {
	case e.known && (!e.status.Exited() || e.status.ExitStatus() != 0):
		return ""
	case e.began && e.kind == "reboot":
		return vmm.EndReset
	case e.began:
		return vmm.EndShutdown
	case e.known || e.panicked:
		return vmm.EndReset
	}
	return ""
}

// exit weighs it.
func (e ending) exit() host.Exit {
	x := host.Exit{Clean: e.clean}
	if e.word == "" && e.mute {
		e.word = e.guess()
	}
	switch {
	case e.intent != nil:
		x.Reason, x.Asked = e.intent.reason, e.intent.reason != poweredOff
	case e.word == vmm.EndShutdown && e.asked:
		x.Reason, x.Asked = stopped, true
	case e.word == vmm.EndShutdown:
		x.Reason = poweredOff
	case e.word == vmm.EndPanic, e.word == vmm.EndReset && e.panicked && !e.began:
		x.Reason = "the guest's kernel panicked"
	case e.word == vmm.EndReset:
		x.Reason, x.Reboot = "the guest rebooted", true
	case e.word == vmm.EndSignal:
		x.Reason = e.label + " was told to end by a signal"
	case e.fault != "":
		x.Reason = e.label + " " + e.fault
	case e.known && e.status.Signaled():
		x.Reason = fmt.Sprintf("%s was killed by signal %d", e.label, e.status.Signal())
	case e.known && e.status.ExitStatus() != 0 && e.stderr != "":
		x.Reason = fmt.Sprintf("%s ended with code %d: %s", e.label, e.status.ExitStatus(), e.stderr)
	case e.known && e.status.ExitStatus() != 0:
		x.Reason = fmt.Sprintf("%s ended with code %d", e.label, e.status.ExitStatus())
	default:
		x.Reason = e.label + " ended without saying why"
	}
	return x
}

// stop asks the guest to end, and makes it after timeout.
func (c *companion) stop(ctx context.Context, timeout time.Duration) (killed bool) {
	if timeout <= 0 {
		timeout = 30 * time.Second
	}
	s := c.state
	s.update(func() {
		s.stop++
		s.asked = true
	})
	defer s.update(func() { s.stop-- })
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	reason := fmt.Sprintf("it was stopped by force: the guest did not shut down within %v", timeout)
	if err := c.askToEnd(ctx); err != nil {
		reason = "it was stopped by force: " + err.Error()
		cancel()
	}
	// The guest may have frozen before this stop began; then event did not kill.
	if err := s.await(ctx, func() bool { return s.frozen || s.ended != nil }); err == nil {
		c.end(intent{reason: stopped})
		return false
	}
	s.update(func() {
		if s.intent == nil && s.ended == nil {
			s.intent, killed = &intent{reason: reason}, true
		}
	})
	c.signal(syscall.SIGKILL)
	return killed
}

// askToEnd asks the guest to shut down until it does. An error says that there
// is nobody to ask, or that the guest will not.
func (c *companion) askToEnd(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	over := func() bool { return c.state.frozen || c.state.ended != nil }
	go func() { // then there is nothing more to ask
		_ = c.state.await(ctx, over)
		cancel()
	}()
	for {
		err := c.link.Shutdown(ctx)
		refused, _ := errors.AsType[*agentapi.Error](err)
		switch {
		// A guest that has begun to end, perhaps for an earlier stop, need not answer.
		case err == nil, ctx.Err() != nil, c.state.isEnding():
			return nil
		case errors.Is(err, agentlink.ErrNoAgent), refused != nil:
			return err
		}
		// The session broke: the VM may just be ending, or the agent starting again.
		pause, done := context.WithTimeout(ctx, 300*time.Millisecond)
		_ = c.state.await(pause, over) // either way, look again
		done()
	}
}

// tail keeps the last bytes that a VMM wrote to its standard error.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailBytes = 4 << 10

// Write forgets the oldest.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p[max(0, len(p)-tailBytes):]...)
	t.b = append([]byte(nil), t.b[max(0, len(t.b)-tailBytes):]...)
	return len(p), nil
}

// lines are what is kept, without QEMU's remarks that it waits for us, and with
// nothing in it that a terminal would act upon.
func (t *tail) lines() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return visibleText(t.b)
}

func visibleText(b []byte) string {
	var out []string
	for line := range strings.Lines(string(b)) {
		line = strings.Map(visible, strings.TrimSpace(line))
		if line != "" && !strings.Contains(line, "QEMU waiting for connection") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}

func (t *tail) last() string {
	all := t.lines()
	return all[strings.LastIndexByte(all, '\n')+1:]
}

// visible drops what is not ASCII text: a VMM's messages are.
func visible(r rune) rune {
	if r < ' ' || r > '~' {
		return -1
	}
	return r
}
