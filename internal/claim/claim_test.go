package claim_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"banger/internal/claim"
)

// next is the claim's next turn, of the kind that is wanted.
func next(t *testing.T, c *claim.Claim[string], want claim.Kind) claim.Turn[string] {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	turn, err := c.Next(ctx)
	if err != nil || turn.Kind != want {
		t.Fatalf("Next() = %+v, %v; want a turn of kind %q", turn, err, want)
	}
	return turn
}

func TestOneBuildsAndAllGetTheResult(t *testing.T) {
	var b claim.Book[string]
	first, second := b.Join("deb"), b.Join("deb")
	ticket := next(t, first, claim.Build).Ticket
	next(t, second, claim.Wait)
	_, w, err := b.Begin(t.Context(), "deb", ticket)
	if err != nil {
		t.Fatalf("Begin() = %v", err)
	}
	w.Progress(7)
	if got := next(t, second, claim.Progress).Done; got != 7 {
		t.Errorf("progress = %d, want 7", got)
	}
	late := b.Join("deb")
	next(t, late, claim.Wait)
	w.Done("image", nil)
	for _, c := range []*claim.Claim[string]{first, second, late} {
		if got := next(t, c, claim.Over); got.Value != "image" || got.Err != nil {
			t.Errorf("outcome = %+v, want image", got)
		}
		c.Leave()
	}
	if got := b.Busy(); len(got) != 0 {
		t.Errorf("Busy() = %v at the end, want none", got)
	}
}

func TestTicketIsGoodOnce(t *testing.T) {
	var b claim.Book[string]
	c, other := b.Join("deb"), b.Join("deb")
	defer other.Leave()
	ticket := next(t, c, claim.Build).Ticket
	for _, tt := range []struct{ name, ticket string }{{"deb", "x"}, {"deb", ""}, {"other", ticket}} {
		if _, _, err := b.Begin(t.Context(), tt.name, tt.ticket); !errors.Is(err, claim.ErrTicket) {
			t.Errorf("Begin(%q, %q) = %v, want ErrTicket", tt.name, tt.ticket, err)
		}
	}
	if _, _, err := b.Begin(t.Context(), "deb", ticket); err != nil {
		t.Fatalf("Begin() = %v", err)
	}
	if _, _, err := b.Begin(t.Context(), "deb", ticket); !errors.Is(err, claim.ErrTicket) {
		t.Errorf("second Begin() = %v, want ErrTicket", err)
	}
	c.Leave()
	if _, _, err := b.Begin(t.Context(), "deb", ticket); !errors.Is(err, claim.ErrTicket) {
		t.Errorf("Begin() after Leave = %v, want ErrTicket", err)
	}
}

func TestNextInLineBuildsWhenTheBuilderGoes(t *testing.T) {
	cut := errors.New("cut off")
	for name, tt := range map[string]struct {
		begin bool
		gone  func(c *claim.Claim[string], w *claim.Work[string])
	}{
		"before it begins":   {false, func(c *claim.Claim[string], _ *claim.Work[string]) { c.Leave() }},
		"while it works":     {true, func(c *claim.Claim[string], w *claim.Work[string]) { c.Leave(); w.Abandon(cut) }},
		"its tar is cut off": {true, func(c *claim.Claim[string], w *claim.Work[string]) { w.Abandon(cut); c.Leave() }},
		"both, and then some": {true, func(c *claim.Claim[string], w *claim.Work[string]) {
			c.Leave()
			w.Abandon(cut)
			w.Done("late", nil)
			c.Leave()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var b claim.Book[string]
			first, second, third := b.Join("deb"), b.Join("deb"), b.Join("deb")
			ticket := next(t, first, claim.Build).Ticket
			next(t, second, claim.Wait)
			next(t, third, claim.Wait)
			var w *claim.Work[string]
			if tt.begin {
				var err error
				if _, w, err = b.Begin(t.Context(), "deb", ticket); err != nil {
					t.Fatalf("Begin() = %v", err)
				}
			}
			tt.gone(first, w)
			ticket = next(t, second, claim.Build).Ticket
			second.Leave()
			if _, _, err := b.Begin(t.Context(), "deb", ticket); !errors.Is(err, claim.ErrTicket) {
				t.Errorf("Begin() with the ticket of one who left = %v, want ErrTicket", err)
			}
			next(t, third, claim.Build)
			third.Leave()
			if got := b.Busy(); len(got) != 0 {
				t.Errorf("Busy() = %v at the end, want none", got)
			}
		})
	}
}

func TestWorkIsToldThatItsBuilderLeft(t *testing.T) {
	var b claim.Book[string]
	c, other := b.Join("deb"), b.Join("deb")
	ctx, w, err := b.Begin(t.Context(), "deb", next(t, c, claim.Build).Ticket)
	if err != nil {
		t.Fatalf("Begin() = %v", err)
	}
	next(t, other, claim.Wait)
	c.Leave()
	<-ctx.Done()
	if !errors.Is(context.Cause(ctx), claim.ErrGone) {
		t.Errorf("cause = %v, want ErrGone", context.Cause(ctx))
	}
	// It was done all the same: nobody builds it a second time.
	w.Done("image", nil)
	if got := next(t, other, claim.Over); got.Value != "image" {
		t.Errorf("outcome = %+v, want image", got)
	}
}

func TestAbandonTellsTheBuilder(t *testing.T) {
	var b claim.Book[string]
	c := b.Join("deb")
	_, w, err := b.Begin(t.Context(), "deb", next(t, c, claim.Build).Ticket)
	if err != nil {
		t.Fatalf("Begin() = %v", err)
	}
	cut := errors.New("cut off")
	w.Abandon(cut)
	if got := next(t, c, claim.Over); got.Err != cut {
		t.Errorf("outcome = %+v, want %v", got, cut)
	}
	c.Leave()
	if got := b.Busy(); len(got) != 0 {
		t.Errorf("Busy() = %v at the end, want none", got)
	}
}

func TestNextEndsWithItsContext(t *testing.T) {
	var b claim.Book[string]
	c, other := b.Join("deb"), b.Join("deb")
	defer c.Leave()
	defer other.Leave()
	next(t, other, claim.Wait)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := other.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Next() = %v, want context.Canceled", err)
	}
}

// Many want the same few things; builders die at every step. Each who stays
// gets a result, and never do two work on one name at once.
func TestRaces(t *testing.T) {
	var b claim.Book[string]
	var working [3]atomic.Int32
	var results atomic.Int32
	var wg sync.WaitGroup
	const n = 300
	for i := range n {
		wg.Go(func() {
			name := fmt.Sprint(i % 3)
			c := b.Join(name)
			defer c.Leave()
			for {
				turn, err := c.Next(t.Context())
				switch {
				case err != nil:
					t.Errorf("Next() = %v", err)
					return
				case turn.Kind == claim.Over:
					results.Add(1)
					return
				case turn.Kind != claim.Build:
					continue
				case i%5 == 0: // dies before it begins
					results.Add(1)
					return
				}
				_, w, err := b.Begin(t.Context(), name, turn.Ticket)
				if err != nil {
					t.Errorf("Begin() = %v", err)
					return
				}
				if working[i%3].Add(1) != 1 {
					t.Error("two work on one name")
				}
				w.Progress(int64(i))
				working[i%3].Add(-1)
				switch {
				case i%5 == 1: // dies while it works; the work ends later
					c.Leave()
					w.Abandon(nil)
					results.Add(1)
					return
				case i%5 == 2:
					w.Abandon(nil)
				default:
					w.Done("image", nil)
				}
			}
		})
	}
	wg.Wait()
	if got := results.Load(); got != n {
		t.Errorf("%d of %d ended with a result", got, n)
	}
	if got := b.Busy(); len(got) != 0 {
		t.Errorf("Busy() = %v at the end, want none", got)
	}
}
