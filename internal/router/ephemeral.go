package router

import (
	"context"
	"sync"
	"time"

	"chatgate/internal/connection"
	"chatgate/internal/keyspace"
	"chatgate/internal/presence"
	"chatgate/internal/protocol"
)

// ephemeral carries messages that are not stored: at most once, never numbered.
// Holders come from a cache, local ones are reached without Redis, and for each
// other gateway the batch is one plain PUBLISH.
type ephemeral struct {
	// Immutable after New.
	router *Router

	mu      sync.Mutex
	pending []*Message // guarded by mu
	bytes   int        // guarded by mu
	busy    bool       // guarded by mu
	retry   time.Time  // guarded by mu; Redis did not answer: refuse at once until then
	closed  bool       // guarded by mu; Run is about to return

	// Owned by the worker.
	batch   []*Message
	cache   map[protocol.Address]cached
	parcels map[parcelKey]*parcel
	stale   []protocol.Address // their cached holders named a gateway that is gone
	out     connection.Batch
}

type cached struct {
	at      time.Time
	holders []presence.Holding
}

type parcelKey struct {
	group   keyspace.Group
	gateway protocol.GatewayID
}

// ephemeralBatch is how many messages one round trip carries.
const ephemeralBatch = 256

// cacheEntries bounds the cache; a full one is dropped, which costs one read an
// address.
const cacheEntries = 1 << 16

func newEphemeral(r *Router) *ephemeral {
	return &ephemeral{router: r, cache: make(map[protocol.Address]cached), parcels: make(map[parcelKey]*parcel)}
}

func (e *ephemeral) put(m *Message) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		m.fail(protocol.CodeUnavailable, "gateway is stopping", time.Second)
		return false
	}
	if time.Now().Before(e.retry) {
		e.unavailable(m)
		return false
	}
	if e.bytes+m.size() > e.router.cfg.LaneBytes {
		e.router.counts.refusedOverloaded.Add(1)
		m.fail(protocol.CodeOverloaded, "too many messages wait", e.router.cfg.LaneWait)
		return false
	}
	e.pending = append(e.pending, m)
	e.bytes += m.size()
	if !e.busy {
		e.busy = true
		e.router.running.Add(1)
		go e.work()
	}
	return true
}

func (e *ephemeral) take() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := min(len(e.pending), ephemeralBatch)
	if n == 0 {
		e.busy = false
		return false
	}
	for _, m := range e.pending[:n] {
		e.bytes -= m.size()
	}
	e.batch = append(e.batch[:0], e.pending[:n]...)
	rest := copy(e.pending, e.pending[n:])
	clear(e.pending[rest:])
	e.pending = e.pending[:rest]
	return true
}

func (e *ephemeral) work() {
	defer e.router.running.Done()
	for e.take() {
		if err := e.carry(); err != nil {
			e.fail()
		}
		for _, m := range e.batch {
			e.router.done(&e.out, m)
		}
		e.out.Flush()
		clear(e.batch)
	}
}

// fail refuses the batch and, since it would only wait as long again, everything
// behind it. A message after the pause finds out whether Redis is back.
func (e *ephemeral) fail() {
	e.mu.Lock()
	e.batch = append(e.batch, e.pending...)
	clear(e.pending)
	e.pending, e.bytes = e.pending[:0], 0
	e.retry = time.Now().Add(e.router.cfg.Probe)
	e.mu.Unlock()
	for _, m := range e.batch {
		e.unavailable(m)
	}
}

func (e *ephemeral) unavailable(m *Message) {
	e.router.counts.refusedUnavailable.Add(1)
	m.fail(protocol.CodeUnavailable, "redis does not answer", 2*e.router.cfg.Probe)
}

// carry sends the batch and sets the results. The error means that nothing is
// known to have arrived anywhere but here.
func (e *ephemeral) carry() error {
	if err := e.lookup(); err != nil {
		return err
	}
	clear(e.parcels)
	remote := make([]*parcel, 0, 4)
	layout := e.router.cfg.Layout
	for _, m := range e.batch {
		for _, h := range e.cache[m.To].holders {
			k := parcelKey{layout.GroupOf(m.To), h.Gateway}
			p := e.parcels[k]
			if p == nil {
				p = &parcel{group: k.group, gateway: k.gateway, payload: protocol.AppendEphemeralHeader(nil)}
				e.parcels[k] = p
				if h.Gateway != e.router.cfg.Gateway {
					remote = append(remote, p)
				}
			}
			p.payload = protocol.AppendEphemeralRecord(p.payload, m.To, m.Frame)
		}
	}
	for i, d := range e.router.deliverers {
		if p := e.parcels[parcelKey{d.group, e.router.cfg.Gateway}]; p != nil && e.router.deliverers[i].offer(string(p.payload)) {
			p.receivers = 1
		}
	}
	if len(remote) > 0 {
		ctx, cancel := context.WithTimeout(e.router.ctx, e.router.cfg.Suspect)
		defer cancel()
		if err := e.router.publish(ctx, remote); err != nil {
			return err
		}
	}
	for _, m := range e.batch {
		e.settle(m)
	}
	for _, a := range e.stale {
		delete(e.cache, a)
	}
	e.stale = e.stale[:0]
	return nil
}

// settle says what became of one message.
func (e *ephemeral) settle(m *Message) {
	m.Result = Result{Status: protocol.StatusDropped, Ts: m.Ts}
	group := e.router.cfg.Layout.GroupOf(m.To)
	for _, h := range e.cache[m.To].holders {
		if p := e.parcels[parcelKey{group, h.Gateway}]; p.receivers > 0 {
			m.Result.Status = protocol.StatusRouted
			m.Result.Devices += h.Count
		} else {
			e.stale = append(e.stale, m.To) // the rest of the batch went by the same list
		}
	}
	if m.Result.Status == protocol.StatusDropped {
		e.router.counts.dropped.Add(1)
	} else {
		e.router.counts.ephemeral.Add(1)
	}
}

// lookup fills the cache for the batch's addresses. That an address has no
// holders is believed for a tenth of the time: whoever just came online should
// not miss a second of typing signals.
func (e *ephemeral) lookup() error {
	now := time.Now()
	if len(e.cache) > cacheEntries {
		clear(e.cache)
	}
	var missing []protocol.Address
	asked := make(map[protocol.Address]struct{})
	for _, m := range e.batch {
		c, ok := e.cache[m.To]
		ttl := e.router.cfg.HoldersTTL
		if len(c.holders) == 0 {
			ttl /= 10
		}
		if ok && now.Sub(c.at) <= ttl {
			continue
		}
		if _, ok := asked[m.To]; !ok {
			asked[m.To] = struct{}{}
			missing = append(missing, m.To)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(e.router.ctx, e.router.cfg.Suspect)
	defer cancel()
	found, err := e.router.registry.Holders(ctx, missing...)
	if err != nil {
		return err
	}
	for i, a := range missing {
		e.cache[a] = cached{at: now, holders: found[i]}
	}
	return nil
}
