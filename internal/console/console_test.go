package console_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/console"
	"banger/internal/testneed"
)

func open(t *testing.T, c console.Config) *console.Log {
	t.Helper()
	l, err := console.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// all reads to the end.
func all(t *testing.T, r *console.Reader) string {
	t.Helper()
	var b bytes.Buffer
	p := make([]byte, 7)
	for {
		n, err := r.Next(t.Context(), p)
		b.Write(p[:n])
		if errors.Is(err, io.EOF) {
			return b.String()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestRotation(t *testing.T) {
	c := console.Config{Path: filepath.Join(t.TempDir(), "console"), Limit: 100}
	l := open(t, c)
	var want strings.Builder
	for i := range 200 {
		line := fmt.Sprintf("line %d\n", i)
		want.WriteString(line)
		if n, err := io.WriteString(l, line); n != len(line) || err != nil {
			t.Fatalf("Write() = %d, %v", n, err)
		}
	}
	got := all(t, l.Reader(0, false))
	if len(got) < 100 || len(got) > 200 || !strings.HasSuffix(want.String(), got) {
		t.Errorf("the log holds %d bytes %q, want the last 100 to 200", len(got), got)
	}
	if got, want := all(t, l.Reader(20, false)), want.String()[want.Len()-20:]; got != want {
		t.Errorf("Reader(20) = %q, want %q", got, want)
	}
	if got, want := string(l.Tail(120)), want.String()[want.Len()-120:]; !strings.HasSuffix(want, got) || len(got) < 100 {
		t.Errorf("Tail(120) = %q, want the end of %q", got, want)
	}
	for _, name := range []string{c.Path, c.Path + console.OldSuffix} {
		if st, err := os.Stat(name); err != nil || st.Size() > 100 || st.Mode().Perm() != 0o600 {
			t.Errorf("Stat(%s) = %v, %v; want at most 100 bytes, 0600", name, st, err)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	c.Append = true
	if again := all(t, open(t, c).Reader(0, false)); again != got {
		t.Errorf("opened to append it holds %q, want %q", again, got)
	}
	c.Append = false
	if again := all(t, open(t, c).Reader(0, false)); again != "" {
		t.Errorf("opened anew it holds %q, want nothing", again)
	}
}

func TestOneWriteLongerThanAll(t *testing.T) {
	l := open(t, console.Config{Path: filepath.Join(t.TempDir(), "console"), Limit: 10})
	if _, err := io.WriteString(l, strings.Repeat("x", 95)+"12345"); err != nil {
		t.Fatal(err)
	}
	if got := all(t, l.Reader(0, false)); !strings.HasSuffix(got, "xxxxx12345") || len(got) > 20 {
		t.Errorf("the log holds %q, want at most 20 bytes", got)
	}
}

func TestFollow(t *testing.T) {
	l := open(t, console.Config{Path: filepath.Join(t.TempDir(), "console"), Limit: 1000})
	got := make(chan string)
	r := l.Reader(0, true)
	go func() { got <- all(t, r) }()
	var want strings.Builder
	for i := range 50 {
		fmt.Fprintf(&want, "%d\n", i)
		fmt.Fprintf(l, "%d\n", i)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if s := <-got; s != want.String() {
		t.Errorf("the follower read %q, want %q", s, want.String())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l = open(t, console.Config{Path: filepath.Join(t.TempDir(), "console")})
	if _, err := l.Reader(0, true).Next(ctx, make([]byte, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("Next() with a dead context = %v, want Canceled", err)
	}
}

// A slow follower loses what it could not read in time, and nothing breaks.
func TestSlowFollower(t *testing.T) {
	l := open(t, console.Config{Path: filepath.Join(t.TempDir(), "console"), Limit: 50})
	r := l.Reader(0, true)
	for i := range 1000 {
		fmt.Fprintf(l, "%d\n", i)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := all(t, r); !strings.HasSuffix(got, "\n998\n999\n") || len(got) > 100 {
		t.Errorf("the follower read %q, want the last 100 bytes at most", got)
	}
}

func TestDiskFullIsToldAtTheEnd(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		testneed.Missing(t, "/dev/full")
	}
	path := filepath.Join(t.TempDir(), "console")
	if err := os.Symlink("/dev/full", path); err != nil {
		t.Fatal(err)
	}
	l := open(t, console.Config{Path: path})
	if n, err := io.WriteString(l, "x"); n != 1 || err != nil {
		t.Errorf("Write() = %d, %v; want it to go on", n, err)
	}
	if err := l.Close(); err == nil {
		t.Error("Close() = nil, want the disk's error")
	}
}
