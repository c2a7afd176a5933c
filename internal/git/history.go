package git

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"banger/internal/api"
)

// maxCommits ends the walk through a history of very many merges early; it
// then stops at the level that it has reached.
const maxCommits = 10_000

// maxCommit bounds the size of one commit object.
const maxCommit = 16 << 20

// A History is the recent part of a commit graph.
type History struct {
	Tip     string // the commit it begins at; "" if there is none yet
	Commits int    // how many it holds
	// Boundary are the commits whose parents stay behind. A repository that
	// has only this history lists them in its file "shallow".
	Boundary []string
}

// History walks at most depth commits deep from each of the revisions and
// returns their histories in order, as git clone --depth would cut them. Only
// "HEAD" may have no commit yet; any other unknown revision is an *api.Error.
// It runs git once, twice for a HEAD without a commit.
func (r *Repo) History(ctx context.Context, depth int, revs ...string) ([]History, error) {
	b, err := r.openBatch(ctx)
	if err != nil {
		return nil, err
	}
	out, err := r.histories(ctx, b, depth, revs)
	return out, errors.Join(err, b.close())
}

func (r *Repo) histories(ctx context.Context, b *batch, depth int, revs []string) ([]History, error) {
	cut, err := r.shallow()
	if err != nil {
		return nil, err
	}
	var out []History
	for _, rev := range revs {
		if rev == "" || strings.ContainsAny(rev, "\x00\n") {
			return nil, r.unknown(rev)
		}
		tip, body, err := b.object(rev+"^{commit}", maxCommit)
		if errors.Is(err, errAbsent) {
			if rev != "HEAD" {
				return nil, r.unknown(rev)
			}
			if id, err := r.run.output(ctx, "rev-parse", "--quiet", "--verify", "--end-of-options", "HEAD"); err == nil {
				return nil, missingError(r, strings.TrimSpace(string(id)))
			}
			out = append(out, History{})
			continue
		}
		if err != nil {
			return nil, err
		}
		h, err := r.walk(b, commit{tip, body}, depth, cut)
		if err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	return out, nil
}

func (r *Repo) unknown(rev string) error {
	return &api.Error{
		Code: api.Invalid, Msg: fmt.Sprintf("%q names no commit of %s", rev, r.Root),
		Hint: "see what there is with: git -C " + quote(r.Root) + " log --all --oneline",
	}
}

// A commit is an id and what git keeps under it.
type commit struct {
	id   string
	body []byte
}

// walk goes breadth first, so that each commit is met at its least depth.
func (r *Repo) walk(b *batch, tip commit, depth int, cut map[string]bool) (History, error) {
	h := History{Tip: tip.id}
	seen := map[string]bool{tip.id: true}
	level := map[string][]byte{tip.id: tip.body}
	for n := 1; len(level) > 0; n++ {
		next := map[string][]byte{}
		last := n >= depth || len(seen) > maxCommits
		for id, body := range level {
			h.Commits++
			parents := parents(body)
			if len(parents) > 0 && (last || cut[id]) {
				h.Boundary = append(h.Boundary, id)
				continue
			}
			for _, p := range parents {
				if seen[p] {
					continue
				}
				seen[p] = true
				_, body, err := b.object(p, maxCommit)
				if errors.Is(err, errAbsent) {
					return h, missingError(r, p)
				}
				if err != nil {
					return h, err
				}
				next[p] = body
			}
		}
		level = next
	}
	return h, nil
}

// parents reads the header of a commit.
func parents(commit []byte) []string {
	var out []string
	for line := range strings.Lines(string(commit)) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			break
		}
		if id, ok := strings.CutPrefix(line, "parent "); ok && validID(id) {
			out = append(out, id)
		}
	}
	return out
}

// shallow reads the commits at which the host's own history ends.
func (r *Repo) shallow() (map[string]bool, error) {
	f, err := os.Open(filepath.Join(r.common, "shallow"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the shallow file: %w", err)
	}
	defer f.Close()
	cut := map[string]bool{}
	s := bufio.NewScanner(f)
	for s.Scan() {
		cut[strings.TrimSpace(s.Text())] = true
	}
	return cut, s.Err()
}

func missingError(r *Repo, id string) error {
	hint := "check it with: git -C " + quote(r.Root) + " fsck"
	msg := fmt.Sprintf("the repository %s lacks the object %s", r.Root, id)
	if remote := r.Promisor(); remote != "" {
		msg = fmt.Sprintf("%s is a partial clone and lacks objects of its last commits, such as %s; nothing is fetched for it", r.Root, id)
		at := "git -C " + quote(r.Root)
		hint = fmt.Sprintf("make it complete with: %s config --unset-all remote.%s.partialclonefilter; %s fetch --refetch %s",
			at, quote(remote), at, quote(remote))
	}
	return &api.Error{Code: api.Unsupported, Msg: msg, Hint: hint}
}

var errAbsent = errors.New("no such object")

// A batch is a running git cat-file --batch.
type batch struct {
	in   io.WriteCloser
	out  *bufio.Reader
	wait func() error
}

func (r *Repo) openBatch(ctx context.Context, args ...string) (*batch, error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd, complaint := r.run.command(ctx, append([]string{"cat-file", "--batch"}, args...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		cancel()
		return nil, fmt.Errorf("starting git cat-file: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		cancel()
		return nil, fmt.Errorf("starting git cat-file: %w", err)
	}
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, fmt.Errorf("starting git cat-file: %w", err)
	}
	return &batch{
		in: in, out: bufio.NewReaderSize(out, 256<<10),
		wait: func() error {
			defer cancel()
			if err := cmd.Wait(); err != nil {
				return complaint.explain(ctx, "cat-file", err)
			}
			return nil
		},
	}, nil
}

// close ends git and waits for it. What it still had to say is lost.
func (b *batch) close() error {
	err := b.in.Close()
	if _, drain := io.Copy(io.Discard, b.out); drain != nil {
		err = errors.Join(err, drain)
	}
	return errors.Join(err, b.wait())
}

// object asks for one object and returns its id and content. errAbsent means
// that git does not have it.
func (b *batch) object(name string, limit int64) (string, []byte, error) {
	if _, err := io.WriteString(b.in, name+"\n"); err != nil {
		return "", nil, fmt.Errorf("asking git for %q: %w", name, err)
	}
	id, size, err := b.header()
	if err != nil {
		return "", nil, err
	}
	if size > limit {
		return "", nil, fmt.Errorf("reading object %s: %d bytes are more than the limit of %d", id, size, limit)
	}
	body := make([]byte, size+1) // and a line feed
	if _, err := io.ReadFull(b.out, body); err != nil {
		return "", nil, fmt.Errorf("reading object %s: %w", id, err)
	}
	return id, body[:size], nil
}

// header reads the line before an object's content.
func (b *batch) header() (id string, size int64, err error) {
	line, err := b.out.ReadString('\n')
	if err != nil {
		return "", 0, fmt.Errorf("reading from git cat-file: %w", err)
	}
	line = strings.TrimSuffix(line, "\n")
	f := strings.Split(line, " ")
	if len(f) == 3 && validID(f[0]) {
		if size, err := strconv.ParseInt(f[2], 10, 64); err == nil && size >= 0 {
			return f[0], size, nil
		}
	}
	if strings.HasSuffix(line, " missing") || strings.HasSuffix(line, " ambiguous") {
		return "", 0, errAbsent
	}
	return "", 0, fmt.Errorf("reading from git cat-file: not understood: %q", line)
}

// Blobs calls each for every file in order with its content, of exactly
// f.Size bytes, which each must read to the end. It runs git once.
func (r *Repo) Blobs(ctx context.Context, files []TreeFile, each func(f *TreeFile, content io.Reader) error) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b, err := r.openBatch(ctx, "--buffer")
	if err != nil {
		return err
	}
	asked := make(chan struct{})
	go func() { // ends with its last line, or with git
		defer close(asked)
		defer b.in.Close()
		w := bufio.NewWriter(b.in)
		for i := range files {
			if _, err := w.WriteString(files[i].ID + "\n"); err != nil {
				return
			}
		}
		w.Flush()
	}()
	defer func() {
		if err != nil {
			cancel()
		}
		<-asked
		if waited := b.wait(); err == nil {
			err = waited
		}
	}()
	for i := range files {
		f := &files[i]
		_, size, err := b.header()
		if errors.Is(err, errAbsent) {
			return missingError(r, f.ID)
		}
		if err != nil {
			return err
		}
		if size != f.Size {
			return fmt.Errorf("reading object %s: %d bytes, the tree says %d", f.ID, size, f.Size)
		}
		content := &io.LimitedReader{R: b.out, N: size}
		if err := each(f, content); err != nil {
			return err
		}
		if content.N != 0 {
			return fmt.Errorf("reading object %s: %d bytes were left", f.ID, content.N)
		}
		if _, err := b.out.Discard(1); err != nil {
			return fmt.Errorf("reading object %s: %w", f.ID, err)
		}
	}
	return nil
}
