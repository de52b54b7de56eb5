package hook

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// A gate keeps everyone from a sink that fails, until it is time to try again, and
// from giving it more events at a time than it takes. All groups share it: a sink that
// is down is asked once, not once for each group.
type gate struct {
	least, most time.Duration
	batch       int // events at a time, at most

	mu       sync.Mutex // guards the rest
	failures int
	failed   time.Time // when the last of them was noticed
	opens    time.Time
	fewer    int // events at a time, as the sink has it; 0: batch
	excess   int // so many were too many; 0: none were
	calm     int // deliveries taken since fewer changed
}

// wait returns when an attempt may begin, or ctx ends.
func (g *gate) wait(ctx context.Context) error {
	for {
		g.mu.Lock()
		pause := time.Until(g.opens)
		g.mu.Unlock()
		if pause <= 0 {
			return ctx.Err()
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

// failure closes the gate for a random time up to a bound that doubles with each
// failure (full jitter), and returns how many there were in a row. What began before
// the last failure was noticed is the same failure.
func (g *gate) failure(began time.Time) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.failures > 0 && began.Before(g.failed) {
		return g.failures
	}
	g.failures++
	g.failed = time.Now()
	bound := g.most
	if n := g.failures - 1; n < 20 && g.least<<n < g.most {
		bound = g.least << n
	}
	g.opens = g.failed.Add(rand.N(bound) + time.Millisecond)
	return g.failures
}

// portion returns how many events the sink is given at a time.
func (g *gate) portion() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fewer > 0 {
		return g.fewer
	}
	return g.batch
}

// tooMany says that so many events, two at least, were more than the sink takes at a
// time: from now on it gets at most half of them.
func (g *gate) tooMany(events int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fewer == 0 || g.fewer > events/2 {
		g.fewer, g.calm = events/2, 0
	}
	if g.excess == 0 || g.excess > events {
		g.excess = events
	}
}

// success opens the gate, and returns how many failures came before. The sink took so
// many events: were they all that it is trusted with, it gets a few more the next time. As many
// as were too many before it gets only when it was quick, or after a good while: one that needs so
// long for each event would else fail every few batches, and take those twice.
func (g *gate) success(events int, quick bool) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.excess > 0 && events >= g.excess {
		g.excess = 0 // no longer
	}
	if events == g.fewer {
		more := g.fewer + 1 + g.fewer/8
		if g.calm++; quick || g.excess == 0 || more < g.excess || g.calm == goodWhile {
			g.fewer, g.calm = more, 0
		}
		if g.fewer >= g.batch {
			g.fewer = 0
		}
	}
	n := g.failures
	g.failures, g.opens = 0, time.Time{}
	return n
}

// goodWhile is how many deliveries a sink takes before it gets again what was too many.
const goodWhile = 32

// closed says how many failures there were in a row.
func (g *gate) closed() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.failures
}
