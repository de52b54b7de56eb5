package gatewaytest

import (
	"sync/atomic"
	"testing"
	"time"
)

// Lateness watches, until the end of the test, how late this process gets its turn. The function it returns tells the worst so far: what a
// busy machine may add to each step of what a test takes the time of.
func Lateness(t testing.TB) (worst func() time.Duration) {
	const nap = 5 * time.Millisecond
	var late atomic.Int64
	over, ended := make(chan struct{}), make(chan struct{})
	began := time.Now()
	var napping atomic.Int64 // since when, ns after began
	go func() {
		defer close(ended)
		clock := time.NewTimer(nap)
		defer clock.Stop()
		for {
			napping.Store(int64(time.Since(began)))
			clock.Reset(nap)
			select {
			case <-clock.C:
				late.Store(max(late.Load(), int64(time.Since(began)-nap)-napping.Load()))
			case <-over:
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(over)
		<-ended
	})
	return func() time.Duration {
		// The nap under way may be the one that lasts too long.
		return time.Duration(max(late.Load(), int64(time.Since(began)-nap)-napping.Load()))
	}
}
