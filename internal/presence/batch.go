package presence

import "sync"

// batch collects work of one kind for one group: what arrives while a call is
// in flight goes with the next one. There is a worker only while there is work.
type batch[T any] struct {
	// Immutable after New.
	max     int // items for each call
	work    func([]T)
	running *workers

	mu      sync.Mutex
	pending []T  // guarded by mu
	parked  []T  // guarded by mu; waits for release
	flying  int  // guarded by mu; items of the call in flight
	busy    bool // guarded by mu
}

func (b *batch[T]) add(items ...T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pending = append(b.pending, items...)
	if !b.busy && len(b.pending) > 0 {
		b.busy = true
		b.running.Go(b.loop)
	}
}

func (b *batch[T]) loop() {
	for {
		b.mu.Lock()
		n := min(len(b.pending), b.max)
		b.flying = n
		if n == 0 {
			b.busy, b.pending = false, nil
			b.mu.Unlock()
			return
		}
		items := append([]T(nil), b.pending[:n]...)
		b.pending = b.pending[n:]
		b.mu.Unlock()
		b.work(items)
	}
}

// drain takes everything that waits.
func (b *batch[T]) drain() []T {
	b.mu.Lock()
	defer b.mu.Unlock()
	items := b.pending
	b.pending = nil
	return items
}

// park sets items aside until release, together with all that waits. It keeps the
// first ones up to limit; false: it let some go.
func (b *batch[T]) park(items []T, limit int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.parked = append(append(b.parked, items...), b.pending...)
	b.pending = nil
	if len(b.parked) <= limit {
		return true
	}
	clear(b.parked[limit:])
	b.parked = b.parked[:limit]
	return false
}

// release puts parked items to work again.
func (b *batch[T]) release() {
	b.mu.Lock()
	items := b.parked
	b.parked = nil
	b.mu.Unlock()
	b.add(items...)
}

// unfinished counts the items whose outcome isn't known yet.
func (b *batch[T]) unfinished() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.pending) + len(b.parked) + b.flying
}

// workers counts goroutines, so that Run can wait for the last of them. Unlike
// a sync.WaitGroup it may grow from zero while somebody waits: connections come
// and go until the very end.
type workers struct {
	mu   sync.Mutex
	n    int             // guarded by mu
	idle []chan struct{} // guarded by mu; closed when n is 0
}

// Go runs f in a goroutine of its own.
func (w *workers) Go(f func()) {
	w.mu.Lock()
	w.n++
	w.mu.Unlock()
	go func() {
		defer w.done()
		f()
	}()
}

func (w *workers) done() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.n--; w.n == 0 {
		for _, c := range w.idle {
			close(c)
		}
		w.idle = nil
	}
}

// Wait returns when no goroutine runs.
func (w *workers) Wait() {
	w.mu.Lock()
	if w.n == 0 {
		w.mu.Unlock()
		return
	}
	c := make(chan struct{})
	w.idle = append(w.idle, c)
	w.mu.Unlock()
	<-c
}
