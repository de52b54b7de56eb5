package hook

import (
	"context"
	"errors"
	"time"
)

// start delivers the batch, beside everything else.
func (c *carrier) start(ctx context.Context, h *haul, began time.Time) {
	var meant []*Event
	var at []int // where in the batch each of them is, and then the batch's end
	for i, e := range h.batch {
		if c.filter.passes(e) {
			meant, at = append(meant, e), append(at, i)
		}
	}
	if len(meant) == 0 {
		c.take(h, len(h.batch))
		h.next = time.Time{}
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	at = append(at, len(h.batch))
	h.working, h.cancel = true, cancel
	h.expiry = time.AfterFunc(c.leaseLeft(began), cancel)
	h.next = time.Now().Add(c.cfg.Renew)
	c.workers.Go(func() { c.results <- result{h, at[c.deliver(ctx, meant)]} })
}

// deliver hands events to the sink until it took some, or ctx ends, and returns how
// many it took.
func (c *carrier) deliver(ctx context.Context, events []*Event) int {
	for {
		if c.gate.wait(ctx) != nil {
			return 0
		}
		select {
		case c.slots <- struct{}{}:
		case <-ctx.Done():
			return 0
		}
		taken, err := c.attempt(ctx, events[:min(len(events), c.gate.portion())])
		<-c.slots
		if err == nil || taken > 0 || ctx.Err() != nil {
			return taken
		}
	}
}

func (c *carrier) attempt(ctx context.Context, events []*Event) (int, error) {
	began := time.Now()
	attempt, cancel := context.WithTimeout(ctx, c.within)
	defer cancel()
	taken, refused, err := c.sink.deliver(attempt, events)
	c.counts.delivered.Add(uint64(taken - refused))
	c.counts.refused.Add(uint64(refused))
	took := time.Since(began)
	// What takes all or none, and is too slow for all, would never take any. That its time was over the clock says: an HTTP client has
	// timers of its own, and comes back before the context knows.
	if taken == 0 && len(events) > 1 && ctx.Err() == nil && (took >= c.within || errors.Is(err, errTooMany)) {
		c.gate.tooMany(len(events))
	}
	switch {
	case err == nil:
		if n := c.gate.success(taken, took < c.within/2); n > 0 {
			c.log.Info("the sink takes events again", "failures", n)
		}
	case len(events) > 1 && errors.Is(err, errTooMany): // an answer like another
	case ctx.Err() == nil: // else it was cut short by us
		c.counts.failures.Add(1)
		if n := c.gate.failure(began); n == 1 || n%10 == 0 {
			c.log.Warn("the sink takes no events", "failures", n, "err", err)
		}
	}
	return taken, err
}
