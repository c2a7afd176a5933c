// Package claim decides who makes a thing that several want at once.
//
// Whoever wants a thing joins under its name. One of those who joined is told
// to build, the others wait and see its progress. A result goes to all of
// them; if the builder goes away, the next in line is told to build. The
// package knows nothing of images, kernels or requests, and keeps nothing when
// nobody waits.
package claim

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// ErrTicket is returned by [Book.Begin] for a ticket that nobody holds: the
// claim has ended, or the work was begun before.
var ErrTicket = errors.New("nobody holds this ticket")

// ErrGone is the cause of the end of a work's context when the one who was to
// build has left.
var ErrGone = errors.New("the one who builds has gone")

// A Book holds the claims under way, one thing of type T a name. The zero Book
// is ready to use, by many goroutines.
type Book[T any] struct {
	mu   sync.Mutex
	jobs map[string]*job[T]
}

// job is one name that is being made. All is guarded by the book's mu.
type job[T any] struct {
	name   string
	claims []*Claim[T] // in the order they came
	// builder is the claim that was told to build; it may have left while
	// its work goes on, and then nobody is told to until that has ended.
	builder *Claim[T]
	work    *Work[T] // begun and not ended
	done    int64
}

// A Claim is one who wants the thing. Leave must be called.
type Claim[T any] struct {
	book   *Book[T]
	job    *job[T]
	ticket string
	wake   chan struct{} // holds at most one

	outcome *Turn[T]
	told    Kind // the last role told, "" at first
	seen    int64
}

// A Work is the making of the thing by the holder of a ticket. It ends with
// one call of Done or Abandon.
type Work[T any] struct {
	book   *Book[T]
	job    *job[T]
	claim  *Claim[T]
	cancel context.CancelCauseFunc
}

// Kind says what a [Turn] is.
type Kind string

// The kinds of turn. Over is the last.
const (
	Build    Kind = "build"    // Ticket: make it
	Wait     Kind = "wait"     // somebody else makes it
	Progress Kind = "progress" // Done has changed
	Over     Kind = "over"     // Value or Err
)

// A Turn is what a claim learns next.
type Turn[T any] struct {
	Kind   Kind
	Ticket string
	Done   int64
	Value  T
	Err    error
}

// Join adds a claim to name. The first one will be told to build.
func (b *Book[T]) Join(name string) *Claim[T] {
	b.mu.Lock()
	defer b.mu.Unlock()
	j := b.jobs[name]
	if j == nil {
		if b.jobs == nil {
			b.jobs = map[string]*job[T]{}
		}
		j = &job[T]{name: name}
		b.jobs[name] = j
	}
	c := &Claim[T]{book: b, job: j, ticket: rand.Text(), wake: make(chan struct{}, 1)}
	j.claims = append(j.claims, c)
	j.appoint()
	return c
}

// Busy lists the names that somebody has claimed.
func (b *Book[T]) Busy() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var names []string
	for n := range b.jobs {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// appoint makes the first in line the builder, if there is none.
func (j *job[T]) appoint() {
	if j.builder == nil && len(j.claims) > 0 {
		j.builder = j.claims[0]
	}
	j.wakeAll()
}

func (j *job[T]) wakeAll() {
	for _, c := range j.claims {
		c.poke()
	}
}

// poke makes a Next that waits look again.
func (c *Claim[T]) poke() {
	select {
	case c.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// Next waits for the next thing that this claim must know. Progress that
// nobody asked for in time is left out. One goroutine calls it.
func (c *Claim[T]) Next(ctx context.Context) (Turn[T], error) {
	for {
		if t, ok := c.look(); ok {
			return t, nil
		}
		select {
		case <-c.wake:
		case <-ctx.Done():
			return Turn[T]{}, context.Cause(ctx)
		}
	}
}

// look returns the next turn, if there is one by now.
func (c *Claim[T]) look() (Turn[T], bool) {
	c.book.mu.Lock()
	defer c.book.mu.Unlock()
	role := Wait
	if c.job.builder == c {
		role = Build
	}
	switch {
	case c.outcome != nil:
		return *c.outcome, true
	case c.told != role:
		c.told = role
		t := Turn[T]{Kind: role}
		if role == Build {
			t.Ticket = c.ticket
		}
		return t, true
	case c.seen != c.job.done:
		c.seen = c.job.done
		return Turn[T]{Kind: Progress, Done: c.seen}, true
	}
	return Turn[T]{}, false
}

// Leave ends the claim. If it was the builder's, a work of it that goes on is
// told to end, and then, or at once if there is none, the next in line is told
// to build. It may be called again.
func (c *Claim[T]) Leave() {
	c.book.mu.Lock()
	defer c.book.mu.Unlock()
	j := c.job
	i := slices.Index(j.claims, c)
	if i < 0 {
		return
	}
	j.claims = slices.Delete(j.claims, i, i+1)
	switch {
	case j.builder == c && j.work != nil:
		j.work.cancel(ErrGone)
	case j.builder == c:
		j.builder = nil
		j.appoint()
	}
	c.book.forget(j)
}

// forget drops a job that nobody has to do with any more.
func (b *Book[T]) forget(j *job[T]) {
	if len(j.claims) == 0 && j.work == nil && b.jobs[j.name] == j {
		delete(b.jobs, j.name)
	}
}

// Begin starts the work that ticket, told to a claim on name, stands for. The
// context it returns ends when that claim leaves.
func (b *Book[T]) Begin(ctx context.Context, name, ticket string) (context.Context, *Work[T], error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	j := b.jobs[name]
	if j == nil || j.builder == nil || j.builder.ticket != ticket || j.work != nil || !slices.Contains(j.claims, j.builder) {
		return nil, nil, fmt.Errorf("building %s: %w", name, ErrTicket)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	w := &Work[T]{book: b, job: j, claim: j.builder, cancel: cancel}
	j.work = w
	return ctx, w, nil
}

// Progress tells the claims how much is done.
func (w *Work[T]) Progress(done int64) {
	w.book.mu.Lock()
	defer w.book.mu.Unlock()
	w.job.done = done
	w.job.wakeAll()
}

// Done ends the work with an outcome for all claims.
func (w *Work[T]) Done(v T, err error) {
	w.book.mu.Lock()
	defer w.book.mu.Unlock()
	if !w.end() {
		return
	}
	w.job.builder = nil
	for _, c := range w.job.claims {
		c.outcome = &Turn[T]{Kind: Over, Value: v, Err: err}
		c.poke()
	}
	w.job.claims = nil
	delete(w.book.jobs, w.job.name)
}

// Abandon ends the work without an outcome: err goes to the builder, and the
// next in line is told to build.
func (w *Work[T]) Abandon(err error) {
	w.book.mu.Lock()
	defer w.book.mu.Unlock()
	if !w.end() {
		return
	}
	j := w.job
	if i := slices.Index(j.claims, w.claim); i >= 0 {
		j.claims = slices.Delete(j.claims, i, i+1)
		w.claim.outcome = &Turn[T]{Kind: Over, Err: err}
		w.claim.poke()
	}
	j.builder, j.done = nil, 0
	j.appoint()
	w.book.forget(j)
}

// end reports whether the work had not ended yet.
func (w *Work[T]) end() bool {
	if w.job.work != w {
		return false
	}
	w.job.work = nil
	w.cancel(nil)
	return true
}
