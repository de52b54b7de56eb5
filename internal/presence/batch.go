package presence

import "sync"

// batch collects work of one kind for one group: what arrives while a call is
// in flight goes with the next one. There is a worker only while there is work.
type batch[T any] struct {
	// Immutable after New.
	max     int // items for each call
	work    func([]T)
	running *sync.WaitGroup

	mu      sync.Mutex
	pending []T // guarded by mu
	parked  []T // guarded by mu; waits for release
	busy    bool
}

func (b *batch[T]) add(items ...T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pending = append(b.pending, items...)
	if !b.busy && len(b.pending) > 0 {
		b.busy = true
		b.running.Add(1)
		go b.loop()
	}
}

func (b *batch[T]) loop() {
	defer b.running.Done()
	for {
		b.mu.Lock()
		n := min(len(b.pending), b.max)
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

// park sets items aside until release, together with all that waits.
func (b *batch[T]) park(items []T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.parked = append(append(b.parked, items...), b.pending...)
	b.pending = nil
}

// release puts parked items to work again.
func (b *batch[T]) release() {
	b.mu.Lock()
	items := b.parked
	b.parked = nil
	b.mu.Unlock()
	b.add(items...)
}

func (b *batch[T]) waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.pending) + len(b.parked)
}
