package main

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSummarize(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   []float64
		want summary
	}{
		{"one", []float64{7}, summary{N: 1, Q1: 7, Median: 7, Q3: 7}},
		{"two", []float64{3, 1}, summary{N: 2, Q1: 1.5, Median: 2, Q3: 2.5}},
		{"odd, unsorted", []float64{5, 1, 4, 2, 3}, summary{N: 5, Q1: 2, Median: 3, Q3: 4}},
		{"even", []float64{1, 2, 3, 4}, summary{N: 4, Q1: 1.75, Median: 2.5, Q3: 3.25}},
		{"ten", []float64{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, summary{N: 10, Q1: 3.25, Median: 5.5, Q3: 7.75}},
		{"an outlier moves nothing but the ends", []float64{1, 1, 1, 1, 900}, summary{N: 5, Q1: 1, Median: 1, Q3: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, summarize(tt.in)); diff != "" {
				t.Errorf("summarize(%v): want -, got +\n%s", tt.in, diff)
			}
		})
	}
}

func TestSummarizeLeavesItsInput(t *testing.T) {
	in := []float64{3, 1, 2}
	summarize(in)
	if diff := cmp.Diff([]float64{3, 1, 2}, in); diff != "" {
		t.Errorf("the series was sorted in place:\n%s", diff)
	}
}

func TestSummarizeOfNothing(t *testing.T) {
	if got := summarize(nil); got.N != 0 || !math.IsNaN(got.Median) {
		t.Errorf("summarize(nil) = %+v, want n 0 and NaN", got)
	}
}

func TestRatiosArePairwise(t *testing.T) {
	// The machine is four times slower in the second pair: the ratio is the same.
	if diff := cmp.Diff([]float64{2, 2, 4}, ratios([]float64{0.5, 2, 1}, []float64{0.25, 1, 0.25})); diff != "" {
		t.Errorf("ratios: want -, got +\n%s", diff)
	}
	if got := ratios([]float64{2, 1}, []float64{1}); len(got) != 1 {
		t.Errorf("an unpaired sample gave %v, want one ratio", got)
	}
	if got := ratios([]float64{2, 1}, []float64{0, 1}); len(got) != 1 || got[0] != 1 {
		t.Errorf("dividing by 0 gave %v, want that pair left out", got)
	}
}

func TestSeries(t *testing.T) {
	s := []sample{{wall: time.Second, cpu: 250 * time.Millisecond}, {wall: 2 * time.Second, cpu: time.Second}}
	if diff := cmp.Diff([]float64{1, 2}, walls(s)); diff != "" {
		t.Errorf("walls: want -, got +\n%s", diff)
	}
	if diff := cmp.Diff([]float64{0.25, 1}, cpus(s)); diff != "" {
		t.Errorf("cpus: want -, got +\n%s", diff)
	}
}

func TestJudge(t *testing.T) {
	for _, tt := range []struct {
		figure, bar, goal float64
		want              verdict
	}{
		{1.2, 1.8, 1.25, reached},
		{1.25, 1.8, 1.25, reached},
		{1.3, 1.8, 1.25, ok},
		{1.8, 1.8, 1.25, ok},
		{1.81, 1.8, 1.25, missed},
		{9, 0, 0, plain},
		{9, 4, 0, missed},
		{3, 4, 0, ok},
		{3, 0, 4, reached},
		{math.NaN(), 4, 3, plain},
	} {
		if got := judge(tt.figure, tt.bar, tt.goal); got != tt.want {
			t.Errorf("judge(%v, bar %v, goal %v) = %q, want %q", tt.figure, tt.bar, tt.goal, got, tt.want)
		}
	}
}
