package gateway

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"chatgate/internal/connection"
	"chatgate/internal/handler"
	"chatgate/internal/protocol"
)

// Two operators, or one and a script of his, drain a gateway and have it take clients again at the same time. Whatever comes out of
// it, one drain goes on at a time, and an end that was meant for one never declares the next one over while that goes on.
func TestDrainsThatBeginAndEndAtOnceGoOnOneAtATime(t *testing.T) {
	var g Gateway
	var going, most atomic.Int64
	drain := func(ctx context.Context) {
		most.Store(max(most.Load(), going.Add(1)))
		<-ctx.Done()
		going.Add(-1)
	}
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for range 500 {
				g.begin(protocol.LoadDraining, drain)
				g.end(protocol.LoadDraining, func() { g.loads.state = "" })
			}
		})
	}
	all.Wait()
	g.stopLoads()
	if n := most.Load(); n != 1 {
		t.Errorf("%d drains went on at once, want 1", n)
	}
	if n := going.Load(); n != 0 {
		t.Errorf("%d drains go on after the last was ended", n)
	}
}

// A gateway is drained while others have it shed again and again. Each drain that was ordered begins.
func TestADrainBeginsWhateverIsShed(t *testing.T) {
	g := Gateway{manager: connection.NewManager(&connection.Config{}), admission: handler.NewAdmission(handler.AdmissionConfig{})}
	wait := func(ctx context.Context) { <-ctx.Done() }
	var all sync.WaitGroup
	over := make(chan struct{})
	for range 8 {
		all.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
					g.begin(protocol.LoadShedding, wait)
				}
			}
		})
	}
	for range 500 {
		if g.beginDrain(wait); g.load().State != protocol.LoadDraining {
			t.Errorf("it is %s", g.load().State)
			break
		}
		g.end(protocol.LoadDraining, func() { g.loads.state = "" })
	}
	close(over)
	all.Wait()
	g.stopLoads()
}
