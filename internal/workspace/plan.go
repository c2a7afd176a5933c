package workspace

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"banger/internal/api"
	"banger/internal/git"
)

// DefaultGuestPath is where scripts may rely on finding the repository.
const DefaultGuestPath = "/root/repo"

// depth is the number of commits, counted along each line of history, that a
// guest gets.
const depth = 10

// Options choose what is packed. The zero value takes the work tree as it is.
type Options struct {
	Branch           string // a new branch that exists in the guest alone
	From             string // where Branch begins; HEAD if empty
	IncludeUntracked bool   // also files that no ignore rule covers
	GuestPath        string // DefaultGuestPath if empty
	// Scratch is an existing private directory for the packed history while
	// it is written. Its space is needed once, about what .git has for ten
	// commits. Empty means the system's directory for temporary files.
	Scratch string
	// Spill is another, for a history that Scratch, which is best in memory,
	// is too small for. Empty means none.
	Spill string
}

// A State says how a file stands to the index. It is what size, time and mode
// tell; no content is read for it.
type State string

// The states.
const (
	Unchanged State = "unchanged" // as the index remembers it
	Changed   State = "changed"   // differs, or was touched and has to be read to know
	Deleted   State = "deleted"   // tracked, and not there
	Conflict  State = "conflict"  // has sides of an unfinished merge
	Sparse    State = "sparse"    // left out by a sparse checkout
	Untracked State = "untracked" // not tracked; taken because it was asked for
	Committed State = "committed" // from a commit, not from the work tree
)

// A File is one line of a Plan.
type File struct {
	Path   string `json:"path"` // below the root; any bytes but NUL
	Mode   uint32 `json:"mode"` // as git writes it: 0100644, 0100755, 0120000; 0 if it is not there
	Size   int64  `json:"size"` // bytes; of a link, its text
	State  State  `json:"state"`
	Staged bool   `json:"staged,omitempty"` // the index differs from HEAD
}

// A Plan is what Inspect found and WriteTar will write. It holds no
// descriptors and may be written several times.
type Plan struct {
	Root      string `json:"root"`             // top of the work tree on the host
	Subdir    string `json:"subdir,omitempty"` // the part of the path below Root; "" for the root itself
	GuestPath string `json:"guest_path"`       // where the tar is to be unpacked
	Head      string `json:"head"`             // the host's HEAD commit; "" if there is none yet
	Commit    string `json:"commit"`           // the commit that the guest's HEAD stands on
	Branch    string `json:"branch"`           // the guest's branch, without refs/heads/; "" if detached
	// FromCommit is set if the files are those of Commit because it is not
	// the host's HEAD: uncommitted changes belong to another commit then.
	FromCommit       bool   `json:"from_commit"`
	Files            []File `json:"files"`             // in index order, untracked ones last
	Bytes            int64  `json:"bytes"`             // sum of the sizes
	SkippedUntracked int    `json:"skipped_untracked"` // files that IncludeUntracked would take, and repositories inside

	repo    *git.Repo
	scratch string
	spill   string
	ref     string // full name of Branch
	history git.History
	further []string // staged blobs, which no commit has
	listing *git.Listing
	tree    []git.TreeFile
	items   []item
}

// Inspect looks at the repository around a path and plans what to pack. It
// only reads. What cannot be packed is refused as *api.Error with a hint. It
// runs git five times, once more with a Branch and at most twice more for odd
// repositories.
func Inspect(ctx context.Context, dir string, o Options) (*Plan, error) {
	p := &Plan{GuestPath: o.GuestPath, scratch: o.Scratch, spill: o.Spill}
	if err := p.checkOptions(o); err != nil {
		return nil, err
	}
	repo, err := git.Open(ctx, dir)
	if err != nil {
		return nil, err
	}
	p.repo, p.Root = repo, repo.Root
	if p.Subdir, err = below(repo.Root, dir); err != nil {
		return nil, err
	}
	if o.Branch != "" {
		if err := repo.CheckBranch(ctx, o.Branch); err != nil {
			return nil, err
		}
	}
	if p.ref, err = repo.Branch(ctx); err != nil {
		return nil, err
	}
	if o.Branch != "" {
		p.ref = "refs/heads/" + o.Branch
	}
	p.Branch = branchName(p.ref)
	if err := p.read(ctx, o); err != nil {
		return nil, err
	}
	if repo.Promisor() != "" { // which may lack objects, better known now
		pack, err := p.pack(ctx)
		if pack != nil {
			err = errors.Join(err, pack.Close())
		}
		if err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *Plan) checkOptions(o Options) error {
	if o.From != "" && o.Branch == "" {
		return &api.Error{
			Code: api.Invalid, Msg: "--from needs --branch: the name of the branch that begins there",
			Hint: "add for instance: --branch try-it",
		}
	}
	if p.GuestPath == "" {
		p.GuestPath = DefaultGuestPath
	}
	p.GuestPath = path.Clean(p.GuestPath) // completion adds slashes
	if !path.IsAbs(p.GuestPath) || p.GuestPath == "/" {
		return &api.Error{
			Code: api.Invalid, Msg: fmt.Sprintf("the guest path %q is not an absolute path below /", p.GuestPath),
			Hint: "use for instance: --guest-path " + DefaultGuestPath,
		}
	}
	// The workspace comes while the guest boots, and systemd empties /tmp then.
	if top, _, _ := strings.Cut(p.GuestPath[1:], "/"); slices.Contains([]string{"dev", "proc", "sys", "tmp"}, top) {
		return &api.Error{
			Code: api.Invalid, Msg: fmt.Sprintf("the guest path %q is in /%s, which a guest empties or covers while it boots", p.GuestPath, top),
			Hint: "use for instance: --guest-path " + DefaultGuestPath,
		}
	}
	return nil
}

// read asks git for the history and the files.
func (p *Plan) read(ctx context.Context, o Options) error {
	revs := []string{"HEAD"}
	if o.From != "" {
		revs = append(revs, o.From)
	}
	var (
		wg        sync.WaitGroup
		listing   *git.Listing
		listError error
	)
	listCtx, cancel := context.WithCancel(ctx)
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { listing, listError = p.repo.List(listCtx) })
	histories, err := p.repo.History(ctx, depth, revs...)
	if err != nil {
		return err
	}
	p.Head = histories[0].Tip
	p.history = histories[len(histories)-1]
	p.Commit = p.history.Tip
	if p.FromCommit = p.Commit != p.Head; p.FromCommit {
		cancel() // what the work tree holds does not matter
		return p.readCommit(ctx, o)
	}
	staged, err := p.repo.Staged(ctx, p.Head)
	if err != nil {
		return err
	}
	wg.Wait()
	if listError != nil {
		return listError
	}
	return p.planTree(listing, staged, o)
}

// readCommit plans the files of a commit that is not HEAD.
func (p *Plan) readCommit(ctx context.Context, o Options) (err error) {
	if o.IncludeUntracked {
		return &api.Error{
			Code: api.Invalid,
			Msg:  fmt.Sprintf("--include-untracked takes files of the work tree, but --from %s takes those of another commit", o.From),
			Hint: "leave one of the two out",
		}
	}
	if p.tree, err = p.repo.Tree(ctx, p.Commit); err != nil {
		return err
	}
	for i := range p.tree {
		f := &p.tree[i]
		p.add(File{Path: f.Path, Mode: f.Mode, Size: f.Size, State: Committed})
	}
	return nil
}

// planTree looks at each tracked file once, without reading it.
func (p *Plan) planTree(l *git.Listing, staged map[string]string, o Options) error {
	p.listing = l
	w, err := openWalker(p.Root)
	if err != nil {
		return err
	}
	defer w.close()
	fileMode := p.repo.On("core.filemode", true)
	for i := range l.Entries {
		e := &l.Entries[i]
		id, isStaged := staged[e.Path]
		if id == e.ID || e.Stage != 0 || e.IntentToAdd {
			p.further = append(p.further, e.ID)
		}
		if i > 0 && l.Entries[i-1].Path == e.Path {
			continue // another side of a conflict
		}
		it := item{path: e.Path, entry: i}
		if e.Stage != 0 {
			it.entry = noEntry
		}
		if !fileMode {
			it.mode = e.Mode
		}
		f, err := p.look(w, &it)
		if err != nil {
			return err
		}
		f.Staged = isStaged
		if e.Stage != 0 {
			f.State = Conflict
		}
		p.add(f)
		if f.Mode != 0 {
			p.items = append(p.items, it)
		}
	}
	return p.planUntracked(w, l.Untracked, o)
}

func (p *Plan) planUntracked(w *walker, paths []string, o Options) error {
	if !o.IncludeUntracked {
		p.SkippedUntracked = len(paths)
		return nil
	}
	for _, name := range paths {
		it := item{path: name, entry: noEntry}
		if name[len(name)-1] == '/' {
			p.SkippedUntracked++ // a repository of its own
			continue
		}
		f, err := p.look(w, &it)
		if err != nil {
			return err
		}
		if f.Mode == 0 {
			continue // gone since git saw it
		}
		f.State = Untracked
		p.add(f)
		p.items = append(p.items, it)
	}
	return nil
}

// look describes one path of the work tree as it is now.
func (p *Plan) look(w *walker, it *item) (File, error) {
	f := File{Path: it.path, State: Deleted}
	st, err := w.stat(it.path)
	if absent(err) || err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if it.entry != noEntry && p.listing.Entries[it.entry].SkipWorktree {
			f.State = Sparse
		}
		return f, nil
	}
	if err != nil {
		return f, fileError(it.path, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFLNK:
	default:
		return f, &api.Error{
			Code: api.Unsupported, Msg: fmt.Sprintf("%q is neither a file nor a symbolic link", it.path),
			Hint: "remove it, or ignore it with: .gitignore",
		}
	}
	if err := w.checkReadable(it.path, st); err != nil {
		return f, err
	}
	f.Mode, f.Size, f.State = gitMode(st, it.mode), st.Size, Changed
	it.size = st.Size
	if it.entry != noEntry {
		e := &p.listing.Entries[it.entry]
		if e.AssumeValid || p.listing.Trusts(e, st) && f.Mode == e.Mode {
			f.State = Unchanged
		}
	}
	return f, nil
}

func (p *Plan) add(f File) {
	p.Files = append(p.Files, f)
	p.Bytes += f.Size
}

// Notices are the sentences, one line each, that the user should read: what
// was taken or left in a way that the command line does not say.
func (p *Plan) Notices() []string {
	var out []string
	if p.Subdir != "" {
		out = append(out, fmt.Sprintf("taking the whole repository %s, of which %s is a part", p.Root, p.Subdir))
	}
	if p.FromCommit {
		out = append(out, fmt.Sprintf("taking the files of commit %.12s; uncommitted changes stay here", p.Commit))
	}
	switch n := p.SkippedUntracked; {
	case n == 1:
		out = append(out, "1 untracked file stays here (--include-untracked takes it)")
	case n > 1:
		out = append(out, fmt.Sprintf("%d untracked files stay here (--include-untracked takes them)", n))
	}
	return out
}

// below returns where dir lies under root.
func below(root, dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("resolving %s: %w", dir, err)
	}
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return "", fmt.Errorf("resolving %s: %w", dir, err)
	}
	rel, err := filepath.Rel(root, real)
	if err != nil || rel == "." {
		return "", nil //nolint:nilerr // both are absolute
	}
	return rel, nil
}
