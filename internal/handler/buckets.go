package handler

import (
	"container/heap"
	"sync"
	"time"
)

// shrinkBy is how many buckets one call drops that nobody has used for long.
const shrinkBy = 2

// bucketTable holds one token bucket for each client address, or for each user, a fixed number of them at most. A full bucket
// remembers nothing that a new one would not, so giving it away changes nothing; one that isn't full is never given away, or
// a client could shed its limit by flooding the table from other addresses. While no bucket is full and the table has no room,
// newcomers share one.
//
// All methods may be called from any goroutine.
type bucketTable[K comparable] struct {
	// Immutable after newBuckets.
	bound  int
	token  time.Duration // in which a bucket gets one
	refill time.Duration // an empty bucket is full again after this

	// Guarded by mu.
	mu       sync.Mutex
	clock    clock
	buckets  map[K]*bucket[K]
	byFull   byFull[K] // all of them: those who are full first come first, whoever was used last
	overflow bucket[K] // shared by newcomers while the table is full of buckets in use
}

// bucket is known by the time at which it will be full, or has been since: each token that is taken puts that off.
type bucket[K comparable] struct {
	key  K
	full time.Time
	at   int // its place in byFull
}

// newBuckets makes a table of at most bound buckets that give burst tokens in each period, and as many at once.
func newBuckets[K comparable](burst int, period time.Duration, bound int) *bucketTable[K] {
	return &bucketTable[K]{
		bound: bound, token: period / time.Duration(burst), refill: period, buckets: make(map[K]*bucket[K]),
	}
}

// take takes one token of key's bucket. It returns 0, or how long until the next token.
func (t *bucketTable[K]) take(key K, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	now = t.clock.order(now)
	b := t.bucket(key, now)
	if b == nil {
		b = &t.overflow
	}
	full := b.full
	if full.Before(now) {
		full = now
	}
	wait := full.Add(t.token).Sub(now) - t.refill
	if wait <= 0 {
		b.full = full.Add(t.token)
		if b != &t.overflow {
			heap.Fix(&t.byFull, b.at)
		}
	}
	t.shrink(now)
	return max(0, wait)
}

func (t *bucketTable[K]) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.buckets)
}

// bucket finds key's bucket, or makes it out of the one that has been full for the longest; nil when none is and there is no
// room. The caller holds mu.
func (t *bucketTable[K]) bucket(key K, now time.Time) *bucket[K] {
	if b, ok := t.buckets[key]; ok {
		return b
	}
	var b *bucket[K]
	switch {
	case len(t.byFull) > 0 && !t.byFull[0].full.After(now):
		b = t.byFull[0]
		delete(t.buckets, b.key)
		b.key = key
	case len(t.buckets) < t.bound:
		b = &bucket[K]{key: key, full: now}
		heap.Push(&t.byFull, b)
	default:
		return nil
	}
	t.buckets[key] = b
	return b
}

// shrink drops a few buckets that have been full for long, so that the memory a flood took comes back. The caller holds mu.
func (t *bucketTable[K]) shrink(now time.Time) {
	for range shrinkBy {
		if len(t.byFull) == 0 || now.Sub(t.byFull[0].full) < 10*t.refill {
			return
		}
		delete(t.buckets, heap.Pop(&t.byFull).(*bucket[K]).key)
	}
}

// byFull is a heap of buckets.
type byFull[K comparable] []*bucket[K]

func (h byFull[K]) Len() int           { return len(h) }
func (h byFull[K]) Less(i, j int) bool { return h[i].full.Before(h[j].full) }

func (h byFull[K]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

func (h *byFull[K]) Push(x any) {
	b := x.(*bucket[K])
	b.at = len(*h)
	*h = append(*h, b)
}

func (h *byFull[K]) Pop() any {
	last := len(*h) - 1
	b := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return b
}
