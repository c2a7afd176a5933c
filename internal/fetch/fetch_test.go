package fetch

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"banger/internal/api"
)

var body = bytes.Repeat([]byte("banger fetches by content. "), 40_000)

func itemOf(b []byte, sources ...Source) Item {
	sum := sha256.Sum256(b)
	return Item{Name: "thing 1.0", SHA256: hex.EncodeToString(sum[:]), Size: int64(len(b)), Sources: sources}
}

// serve answers /PATH with what answers holds for it, and counts requests.
func serve(t *testing.T, answers map[string]http.HandlerFunc) (*httptest.Server, *atomic.Int32) {
	t.Helper()
	var count atomic.Int32
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		count.Add(1)
		if h := answers[strings.TrimPrefix(r.URL.Path, "/")]; h != nil {
			h(w, r)
			return
		}
		http.NotFound(w, r)
	}))
	srv.Config.ErrorLog = nil
	t.Cleanup(srv.Close)
	return srv, &count
}

func sends(b []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(b) }
}

func read(t *testing.T, f *os.File, err error) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// onlyFile fails unless dir holds exactly the item's file, whole.
func onlyFile(t *testing.T, s Store, it Item) {
	t.Helper()
	entries, err := os.ReadDir(s.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || entries[0].Name() != it.SHA256 {
		t.Errorf("the store holds %v, want %s alone", entries, it.SHA256)
	}
	if b, err := os.ReadFile(s.Path(it.SHA256)); err != nil || !bytes.Equal(b, body) {
		t.Errorf("the cached file has %d bytes (%v), want the item's %d", len(b), err, len(body))
	}
}

func TestGetFromTheSecondSource(t *testing.T) {
	srv, count := serve(t, map[string]http.HandlerFunc{"good": sends(body)})
	s := Store{Dir: filepath.Join(t.TempDir(), "made", "on demand"), Client: srv.Client()}
	it := itemOf(body, Source{URL: srv.URL + "/missing"}, Source{URL: srv.URL + "/good"})
	var told []int64
	s.Progress = func(_ Item, done int64) { told = append(told, done) }
	for round := range 2 {
		f, err := s.Get(t.Context(), it)
		if got := read(t, f, err); !bytes.Equal(got, body) {
			t.Errorf("round %d: got %d other bytes, want the item", round, len(got))
		}
	}
	if got := count.Load(); got != 2 {
		t.Errorf("got %d requests, want 2: the second Get is served from the cache", got)
	}
	if len(told) != 3 || told[0] != 0 || told[1] != 0 || told[2] < 1<<20 {
		t.Errorf("progress was %v, want the start of both sources and the first mebibyte", told)
	}
	onlyFile(t, s, it)
}

func TestGetReplacesADamagedCopy(t *testing.T) {
	srv, _ := serve(t, map[string]http.HandlerFunc{"good": sends(body)})
	it := itemOf(body, Source{URL: srv.URL + "/good"})
	flipped := bytes.Clone(body)
	flipped[len(flipped)/2] ^= 1
	for name, damaged := range map[string][]byte{"flipped byte": flipped, "cut off": body[:100], "longer": append(bytes.Clone(body), 'x'), "empty": nil} {
		t.Run(name, func(t *testing.T) {
			s := Store{Dir: t.TempDir(), Client: srv.Client()}
			if err := os.WriteFile(s.Path(it.SHA256), damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := s.Get(t.Context(), it)
			if got := read(t, f, err); !bytes.Equal(got, body) {
				t.Errorf("got %d other bytes, want the item", len(got))
			}
			onlyFile(t, s, it)
		})
	}
}

func TestGetRefusesWhatIsNotTheItem(t *testing.T) {
	flipped := bytes.Clone(body)
	flipped[7] ^= 1
	srv, _ := serve(t, map[string]http.HandlerFunc{
		"flipped": sends(flipped),
		"short":   sends(body[:5000]),
		"long":    sends(append(bytes.Clone(body), "more"...)),
		"cut": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			_, _ = w.Write(body[:9000])
		},
		"teapot":    func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) },
		"elsewhere": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/flipped", http.StatusFound) },
	})
	cases := []struct {
		source Source
		want   string
	}{
		{Source{URL: srv.URL + "/flipped"}, "has another content (sha256 "},
		{Source{URL: srv.URL + "/short"}, "ends after 5000 of 1080000 bytes"},
		{Source{URL: srv.URL + "/long"}, "larger than the item's 1080000 bytes"},
		{Source{URL: srv.URL + "/cut"}, "unexpected EOF"},
		{Source{URL: srv.URL + "/teapot"}, "the server says 418"},
		{Source{URL: srv.URL + "/elsewhere"}, "has another content"},
		{Source{URL: "http://127.0.0.1:1/x"}, "not an https address"},
		{Source{URL: "file:///etc/passwd"}, "not an https address"},
	}
	for _, c := range cases {
		t.Run(c.want, func(t *testing.T) {
			s := Store{Dir: t.TempDir(), Client: srv.Client()}
			it := itemOf(body, c.source)
			f, err := s.Get(t.Context(), it)
			if err == nil {
				f.Close()
			}
			var e *api.Error
			if !errors.As(err, &e) || e.Code != api.NotFound {
				t.Fatalf("got error %v, want an api.Error with %s", err, api.NotFound)
			}
			for _, part := range []string{it.SHA256, c.source.URL, c.want, "thing 1.0"} {
				if !strings.Contains(e.Msg, part) {
					t.Errorf("got message %q, want %q in it", e.Msg, part)
				}
			}
			if !strings.Contains(e.Hint, s.Path(it.SHA256)) {
				t.Errorf("got hint %q, want the place of the file in it", e.Hint)
			}
			if left, _ := os.ReadDir(s.Dir); len(left) != 0 {
				t.Errorf("the store holds %v, want nothing", left)
			}
		})
	}
}

func TestGetByHand(t *testing.T) {
	s := Store{Dir: t.TempDir()}
	it := itemOf(body)
	if _, err := s.Get(t.Context(), it); err == nil || !strings.Contains(err.Error(), "it has no source") {
		t.Errorf("got error %v, want one that says there is no source", err)
	}
	if err := os.WriteFile(s.Path(it.SHA256), body, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := s.Get(t.Context(), it)
	if got := read(t, f, err); !bytes.Equal(got, body) {
		t.Errorf("got %d other bytes, want the item", len(got))
	}
}

func TestGetManyAtOnce(t *testing.T) {
	srv, _ := serve(t, map[string]http.HandlerFunc{"good": sends(body)})
	s := Store{Dir: t.TempDir(), Client: srv.Client()}
	it := itemOf(body, Source{URL: srv.URL + "/good"})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			f, err := s.Get(t.Context(), it)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, body) {
				t.Errorf("got %d bytes (%v), want the item", len(got), err)
			}
		})
	}
	wg.Wait()
	onlyFile(t, s, it)
}

func TestGetCancelled(t *testing.T) {
	begun, end := make(chan struct{}), make(chan struct{})
	defer close(end)
	srv, count := serve(t, map[string]http.HandlerFunc{
		"slow": func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(body[:1000])
			w.(http.Flusher).Flush()
			close(begun)
			select {
			case <-end:
			case <-r.Context().Done():
			}
		},
		"good": sends(body),
	})
	s := Store{Dir: t.TempDir(), Client: srv.Client()}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begun; cancel() }()
	_, err := s.Get(ctx, itemOf(body, Source{URL: srv.URL + "/slow"}, Source{URL: srv.URL + "/good"}))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want %v", err, context.Canceled)
	}
	if got := count.Load(); got != 1 {
		t.Errorf("got %d requests, want 1: the second source is not tried", got)
	}
	if left, _ := os.ReadDir(s.Dir); len(left) != 0 {
		t.Errorf("the store holds %v, want nothing", left)
	}
}

func TestGetRefusesNonsense(t *testing.T) {
	for _, it := range []Item{{}, {SHA256: "../../etc/passwd", Size: 1}, {SHA256: strings.Repeat("A", 64), Size: 1}, {SHA256: strings.Repeat("a", 64)}} {
		if _, err := (Store{Dir: t.TempDir()}).Get(t.Context(), it); err == nil || !strings.Contains(err.Error(), "makes no sense") {
			t.Errorf("%+v: got error %v, want it refused", it, err)
		}
	}
}

// tgz is an archive as npm makes one.
func tgz(t *testing.T, members map[string][]byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	w := tar.NewWriter(z)
	for name, b := range members {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(b)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestGetFromNPM puts a program called npm in PATH that does what "npm pack" does.
func TestGetFromNPM(t *testing.T) {
	cases := []struct {
		name, script string
		archive      []byte
		want         string
	}{
		{"good", `cp "$ARCHIVE" thing-1.0.tgz`, tgz(t, map[string][]byte{"package/bin/thing": body, "package/x": []byte("x")}), ""},
		{"no member", `cp "$ARCHIVE" thing-1.0.tgz`, tgz(t, map[string][]byte{"package/x": []byte("x")}), "the package has no member package/bin/thing"},
		{"wrong bytes", `cp "$ARCHIVE" thing-1.0.tgz`, tgz(t, map[string][]byte{"package/bin/thing": []byte("x")}), "ends after 1 of"},
		{"not an archive", `cp "$ARCHIVE" thing-1.0.tgz`, []byte("hello"), "reading the package"},
		{"fails", `echo about to fail; echo "no such package" >&2; exit 1`, nil, "(no such package)"},
		{"makes nothing", `true`, nil, "made 0 archives"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			bin := t.TempDir()
			archive := filepath.Join(bin, "archive")
			script := "#!/bin/sh\nset -e\n[ \"$*\" = 'pack --silent --ignore-scripts -- @scope/thing@1.0' ]\n" + c.script + "\n"
			if err := errors.Join(os.WriteFile(archive, c.archive, 0o644), os.WriteFile(filepath.Join(bin, "npm"), []byte(script), 0o755)); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
			t.Setenv("ARCHIVE", archive)
			s := Store{Dir: t.TempDir()}
			it := itemOf(body, Source{NPM: "@scope/thing@1.0", Member: "package/bin/thing"})
			f, err := s.Get(t.Context(), it)
			if c.want == "" {
				if got := read(t, f, err); !bytes.Equal(got, body) {
					t.Errorf("got %d other bytes, want the item", len(got))
				}
				onlyFile(t, s, it)
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
			if left, _ := os.ReadDir(s.Dir); len(left) != 0 {
				t.Errorf("the store holds %v, want nothing", left)
			}
		})
	}
	t.Run("no npm", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		_, err := Store{Dir: t.TempDir()}.Get(t.Context(), itemOf(body, Source{NPM: "thing@1.0", Member: "package/bin/thing"}))
		if err == nil || !strings.Contains(err.Error(), "there is no npm in PATH") {
			t.Errorf("got error %v, want one that says there is no npm", err)
		}
	})
}
