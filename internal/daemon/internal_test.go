package daemon

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"banger/internal/api"
	"banger/internal/paths"
	"banger/internal/unixsock"
)

func TestLogIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon.log")
	l, err := OpenLog(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.max = 1000
	var wg sync.WaitGroup
	line := strings.Repeat("x", 99) + "\n"
	for range 4 {
		wg.Go(func() {
			for range 50 {
				if n, err := l.Write([]byte(line)); err != nil || n != 100 {
					t.Errorf("Write() = %d, %v", n, err)
				}
			}
		})
	}
	wg.Wait()
	for _, p := range []string{path, path + ".1"} {
		b, err := os.ReadFile(p)
		if err != nil || len(b) > 1000 || len(b)%100 != 0 {
			t.Errorf("%s has %d bytes, %v; want whole lines, at most 1000", p, len(b), err)
		}
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 2 {
		t.Errorf("%d files, %v; want the log and its predecessor", len(entries), err)
	}
	again, err := OpenLog(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.n == 0 {
		t.Error("a log that is opened again forgets how long it is")
	}
}

// serveOne answers one request with serve, asked by uid.
func serveOne(uid int, rt route) *httptest.ResponseRecorder {
	d := &Daemon{log: slog.New(slog.DiscardHandler)}
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, "/v1/x", nil)
	r = r.WithContext(context.WithValue(r.Context(), peerKey{}, peer{cred: unixsock.Cred{UID: uid}}))
	d.answer(rt, w, r)
	return w
}

func TestPanicEndsOneRequest(t *testing.T) {
	w := serveOne(os.Getuid(), route{access: owner, serve: func(*Daemon, *call) error { panic("boom") }})
	if w.Code != 500 || !strings.Contains(w.Body.String(), `"internal"`) || !strings.Contains(w.Body.String(), "boom") {
		t.Errorf("a panic is answered by %d %s", w.Code, w.Body)
	}
	w = serveOne(os.Getuid(), route{access: owner, serve: func(_ *Daemon, c *call) error {
		_, s := c.stream()
		s.emit(api.Event{Type: api.EventPhase, Phase: "disk"})
		panic("boom")
	}})
	lines := strings.Split(strings.TrimSpace(w.Body.String()), "\n")
	if w.Code != 200 || len(lines) != 2 || !strings.Contains(lines[1], `"error"`) {
		t.Errorf("a panic within events is answered by %d %s", w.Code, w.Body)
	}
}

func TestAccess(t *testing.T) {
	ok := func(_ *Daemon, c *call) error { return c.empty() }
	for _, rt := range routes() {
		if rt.access != owner {
			t.Errorf("%s %s has access %q: who is that?", rt.method, rt.path, rt.access)
		}
	}
	for name, tt := range map[string]struct {
		uid  int
		rt   route
		want int
	}{
		"ourselves":        {os.Getuid(), route{access: owner, serve: ok}, 204},
		"root":             {0, route{access: owner, serve: ok}, 204},
		"a stranger":       {54321, route{access: owner, serve: ok}, 403},
		"no access at all": {0, route{serve: ok}, 403},
	} {
		if w := serveOne(tt.uid, tt.rt); w.Code != tt.want {
			t.Errorf("%s: answered by %d %s, want %d", name, w.Code, w.Body, tt.want)
		}
	}
	d := &Daemon{log: slog.New(slog.DiscardHandler)}
	w := httptest.NewRecorder()
	d.answer(route{access: owner, serve: ok}, w, httptest.NewRequest(http.MethodGet, "/v1/x", nil))
	if w.Code != 403 {
		t.Errorf("a connection of nobody known is answered by %d", w.Code)
	}
}

func TestEveryCodeHasAStatus(t *testing.T) {
	for _, code := range []api.Code{
		api.Invalid, api.NotFound, api.Ambiguous, api.Exists, api.Conflict, api.Timeout, api.Unsupported, api.NoSpace,
		api.Denied, api.VersionSkew, api.Interrupted,
	} {
		if got := statusOf(code); got < 400 || got == 500 {
			t.Errorf("statusOf(%s) = %d", code, got)
		}
	}
}

func TestDaemonNoticesThatNobodyFindsIt(t *testing.T) {
	dir := t.TempDir()
	l := paths.Layout{Lock: filepath.Join(dir, "lock"), Socket: filepath.Join(dir, "sock")}
	for _, p := range []string{l.Lock, l.Socket} {
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d := &Daemon{cfg: Config{Layout: l}}
	if got := d.gone(); got != "" {
		t.Errorf("gone() = %q, want nothing", got)
	}
	for _, p := range []string{l.Socket, l.Lock} {
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
		if got := d.gone(); got != p {
			t.Errorf("gone() = %q, want %q", got, p)
		}
	}
}
