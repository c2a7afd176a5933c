package host

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// patience is for how long one turn may keep the next from beginning: several
// times what a boot takes that has a processor to itself. One that hangs shall
// not hold up the others until somebody gives it up.
const patience = 10 * time.Second

// Turns has boots wait that would only get into each other's way: as many as
// there are processors go on at once, first come, first served. With more each
// takes longer, and in emulation all together take longer too: every change from
// one to another empties the caches, and a guest's clock ticks for as long as
// its boot lasts. The zero Turns is ready.
type Turns struct {
	once  sync.Once
	taken chan struct{} // holds a token for each turn
	count atomic.Int32
}

// Take waits for a turn, after a call of waiting if it has to wait, and returns
// what ends the turn, to be called once. If ctx ends first there is no turn.
func (q *Turns) Take(ctx context.Context, waiting func()) (over func()) {
	q.once.Do(func() { q.taken = make(chan struct{}, runtime.NumCPU()) })
	q.count.Add(1)
	select {
	case q.taken <- struct{}{}:
	default:
		waiting()
		select {
		case q.taken <- struct{}{}:
		case <-ctx.Done():
			return func() { q.count.Add(-1) }
		}
	}
	leave := sync.OnceFunc(func() { <-q.taken })
	impatience := time.AfterFunc(patience, leave)
	return func() {
		impatience.Stop()
		leave()
		q.count.Add(-1)
	}
}

// Count is how many wait for a turn or have not ended theirs.
func (q *Turns) Count() int { return int(q.count.Load()) }
