package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"banger/internal/agentapi"
	"banger/internal/api"
	"banger/internal/guest"
	"banger/internal/printable"
	"banger/internal/tartree"
)

// A Place is one side of a copy; VM is "" on the host.
type Place struct {
	VM, Path string
	Into     bool // written with a slash at its end, or empty: a directory
}

// ParsePlace reads NAME:PATH or a path of the host. What has a slash before
// its first colon is a path, so ./a:b means the host. In the guest a relative
// path begins at root's home, and so does one that says it with ~/, which no
// shell replaces after a colon.
func ParsePlace(s string) Place {
	vm, p, ok := strings.Cut(s, ":")
	if !ok || vm == "" || strings.ContainsAny(vm, "/.") {
		return Place{Path: s}
	}
	if p == "~" || strings.HasPrefix(p, "~/") {
		p = strings.TrimPrefix(p[1:], "/")
	}
	into := p == "" || strings.HasSuffix(p, "/")
	if !path.IsAbs(p) {
		p = "/root/" + p
	}
	return Place{VM: vm, Path: path.Clean(p), Into: into}
}

// CopyIn copies a file or directory of the host, or the tar on stdin if from is
// "-", to a place in the guest, as cp -r does.
func (s Session) CopyIn(ctx context.Context, from string, to Place) (agentapi.Done, error) {
	put := agentapi.Put{Dir: to.Path}
	pack := func(w io.Writer) error { _, err := io.Copy(w, s.Stdin); return err }
	if from != "-" {
		if _, err := os.Lstat(from); err != nil {
			return agentapi.Done{}, unread(from, err)
		}
		if !to.Into && to.Path != "/" {
			put.Dir, put.As = path.Dir(to.Path), path.Base(to.Path)
		}
		pack = func(w io.Writer) error {
			st, err := tartree.Pack(ctx, w, filepath.Clean(from), tartree.PackOptions{})
			for _, name := range st.Skipped {
				s.note("banger: %s is neither a file nor a directory and was left out", printable.Line(name, 200))
			}
			return err
		}
	}
	stream, err := s.stream(ctx)
	if err != nil {
		return agentapi.Done{}, err
	}
	defer stream.Close()
	return guest.Put(ctx, stream, put, pack)
}

// What a guest may send for one copy. Its files cannot have more bytes than its
// disk and its image unless they have large holes, nor be more than ext4 has
// inodes for.
const (
	copySlack   = 64 << 30
	copyEntries = 8 << 20
)

// CopyOut copies a file or directory of the guest to a path of the host, as cp
// -r does, or as a tar to stdout if to is "-". Whatever the guest sends, nothing
// is written but what was asked for, below the target.
func (s Session) CopyOut(ctx context.Context, from Place, to string) (agentapi.Done, error) {
	stream, err := s.stream(ctx)
	if err != nil {
		return agentapi.Done{}, err
	}
	defer stream.Close()
	if to == "-" {
		if IsTerminal(s.Stdout) {
			return agentapi.Done{}, invalid("banger vm cp "+from.VM+":"+from.Path+" - | tar t", "stdout is a terminal, not a place for a tar")
		}
		return guest.Get(ctx, stream, agentapi.Get{Path: from.Path}, s.Stdout)
	}
	dir, o := filepath.Dir(to), tartree.Options{
		Foreign: true, Top: tartree.NameOf(from.Path), As: filepath.Base(to),
		MaxBytes: s.Machine.Spec.DiskBytes + copySlack, MaxEntries: copyEntries,
	}
	if st, err := os.Stat(to); err == nil && st.IsDir() || strings.HasSuffix(to, "/") {
		dir, o.As = to, ""
	}
	if _, err := os.Stat(dir); err != nil {
		return agentapi.Done{}, invalid("mkdir -p "+dir, "there is no directory %s to copy into", dir)
	}
	r, w := io.Pipe()
	var sent agentapi.Done
	got := make(chan error, 1)
	go func() {
		var err error
		sent, err = guest.Get(ctx, stream, agentapi.Get{Path: from.Path}, w)
		w.CloseWithError(err)
		got <- err
	}()
	stats, err := tartree.Unpack(ctx, dir, r, o)
	if err == nil {
		_, err = io.Copy(io.Discard, r) // what follows the tar's end, and the guest's own verdict
	}
	r.CloseWithError(io.ErrClosedPipe)
	if gerr := <-got; gerr != nil && (err == nil || stats.Files == 0) {
		err = gerr
	}
	if g, ok := errors.AsType[*agentapi.Error](err); ok && g.Code == agentapi.CodeNotFound {
		err = &api.Error{Code: api.NotFound, Msg: g.Msg, Hint: "see what is there: banger vm exec " + from.VM + " -- ls -l " + ShellQuote(path.Dir(from.Path))}
	}
	if err != nil {
		return agentapi.Done{}, err
	}
	// What the guest has not sent, and what was not made here.
	return agentapi.Done{Files: stats.Files, Bytes: stats.Bytes, Skipped: append(sent.Skipped, stats.Skipped...)}, nil
}

// unread says why a file of the host cannot be a source.
func unread(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return invalid("see what is there: ls -l "+ShellQuote(filepath.Dir(path)), "there is no file or directory %s", path)
	}
	return fmt.Errorf("reading the source: %w", err)
}

func invalid(hint, format string, args ...any) error {
	return &api.Error{Code: api.Invalid, Msg: fmt.Sprintf(format, args...), Hint: hint}
}
