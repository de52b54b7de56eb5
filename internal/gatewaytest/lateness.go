package gatewaytest

import (
	"slices"
	"sync"
	"testing"
	"time"
)

// Busier begins to take the time. The function it returns adds to a limit what a busy machine may add a few times in a row between what is
// asked and what is answered, in this process or in one beside it: how late this process got its turn meanwhile, at worst.
func Busier(t testing.TB) func(limit time.Duration) time.Duration {
	t.Helper()
	testBinary.require(t)
	lateness.begin.Do(lateness.run)
	began := time.Now()
	return func(limit time.Duration) time.Duration { return limit + 4*lateness.since(began) }
}

var lateness watchOfTurns

// A watchOfTurns naps all the time, as long as the test binary lives, and notes by how much each nap was too long.
type watchOfTurns struct {
	begin sync.Once

	mu     sync.Mutex
	began  time.Time       // guarded by mu
	worst  []time.Duration // guarded by mu; in each second since
	napped time.Time       // guarded by mu; when the nap under way began
}

const nap = 5 * time.Millisecond

func (w *watchOfTurns) run() {
	w.mu.Lock()
	w.began, w.napped = time.Now(), time.Now()
	w.mu.Unlock()
	over, ended := make(chan struct{}), make(chan struct{})
	testBinary.Cleanup(func() {
		close(over)
		<-ended
	})
	go func() {
		defer close(ended)
		clock := time.NewTicker(nap)
		defer clock.Stop()
		for {
			select {
			case <-clock.C:
				w.note()
			case <-over:
				return
			}
		}
	}()
}

// note is the end of a nap.
func (w *watchOfTurns) note() {
	w.mu.Lock()
	defer w.mu.Unlock()
	second := int(time.Since(w.began) / time.Second)
	if more := second + 1 - len(w.worst); more > 0 {
		w.worst = append(w.worst, make([]time.Duration, more)...)
	}
	w.worst[second] = max(w.worst[second], time.Since(w.napped)-nap)
	w.napped = time.Now()
}

// since is the worst since a moment. The nap under way may be it.
func (w *watchOfTurns) since(moment time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	first := min(len(w.worst), int(moment.Sub(w.began)/time.Second))
	return max(0, time.Since(w.napped)-nap, slices.Max(append([]time.Duration{0}, w.worst[first:]...)))
}
