package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"banger/internal/api"
	"banger/internal/session"
	"banger/internal/sshconf"
	"banger/internal/workspace"
)

// fresh is an ssh command that begins a connection of its own to a guest, with
// the options of `banger vm ssh` and the same way in, but without that command
// around it: the other side gets OpenSSH as quick as it can be here.
func (l *lab) fresh(m api.Machine, command ...string) []string {
	argv := append([]string{"ssh"}, sshconf.Args(sshconf.Target{
		Name: m.Name, KnownHosts: l.layout.KnownHosts, Key: l.layout.Key,
		ProxyCommand: session.ShellQuote(l.banger) + " internal ssh-proxy --socket " + session.ShellQuote(m.Companion),
	})...)
	return append(append(argv, "root@"+sshconf.Host(m.Name)), command...)
}

// ssh runs a command in a guest through a fresh ssh.
func (l *lab) ssh(ctx context.Context, m api.Machine, command ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	argv := l.fresh(m, command...)
	return output(l.command(ctx, argv[0], argv[1:]...))
}

func execRow(ctx context.Context, l *lab, n int) (figures, error) {
	m, err := l.goldenVM(ctx)
	if err != nil {
		return figures{}, err
	}
	l.watchGuest(m)
	return l.interleave(ctx, n, pair{
		a: l.doing("vm", "exec", m.Name, "--", "true"),
		b: func(ctx context.Context) (outcome, error) {
			_, err := l.ssh(ctx, m, "true")
			return outcome{}, err
		},
	})
}

// watchGuest has the time of a running VM counted: its VMM's, and its
// companion's, which is the VMM's parent.
func (l *lab) watchGuest(m api.Machine) {
	l.watched = append(l.watched, m.VMMPID)
	b, err := os.ReadFile("/proc/" + strconv.Itoa(m.VMMPID) + "/stat")
	if err != nil {
		return
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) > 1 {
		if parent, err := strconv.Atoi(fields[1]); err == nil {
			l.watched = append(l.watched, parent)
		}
	}
}

// workspaceRow brings the same repository into the same running guest by both
// ways. Ours is the code of `vm run PATH` from looking at the repository to the
// last byte in place, history included; the other is what one types instead,
// which brings no history. Both write to a new directory; it is removed, and
// the guest's disk synced, outside the time.
func workspaceRow(ctx context.Context, l *lab, n int) (figures, error) {
	repo := filepath.Join(l.root, "repo")
	l.tell("making a repository of %d files", repoFiles)
	if err := makeRepo(ctx, l, repo); err != nil {
		return figures{}, err
	}
	m, err := l.goldenVM(ctx)
	if err != nil {
		return figures{}, err
	}
	const dir = "/root/bench"
	if _, err := l.ssh(ctx, m, "git", "config", "--global", "safe.directory", "*"); err != nil {
		return figures{}, err
	}
	l.watchGuest(m)
	checked := 0
	return l.interleave(ctx, n, pair{
		a: func(ctx context.Context) (outcome, error) {
			plan, err := workspace.Inspect(ctx, repo, workspace.Options{GuestPath: dir, Scratch: l.root})
			if err != nil {
				return outcome{}, err
			}
			return outcome{}, session.Session{Machine: m}.Bring(ctx, plan, dir)
		},
		b: func(ctx context.Context) (outcome, error) {
			ssh := l.fresh(m, "mkdir", "-p", dir, "&&", "tar", "x", "-C", dir)
			for i, word := range ssh {
				ssh[i] = session.ShellQuote(word)
			}
			cmd := l.command(ctx, "sh", "-c", "git ls-files -z | tar --null -T - -c | "+strings.Join(ssh, " "))
			cmd.Dir = repo
			_, err := output(cmd)
			return outcome{}, err
		},
		after: func(ctx context.Context) error {
			checked++
			if checked <= 2 { // the warm-up shows whether both do what they say
				if err := l.complete(ctx, m, dir, checked == 1); err != nil {
					return err
				}
			}
			_, err := l.ssh(ctx, m, "rm -rf "+dir+" && sync")
			return err
		},
	})
}

// complete checks that a guest has the whole repository.
func (l *lab) complete(ctx context.Context, m api.Machine, dir string, history bool) error {
	out, err := l.ssh(ctx, m, "find", dir, "-path", dir+"/.git", "-prune", "-o", "-type", "f", "-print", "|", "wc", "-l")
	if err != nil {
		return err
	}
	if got := strings.TrimSpace(out); got != strconv.Itoa(repoFiles) {
		return fmt.Errorf("counting the files in the guest: %s, want %d", got, repoFiles)
	}
	if !history {
		return nil
	}
	if out, err = l.ssh(ctx, m, "git", "-C", dir, "status", "--porcelain"); err == nil && out != "" {
		err = fmt.Errorf("comparing the work tree in the guest: git status says\n%.300s", out)
	}
	return err
}

// The shape of the generated repository: that of a large project, such as Go's
// own (11,500 files, 137 MB).
const (
	repoFiles   = 11_000
	repoBytes   = 130 << 20
	repoDirs    = 800
	repoCommits = 12 // more than the ten that a guest gets
)

// makeRepo writes the repository, always the same, and packs it.
func makeRepo(ctx context.Context, l *lab, dir string) error {
	r := rand.New(rand.NewPCG(1, 2))
	words := vocabulary(r)
	for i := range repoFiles {
		// Many small files and few large ones; the mean is that of the whole.
		size := int(r.ExpFloat64() * repoBytes / repoFiles)
		name := filepath.Join(dir, fmt.Sprintf("pkg%02d/mod%03d/file%05d.txt", i%repoDirs%40, i%repoDirs, i))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return fmt.Errorf("making the repository: %w", err)
		}
		if err := os.WriteFile(name, text(r, words, size), 0o644); err != nil {
			return fmt.Errorf("making the repository: %w", err)
		}
	}
	git := func(args ...string) error {
		cmd := l.command(ctx, "git", append([]string{"-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0"}, args...)...)
		cmd.Dir = dir
		_, err := output(cmd)
		return err
	}
	if err := errors.Join(git("init", "-q", "-b", "main"), git("add", "-A"), git("commit", "-q", "-m", "all")); err != nil {
		return err
	}
	for i := range repoCommits - 1 {
		name := filepath.Join(dir, fmt.Sprintf("pkg00/mod000/file%05d.txt", i*repoDirs))
		if err := os.WriteFile(name, text(r, words, 10_000), 0o644); err != nil {
			return fmt.Errorf("changing the repository: %w", err)
		}
		if err := git("commit", "-q", "-a", "-m", "change "+strconv.Itoa(i)); err != nil {
			return err
		}
	}
	return git("gc", "-q")
}

// vocabulary are the words of the files: their text compresses about as well
// as source code.
func vocabulary(r *rand.Rand) []string {
	words := make([]string, 4096)
	for i := range words {
		w := make([]byte, 2+r.IntN(9))
		for j := range w {
			w[j] = byte('a' + r.IntN(26))
		}
		words[i] = string(w)
	}
	return words
}

// text is size bytes of words, in lines.
func text(r *rand.Rand, words []string, size int) []byte {
	b := make([]byte, 0, size+16)
	for len(b) < size {
		// The square makes some words common and most rare.
		x := r.Float64()
		b = append(b, words[int(x*x*float64(len(words)))]...)
		b = append(b, " \n"[r.IntN(8)/7])
	}
	return b[:size]
}
