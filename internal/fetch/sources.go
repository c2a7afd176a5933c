package fetch

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// How long a server may keep silent: to take the connection, to begin its
// answer, and between two pieces of it.
const (
	dialPatience  = 10 * time.Second
	firstPatience = 30 * time.Second
	piecePatience = 30 * time.Second
)

// https copies the answer of a server into f.
func (s Store) https(ctx context.Context, f *os.File, it Item, address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" {
		return errors.New("not an https address")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(firstPatience+dialPatience, func() {
		cancel(fmt.Errorf("no byte came for %v", piecePatience))
	})
	defer silent.Stop()

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	resp, err := s.client().Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		// Without the "Get <address>" that the client puts in front: the caller names it.
		var ue *url.Error
		if errors.As(err, &ue) {
			return ue.Err
		}
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the server says %s", resp.Status)
	}
	return copyVerified(ctx, f, &watched{r: resp.Body, timer: silent, tell: func(n int64) { s.tell(it, n) }}, it)
}

// watched puts off the end that a silent server gets, and tells each mebibyte.
type watched struct {
	r     io.Reader
	timer *time.Timer
	tell  func(int64)
	n     int64
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	w.timer.Reset(piecePatience)
	before := w.n >> 20
	if w.n += int64(n); w.n>>20 != before {
		w.tell(w.n)
	}
	return n, err
}

func (s Store) client() *http.Client {
	if s.Client != nil {
		return s.Client
	}
	return &http.Client{Transport: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialPatience}).DialContext,
		TLSHandshakeTimeout:   dialPatience,
		ResponseHeaderTimeout: firstPatience,
		ForceAttemptHTTP2:     true,
	}}
}

// npm has the npm client fetch a package, and copies one member of it into f.
func (s Store) npm(ctx context.Context, f *os.File, it Item, src Source) error {
	program, err := exec.LookPath("npm")
	if err != nil {
		return errors.New("there is no npm in PATH")
	}
	dir, err := os.MkdirTemp(s.Dir, ".npm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // nothing depends on it
	cmd := exec.CommandContext(ctx, program, "pack", "--silent", "--ignore-scripts", "--", src.NPM)
	cmd.Dir = dir
	cmd.WaitDelay = 5 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("npm pack: %w%s", err, lastLine(out))
	}
	made, err := filepath.Glob(filepath.Join(dir, "*.tgz"))
	if err != nil || len(made) != 1 {
		return fmt.Errorf("npm pack made %d archives, not one", len(made))
	}
	return member(ctx, f, made[0], it, src.Member)
}

// member copies one file of a .tgz.
func member(ctx context.Context, w io.Writer, archive string, it Item, name string) error {
	a, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer a.Close()
	z, err := gzip.NewReader(a)
	if err != nil {
		return fmt.Errorf("reading the package: %w", err)
	}
	for t := tar.NewReader(z); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("the package has no member %s", name)
		}
		if err != nil {
			return fmt.Errorf("reading the package: %w", err)
		}
		if h.Name == name && h.Typeflag == tar.TypeReg {
			return copyVerified(ctx, w, t, it)
		}
	}
}

// lastLine is the end of a program's output, to go after its error.
func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if last := lines[len(lines)-1]; last != "" {
		return " (" + last + ")"
	}
	return ""
}
