package guestlife

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/agentapi"
	"banger/internal/handover"
)

// watchStages follows what systemd says: sockets that it makes in a directory
// of ours as stages are reached, and the message at the end of its start-up.
func (l *life) watchStages(ctx context.Context) error {
	if l.init != handover.InitSystemd {
		return nil
	}
	if err := l.serveFinal(ctx); err != nil {
		return err
	}
	if err := os.MkdirAll(handover.StageDir, 0o700); err != nil {
		return fmt.Errorf("watching the boot: %w", err)
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watching the boot: %w", err)
	}
	if _, err := unix.InotifyAddWatch(fd, handover.StageDir, unix.IN_CREATE|unix.IN_DELETE); err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("watching the boot: %w", err)
	}
	l.reached(handover.StageDir)
	go l.followStages(os.NewFile(uintptr(fd), "inotify"))
	return l.serveNotify()
}

// reached takes the stages that systemd reached while nobody watched: between
// the death of an agent and its successor.
func (l *life) reached(dir string) {
	made, err := os.ReadDir(dir)
	if err != nil {
		l.news.add(agentapi.EventProblem, "looking at the stages of the boot: "+err.Error())
	}
	for _, d := range made {
		l.stage(d.Name(), true)
		if d.Name() == handover.StageBoot { // systemd's own word went to nobody
			flushJournal()
			settled()
		}
	}
}

func (l *life) followStages(f *os.File) {
	b := make([]byte, 4096)
	for {
		n, err := f.Read(b)
		if err != nil {
			return
		}
		for e := b[:n]; len(e) >= unix.SizeofInotifyEvent; {
			mask := binary.NativeEndian.Uint32(e[4:])
			size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(e[12:]))
			name := string(bytes.TrimRight(e[unix.SizeofInotifyEvent:size], "\x00"))
			l.stage(name, mask&unix.IN_CREATE != 0)
			e = e[size:]
		}
	}
}

// stage takes one change in the directory. That the socket of a stage goes
// away is the first thing to be seen of a shutdown whose kind is not known.
func (l *life) stage(name string, made bool) {
	switch {
	case name == handover.StageSockets && made:
		l.note(agentapi.EventSockets, "")
	case name == handover.StageBoot && made:
		l.note(agentapi.EventBoot, "")
	case made && (name == handover.StagePowerOff || name == handover.StageReboot || name == handover.StageHalt):
		l.ending(name)
	case name == handover.StageSockets:
		l.ending("")
	}
}

// ending says that a shutdown has begun, and of which kind as soon as that is
// known.
func (l *life) ending(verb string) {
	flushJournal()
	if kind := kindOf(verb); !l.knowsKind(kind) {
		l.note(agentapi.EventEnding, kind)
	}
}

// kindOf is "reboot" or "poweroff", or "" of an unknown verb: halting is
// powering off to a VM.
func kindOf(verb string) string {
	switch verb {
	case "":
		return ""
	case "reboot", "kexec", "soft-reboot":
		return "reboot"
	}
	return "poweroff"
}

// knowsKind says whether that a shutdown has begun is known already, with its
// kind if kind is not empty.
func (l *life) knowsKind(kind string) bool {
	for _, e := range l.news.all() {
		if e.Type == agentapi.EventEnding && (kind == "" || e.Text != "") {
			return true
		}
	}
	return false
}

// serveNotify listens for READY=1, which systemd sends when its default target
// is reached, whatever that is.
func (l *life) serveNotify() error {
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: handover.NotifySocket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("watching the boot: %w", err)
	}
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			for line := range strings.Lines(string(b[:n])) {
				if strings.TrimSpace(line) == "READY=1" {
					l.note(agentapi.EventBoot, "")
					flushJournal()
					settled()
				}
			}
		}
	}()
	return nil
}

// flushJournal asks journald to go on on the disk, if the image has a place for
// that. No unit does, since that would be one more program in each boot. It
// does not wait for the answer.
func flushJournal() {
	c, err := net.Dial("unix", "/run/systemd/journal/io.systemd.journal")
	if err != nil {
		return // no journald, or one of a time before it could be asked
	}
	go func() {
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := c.Write([]byte("{\"method\":\"io.systemd.Journal.FlushToVar\"}\x00")); err == nil {
			_, _ = c.Read(make([]byte, 4096)) // until then it must be open
		}
	}()
}

// settled ends what PID 1 began for the time of the boot only. In an image
// without /sys it stays as it is, which does no harm.
func settled() { _ = os.WriteFile(handover.Expedite, []byte("0"), 0) }
