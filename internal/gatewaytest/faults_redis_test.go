//go:build !race

package gatewaytest

import (
	"testing"
	"time"
)

// Redis is killed and starts again with nothing. What gateways still hold of the last ten seconds is stored again; everybody
// is told.
func TestFaultRedisKilledWithoutAOF(t *testing.T) {
	f := try(t, StartRedis(t), 2, swift...)
	f.people(6, 30)
	f.must(f.r.Kill())
	lasts(scaled(time.Second, 8*time.Second))
	f.must(f.r.Restart())
	back := time.Now()
	f.shown(100)
	v := f.done(PresenceForgotten, FalseOffline)
	first, _ := v.FirstAckAfter(back)
	t.Logf("first ack %v after Redis was back", first)
	if v.Gaps["history"] < 6 {
		t.Errorf("%d of 6 people were told of another history", v.Gaps["history"])
	}
}

// FLUSHALL. Everybody is present again within 5 s, and told of the new epoch.
func TestFaultFlushAll(t *testing.T) {
	f := try(t, StartRedis(t), 2, unhurried...)
	people := scaled(200, 5000)
	if *full {
		f.ledger.Heartbeat, f.ledger.Patience = 10*time.Second, 30*time.Second
	}
	f.people(people, scaled(0.5, 0.1))
	f.must(f.r.FlushAll())
	flushed := time.Now()
	f.everybodyOnline()
	f.note("everybody online %v after it", time.Since(flushed).Round(time.Millisecond))
	if took := time.Since(flushed); took > 10*time.Second { // 5 s, and as much for a busy machine
		t.Errorf("it took %v until %d people were online again", took, people)
	}
	f.shown(people)
	v := f.done(LostAnnounced, PresenceForgotten, FalseOffline)
	if v.Gaps["history"] < people {
		t.Errorf("%d of %d people were told of the new epoch", v.Gaps["history"], people)
	}
}

// Nothing that is published arrives, or the subscriptions are cut each second: everything comes, if later.
func TestFaultAllPublishesLost(t *testing.T) {
	for name, lose := range map[string]func(f *trial){
		"no right to publish": func(f *trial) {
			f.must(f.r.Mute())
			lasts(scaled(6*time.Second, time.Minute))
			f.must(f.r.Unmute())
		},
		"subscriptions cut each second": func(f *trial) {
			for range scaled(6, 60) {
				f.must(f.r.DoAll("CLIENT", "KILL", "TYPE", "pubsub"))
				lasts(time.Second)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := try(t, StartRedis(t), 2, unhurried...)
			// A heartbeat would bring what is missing, too.
			f.ledger.Heartbeat, f.ledger.Patience = 30*time.Second, time.Minute
			f.people(6, 20)
			from := time.Now()
			lose(f)
			until := time.Now()
			f.shown(100)
			v := f.done()
			times := v.ShownAfter(from, until)
			t.Logf("ack to shown meanwhile: p50 %v, p99 %v, p100 %v", times.P50, times.P99, times.P100)
			// Two pulses, and one more for a busy machine.
			if times.P100 > 4*time.Second {
				t.Errorf("somebody waited %v for what was stored", times.P100)
			}
		})
	}
}
