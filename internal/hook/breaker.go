package hook

import (
	"sync"
	"time"
)

const (
	// breakAfter failures in a row nobody is asked for a while.
	breakAfter = 5
	// The while is this long at first, and doubles with each attempt in vain.
	leastBreak, mostBreak = time.Second, 10 * time.Second
)

// A breaker keeps questions from a backend that answers none. After a while one is let
// through; when it is answered, all are.
type breaker struct {
	mu       sync.Mutex // guards the rest
	answers  uint64
	failures int // in a row
	open     bool
	until    time.Time     // then one may try; only while open
	pause    time.Duration // the next one
	trying   bool          // and one is trying
}

// enter reports whether a question may be asked. Whoever is let in owes a word: answered or failed.
func (b *breaker) enter(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.open {
		return true
	}
	if b.trying || now.Before(b.until) {
		return false
	}
	b.trying = true
	return true
}

// answered closes the breaker, and returns how many failures came before.
func (b *breaker) answered() (failures int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	failures = b.failures
	b.answers++
	b.failures, b.open, b.trying, b.pause = 0, false, false, 0
	return failures
}

// failed counts a failure, and returns how many there were in a row. Of those that were asked before it opened, only the first
// that fails makes the pause longer.
func (b *breaker) failed(now time.Time) (failures int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures++
	if b.failures < breakAfter || b.open && !b.trying {
		return b.failures
	}
	b.pause = min(max(2*b.pause, leastBreak), mostBreak)
	b.open, b.trying, b.until = true, false, now.Add(b.pause)
	return b.failures
}

// given gives a place back whose question was never asked.
func (b *breaker) given() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.trying = false
}

// answersSoFar is how often there was an answer.
func (b *breaker) answersSoFar() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.answers
}

func (b *breaker) isOpen() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open
}
