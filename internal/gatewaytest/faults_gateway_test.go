//go:build !race

package gatewaytest

import (
	"testing"
	"time"
)

// kill -9, again and again. Whoever was there resumes elsewhere.
func TestFaultKilledGateways(t *testing.T) {
	f := try(t, StartRedis(t), 3, swift...)
	dice := f.dice()
	f.people(8, scaled(30.0, 60))
	for range *chaosKills {
		g := f.gateways[dice.IntN(len(f.gateways))]
		g.Kill()
		f.shown(20)
		f.must(g.Restart())
		f.shown(20)
	}
	n := float64(*chaosKills)
	f.note("%.0f kills: the rate of any failure is below %.2g", n, 3/n)
	f.done()
}

// A gateway stands still for longer than its lease and its reaping, and runs on. Patient people wait for it and are sent away
// when it has learned what it lost; the others have gone by themselves.
func TestFaultPausedGateway(t *testing.T) {
	for name, patience := range map[string]time.Duration{"patient people": time.Minute, "impatient people": time.Second} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := try(t, StartRedis(t), 2, scaled(swift, unhurried)...)
			f.ledger.Patience = patience
			f.people(6, 30)
			for _, pause := range scaled([]time.Duration{4 * time.Second}, []time.Duration{5 * time.Second, 20 * time.Second}) {
				f.gateways[0].Pause()
				lasts(pause)
				f.gateways[0].Resume()
				f.shown(100)
			}
			if patience > time.Second {
				// A heartbeat, and the second over which the closes are spread; the rest is for a busy machine.
				wantWithin(t, 2*Deadline, func() bool { return f.ledger.Check().Ends[4004] >= 3 })
			}
			f.done()
		})
	}
}
