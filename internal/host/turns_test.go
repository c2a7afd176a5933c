package host_test

import (
	"context"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"banger/internal/host"
)

// fill takes as many turns as there are, and fails if one has to be waited for.
func fill(t *testing.T, q *host.Turns) (overs []func()) {
	t.Helper()
	for range runtime.NumCPU() {
		overs = append(overs, q.Take(t.Context(), func() { t.Error("a free turn has to be waited for") }))
	}
	return overs
}

func TestFirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q host.Turns
		overs := fill(t, &q)
		served := make(chan int, 3)
		for i := range 3 {
			go func() {
				over := q.Take(t.Context(), func() {})
				served <- i
				over()
			}()
			synctest.Wait() // it stands in the queue
		}
		if n := len(served); n != 0 {
			t.Errorf("%d were served before a turn ended, want none", n)
		}
		if got, want := q.Count(), 3+runtime.NumCPU(); got != want {
			t.Errorf("Count() = %d, want %d", got, want)
		}
		overs[0]()
		for want := range 3 {
			if got := <-served; got != want {
				t.Errorf("number %d was served, want %d", got, want)
			}
		}
		for _, o := range overs[1:] {
			o()
		}
		synctest.Wait()
		if got := q.Count(); got != 0 {
			t.Errorf("Count() = %d when all have ended, want 0", got)
		}
	})
}

func TestTurnEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q host.Turns
		overs, start, waited := fill(t, &q), time.Now(), 0
		over := q.Take(t.Context(), func() { waited++ })
		if took := time.Since(start); took != 10*time.Second || waited != 1 {
			t.Errorf("the turn came after %v, with %d words of waiting; want 10s and one", took, waited)
		}
		for _, o := range append(overs, over) {
			o() // late, and no harm
		}
		for _, o := range fill(t, &q) {
			o()
		}
	})
}

func TestTakeEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q host.Turns
		overs := fill(t, &q)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		over := q.Take(ctx, func() {})
		if ctx.Err() == nil {
			t.Error("there was a turn, want none before one ends")
		}
		over() // ends nobody else's
		if got, want := q.Count(), len(overs); got != want {
			t.Errorf("Count() = %d, want %d", got, want)
		}
		for _, o := range overs {
			o()
		}
		for _, o := range fill(t, &q) {
			o()
		}
	})
}
