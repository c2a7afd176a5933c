package recipe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/api"
	"banger/internal/fetch"
)

// patience is how long mmdebstrap may take to clean up after it was told to
// end. It waits for a running dpkg first.
const patience = 30 * time.Second

// Run builds a recipe and writes its tar to o.Out. It returns when nothing of
// the build runs any more and its work directory is gone, also when ctx ends
// it. Failures that the user can mend are [*api.Error]s.
func Run(ctx context.Context, r Recipe, o Options) error {
	if o.WorkDir == "" {
		o.WorkDir = "/var/tmp"
	}
	program, err := Check(r, o)
	if err != nil {
		return err
	}
	rep := &reporter{report: o.Progress}
	downloads, err := download(ctx, r, o, rep)
	defer func() {
		for _, f := range downloads {
			f.Close()
		}
	}()
	if err != nil {
		return err
	}
	b := &build{recipe: r, options: o, program: program, rep: rep, debs: filepath.Join(o.CacheDir, "packages", r.Name)}
	if err := b.prepare(ctx); err != nil {
		return fmt.Errorf("building %s: %w", r.Name, err)
	}
	defer b.clean(context.WithoutCancel(ctx))
	w := newRewriter(r, &counted{o.Out, rep, 0}, b.debs)
	if err := b.run(ctx, w); err != nil {
		return err
	}
	if err := w.finish(downloads); err != nil {
		return fmt.Errorf("building %s: %w", r.Name, err)
	}
	rep.say(Progress{Phase: PhaseEnd})
	// A package too many in the cache is no reason to lose the build.
	_ = w.prune()
	return nil
}

// download has every file of known content ready before anything slow begins.
func download(ctx context.Context, r Recipe, o Options, rep *reporter) ([]*os.File, error) {
	store := fetch.Store{Dir: filepath.Join(o.CacheDir, "sha256")}
	store.Progress = func(it fetch.Item, done int64) {
		rep.say(Progress{Phase: PhaseFetch, Detail: it.Name, Done: done, Total: it.Size})
	}
	var files []*os.File
	for _, d := range r.Downloads {
		f, err := store.Get(ctx, d.Item)
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

// build is one run of mmdebstrap.
type build struct {
	recipe  Recipe
	options Options
	program string
	rep     *reporter
	debs    string   // the cache of packages
	work    string   // the run's own directory
	lock    *os.File // held while the run lives
}

// workPrefix begins the names of work directories; the user's id follows.
const workPrefix = "banger-build-"

// prepare makes the work directory: a snapshot of the package cache, as links,
// which another build may prune meanwhile, and mmdebstrap's own directory.
func (b *build) prepare(ctx context.Context) (err error) {
	b.sweep(ctx)
	if err := os.MkdirAll(b.debs, 0o700); err != nil {
		return err
	}
	prefix := fmt.Sprintf("%s%d-", workPrefix, os.Getuid())
	if b.work, err = os.MkdirTemp(b.options.WorkDir, prefix); err != nil {
		return err
	}
	if b.lock, err = lockDir(b.work); err == nil {
		// The namespace's root is another user: it must pass, and not look.
		err = os.Chmod(b.work, 0o711)
	}
	if err == nil {
		err = b.snapshot(filepath.Join(b.work, "debs"))
	}
	if err != nil {
		b.clean(ctx)
	}
	return err
}

// snapshot links the cached packages into dir; from another file system it
// copies them.
func (b *build) snapshot(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(b.debs)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".deb") {
			continue
		}
		from, to := filepath.Join(b.debs, e.Name()), filepath.Join(dir, e.Name())
		err := os.Link(from, to)
		if errors.Is(err, syscall.EXDEV) || errors.Is(err, syscall.EPERM) {
			err = copyFile(from, to)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// lockDir marks a directory as in use until the file is closed.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// sweep removes what builds of this user left whose process was killed.
func (b *build) sweep(ctx context.Context) {
	left, _ := filepath.Glob(filepath.Join(b.options.WorkDir, fmt.Sprintf("%s%d-*", workPrefix, os.Getuid()))) // the pattern is right
	for _, dir := range left {
		if !ours(dir) {
			continue
		}
		if lock, err := lockDir(dir); err == nil {
			b.remove(ctx, dir)
			lock.Close()
		}
	}
}

// ours reports whether dir is a directory of this user's: anybody may make one
// of that name in a directory for all, and turn it into a link at any time.
func ours(dir string) bool {
	var st unix.Stat_t
	return unix.Lstat(dir, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && int(st.Uid) == os.Getuid()
}

// clean removes the work directory.
func (b *build) clean(ctx context.Context) {
	b.remove(ctx, b.work)
	if b.lock != nil {
		b.lock.Close()
	}
}

// remove deletes a work directory. What mmdebstrap made in it belongs to ids of
// the user's that only a namespace may use, and the namespace cannot look into
// what is the user's: so mmdebstrap's helper empties each entry of the first,
// and the rest is ours to remove.
func (b *build) remove(ctx context.Context, dir string) {
	if os.RemoveAll(dir) == nil || os.Getuid() == 0 {
		return
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // gone meanwhile, or the next run's sweep tries again
	}
	for _, e := range entries {
		// Its status says nothing: it may not remove the entry itself.
		_ = exec.CommandContext(ctx, b.program, "--unshare-helper", "rm", "-rf", "--one-file-system", "--", filepath.Join(dir, e.Name())).Run()
	}
	_ = os.RemoveAll(dir)
}

// guard runs mmdebstrap. Its standard input is a pipe on which nothing comes;
// when it ends, banger died, however that came, and the whole group is told to
// end. mmdebstrap alone would build to the end first, for nobody. Whoever tells
// the group to end (cancelling does so too) gets rid of its stragglers as well.
const guard = `exec 3<&0 </dev/null
gone=
trap 'gone=1' TERM
{ read -r _ <&3; kill -TERM 0; } >/dev/null 2>&1 &
"$@" 3<&-
status=$?
kill $! 2>/dev/null
if [ -n "$gone" ]; then
	rm -rf -- "$TMPDIR" 2>/dev/null
	kill -KILL 0
fi
exit $status`

// run starts mmdebstrap and passes its tar through w.
func (b *build) run(ctx context.Context, w *rewriter) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	args := arguments(b.recipe, mirrors(b.options.Mirror, "/", b.recipe.Suite), aptOptions(ctx))
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", guard, "sh", b.program}, args...)...)
	cmd.Dir, cmd.Env = b.work, environment(b.work)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// The whole group: mmdebstrap itself would let its children finish.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = patience
	alive, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	defer alive.Close()
	out, in := io.Pipe()
	cmd.Stdout, cmd.Stderr = in, b.rep
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting mmdebstrap: %w", err)
	}
	copied := make(chan error, 1)
	go func() {
		err := w.copy(out)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			cancel() // nobody wants the rest
		}
		copied <- err
		_, _ = io.Copy(io.Discard, out) // it must not block on a full pipe while it ends
	}()
	// Wait ends even if a stray child holds the pipes: see WaitDelay.
	waitErr := cmd.Wait()
	in.Close()
	copyErr := <-copied
	return b.verdict(ctx, copyErr, waitErr)
}

// verdict puts together how it ended: ctx is the run's own.
func (b *build) verdict(ctx context.Context, copyErr, waitErr error) error {
	what := "building " + b.recipe.Name
	if copyErr != nil && ctx.Err() != nil && !errors.Is(copyErr, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%s: %w", what, copyErr)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
	if waitErr != nil {
		return b.failure(waitErr)
	}
	if copyErr != nil {
		return fmt.Errorf("%s: %w", what, copyErr)
	}
	return nil
}

// failure explains why mmdebstrap failed, from its own words.
func (b *build) failure(waitErr error) error {
	e := &api.Error{Code: api.Internal, Msg: fmt.Sprintf("building %s: mmdebstrap failed", b.recipe.Name), Err: waitErr, Detail: strings.Join(b.rep.tail, "\n")}
	if len(b.rep.problems) > 0 {
		e.Msg += ": " + strings.TrimPrefix(b.rep.problems[0], "E: ")
	}
	all := strings.Join(append(b.rep.problems, b.rep.tail...), "\n")
	has := func(s string) bool { return strings.Contains(all, s) }
	switch {
	case has("No space left on device"):
		e.Code = api.NoSpace
		e.Hint = fmt.Sprintf("free %d MiB in %s, and repeat", b.recipe.Room>>20, b.options.WorkDir)
	case has("NO_PUBKEY") || has("is not signed") || has("debian-archive-keyring"):
		e.Code = api.Missing
		e.Hint = "sudo apt install debian-archive-keyring"
	case has("Could not resolve") || has("Failed to fetch") || has("Could not connect") || has("Temporary failure"):
		e.Hint = "check that this machine reaches its Debian archive (apt-get update), or set mirror in config.toml"
	}
	return e
}

// counted reports the bytes of the tar that went through.
type counted struct {
	w   io.Writer
	rep *reporter
	n   int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	const every = 1 << 20
	if before := c.n / every; (c.n+int64(n))/every != before {
		c.rep.say(Progress{Phase: PhasePack, Done: c.n + int64(n)})
	}
	c.n += int64(n)
	return n, err
}
