//go:build !race

package gatewaytest

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

// kill -9, under people who only sit there. Whoever asks for their presence on another gateway is told the truth as soon as the
// lease is over, and from then on always.
func TestFaultGhosts(t *testing.T) {
	t.Parallel()
	f := try(t, StartRedis(t), 1, unhurried...)
	dice := f.dice()
	f.people(2, 30)
	const seats = 20
	kills := scaled(4, 50)
	var slowest time.Duration
	for done := 0; done < kills; {
		together := min(5, kills-done)
		took := make([]time.Duration, together)
		var dying sync.WaitGroup
		for i := range together {
			g := StartGateway(t, f.r, Options{Name: fmt.Sprintf("doomed%d", done+i), Flags: unhurried})
			var names []string
			for n := range seats {
				name := fmt.Sprintf("user%d.%d", done+i, n)
				names = append(names, name)
				Connect(t, g.WS(), name)
			}
			asker := Connect(t, f.gateways[0].WS(), fmt.Sprintf("asker%d", done+i))
			// At any moment between two pulses.
			delay := time.Duration(dice.Int64N(int64(time.Second)))
			dying.Go(func() {
				lasts(delay)
				if online, err := count(asker, names, "online"); err != nil || online != seats {
					t.Errorf("before the kill %d of %d are online, %v", online, seats, err)
				}
				g.Kill()
				killed := time.Now()
				// Polled by hand: every millisecond between two looks counts as one of a ghost.
				for {
					online, err := count(asker, names, "online")
					if took[i] = time.Since(killed); err != nil || took[i] > 2*Deadline {
						t.Errorf("%v after the kill %d are online, %v", took[i], online, err)
					} else if online > 0 {
						lasts(2 * time.Millisecond)
						continue
					}
					break
				}
				// None comes back while the gateway is reaped.
				for time.Since(killed) < 9*time.Second {
					if online, err := count(asker, names, "online"); err != nil || online > 0 {
						t.Errorf("%v after the kill: %d ghosts, %v", time.Since(killed), online, err)
						return
					}
					lasts(20 * time.Millisecond)
				}
				asker.Cut()
			})
		}
		dying.Wait()
		for _, d := range took {
			slowest = max(slowest, d)
		}
		done += together
	}
	f.note("%d kills of %d users each: the last ghost was gone after %v (p100)", kills, seats, slowest.Round(time.Millisecond))
	// The lease, and what a busy machine adds.
	if slowest > 3*time.Second+Deadline/2 {
		t.Errorf("a ghost lasted %v", slowest)
	}
	f.done()
}

// count asks how many of these are in a state.
func count(c *Client, names []string, state string) (n int, err error) {
	states, err := c.Presence(names...)
	for _, s := range states {
		if s.State == state {
			n++
		}
	}
	return n, err
}
