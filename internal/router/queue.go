package router

import "sync"

// queue hands what arrives on a channel to a few workers, so that it holds up nothing
// else that arrives there. A worker is there only while there is work.
type queue[T any] struct {
	// Immutable after New.
	router  *Router
	length  int     // how many may wait; what comes then is dropped, and counted
	workers int     // at a time
	work    func(T) // by a worker

	mu      sync.Mutex
	pending []T // guarded by mu
	working int // guarded by mu
}

// take keeps one for the workers; false: nobody will come to it.
func (q *queue[T]) take(one T) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.pending) == q.length {
		q.router.counts.dropped.Add(1)
		return false
	}
	q.pending = append(q.pending, one)
	if q.working < q.workers && q.router.spawn(q.run) {
		q.working++
	}
	return q.working > 0
}

func (q *queue[T]) run() {
	for {
		q.mu.Lock()
		if len(q.pending) == 0 {
			q.working--
			q.mu.Unlock()
			return
		}
		one := q.pending[0]
		if q.pending = q.pending[1:]; len(q.pending) == 0 {
			q.pending = nil
		}
		q.mu.Unlock()
		q.work(one)
	}
}
