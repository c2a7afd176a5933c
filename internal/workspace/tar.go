package workspace

import (
	"archive/tar"
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/api"
	"banger/internal/git"
)

// WriteTar packs the plan into w: directories, the work tree, `.git`, and
// last `.git/index`, so that the index tells of the files as they were read.
// Names are relative; all belongs to root; times have nanoseconds (PAX). The
// reader has to restore the times of files and links, or the guest's git will
// read everything again.
//
// After an error w holds a tar without its end, which must not be taken for a
// whole one: the caller breaks the transfer off. An error names the file that
// changed or vanished meanwhile. progress, if not nil, is called from this
// goroutine with the number of bytes written so far. WriteTar runs git once,
// once more for a plan that is FromCommit or for a full Scratch.
func (p *Plan) WriteTar(ctx context.Context, w io.Writer, progress func(written int64)) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	type packed struct {
		pack *git.Pack
		err  error
	}
	ready := make(chan packed, 1)
	go func() { // ends with git, which ends with ctx
		pack, err := p.pack(ctx)
		ready <- packed{pack, err}
	}()
	taken := false
	defer func() {
		cancel()
		if taken {
			return
		}
		// The scratch directory is gone when Pack returns. Its error came
		// first only if nothing else ended the work.
		if got := <-ready; got.pack != nil {
			err = errors.Join(err, got.pack.Close())
		}
	}()
	out := &counter{w: w, report: progress, ctx: ctx}
	buffered := bufio.NewWriterSize(out, 256<<10)
	entries, err := p.writeFiles(ctx, buffered)
	if err != nil {
		return err
	}
	got := <-ready
	taken = true
	if got.err != nil {
		return got.err
	}
	if got.pack != nil {
		defer func() { err = errors.Join(err, got.pack.Close()) }()
	}
	t := tar.NewWriter(buffered)
	if err := p.writeGit(t, got.pack); err != nil {
		return err
	}
	index, err := git.EncodeIndex(p.repo.Format, entries)
	if err != nil {
		return err
	}
	if err := addBytes(t, ".git/index", index); err != nil {
		return err
	}
	if err := errors.Join(t.Close(), buffered.Flush()); err != nil {
		return fmt.Errorf("writing the workspace: %w", err)
	}
	return nil
}

// pack writes the history to Scratch, or to Spill if it does not fit there. The
// files' sizes tell beforehand: a directory in memory is not filled for nothing.
func (p *Plan) pack(ctx context.Context) (*git.Pack, error) {
	scratch := cmp.Or(p.scratch, os.TempDir())
	var st unix.Statfs_t
	tight := unix.Statfs(scratch, &st) == nil && int64(st.Bavail)*st.Bsize < 2*p.Bytes+minScratch
	if p.spill == "" || !tight {
		pack, err := p.repo.Pack(ctx, scratch, p.history, p.further)
		if p.spill == "" || api.CodeOf(err) != api.NoSpace {
			return pack, err
		}
	}
	return p.repo.Pack(ctx, p.spill, p.history, p.further)
}

// minScratch is what stays free in Scratch for others.
const minScratch = 16 << 20

// writeFiles writes the directories and the files and returns the index's
// entries.
func (p *Plan) writeFiles(ctx context.Context, w io.Writer) ([]git.Entry, error) {
	t := tar.NewWriter(w)
	now := time.Now()
	for _, d := range p.directories() {
		h := &tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755, ModTime: now.Truncate(time.Second), Format: tar.FormatPAX}
		if err := t.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("writing the workspace: %w", err)
		}
	}
	if p.FromCommit {
		return p.writeCommit(ctx, t, now)
	}
	k := &packer{plan: p, entries: slices.Clone(p.listing.Entries)}
	for i := range k.entries {
		k.entries[i].Stat = p.unread(i)
	}
	if err := k.run(ctx, w, p.items); err != nil {
		return nil, err
	}
	for i := range k.entries {
		e := &k.entries[i]
		e.Stat = git.Stat{Mtime: e.Stat.Mtime, MtimeNsec: e.Stat.MtimeNsec, Size: e.Stat.Size}
	}
	return k.entries, nil
}

// unread is the Stat that entry i starts with: the host's, which Trusts
// needs, unless no file of it will be read.
func (p *Plan) unread(i int) git.Stat {
	e := &p.listing.Entries[i]
	if e.Stage != 0 || e.IntentToAdd {
		return git.Stat{}
	}
	return e.Stat
}

// writeCommit writes the files of a commit as git has them, without filters
// or line ending rules.
func (p *Plan) writeCommit(ctx context.Context, t *tar.Writer, now time.Time) ([]git.Entry, error) {
	// A whole second before the index is written, so that the guest's git
	// need not doubt these files.
	st := unix.Stat_t{Mtim: unix.NsecToTimespec(now.Add(-2 * time.Second).Truncate(time.Second).UnixNano())}
	entries := make([]git.Entry, 0, len(p.tree))
	err := p.repo.Blobs(ctx, p.tree, func(f *git.TreeFile, content io.Reader) error {
		st.Size = f.Size
		h := header(f.Path, f.Mode, &st)
		entries = append(entries, git.Entry{
			Path: f.Path, Mode: f.Mode, ID: f.ID,
			Stat: git.Stat{Mtime: uint32(st.Mtim.Sec), Size: uint32(f.Size)},
		})
		if f.Mode != git.ModeSymlink {
			if err := t.WriteHeader(h); err != nil {
				return fmt.Errorf("writing %q: %w", f.Path, err)
			}
			_, err := io.Copy(t, content)
			return err
		}
		target, err := io.ReadAll(io.LimitReader(content, unix.PathMax))
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, string(target), 0
		if err := t.WriteHeader(h); err != nil {
			return fmt.Errorf("writing %q: %w", f.Path, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return entries, t.Flush()
}

// directories lists every directory that a file needs, parents first.
func (p *Plan) directories() []string {
	seen := map[string]bool{}
	var out []string
	last := ""
	for i := range p.Files {
		f := &p.Files[i]
		cut := strings.LastIndexByte(f.Path, '/')
		if f.Mode == 0 || cut < 0 || f.Path[:cut] == last {
			continue
		}
		last = f.Path[:cut]
		for at := 0; at < cut; {
			next := strings.IndexByte(f.Path[at:], '/') + at
			if d := f.Path[:next]; !seen[d] {
				seen[d] = true
				out = append(out, d)
			}
			at = next + 1
		}
	}
	return out
}

// addBytes writes one small file with today's time.
func addBytes(t *tar.Writer, name string, content []byte) error {
	h := &tar.Header{
		Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content)),
		ModTime: time.Now().Truncate(time.Second), Format: tar.FormatPAX,
	}
	if err := t.WriteHeader(h); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	if _, err := t.Write(content); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}

// A counter reports how much has passed and stops when its work has ended.
type counter struct {
	ctx    context.Context //nolint:containedctx // lives as long as one WriteTar
	w      io.Writer
	n      int64
	report func(int64)
}

func (c *counter) Write(b []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		return 0, err
	}
	n, err := c.w.Write(b)
	c.n += int64(n)
	if c.report != nil {
		c.report(c.n)
	}
	return n, err
}
