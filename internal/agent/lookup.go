package agent

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/agentapi"
)

// defaultPath is the PATH of a command that brings none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is the fixed environment with extra after it; of several values
// of one name the last counts.
func environment(a account, tty bool, extra []string) []string {
	env := []string{
		"HOME=" + a.home, "USER=" + a.name, "LOGNAME=" + a.name, "SHELL=" + a.shell,
		"PATH=" + defaultPath, "LANG=C.UTF-8",
	}
	if tty {
		env = append(env, "TERM=xterm-256color")
	}
	at := map[string]int{}
	out := make([]string, 0, len(env)+len(extra))
	for _, kv := range append(env, extra...) {
		name, _, isSet := strings.Cut(kv, "=")
		if !isSet {
			continue // a name alone would hide a later value from some programs
		}
		if i, again := at[name]; again {
			out[i] = kv
			continue
		}
		at[name] = len(out)
		out = append(out, kv)
	}
	return out
}

func getenv(env []string, name string) string {
	for _, kv := range env {
		if v, found := strings.CutPrefix(kv, name+"="); found {
			return v
		}
	}
	return ""
}

// lookup finds a program like a shell in directory dir with that PATH does: the
// first executable wins; one that may not be executed is told only if there is
// no other.
func lookup(name, path, dir string) (string, error) {
	if name == "" {
		return "", refuse(agentapi.CodeNotFound, "the command's name is empty")
	}
	if strings.Contains(name, "/") {
		return name, runnable(name, dir)
	}
	var denied error
	for _, d := range filepath.SplitList(path) {
		if d == "" {
			d = "."
		}
		p := filepath.Join(d, name)
		if !strings.Contains(p, "/") {
			p = "./" + p
		}
		err := runnable(p, dir)
		if err == nil {
			return p, nil
		}
		if e, is := errors.AsType[*agentapi.Error](err); is && e.Code == agentapi.CodeNotExecutable && denied == nil {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", refuse(agentapi.CodeNotFound, "no program %q in the guest (PATH is %s)", name, path)
}

// runnable says why a path cannot be executed. Whether this user may, the
// kernel says later.
func runnable(path, dir string) error {
	abs := path
	if !filepath.IsAbs(abs) {
		abs = filepath.Join(dir, abs)
	}
	fi, err := os.Stat(abs)
	switch {
	case err != nil && (errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR)):
		return refuse(agentapi.CodeNotFound, "no program %q in the guest", path)
	case err != nil:
		return refuse(agentapi.CodeNotExecutable, "%q cannot be executed: %v", path, err)
	case fi.IsDir():
		return refuse(agentapi.CodeNotExecutable, "%q is a directory", path)
	case !fi.Mode().IsRegular() || fi.Mode()&0o111 == 0:
		return refuse(agentapi.CodeNotExecutable, "%q is not executable", path)
	}
	return nil
}

// isScript reports whether the kernel's ENOEXEC means a script without "#!",
// which shells run themselves, rather than a binary for another machine. The
// test is that of shells: no NUL in what would be the first line.
func isScript(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	b := make([]byte, 128)
	n, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return false
	}
	line, _, _ := bytes.Cut(b[:n], []byte("\n"))
	return bytes.IndexByte(line, 0) < 0
}
