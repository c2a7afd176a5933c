package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/labwire"
	"banger/internal/tartree"
)

// port sends frames one at a time: output and answers come from different
// goroutines.
type port struct {
	mu sync.Mutex
	f  *os.File
}

func (p *port) send(k labwire.Kind, body []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return labwire.Write(p.f, k, body)
}

func (p *port) sendJSON(k labwire.Kind, v any) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return labwire.WriteJSON(p.f, k, v)
}

// serve is the service's part: it brings the files in, says hello, and does
// what the host asks until the machine ends.
func serve(ctx context.Context) error {
	p, err := openPort()
	if err != nil {
		return err
	}
	h, began := labwire.Hello{}, time.Now()
	if err := bring(ctx); err != nil {
		h.Problem = err.Error()
	}
	fmt.Printf("brought the files in, in %v\n", time.Since(began)) // to the journal
	// Its status tells degraded from running; the word is enough.
	state, _ := exec.CommandContext(ctx, "systemctl", "is-system-running", "--wait").Output()
	h.State = strings.TrimSpace(string(state))
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	h.BootID = strings.TrimSpace(string(id))
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return err
	}
	h.UptimeMS = up.Nano() / int64(time.Millisecond)
	if err := p.sendJSON(labwire.KindHello, h); err != nil {
		return err
	}
	for {
		k, body, err := labwire.Read(p.f)
		if err != nil {
			return fmt.Errorf("reading the host's next wish: %w", err)
		}
		if err := answer(ctx, p, k, body); err != nil {
			return err
		}
	}
}

// openPort finds the port by its name; it is there before systemd starts.
func openPort() (*port, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == labwire.Port {
			f, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(n)), os.O_RDWR, 0)
			return &port{f: f}, err
		}
	}
	return nil, errors.New("looking for the port: there is none of that name")
}

// bring unpacks the files, once for all boots of the machine.
func bring(ctx context.Context) error {
	if _, err := os.Stat(labwire.Out); err == nil {
		return nil
	}
	disks, err := filepath.Glob("/sys/block/vd*/serial")
	if err != nil {
		return err
	}
	for _, d := range disks {
		if b, err := os.ReadFile(d); err != nil || strings.TrimSpace(string(b)) != labwire.FilesSerial {
			continue
		}
		f, err := os.Open("/dev/" + filepath.Base(filepath.Dir(d)))
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := tartree.Unpack(ctx, labwire.Dir, f, tartree.Options{}); err != nil {
			return fmt.Errorf("bringing the files in: %w", err)
		}
	}
	if err := os.MkdirAll(labwire.Out+"/cover", 0o777); err != nil {
		return err
	}
	// Every account leaves results here, and the data of covered programs.
	return errors.Join(os.Chmod(labwire.Out, 0o1777), os.Chmod(labwire.Out+"/cover", 0o1777))
}

// answer does one thing that the host asks. Only what breaks the conversation is
// an error; what goes wrong with a step is a part of the answer.
func answer(ctx context.Context, p *port, k labwire.Kind, body []byte) error {
	switch k {
	case labwire.KindStep:
		var s labwire.Step
		if err := json.Unmarshal(body, &s); err != nil {
			return err
		}
		beating, stop := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			beat(beating, p)
		}()
		d := run(ctx, p, s)
		stop()
		<-done
		return p.sendJSON(labwire.KindDone, d)
	case labwire.KindCollect:
		problem := ""
		if err := collect(ctx, p); err != nil {
			problem = err.Error()
		}
		return p.send(labwire.KindCollected, []byte(problem))
	case labwire.KindReboot:
		if out, err := exec.CommandContext(ctx, "systemctl", "reboot").CombinedOutput(); err != nil {
			return fmt.Errorf("rebooting: %w: %s", err, out)
		}
		return nil // the host says no more until the next hello
	}
	// The host is of the same build: this is a bug.
	return fmt.Errorf("the host says %q, which means nothing", byte(k))
}

// beat says now and then that the machine lives.
func beat(ctx context.Context, p *port) {
	tick := time.NewTicker(labwire.BeatEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if p.send(labwire.KindBeat, nil) != nil {
				return // the step's end will say it
			}
		case <-ctx.Done():
			return
		}
	}
}

// collect sends the journal and what the steps left.
func collect(ctx context.Context, p *port) error {
	journal := exec.CommandContext(ctx, "sh", "-c", "journalctl --no-pager -o short-precise > "+labwire.Out+"/journal.txt")
	if out, err := journal.CombinedOutput(); err != nil {
		return fmt.Errorf("reading the journal: %w: %s", err, out)
	}
	_, err := tartree.Pack(ctx, sender{p, labwire.KindFiles}, labwire.Out, tartree.PackOptions{})
	return err
}

// sender is a writer whose pieces become frames.
type sender struct {
	p *port
	k labwire.Kind
}

func (s sender) Write(b []byte) (int, error) {
	const piece = 256 << 10
	for rest := b; len(rest) > 0; {
		n := min(len(rest), piece)
		if err := s.p.send(s.k, rest[:n]); err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	return len(b), nil
}

// grace is how long a step has to end after it was told to.
const grace = 5 * time.Second

// run runs a step to its end.
func run(ctx context.Context, p *port, s labwire.Step) labwire.Done {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(s.LimitMS)*time.Millisecond)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.Argv[0], s.Argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := become(cmd, s.User); err != nil {
		return labwire.Done{Status: 126, Problem: err.Error()}
	}
	cmd.Env = append(cmd.Env, s.Env...)
	if cmd.Dir = s.Dir; s.Dir == "" {
		cmd.Dir = labwire.Dir
	}
	var out io.Writer = sender{p, labwire.KindOutput}
	cmd.Stdout, cmd.Stderr = out, out
	// The whole group is told, and a Go program then says where it hangs; what is
	// left of it after the grace is killed.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGQUIT) }
	cmd.WaitDelay = grace
	if err := cmd.Start(); err != nil {
		return labwire.Done{Status: 127, Problem: err.Error()}
	}
	err := cmd.Wait()
	done := labwire.Done{TimedOut: ctx.Err() != nil}
	if done.TimedOut {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what is left of its group, if anything
	}
	// The status as a shell has it, for whoever compares it with one.
	switch ws := cmd.ProcessState.Sys().(syscall.WaitStatus); {
	case ws.Signaled():
		done.Status = 128 + int(ws.Signal())
	case ws.Exited():
		done.Status = ws.ExitStatus()
	}
	if err != nil && done.Status == 0 && !errors.Is(err, exec.ErrWaitDelay) {
		done.Status, done.Problem = 125, err.Error()
	}
	return done
}

// become prepares a command to run as an account, with the environment that a
// login gives.
// It changes no more than a login would: capabilities go with the uid.
func become(cmd *exec.Cmd, name string) error {
	if name == "" {
		name = "root"
	}
	u, err := user.Lookup(name)
	if err != nil {
		return err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return err
	}
	runtime := "/run/user/" + u.Uid
	if err := errors.Join(os.MkdirAll(runtime, 0o700), os.Chown(runtime, int(uid), int(gid))); err != nil {
		return err
	}
	cmd.Env = []string{"USER=" + name, "LOGNAME=" + name, "HOME=" + u.HomeDir, "SHELL=/bin/bash", "LANG=C.UTF-8", "TERM=dumb",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "XDG_RUNTIME_DIR=" + runtime,
		"GOCOVERDIR=" + labwire.Out + "/cover"}
	if uid == 0 {
		return nil
	}
	ids, err := u.GroupIds()
	if err != nil {
		return err
	}
	cred := &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	for _, id := range ids {
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return err
		}
		cred.Groups = append(cred.Groups, uint32(n))
	}
	cmd.SysProcAttr.Credential = cred
	return nil
}
