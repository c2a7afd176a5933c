//go:build lab

package e2e

import (
	"fmt"
	"testing"
	"time"
)

// The host's clock jumps, as it does after a suspend: the guest's follows, forth
// and back.
func TestLabClock(t *testing.T) {
	w := labWorld(t)
	vm := w.vm(t)
	const jump = 3 * time.Hour
	ahead := false
	set := func(by time.Duration) {
		root(t, fmt.Sprintf("date --set=@$(($(date +%%s) + %d))", int(by.Seconds())))
	}
	defer func() {
		if ahead {
			set(-jump)
		}
	}()
	// In the guest: until its clock is within the hour of the host's, for 30 s.
	follows := func(when string) {
		t.Helper()
		now := time.Now().Unix()
		w.must(t, "vm", "exec", vm, "--", "sh", "-c", fmt.Sprintf(
			`n=0; until d=$(($(date +%%s) - %d)); [ $d -gt -3600 ] && [ $d -lt 3600 ]; do n=$((n+1)); [ $n -lt 300 ] || { echo %s: $d s from the host; exit 1; }; sleep 0.1; done`, now, when))
	}
	set(jump)
	ahead = true
	follows("forth")
	set(-jump)
	ahead = false
	follows("back")
}
