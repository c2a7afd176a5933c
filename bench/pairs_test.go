package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestInterleaveTakesTurnsAndDropsTheWarmUp(t *testing.T) {
	l := &lab{out: io.Discard}
	var order strings.Builder
	as := func(name string, wall time.Duration) side {
		return func(context.Context) (outcome, error) {
			order.WriteString(name)
			return outcome{wall: wall}, nil
		}
	}
	f, err := l.interleave(t.Context(), 3, pair{a: as("a", 2*time.Second), b: as("b", time.Second),
		after: func(context.Context) error { order.WriteString("."); return nil }})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := order.String(), "a.b.a.b.a.b.a.b."; got != want {
		t.Errorf("ran %q, want %q", got, want)
	}
	if diff := cmp.Diff([]float64{2, 2, 2}, ratios(walls(f.a), walls(f.b))); diff != "" {
		t.Errorf("ratios: want -, got +\n%s", diff)
	}
}

func TestInterleaveStopsAtAnError(t *testing.T) {
	l := &lab{out: io.Discard}
	runs, broken := 0, errors.New("broken")
	good := func(context.Context) (outcome, error) { runs++; return outcome{}, nil }
	bad := func(context.Context) (outcome, error) { return outcome{}, broken }
	if _, err := l.interleave(t.Context(), 5, pair{a: good, b: bad}); !errors.Is(err, broken) {
		t.Errorf("got %v, want the side's error", err)
	}
	if runs != 1 {
		t.Errorf("side a ran %d times, want 1", runs)
	}
}

func TestTimedMeasuresWhatASideDoesNotTell(t *testing.T) {
	l := &lab{out: io.Discard}
	s, err := l.timed(t.Context(), func(context.Context) (outcome, error) {
		for began := time.Now(); time.Since(began) < 30*time.Millisecond; {
		}
		return outcome{}, nil
	})
	if err != nil || s.wall < 30*time.Millisecond || s.cpu <= 0 {
		t.Errorf("got %+v, %v, want at least 30 ms of wall and some CPU", s, err)
	}
}

func TestStatCPU(t *testing.T) {
	line := "42 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 100 50 20 30 20 0 1 0 12345\n"
	if got, want := statCPU(line), 2*time.Second; got != want {
		t.Errorf("statCPU = %v, want %v", got, want)
	}
	for _, bad := range []string{"", "1 (x) S 1", "1 (x) S 1 2 3 4 5 6 7 8 9 10 x 2 3 4"} {
		if got := statCPU(bad); got != 0 {
			t.Errorf("statCPU(%q) = %v, want 0", bad, got)
		}
	}
}
