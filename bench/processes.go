package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// processesRow counts the programs that one `vm run` executes, its own first
// included, in the command and below the daemon, which has run one before. Both
// are started under strace, so that no rights are needed to trace them.
func processesRow(ctx context.Context, l *lab, _ int) (f figures, err error) {
	if _, err := l.run(ctx, "daemon", "stop"); err != nil {
		return f, err
	}
	below := filepath.Join(l.root, "daemon.strace")
	stop, err := l.traceDaemon(ctx, below)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if _, err := l.run(ctx, oneShot(small)...); err != nil { // warms up: QEMU's version, the initramfs
		return f, err
	}
	before, err := os.ReadFile(below)
	if err != nil {
		return f, fmt.Errorf("reading the trace of the daemon: %w", err)
	}
	own := filepath.Join(l.root, "run.strace")
	if _, err := output(l.command(ctx, "strace", traced(own, append([]string{l.banger}, oneShot(small)...))...)); err != nil {
		return f, err
	}
	after, err := os.ReadFile(below)
	if err != nil {
		return f, fmt.Errorf("reading the trace of the daemon: %w", err)
	}
	cli, err := os.ReadFile(own)
	if err != nil {
		return f, fmt.Errorf("reading the trace of vm run: %w", err)
	}
	programs := append(executed(string(cli)), executed(string(after[len(before):]))...)
	f.values = []float64{float64(len(programs))}
	f.note = strings.Join(programs, ", ")
	return f, nil
}

// traced are the arguments of strace that write each execve below argv to a file.
func traced(to string, argv []string) []string {
	return append([]string{"-f", "--seccomp-bpf", "-e", "trace=execve,execveat", "-e", "signal=none", "-o", to, "--"}, argv...)
}

// traceDaemon starts the daemon under strace by way of a harmless command;
// strace stays until the daemon has ended, which stop sees to.
func (l *lab) traceDaemon(ctx context.Context, to string) (stop func() error, err error) {
	cmd := l.command(ctx, "strace", traced(to, []string{l.banger, "vm", "list", "--json"})...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("tracing the daemon: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("tracing the daemon: %w", err)
	}
	stop = func() error {
		_, err := l.run(context.WithoutCancel(ctx), "daemon", "stop")
		if err != nil {
			_ = cmd.Process.Kill() // or the wait below never ends
		}
		_ = cmd.Wait() // its status is that of vm list
		return err
	}
	// The answer means that the daemon runs.
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return nil, errors.Join(fmt.Errorf("tracing the daemon: no answer: %w", err), stop())
	}
	return stop, nil
}

// execLine is a line of strace -f: the process, the call with its program, and
// the result unless another process came in between.
var execLine = regexp.MustCompile(`^(\d+) +(?:execve\("([^"]*)"|execveat\([^"]*"([^"]*)"|<\.\.\. execve(?:at)? resumed>)(.*)$`)

// executed names the programs whose execution succeeded, in order.
func executed(trace string) []string {
	var out []string
	begun := map[string]string{}
	for line := range strings.Lines(trace) {
		m := execLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			continue
		}
		pid, program := m[1], m[2]+m[3]
		if strings.HasSuffix(m[4], "<unfinished ...>") {
			begun[pid] = program
			continue
		}
		if program == "" {
			program = begun[pid]
		}
		if strings.HasSuffix(m[4], "= 0") {
			out = append(out, filepath.Base(program)) // "." if it had no name but a descriptor
		}
	}
	return out
}
