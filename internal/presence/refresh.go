package presence

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// refreshBatch is how many refreshes one call carries.
const refreshBatch = 256

type refreshQueue struct {
	mu      sync.Mutex
	pending []*Entry // guarded by mu
}

func (q *refreshQueue) take(n int) []*Entry {
	q.mu.Lock()
	defer q.mu.Unlock()
	n = min(n, len(q.pending))
	b := q.pending[:n:n]
	if q.pending = q.pending[n:]; len(q.pending) == 0 {
		q.pending = nil
	}
	return b
}

// Refresh pushes out the expiry of an entry. It returns at once: refreshes are
// collected for RefreshWindow and go to Redis together. An entry that waits
// already isn't queued twice.
func (r *Registry) Refresh(e *Entry) {
	if e.life.Load() != entryHeld || e.queued.Swap(true) {
		return
	}
	q := &r.groupOf(e.User).refreshes
	q.mu.Lock()
	q.pending = append(q.pending, e)
	q.mu.Unlock()
}

// refreshGroup asks for a refresh of every entry of the group, so that the
// registry hears of those it lost.
func (r *Registry) refreshGroup(g *group) {
	g.stale.Store(true)
	select {
	case r.resync <- struct{}{}:
	default:
	}
}

// refreshStale queues the entries and holds of the groups that asked for it. Run calls it:
// one walk over all connections serves all groups.
func (r *Registry) refreshStale() {
	stale := make([]bool, len(r.groups))
	for i, g := range r.groups {
		stale[i] = g.stale.Swap(false)
	}
	r.cfg.Each(func(e *Entry) bool {
		if stale[r.groupOf(e.User).index] {
			r.Refresh(e)
		}
		return true
	})
	for i, g := range r.groups {
		if stale[i] {
			r.holdAgain(g)
		}
	}
}

// flushRefreshes sends what was collected, at most one call in flight a group.
// Groups are independent, so on Cluster a slow master delays only its own.
func (r *Registry) flushRefreshes(ctx context.Context) {
	for _, g := range r.groups {
		if !g.refreshing.CompareAndSwap(false, true) {
			continue
		}
		b := g.refreshes.take(refreshBatch)
		if len(b) == 0 {
			g.refreshing.Store(false)
			continue
		}
		r.running.Go(func() {
			defer g.refreshing.Store(false)
			for len(b) > 0 {
				if !r.refreshSome(ctx, g, b) {
					return
				}
				b = g.refreshes.take(refreshBatch)
			}
		})
	}
}

// refreshSome reports whether Redis answered. What it didn't take is dropped:
// the next heartbeat asks again, long before the entry's TTL.
func (r *Registry) refreshSome(ctx context.Context, g *group, b []*Entry) bool {
	for _, e := range b {
		e.queued.Store(false)
	}
	lines, err := r.askAbout(ctx, g, b, r.cfg.TTL)
	if err != nil {
		return false
	}
	r.calls.refreshed.Add(uint64(len(b)))
	for i, e := range b {
		r.judge(e, lines[i])
	}
	return true
}

// askAbout tells Redis of entries what may have changed of them, and returns a line about each. They count for ttl
// from now on; 0: as long as they do.
func (r *Registry) askAbout(ctx context.Context, g *group, b []*Entry, ttl time.Duration) ([]string, error) {
	keys := make([]string, 2, 2+2*len(b))
	keys[0], keys[1] = keyspace.Tombstones(g.name), keyspace.Own(g.name, r.cfg.Gateway)
	args := make([]any, 2, 2+2*len(b))
	args[0], args[1] = string(r.cfg.Gateway), ttl.Milliseconds()
	for _, e := range b {
		keys = append(keys, keyspace.Conns(e.User), keyspace.Log(protocol.UserAddress(e.User)))
		args = append(args, string(e.Conn), e.fenceAndMeta())
	}
	v, err := r.run(ctx, r.refresh, keys, args)
	if err != nil {
		return nil, err
	}
	lines := strings.Split(fmt.Sprint(v), "\n")
	if len(lines) != len(b) {
		r.calls.failed.Add(1)
		return nil, fmt.Errorf("%w: refresh answered %d lines for %d", ErrUnavailable, len(lines), len(b))
	}
	return lines, nil
}

// judge acts on the registry's answer about one entry.
func (r *Registry) judge(e *Entry, line string) {
	switch {
	case line == "o":
	case strings.HasPrefix(line, "o "):
		if f := strings.Split(line, " "); len(f) == 3 {
			if top, err := strconv.ParseUint(f[2], 10, 64); err == nil {
				r.stands(e, f[1], top)
			}
		}
	case line == "a":
		r.registerAgain(e)
	case line == "r":
		// Once: the caller takes its time to close it.
		if !e.life.CompareAndSwap(entryHeld, entryReaped) {
			return
		}
		r.groupOf(e.User).held.Add(-1)
		r.verdict(Verdict{Conn: e.Conn, Fence: e.Fence(), Reaped: true})
	default:
		f := strings.SplitN(line, " ", 4)
		if len(f) < 4 {
			return
		}
		code, _ := strconv.Atoi(f[1])
		by, at := cutTime(f[3])
		r.verdict(Verdict{Conn: e.Conn, Fence: e.Fence(), Code: protocol.CloseCode(code), Reason: protocol.UnpackReason(f[2]), By: by, At: at})
	}
}

func (r *Registry) stands(e *Entry, epoch string, top uint64) {
	if r.cfg.OnLog != nil {
		r.cfg.OnLog(protocol.UserAddress(e.User), protocol.Position{Epoch: epoch, Offset: top})
	}
}

func (r *Registry) verdict(v Verdict) {
	r.calls.verdicts.Add(1)
	if r.cfg.OnVerdict != nil {
		r.cfg.OnVerdict(v)
	}
}

// registerAgain enters what Redis lost, with the fence it had and without
// events: for everybody else nothing happened.
func (r *Registry) registerAgain(e *Entry) {
	if e.life.Load() != entryHeld {
		return
	}
	q := &registration{entry: e, again: true, done: make(chan struct{}), then: func(q *registration) {
		switch {
		case q.err == nil:
			// What was sent while Redis did not know of it went to nobody.
			r.stands(e, q.reply.Epoch, q.reply.Top)
		case !isUnavailable(q.err):
			v := Verdict{Conn: e.Conn, Fence: e.Fence(), Code: protocol.CloseReplaced, Reason: "replaced"}
			if no := (*Refusal)(nil); errors.As(q.err, &no) {
				v.By, v.At = string(no.By), no.At
			}
			r.verdict(v)
		}
	}}
	r.groupOf(e.User).registers.add(q)
}
