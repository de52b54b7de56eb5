package hook

import (
	"context"
	_ "embed"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/keyspace"
)

//go:embed lua/carry.lua
var carrySource string

// A carrier brings the events of all groups to one sink, as far as this gateway has
// their leases.
type carrier struct {
	// Immutable.
	cfg    *Config
	name   string
	filter Filter
	batch  int
	within time.Duration // of one attempt
	sink   sink
	log    *slog.Logger
	client redis.UniversalClient
	script *redis.Script

	// Owned by run.
	hauls []*haul

	// Any goroutine.
	results chan result   // holds one of each haul, so nobody waits to leave one
	slots   chan struct{} // holds one for each delivery under way
	gate    gate
	counts  counts
	workers sync.WaitGroup
}

// A haul is one group's events on their way to the sink. It is owned by run; what a
// delivery needs it is given.
type haul struct {
	group  keyspace.Group
	source source
	keys   []string
	next   time.Time // when Redis is to be asked again

	held  bool     // this gateway carries the group, as far as it knows
	read  string   // as the last answer had it, '' before there was one
	batch []*Event // read, and not yet taken by the sink

	acks []any // ids of events that the sink took
	ackN uint64

	working bool
	stale   bool               // what is being delivered is another gateway's by now
	cancel  context.CancelFunc // of the delivery
	expiry  *time.Timer        // cancels it at the end of the lease

	top, acked uint64 // numbers of the last event written, and acknowledged
}

// source is which of a group's streams of events is meant. Its value is the field that
// counts its events, and sets its place at a sink apart.
type source string

const (
	fromPresence source = "ev"
	fromMessages source = "evm"
)

// A result is the end of a delivery: the first of the batch that need not be given
// to the sink again.
type result struct {
	haul  *haul
	taken int
}

func newCarrier(client redis.UniversalClient, cfg *Config, s *SinkConfig, sink sink) *carrier {
	c := &carrier{
		cfg: cfg, name: s.Name, filter: s.Filter, batch: s.Batch, within: s.Timeout, sink: sink,
		log: cfg.Log.With("sink", s.Name), client: client, script: redis.NewScript(cfg.Layout.Script(carrySource)),
		gate: gate{least: s.RetryAfter, most: s.RetryMost, batch: s.Batch},
	}
	for _, g := range cfg.Layout.Groups() {
		if s.takesOthers() {
			c.hauls = append(c.hauls, &haul{group: g, source: fromPresence, keys: []string{keyspace.Events(g), keyspace.Sinks(g), keyspace.Numbers(g)}})
		}
		if cfg.Messages && s.Takes(typeMessage) {
			c.hauls = append(c.hauls, &haul{group: g, source: fromMessages, keys: []string{keyspace.MessageEvents(g), keyspace.Sinks(g), keyspace.Numbers(g)}})
		}
	}
	c.results = make(chan result, len(c.hauls))
	c.slots = make(chan struct{}, max(1, min(s.Parallel, len(c.hauls))))
	return c
}

// run is the carrier's life: it waits until a group needs a word with Redis, and has
// it for all groups that do, in one round trip.
func (c *carrier) run(ctx context.Context) {
	// Deliveries outlive ctx for a moment.
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	for c.await(ctx) {
		c.turn(life, c.due(time.Now()), false)
	}
	c.finish(life, stop)
}

// await waits for the next turn; false at the end.
func (c *carrier) await(ctx context.Context) bool {
	next := c.hauls[0].next
	for _, h := range c.hauls {
		if h.next.Before(next) {
			next = h.next
		}
	}
	t := time.NewTimer(time.Until(next))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
	case r := <-c.results:
		c.note(r)
	}
	for {
		select {
		case r := <-c.results:
			c.note(r)
		default:
			return true
		}
	}
}

// note takes the result of a delivery; it is told to Redis at once.
func (c *carrier) note(r result) {
	h := r.haul
	h.expiry.Stop()
	h.cancel()
	h.working, h.next = false, time.Time{}
	if !h.stale {
		c.take(h, r.taken)
	}
	h.stale = false
}

// take marks the first events of the batch as taken by the sink.
func (c *carrier) take(h *haul, taken int) {
	for _, e := range h.batch[:taken] {
		h.acks = append(h.acks, e.entry)
		h.ackN = e.N
		if !c.filter.passes(e) {
			c.counts.filtered.Add(1)
		}
	}
	h.batch = h.batch[taken:]
}

func (c *carrier) due(now time.Time) []*haul {
	var list []*haul
	for _, h := range c.hauls {
		if !h.next.After(now) {
			list = append(list, h)
		}
	}
	return list
}

// turn asks Redis about some groups: to keep their leases, or to give them up, to
// acknowledge, and for more where there is nothing to deliver.
func (c *carrier) turn(ctx context.Context, hauls []*haul, leave bool) {
	if len(hauls) == 0 {
		return
	}
	began := time.Now()
	call, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	answers := make([]*redis.Cmd, len(hauls))
	args := make([][]any, len(hauls))
	pipe := c.client.Pipeline()
	for i, h := range hauls {
		count := 0
		switch {
		case leave:
			count = -1
		case len(h.batch) == 0 && !h.working:
			count = c.batch
		}
		args[i] = append([]any{c.name, string(c.cfg.Gateway), c.cfg.Lease.Milliseconds(), count, h.read, h.ackN, string(h.source)}, h.acks...)
		answers[i] = pipe.EvalSha(call, c.script.Hash(), h.keys, args[i]...)
	}
	_, _ = pipe.Exec(call) // each answer has its own error
	for i, h := range hauls {
		v, err := answers[i].Result()
		if redis.HasErrorPrefix(err, "NOSCRIPT") {
			v, err = c.script.Eval(call, c.client, h.keys, args[i]...).Result()
		}
		a, err := c.parse(h, v, err)
		switch {
		case leave:
		case err != nil:
			c.counts.failedCalls.Add(1)
			c.log.Debug("carrying events: redis", "group", string(h.group), "err", err)
			h.next = time.Now().Add(c.cfg.Renew / 2)
		default:
			c.obey(ctx, h, a, began)
		}
	}
	c.measure()
}

// carried is the answer of the script.
type carried struct {
	state            string
	read             string
	top, acked, lost uint64
	again            bool
	events           []*Event
}

func (c *carrier) parse(h *haul, v any, err error) (carried, error) {
	if err != nil {
		return carried{}, err
	}
	f, ok := v.([]any)
	if !ok || len(f) != 7 {
		return carried{}, fmt.Errorf("unexpected answer %T", v)
	}
	a := carried{state: fmt.Sprint(f[0]), read: fmt.Sprint(f[1]), again: fmt.Sprint(f[5]) == "1"}
	for i, into := range []*uint64{&a.top, &a.acked, &a.lost} {
		if _, err := fmt.Sscan(fmt.Sprint(f[2+i]), into); err != nil {
			return carried{}, fmt.Errorf("unexpected answer %v", f[2+i])
		}
	}
	entries, _ := f[6].([]any)
	for _, entry := range entries {
		e, err := parseEvent(h.group, h.source, entry)
		if err != nil {
			return carried{}, err
		}
		a.events = append(a.events, e)
	}
	return a, nil
}

// leaseLeft is how long a lease still runs, at least, that was asked for at began.
func (c *carrier) leaseLeft(began time.Time) time.Duration { return time.Until(began.Add(c.cfg.Lease)) }

// obey does what an answer says. began is when it was asked for.
func (c *carrier) obey(ctx context.Context, h *haul, a carried, began time.Time) {
	if a.state == "held" || a.state == "taken" {
		// Another gateway had the group since: what is here, it has read as well.
		if h.held {
			c.log.Info("another gateway took over carrying events", "group", string(h.group))
		}
		h.held, h.batch, h.acks = false, nil, nil
		if h.working {
			h.stale = true
			h.cancel()
		}
	}
	if a.state == "held" {
		h.read, h.next = "", time.Now().Add(c.cfg.Renew)
		return
	}
	if a.state == "new" && h.held {
		lost := uint64(max(0, int64(h.top)-int64(h.acked)-int64(len(h.batch)+len(h.acks))))
		c.counts.lost.Add(lost)
		c.log.Error("redis lost the events of a group", "group", string(h.group), "events", lost)
	}
	if a.lost > 0 {
		c.counts.lost.Add(a.lost)
		c.log.Error("events fell out of retention before the sink took them", "group", string(h.group), "events", a.lost)
	}
	h.held, h.read, h.top, h.acked = true, a.read, a.top, a.acked
	h.acks = nil
	if h.working {
		h.expiry.Reset(c.leaseLeft(began))
		h.next = time.Now().Add(c.cfg.Renew)
		return
	}
	if len(h.batch) == 0 && len(a.events) > 0 {
		h.batch = a.events
		if a.again {
			c.counts.again.Add(uint64(len(a.events)))
		}
	}
	if len(h.batch) == 0 {
		h.next = time.Now().Add(c.cfg.Poll)
		return
	}
	c.start(ctx, h, began)
}

// finish waits a moment for what is being delivered, acknowledges it, and gives up
// the leases. A write to a disk or a pipe that stands still can't be cut short: it
// is left behind, like one of a gateway that was killed.
func (c *carrier) finish(ctx context.Context, stop context.CancelFunc) {
	done := make(chan struct{})
	go func() {
		c.workers.Wait()
		close(done)
	}()
	late := time.AfterFunc(c.cfg.StopWait, stop)
	defer late.Stop()
	select {
	case <-done:
	case <-time.After(c.cfg.StopWait + c.cfg.Timeout):
		c.log.Warn("a delivery does not end, and is left behind")
	}
	for len(c.results) > 0 {
		c.note(<-c.results)
	}
	var mine []*haul
	for _, h := range c.hauls {
		if h.held {
			mine = append(mine, h)
		}
	}
	c.turn(context.WithoutCancel(ctx), mine, true)
}
