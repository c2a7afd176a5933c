package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"banger/internal/api"
	"banger/internal/printable"
)

// keptEnv is all that git gets of our environment: where its programs and the
// user's settings are, and, for root under sudo, whose repositories it may
// read. Everything named GIT_* stays out.
var keptEnv = []string{"HOME", "PATH", "USER", "LOGNAME", "XDG_CONFIG_HOME", "LD_LIBRARY_PATH", "TMPDIR", "SUDO_UID"}

// fixedEnv closes what settings cannot: prompts, locks, locale, replaced and
// grafted objects, and every transport, also one that the repository's own
// protocol.<name>.allow would open again.
var fixedEnv = []string{
	"LC_ALL=C",
	"GIT_TERMINAL_PROMPT=0",
	"GIT_OPTIONAL_LOCKS=0",
	"GIT_NO_REPLACE_OBJECTS=1",
	"GIT_GRAFT_FILE=/dev/null",
	"GIT_NO_LAZY_FETCH=1",
	"GIT_ALLOW_PROTOCOL=none",
	"GIT_PAGER=cat",
	"GIT_EDITOR=false",
	"GIT_ASKPASS=false",
	"SSH_ASKPASS=false",
	"GIT_SSH_COMMAND=false",
}

// overrides win over every configuration file. Those about packs keep a
// user's taste from changing which files pack-objects writes.
var overrides = []string{
	"safe.bareRepository=explicit",
	"protocol.allow=never",
	"core.fsmonitor=false",
	"core.hooksPath=/dev/null",
	"core.untrackedCache=false",
	"core.sshCommand=false",
	"core.gitProxy=false",
	"core.askPass=false",
	"core.alternateRefsCommand=false",
	"core.pager=cat",
	"credential.helper=",
	"diff.external=",
	"gpg.program=false",
	"submodule.recurse=false",
	"gc.auto=0",
	"maintenance.auto=false",
	"pack.packSizeLimit=0",
	"pack.indexVersion=2",
	"pack.writeReverseIndex=false",
}

// stderrLimit bounds what is kept of git's complaints.
const stderrLimit = 16 << 10

// runner starts git in one directory.
type runner struct {
	bin string
	dir string
	env []string
}

func newRunner(dir string) (*runner, error) {
	bin, err := exec.LookPath("git")
	if err != nil {
		return nil, &api.Error{
			Code: api.Missing, Msg: "git is not installed",
			Hint: "sudo apt install git (Fedora: sudo dnf install git-core; Arch: sudo pacman -S git)",
		}
	}
	var env []string
	for _, k := range keptEnv {
		v, ok := os.LookupEnv(k)
		if k == "PATH" || k == "LD_LIBRARY_PATH" {
			v = absolute(v)
			ok = v != ""
		}
		if ok {
			env = append(env, k+"="+v)
		}
	}
	return &runner{bin: bin, dir: dir, env: append(env, fixedEnv...)}, nil
}

// absolute leaves relative and empty directories out of a list: git runs in the
// repository, which must not be where it finds programs and libraries.
func absolute(list string) string {
	dirs := slices.DeleteFunc(filepath.SplitList(list), func(d string) bool { return !filepath.IsAbs(d) })
	return strings.Join(dirs, string(filepath.ListSeparator))
}

// silence overrides settings whose names may hold any byte; the -c flag
// cannot carry those. git has read them from the environment since 2.31, the
// oldest version that Open accepts.
func (r *runner) silence(settings [][2]string) {
	r.env = append(r.env, fmt.Sprintf("GIT_CONFIG_COUNT=%d", len(settings)))
	for i, s := range settings {
		r.env = append(r.env,
			fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, s[0]),
			fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, s[1]))
	}
}

// command prepares one git. It gets no terminal, is not in the terminal's
// foreground group: Ctrl-C is ours to turn into an orderly end.
func (r *runner) command(ctx context.Context, args ...string) (*exec.Cmd, *tail) {
	full := make([]string, 0, 2+2*len(overrides)+len(args))
	full = append(full, "--no-pager")
	for _, o := range overrides {
		full = append(full, "-c", o)
	}
	cmd := exec.CommandContext(ctx, r.bin, append(full, args...)...)
	complaint := &tail{}
	cmd.Dir, cmd.Env, cmd.Stderr = r.dir, r.env, complaint
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 2 * time.Second
	return cmd, complaint
}

// output runs git and returns what it wrote. A failure is a *failure.
func (r *runner) output(ctx context.Context, args ...string) ([]byte, error) {
	cmd, complaint := r.command(ctx, args...)
	out, err := cmd.Output()
	if err != nil {
		return nil, complaint.explain(ctx, args[0], err)
	}
	return out, nil
}

// A failure is a git that ended badly, with the line in which it said why.
type failure struct {
	verb  string
	text  string // all of stderr that was kept
	cause error
}

func (f *failure) Error() string {
	line := printable.Line(f.line(), 300)
	if line == "" {
		return fmt.Sprintf("running git %s: %v", f.verb, f.cause)
	}
	return fmt.Sprintf("running git %s: %s", f.verb, line)
}

func (f *failure) Unwrap() error { return f.cause }

// line is the first fatal or error line, else the last one.
func (f *failure) line() string {
	last := ""
	for l := range strings.Lines(f.text) {
		l = strings.TrimSpace(l)
		for _, p := range []string{"fatal: ", "error: "} {
			if rest, ok := strings.CutPrefix(l, p); ok {
				return rest
			}
		}
		if l != "" {
			last = l
		}
	}
	return last
}

// says reports whether git complained with one of these texts (in its C
// locale).
func says(err error, texts ...string) bool {
	f, ok := errors.AsType[*failure](err)
	if !ok {
		return false
	}
	for _, t := range texts {
		if strings.Contains(f.text, t) {
			return true
		}
	}
	return false
}

// tail keeps the first stderrLimit bytes written to it.
type tail struct{ buf bytes.Buffer }

func (t *tail) Write(p []byte) (int, error) {
	if room := stderrLimit - t.buf.Len(); room > 0 {
		t.buf.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// explain makes one error of how git ended and what it said.
func (t *tail) explain(ctx context.Context, verb string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("running git %s: %w", verb, cause)
	}
	return &failure{verb: verb, text: t.buf.String(), cause: err}
}
