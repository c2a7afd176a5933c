package recipe

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// builtAt is the time stamp of whatever has none of its own: Debian 12's
// release. The same packages then make the same tar.
const builtAt = 1686355200

// bufferSize spares system calls: most members are small.
const bufferSize = 1 << 20

const archives = "var/cache/apt/archives/"

// rewriter copies mmdebstrap's tar and makes it ours on the way.
type rewriter struct {
	recipe Recipe
	buffer *bufio.Writer
	out    *tar.Writer
	debs   string // where packages are kept, or empty
	kept   map[string]bool
	dirs   map[string]bool // directories written so far
	ours   map[string]bool // paths that we add
	marked bool            // what every result must have came by
}

func newRewriter(r Recipe, out io.Writer, debs string) *rewriter {
	buffer := bufio.NewWriterSize(out, bufferSize)
	w := &rewriter{recipe: r, buffer: buffer, out: tar.NewWriter(buffer), debs: debs, kept: map[string]bool{}, dirs: map[string]bool{"": true}, ours: map[string]bool{}}
	for _, f := range r.Files {
		w.ours[f.Path] = true
	}
	for _, d := range r.Downloads {
		w.ours[d.Path] = true
	}
	return w
}

// copy takes mmdebstrap's tar to its end. The result has no end yet: it gets
// one from finish, when mmdebstrap is known to have succeeded.
func (w *rewriter) copy(in io.Reader) error {
	for t := tar.NewReader(bufio.NewReaderSize(in, bufferSize)); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading mmdebstrap's tar: %w", err)
		}
		if err := w.entry(h, t); err != nil {
			return err
		}
	}
}

func (w *rewriter) entry(h *tar.Header, body io.Reader) error {
	name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	if base, ok := strings.CutPrefix(name, archives); ok && h.Typeflag == tar.TypeReg && strings.HasSuffix(base, ".deb") && !strings.Contains(base, "/") {
		return w.keep(base, h.Size, body)
	}
	if w.drops(name, h.Typeflag) {
		return nil
	}
	if h.Typeflag == tar.TypeLink && w.drops(strings.TrimPrefix(path.Clean("/"+h.Linkname), "/"), tar.TypeReg) {
		return fmt.Errorf("rewriting the tar: %s is a hard link to %s, which is left out", name, h.Linkname)
	}
	if h.Typeflag == tar.TypeDir {
		w.dirs[name] = true
	}
	w.marked = w.marked || name == "etc/os-release" || (w.recipe.Kernel && strings.HasPrefix(name, "boot/vmlinuz-"))
	if name == "etc/apt/sources.list" {
		b, err := guestSources(body)
		if err != nil {
			return err
		}
		h.Size, body = int64(len(b)), strings.NewReader(b)
	}
	if err := w.out.WriteHeader(h); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	if _, err := io.Copy(w.out, body); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}

// drops says whether a path stays out of the result.
func (w *rewriter) drops(name string, kind byte) bool {
	if w.recipe.Kernel {
		return !kernelPath(name, kind)
	}
	if w.ours[name] {
		return true
	}
	dir, base := path.Split(name)
	switch dir {
	case "etc/ssh/":
		return strings.HasPrefix(base, "ssh_host_") // the same in every VM otherwise
	case "etc/apt/apt.conf.d/", "etc/dpkg/dpkg.cfg.d/":
		return strings.HasSuffix(base, "mmdebstrap") // the build's settings, not the guest's
	case "etc/systemd/system/timers.target.wants/":
		return strings.HasPrefix(base, "apt-daily") // waits for a network, and locks dpkg when it likes
	case "var/cache/apt/":
		return kind == tar.TypeReg
	}
	for _, empty := range []string{"dev/", "proc/", "sys/", "run/", "tmp/", archives, "var/lib/apt/lists/"} {
		if strings.HasPrefix(name, empty) && name != empty {
			return true
		}
	}
	return false
}

// kernelPath says whether a path belongs to a kernel: the kernel, its
// configuration, its modules, and the directories above them.
func kernelPath(name string, kind byte) bool {
	if kind == tar.TypeDir {
		return name == "" || name == "boot" || name == "lib" || name == "lib/modules" || strings.HasPrefix(name, "lib/modules/")
	}
	return strings.HasPrefix(name, "boot/vmlinuz-") || strings.HasPrefix(name, "boot/config-") || strings.HasPrefix(name, "lib/modules/")
}

var (
	signedBy   = regexp.MustCompile(` ?\bsigned-by=[^ \]]*`)
	credential = regexp.MustCompile(`(https?://)[^/\s]*@`)
)

// guestSources makes the sources.list of the build one for the guest: keyrings
// of the host are not there, the archive's own keys are, and what runs in a
// guest must not learn a name and password that the host has for its mirror.
func guestSources(in io.Reader) (string, error) {
	b, err := io.ReadAll(io.LimitReader(in, 1<<20))
	if err != nil {
		return "", fmt.Errorf("reading mmdebstrap's tar: %w", err)
	}
	text := credential.ReplaceAllString(signedBy.ReplaceAllString(string(b), ""), "$1")
	return strings.ReplaceAll(text, "[] ", ""), nil
}

// keep puts a downloaded package into the cache, unless it is there.
func (w *rewriter) keep(base string, size int64, body io.Reader) error {
	if w.debs == "" {
		return nil
	}
	w.kept[base] = true
	to := filepath.Join(w.debs, base)
	if st, err := os.Lstat(to); err == nil && st.Mode().IsRegular() && st.Size() == size {
		return nil
	}
	f, err := os.CreateTemp(w.debs, ".part-")
	if err != nil {
		return fmt.Errorf("keeping %s: %w", base, err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // it has another name by then
	_, err = io.Copy(f, body)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), to)
	}
	if err != nil {
		return fmt.Errorf("keeping %s: %w", base, err)
	}
	return nil
}

// prune removes cached packages that this build did not have: newer ones came.
func (w *rewriter) prune() error {
	entries, err := os.ReadDir(w.debs)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".deb") && !w.kept[e.Name()] {
			err = errors.Join(err, os.Remove(filepath.Join(w.debs, e.Name())))
		}
	}
	return err
}

// add writes one file of ours, and the directories above it that are missing.
func (w *rewriter) add(f File, size int64, body io.Reader) error {
	for i, c := range f.Path {
		if c == '/' && !w.dirs[f.Path[:i]] {
			w.dirs[f.Path[:i]] = true
			if err := w.out.WriteHeader(ourHeader(tar.TypeDir, f.Path[:i]+"/", 0o755)); err != nil {
				return fmt.Errorf("writing %s: %w", f.Path[:i], err)
			}
		}
	}
	h := ourHeader(tar.TypeReg, f.Path, f.Mode)
	h.Size = size
	if f.Link != "" {
		h.Typeflag, h.Linkname, h.Mode, h.Size = tar.TypeSymlink, f.Link, 0o777, 0
	}
	if err := w.out.WriteHeader(h); err != nil {
		return fmt.Errorf("writing %s: %w", f.Path, err)
	}
	if f.Link != "" {
		return nil
	}
	if _, err := io.Copy(w.out, body); err != nil {
		return fmt.Errorf("writing %s: %w", f.Path, err)
	}
	return nil
}

func ourHeader(kind byte, name string, mode int64) *tar.Header {
	return &tar.Header{Typeflag: kind, Name: "./" + name, Mode: mode, ModTime: time.Unix(builtAt, 0)}
}

// finish adds our files and ends the tar. A tar that was cut off between two
// members looks whole, so what every result has is looked for.
func (w *rewriter) finish(downloads []*os.File) error {
	if !w.marked {
		return errors.New("mmdebstrap's tar holds no Debian system and no kernel")
	}
	for _, f := range w.recipe.Files {
		if err := w.add(f, int64(len(f.Body)), strings.NewReader(f.Body)); err != nil {
			return err
		}
	}
	for i, d := range w.recipe.Downloads {
		if err := w.add(File{Path: d.Path, Mode: d.Mode}, d.Size, downloads[i]); err != nil {
			return err
		}
	}
	if err := errors.Join(w.out.Close(), w.buffer.Flush()); err != nil {
		return fmt.Errorf("writing the tar: %w", err)
	}
	return nil
}
