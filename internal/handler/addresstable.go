package handler

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// shrinkBy is how many buckets one call drops that nobody has used for long.
const shrinkBy = 2

// addressTable holds one token bucket for each client address, a fixed number of them at most. A full bucket remembers
// nothing that a new one would not, so giving it away changes nothing; one that isn't full is never given away, or a client
// could shed its limit by flooding the table from other addresses. While the longest idle bucket is not full and the table
// has no room, for a second at most, newcomers share one.
//
// All methods may be called from any goroutine.
type addressTable struct {
	// Immutable after newAddressTable.
	rate   int
	bound  int
	refill time.Duration // an empty bucket is full again after this

	// Guarded by mu.
	mu       sync.Mutex
	clock    clock
	buckets  map[netip.Addr]*bucket
	ends     bucket        // ring of buckets: ends.newer is the longest idle, ends.older the last used
	overflow *rate.Limiter // shared by newcomers while the table is full of buckets in use
}

type bucket struct {
	addr         netip.Addr
	limiter      *rate.Limiter
	used         time.Time
	older, newer *bucket
}

func newAddressTable(perSecond, bound int) *addressTable {
	t := &addressTable{
		rate: perSecond, bound: bound, refill: time.Second,
		buckets:  make(map[netip.Addr]*bucket),
		overflow: rate.NewLimiter(rate.Limit(perSecond), perSecond),
	}
	t.ends.older, t.ends.newer = &t.ends, &t.ends
	return t
}

// take takes one token of addr's bucket. It returns 0, or how long until the next token.
func (t *addressTable) take(addr netip.Addr, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	now = t.clock.order(now)
	limiter := t.overflow
	if b := t.bucket(addr, now); b != nil {
		b.unlink()
		t.pushNewest(b)
		b.used = now
		limiter = b.limiter
	}
	t.shrink(now)
	if limiter.AllowN(now, 1) {
		return 0
	}
	return time.Duration((1 - limiter.TokensAt(now)) / float64(t.rate) * float64(time.Second))
}

func (t *addressTable) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.buckets)
}

// bucket finds addr's bucket, or makes it out of the longest idle one when that is full; nil when there is no room. The
// caller holds mu.
func (t *addressTable) bucket(addr netip.Addr, now time.Time) *bucket {
	if b, ok := t.buckets[addr]; ok {
		return b
	}
	b := t.ends.newer
	switch {
	case b != &t.ends && t.full(b, now):
		b.unlink()
		delete(t.buckets, b.addr)
	case len(t.buckets) < t.bound:
		b = &bucket{limiter: rate.NewLimiter(rate.Limit(t.rate), t.rate)}
	default:
		return nil
	}
	b.addr = addr
	t.buckets[addr] = b
	t.pushNewest(b)
	return b
}

// shrink drops a few buckets that have been idle for long, so that the memory a flood took comes back. The caller holds mu.
func (t *addressTable) shrink(now time.Time) {
	for range shrinkBy {
		oldest := t.ends.newer
		if oldest == &t.ends || now.Sub(oldest.used) < 10*t.refill {
			return
		}
		oldest.unlink()
		delete(t.buckets, oldest.addr)
	}
}

func (t *addressTable) full(b *bucket, now time.Time) bool {
	return now.Sub(b.used) >= t.refill || b.limiter.TokensAt(now) >= float64(t.rate)
}

func (t *addressTable) pushNewest(b *bucket) {
	b.older, b.newer = t.ends.older, &t.ends
	b.older.newer, t.ends.older = b, b
}

func (b *bucket) unlink() {
	b.older.newer, b.newer.older = b.newer, b.older
}
