package progress

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var timer Timer
		if got := timer.Done(); len(got.Phases) != 0 || got.Phases == nil || got.Total != 0 {
			t.Errorf("Done() of nothing = %+v, want an empty list", got)
		}
		for _, p := range []struct {
			name string
			d    time.Duration
		}{{"a", time.Second}, {"b", 2 * time.Second}, {"b", time.Second}, {"a", 500 * time.Millisecond}} {
			timer.Start(p.name)
			<-time.After(p.d)
		}
		got := timer.Done()
		want := Timings{Phases: []Phase{{"a", 1}, {"b", 3}, {"a", 0.5}}, Total: 4.5}
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b float64) bool { return math.Abs(a-b) < 1e-9 })); diff != "" {
			t.Errorf("Done() (-want +got):\n%s", diff)
		}
	})
}
