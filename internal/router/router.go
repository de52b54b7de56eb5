package router

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/connection"
	"chatgate/internal/keyspace"
	"chatgate/internal/presence"
	"chatgate/internal/protocol"
)

//go:embed lua/send.lua
var sendSource string

// Router carries messages between gateways. All methods may be called from any
// goroutine.
type Router struct {
	// Immutable after New.
	cfg        Config
	registry   *presence.Registry
	client     redis.UniversalClient // reads, ephemeral and control publishes, subscriptions
	lanes      lanes
	ephemeral  *ephemeral
	everyone   *everyone
	questions  *questions
	deliverers []*deliverer
	sendScript *redis.Script
	sendText   string // of sendScript
	began      time.Time
	reading    chan struct{}   // a token for each read of a log, or of states, under way
	ctx        context.Context // a Router's lifetime: lanes outlive the Send that woke them
	cancel     context.CancelFunc

	running sync.WaitGroup // workers of lanes and reads of logs, joined by Run

	nudged  atomic.Int64 // when idle lanes were last told to ask Redis, by clock
	asks    asks
	traces  traces
	warned  atomic.Int64 // when a lost subscription was last logged, by clock
	doubted atomic.Int64 // when missing replicas were last logged, by clock

	mu      sync.Mutex
	closing bool // guarded by mu; nothing may be spawned any more
	counts  counts
}

// lanes are the lanes of all groups and the client they share. It never retries
// by itself, so that a lane knows what it repeats.
type lanes struct {
	client redis.UniversalClient
	all    []*lane
}

// counts counts what the router did, for metrics.
type counts struct {
	routed, stored, conflicts, dropped, ephemeral     atomic.Uint64
	broadcasts                                        atomic.Uint64
	calls, failedCalls                                atomic.Uint64
	refusedUnavailable, refusedOverloaded             atomic.Uint64
	envelopes, delivered, duplicates, unheld          atomic.Uint64
	missedPublishes, holes, unreadable, subscriptions atomic.Uint64
	repairs, checks, reads, gaps, healed, unhealable  atomic.Uint64
	held, unconfirmed, told, stateReads, memberPushes atomic.Uint64
	asked                                             atomic.Uint64
	watches                                           atomic.Int64
}

// New returns a Router. laneClient must not retry (MaxRetries -1, DialerRetries 1):
// a lane repeats by itself, and tells what was refused from what may have happened.
// client serves everything else.
func New(client, laneClient redis.UniversalClient, registry *presence.Registry, cfg Config) *Router {
	if cfg.WaitReplicas > 0 {
		cfg.Attempt += cfg.WaitTimeout
		cfg.Suspect += cfg.WaitTimeout
	}
	ctx, cancel := context.WithCancel(context.Background())
	text := cfg.Layout.Script(sendSource)
	r := &Router{
		cfg: cfg, registry: registry, client: client, began: time.Now(), ctx: ctx, cancel: cancel,
		sendScript: redis.NewScript(text), sendText: text,
		reading: make(chan struct{}, reads),
	}
	r.lanes.client = laneClient
	for _, g := range cfg.Layout.Groups() {
		r.lanes.all = append(r.lanes.all, &lane{router: r, group: g})
		r.deliverers = append(r.deliverers, newDeliverer(r, g))
	}
	r.ephemeral = newEphemeral(r)
	r.everyone = newEveryone(r)
	r.questions = newQuestions(r)
	return r
}

// clock is the ns since the router was made: monotonic, and small enough to
// live in an atomic.
func (r *Router) clock() int64 { return int64(time.Since(r.began)) }

// Send takes a message on its way, or answers it at once. It never blocks:
// m.Done is called when its fate is known, for a refusal before Send returns.
// Messages from one goroutine to one address are stored in the order sent.
func (r *Router) Send(out *connection.Batch, m *Message) {
	if !m.Ephemeral {
		m.hash()
	}
	if m.Copy != nil {
		r.sendBoth(out, m)
		return
	}
	r.send(out, m)
}

// send is Send for a message whose keys of dedupe are computed.
func (r *Router) send(out *connection.Batch, m *Message) {
	r.traces.sent(protocol.TraceTaken, m)
	taken := false
	if m.Ephemeral {
		taken = r.ephemeral.put(m)
	} else {
		taken = r.lanes.all[r.cfg.Layout.GroupIndex(m.To)].put(m)
	}
	if !taken {
		r.done(out, m)
	}
}

// done tells what became of a message.
func (r *Router) done(out *connection.Batch, m *Message) {
	r.traces.sent(protocol.TraceAnswered, m)
	m.Done(out, m)
}

// Hold waits while the lane of an address has more work than it should, for at
// most LaneHold. A reader that is held slows its client down by TCP and keeps the
// order of its messages, which refusing some of them doesn't.
func (r *Router) Hold(a protocol.Address) {
	l := r.lanes.all[r.cfg.Layout.GroupIndex(a)]
	if !l.full() {
		return
	}
	r.counts.held.Add(1)
	for end := time.Now().Add(r.cfg.LaneHold); time.Now().Before(end) && r.rest(lanePause); {
		if !l.full() {
			return
		}
	}
}

// lanePause is how often a held reader looks again.
const lanePause = 10 * time.Millisecond

// Run receives until ctx ends. Messages that were taken are carried through, or
// answered, before it returns.
func (r *Router) Run(ctx context.Context) error {
	var receivers sync.WaitGroup
	for _, d := range r.deliverers {
		receivers.Go(func() { d.receive(ctx) })
		receivers.Go(func() { d.run(ctx) })
	}
	receivers.Go(func() { r.watch(ctx) })
	<-ctx.Done()
	r.close()
	receivers.Wait()
	idle := time.AfterFunc(time.Duration(r.cfg.Attempts)*r.cfg.Attempt, r.cancel)
	defer idle.Stop()
	r.running.Wait()
	r.cancel()
	return nil
}

// close lets no lane take a message any more. When it returns, every message that
// was taken has its worker, counted in running.
func (r *Router) close() {
	r.mu.Lock()
	r.closing = true
	r.mu.Unlock()
	for _, l := range r.lanes.all {
		l.mu.Lock()
		l.closed = true
		l.mu.Unlock()
	}
	r.ephemeral.mu.Lock()
	r.ephemeral.closed = true
	r.ephemeral.mu.Unlock()
}

// spawn runs f in the background, joined by Run; not at all once Run ends, and
// then it returns false.
func (r *Router) spawn(f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closing {
		r.running.Go(f)
	}
	return !r.closing
}

// watch refuses what waits behind a call that has been out for too long: with a
// Redis that hangs, nobody waits for the deadline of somebody else's batch.
func (r *Router) watch(ctx context.Context) {
	var out connection.Batch
	tick := time.NewTicker(r.cfg.Suspect / 5)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			for _, l := range r.lanes.all {
				if l.suspect() {
					l.refuse(&out)
				}
			}
		}
	}
}

// Listening reports whether Redis has confirmed every subscription of this
// gateway: what is published from now on arrives, or is missed by its number.
func (r *Router) Listening() bool {
	for _, d := range r.deliverers {
		if !d.subscribed.Load() {
			return false
		}
	}
	return true
}

// Subscribed reports whether every channel of this gateway has lately brought a
// pulse: the one proof that what others publish arrives.
func (r *Router) Subscribed() bool {
	for _, d := range r.deliverers {
		at := d.pulsed.Load()
		if at == 0 || r.clock()-at > int64(r.cfg.Starved) {
			return false
		}
	}
	return true
}

// Degraded reports whether a lane refuses messages because Redis doesn't answer.
func (r *Router) Degraded() bool {
	for _, l := range r.lanes.all {
		if l.suspect() {
			return true
		}
		l.mu.Lock()
		down := l.down
		l.mu.Unlock()
		if down {
			return true
		}
	}
	return false
}

// ErrNoReceiver says that no gateway listens on a channel.
var ErrNoReceiver = errors.New("router: no gateway received it")

// RouteToGateway publishes one envelope to one gateway, on the channel of the
// group with the given address. It is not stored and not numbered. ErrNoReceiver
// when nobody got it.
func (r *Router) RouteToGateway(ctx context.Context, gw protocol.GatewayID, envelope []byte) error {
	p := parcel{group: r.controlGroup(gw), gateway: gw, payload: envelope}
	if err := r.publish(ctx, []*parcel{&p}); err != nil {
		return err
	}
	if p.receivers == 0 {
		return fmt.Errorf("%w: %s", ErrNoReceiver, gw)
	}
	return nil
}

// controlGroup spreads the envelopes that belong to no address over the groups.
func (r *Router) controlGroup(gw protocol.GatewayID) keyspace.Group {
	return r.cfg.Layout.GroupOf(protocol.Address(gw))
}

// parcel is one envelope for one gateway.
type parcel struct {
	group     keyspace.Group
	gateway   protocol.GatewayID
	payload   []byte
	receivers int64
	lost      bool // nobody knows whether it was published
}

// publish sends parcels in one round trip (on Cluster, one for each master) and
// notes how many subscribers each had. Nothing is repeated when an answer is lost:
// what isn't numbered would be delivered twice. The error is that of the first
// parcel that was lost; others may have been published.
func (r *Router) publish(ctx context.Context, parcels []*parcel) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Attempt)
	defer cancel()
	name := "publish"
	if r.cfg.Layout.Sharded {
		name = "spublish"
	}
	cmds := make([]*redis.Cmd, len(parcels))
	_, err := r.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, x := range parcels {
			cmds[i] = redis.NewCmd(ctx, name, keyspace.Channel(x.group, x.gateway), x.payload)
			cmds[i].SetFirstKeyPos(1)
			_ = p.Process(ctx, once{cmds[i]}) // only queues it
		}
		return nil
	})
	for i, x := range parcels {
		n, failed := cmds[i].Int64()
		x.receivers, x.lost = n, failed != nil
		if err == nil {
			err = failed
		}
	}
	if err != nil {
		return fmt.Errorf("router: publish: %w", err)
	}
	return nil
}

// Stats counts what the router did since New.
type Stats struct {
	Routed, Stored, Conflicts, Dropped, Ephemeral     uint64
	Broadcasts                                        uint64
	Calls, FailedCalls                                uint64
	RefusedUnavailable, RefusedOverloaded             uint64
	Envelopes, Delivered, Duplicates, Unheld          uint64
	MissedPublishes, Holes, Unreadable, Subscriptions uint64
	Repairs, Checks, Reads, Gaps, Healed, Unhealable  uint64
	Held, Unconfirmed, Told, StateReads, MemberPushes uint64
	Asked                                             uint64
	Watches                                           int64 // now
	Pending                                           int
}

// Stats returns the counters.
func (r *Router) Stats() Stats {
	c := &r.counts
	s := Stats{
		Routed: c.routed.Load(), Stored: c.stored.Load(), Conflicts: c.conflicts.Load(), Dropped: c.dropped.Load(),
		Ephemeral: c.ephemeral.Load(), Calls: c.calls.Load(), FailedCalls: c.failedCalls.Load(),
		RefusedUnavailable: c.refusedUnavailable.Load(), RefusedOverloaded: c.refusedOverloaded.Load(),
		Broadcasts: c.broadcasts.Load(),
		Envelopes:  c.envelopes.Load(), Delivered: c.delivered.Load(), Duplicates: c.duplicates.Load(), Unheld: c.unheld.Load(),
		MissedPublishes: c.missedPublishes.Load(), Holes: c.holes.Load(), Unreadable: c.unreadable.Load(),
		Subscriptions: c.subscriptions.Load(),
		Repairs:       c.repairs.Load(), Checks: c.checks.Load(), Reads: c.reads.Load(), Gaps: c.gaps.Load(),
		Healed: c.healed.Load(), Unhealable: c.unhealable.Load(), Held: c.held.Load(),
		Unconfirmed: c.unconfirmed.Load(), Told: c.told.Load(), StateReads: c.stateReads.Load(), Watches: c.watches.Load(),
		MemberPushes: c.memberPushes.Load(), Asked: c.asked.Load(),
	}
	for _, l := range r.lanes.all {
		l.mu.Lock()
		s.Pending += len(l.pending)
		l.mu.Unlock()
	}
	return s
}
