package handler

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// shrinkBy is how many buckets one call drops that nobody has used for long.
const shrinkBy = 2

// bucketTable holds one token bucket for each client address, or for each user, a fixed number of them at most. A full bucket
// remembers nothing that a new one would not, so giving it away changes nothing; one that isn't full is never given away, or
// a client could shed its limit by flooding the table from other addresses. While the longest idle bucket is not full and the
// table has no room, for as long as an empty one takes to fill at most, newcomers share one.
//
// All methods may be called from any goroutine.
type bucketTable[K comparable] struct {
	// Immutable after newBuckets.
	burst  int
	limit  rate.Limit
	bound  int
	refill time.Duration // an empty bucket is full again after this

	// Guarded by mu.
	mu       sync.Mutex
	clock    clock
	buckets  map[K]*bucket[K]
	ends     bucket[K]     // ring of buckets: ends.newer is the longest idle, ends.older the last used
	overflow *rate.Limiter // shared by newcomers while the table is full of buckets in use
}

type bucket[K comparable] struct {
	key          K
	limiter      *rate.Limiter
	used         time.Time
	older, newer *bucket[K]
}

// newBuckets makes a table of at most bound buckets that give burst tokens in each period, and as many at once.
func newBuckets[K comparable](burst int, period time.Duration, bound int) *bucketTable[K] {
	t := &bucketTable[K]{
		burst: burst, limit: rate.Limit(float64(burst) / period.Seconds()), bound: bound, refill: period,
		buckets: make(map[K]*bucket[K]),
	}
	t.overflow = rate.NewLimiter(t.limit, burst)
	t.ends.older, t.ends.newer = &t.ends, &t.ends
	return t
}

// take takes one token of key's bucket. It returns 0, or how long until the next token.
func (t *bucketTable[K]) take(key K, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	now = t.clock.order(now)
	limiter := t.overflow
	if b := t.bucket(key, now); b != nil {
		b.unlink()
		t.pushNewest(b)
		b.used = now
		limiter = b.limiter
	}
	t.shrink(now)
	if limiter.AllowN(now, 1) {
		return 0
	}
	return time.Duration((1 - limiter.TokensAt(now)) / float64(t.limit) * float64(time.Second))
}

func (t *bucketTable[K]) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.buckets)
}

// bucket finds key's bucket, or makes it out of the longest idle one when that is full; nil when there is no room. The
// caller holds mu.
func (t *bucketTable[K]) bucket(key K, now time.Time) *bucket[K] {
	if b, ok := t.buckets[key]; ok {
		return b
	}
	b := t.ends.newer
	switch {
	case b != &t.ends && t.full(b, now):
		b.unlink()
		delete(t.buckets, b.key)
	case len(t.buckets) < t.bound:
		b = &bucket[K]{limiter: rate.NewLimiter(t.limit, t.burst)}
	default:
		return nil
	}
	b.key = key
	t.buckets[key] = b
	t.pushNewest(b)
	return b
}

// shrink drops a few buckets that have been idle for long, so that the memory a flood took comes back. The caller holds mu.
func (t *bucketTable[K]) shrink(now time.Time) {
	for range shrinkBy {
		oldest := t.ends.newer
		if oldest == &t.ends || now.Sub(oldest.used) < 10*t.refill {
			return
		}
		oldest.unlink()
		delete(t.buckets, oldest.key)
	}
}

func (t *bucketTable[K]) full(b *bucket[K], now time.Time) bool {
	return now.Sub(b.used) >= t.refill || b.limiter.TokensAt(now) >= float64(t.burst)
}

func (t *bucketTable[K]) pushNewest(b *bucket[K]) {
	b.older, b.newer = t.ends.older, &t.ends
	b.older.newer, t.ends.older = b, b
}

func (b *bucket[K]) unlink() {
	b.older.newer, b.newer.older = b.newer, b.older
}
