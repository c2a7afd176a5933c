package main

import (
	"math"
	"slices"
	"time"
)

// A summary is what is told of a series of figures.
type summary struct {
	N      int     `json:"n"`
	Q1     float64 `json:"q1"`
	Median float64 `json:"median"`
	Q3     float64 `json:"q3"`
}

// summarize returns the quartiles of xs, which it leaves as it is. Of nothing
// they are NaN.
func summarize(xs []float64) summary {
	sorted := slices.Sorted(slices.Values(xs))
	return summary{N: len(xs), Q1: quantile(sorted, 0.25), Median: quantile(sorted, 0.5), Q3: quantile(sorted, 0.75)}
}

// quantile is the p-quantile of sorted figures, interpolated between the two
// nearest (type 7 of Hyndman and Fan, as R, NumPy and spreadsheets have it).
func quantile(sorted []float64, p float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	at := p * float64(len(sorted)-1)
	below := int(math.Floor(at))
	above := min(below+1, len(sorted)-1)
	return sorted[below] + (at-float64(below))*(sorted[above]-sorted[below])
}

// A sample is one run of one side.
type sample struct{ wall, cpu time.Duration }

// walls and cpus are the series of samples, in seconds.
func walls(s []sample) []float64 {
	return seconds(s, func(x sample) time.Duration { return x.wall })
}

func cpus(s []sample) []float64 { return seconds(s, func(x sample) time.Duration { return x.cpu }) }

func seconds(s []sample, pick func(sample) time.Duration) []float64 {
	out := make([]float64, len(s))
	for i, x := range s {
		out[i] = pick(x).Seconds()
	}
	return out
}

// ratios divides two series pair by pair: what was measured at the same time is
// compared, so a slow minute of the machine weighs on both. A pair whose second
// figure is 0 has no ratio.
func ratios(a, b []float64) []float64 {
	out := make([]float64, 0, len(a))
	for i := range min(len(a), len(b)) {
		if b[i] != 0 {
			out = append(out, a[i]/b[i])
		}
	}
	return out
}

// A verdict compares a figure with what was aimed at.
type verdict string

const (
	reached verdict = "goal"   // the goal is reached
	ok      verdict = "ok"     // the bar is kept
	missed  verdict = "missed" // it is not
	plain   verdict = "-"      // there is no bar
)

// judge says what a figure is worth. Less is better; 0 means that there is no
// bar, or no goal.
func judge(figure, bar, goal float64) verdict {
	switch {
	case math.IsNaN(figure):
		return plain
	case goal > 0 && figure <= goal:
		return reached
	case bar > 0 && figure > bar:
		return missed
	case bar > 0:
		return ok
	}
	return plain
}
