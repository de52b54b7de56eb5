//go:build !race

package gatewaytest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// Redis writes everything to disk before it answers, is killed, and starts again. Nothing is lost, and nobody was away.
func TestFaultRedisKilledWithAOF(t *testing.T) {
	t.Parallel()
	f := try(t, StartRedis(t, "--appendonly", "yes", "--appendfsync", "always"), 2, swift...)
	f.keeps = true
	f.people(6, 30)
	// For longer than a lease and its reaping: whoever judged by the clock would call everybody dead.
	for _, away := range scaled([]time.Duration{4 * time.Second}, []time.Duration{0, time.Second, 5 * time.Second, 20 * time.Second}) {
		f.must(f.r.Kill())
		lasts(away)
		f.must(f.r.Restart())
		back := time.Now()
		f.shown(100)
		f.firstAck(back)
	}
	f.dust()
	f.done()
}

// firstAck waits until somebody is acknowledged again, and notes how long it took: 1 s, on a machine that has time.
func (f *trial) firstAck(since time.Time) {
	f.Helper()
	var first time.Duration
	f.must(Poll(2*Deadline, func() (err error) {
		var ok bool
		if first, ok = f.ledger.Check().FirstAckAfter(since); !ok {
			err = errors.New("nothing was acknowledged since Redis is back")
		}
		return err
	}))
	f.note("first ack after %v", first.Round(time.Millisecond))
}

// Redis is killed and starts again with nothing, while each address gets up to 100 messages a second, as many as a log keeps of ten
// seconds. What gateways still hold of these is stored again, so nothing is lost; where a log keeps less, what it dropped of it is lost,
// and announced as trimmed. Everybody is told.
func TestFaultRedisKilledWithoutAOF(t *testing.T) {
	for name, tc := range map[string]struct {
		flags []string
		may   []Fault
	}{
		"logs keep ten seconds": {nil, nil},
		"logs keep less":        {[]string{"--history.messages=50"}, []Fault{LostAnnounced}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := try(t, StartRedis(t), 2, append(slices.Clone(swift), tc.flags...)...)
			f.people(6, 110)
			absent := f.ledger.people[5]
			absent.Leave()
			began := time.Now()
			// More than Redis keeps of 50: it drops a hundred at a time.
			want := scaled(250, 600)
			f.must(Poll(time.Minute, func() error {
				if n := f.acked(absent.Name, began, time.Now()); n < want {
					return fmt.Errorf("%d messages wait for %s, want %d", n, absent.Name, want)
				}
				return nil
			}))
			f.must(f.r.Kill())
			killed := time.Now()
			lasts(scaled(time.Second, 8*time.Second))
			f.must(f.r.Restart())
			back := time.Now()
			absent.Return()
			f.shown(1000)
			f.firstAck(back)
			f.dust()
			if killed.Sub(began) > 10*time.Second {
				tc.may = []Fault{LostAnnounced} // a machine so slow that some of it was older
			}
			f.note("%.0f messages a second for %s", float64(f.acked(absent.Name, began, killed))/killed.Sub(began).Seconds(), absent.Name)
			v := f.done(append([]Fault{PresenceForgotten, FalseOffline}, tc.may...)...)
			if people := len(f.ledger.people); v.Gaps["history"] < people {
				t.Errorf("%d of %d people were told of another history", v.Gaps["history"], people)
			}
			if tc.flags != nil && (v.Count(LostAnnounced) == 0 || v.Gaps["trimmed"] == 0) {
				t.Error("nothing was lost: that proves nothing")
			}
		})
	}
}

// acked counts the messages to an address that were acknowledged between two moments.
func (f *trial) acked(address string, from, to time.Time) (n int) {
	for _, r := range f.ledger.Records() {
		for i := range r.Sent {
			if m := &r.Sent[i]; m.To == address && len(m.Acks) > 0 && m.Acks[0].At.After(from) && m.Acks[0].At.Before(to) {
				n++
			}
		}
	}
	return n
}

// Redis starts again from a snapshot, and a gateway has died with it: what only that one had acknowledged is gone. Whoever
// misses something is told.
func TestFaultRedisAndAGatewayKilledTogether(t *testing.T) {
	for name, heal := range map[string]string{"healing": "10s", "not healing": "0"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := try(t, StartRedis(t), 2, append([]string{"--cluster.heal=" + heal}, swift...)...)
			f.people(6, 60)
			for range scaled(2, 10) {
				f.must(f.r.DoAll("SAVE"))
				away := f.ledger.people[:3]
				away[0].Leave()
				f.shown(60)
				away[1].Leave()
				away[2].Leave()
				f.shown(60)
				f.gateways[0].Kill()
				f.must(f.r.Kill())
				f.must(f.r.Restart())
				f.revive(f.gateways[0])
				for _, p := range away {
					p.Return()
				}
				f.shown(60)
			}
			f.dust()
			v := f.done(LostAnnounced, PresenceForgotten, FalseOffline)
			if heal == "0" && v.Count(LostAnnounced) == 0 {
				t.Error("nothing was lost: that proves nothing")
			}
		})
	}
}

// Redis stands still. Sends are refused at once, nobody is disconnected, and when it goes on nobody was away.
func TestFaultPausedRedis(t *testing.T) {
	t.Parallel()
	f := try(t, StartRedis(t), 2, swift...)
	f.keeps = true
	f.people(6, 30)
	for _, pause := range scaled([]time.Duration{3 * time.Second}, []time.Duration{time.Second, 10 * time.Second, 30 * time.Second}) {
		f.must(f.r.Pause())
		lasts(pause)
		f.must(f.r.Resume())
		back := time.Now()
		f.shown(100)
		f.firstAck(back)
	}
	f.dust()
	v := f.done()
	refused := v.RefusedAfter("unavailable")
	t.Logf("refused after p50 %v, p99 %v, p100 %v", refused.P50, refused.P99, refused.P100)
	// 300 ms, on a machine that has time.
	if refused.P50 > 300*time.Millisecond || refused.P100 > 2*time.Second {
		t.Errorf("refused after p50 %v, p100 %v", refused.P50, refused.P100)
	}
	if len(v.Ends) > 0 {
		t.Errorf("connections ended: %v", v.Ends)
	}
}

// The scripts are forgotten all the time: nobody notices.
func TestFaultScriptFlush(t *testing.T) {
	t.Parallel()
	f := try(t, StartRedis(t), 2, swift...)
	f.people(6, 60)
	for range scaled(100, 2000) {
		f.must(f.r.DoAll("SCRIPT", "FLUSH"))
		lasts(20 * time.Millisecond)
	}
	if v := f.done(); len(v.Errors) > 0 || len(v.Ends) > 0 {
		t.Errorf("somebody noticed: %v", v)
	}
}

// A subscriber that Redis cuts off, because too much waits for it, reads what it missed, also when nothing comes after it.
func TestFaultSubscriberCutOff(t *testing.T) {
	t.Parallel()
	f := try(t, StartRedis(t), 2, swift...)
	f.onlyPulses()
	f.people(6, 0)
	f.must(f.r.DoAll("CONFIG", "SET", "client-output-buffer-limit", "pubsub 16kb 0 0"))
	for i := range scaled(3, 30) {
		for _, p := range f.ledger.people[:3] {
			// So much at a time is over the limit in one publish.
			p.Talk(Talk{To: []string{"user3", "user4", "user5"}, Window: 64, Pad: 1000, Count: 64})
		}
		f.must(f.ledger.WaitShown((i+1)*3*64-f.ledger.Shown(), time.Minute))
	}
	cut := f.subscriptionsCut()
	f.note("cut off %d times", cut)
	if cut == 0 {
		t.Error("no subscriber was cut off: that proves nothing")
	}
	f.promptly(f.done().FromAck)
}

// subscriptionsCut counts how often Redis cut a client off for what waited for it.
func (f *trial) subscriptionsCut() int {
	return strings.Count(f.r.Nodes[0].Log(), "overcoming of output buffer limits")
}

// Redis is 200 ms away, and all connections to it are reset as soon as a few messages came through, and sometimes before.
// Nothing comes twice, and it goes on each time.
func TestFaultSlowAndBrokenWayToRedis(t *testing.T) {
	t.Parallel()
	r := StartRedis(t)
	w := StartWire(t, r.Nodes[0].Addr)
	f := try(t, r.Through(w), 2, swift...)
	f.people(6, 30)
	w.Delay(100 * time.Millisecond) // each way
	f.shown(200)
	for i := range scaled(2, 60) {
		for range i % 3 {
			w.Reset()
			lasts(300 * time.Millisecond)
		}
		w.Reset()
		if err := f.ledger.WaitShown(20, 15*time.Second); err != nil {
			t.Fatalf("reset %d: %v", i, err)
		}
	}
	w.Delay(0)
	f.shown(100)
	f.done()
}

// FLUSHALL. Everybody is present again within 5 s, and told of the new epoch.
func TestFaultFlushAll(t *testing.T) {
	t.Parallel()
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

// onlyPulses lets people be silent: a heartbeat would bring what is missing, too.
func (f *trial) onlyPulses() { f.ledger.Heartbeat, f.ledger.Patience = 30*time.Second, time.Minute }

// promptly checks that nobody waited for longer than two pulses and a read, and as long again for a busy machine.
func (f *trial) promptly(times Times) {
	f.Helper()
	if times.P100 > 6*time.Second {
		f.Errorf("somebody waited %v for what was stored", times.P100)
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
			f.onlyPulses()
			f.people(6, 20)
			from := time.Now()
			lose(f)
			until := time.Now()
			f.shown(100)
			f.dust()
			v := f.done()
			times := v.ShownAfter(from, until)
			t.Logf("ack to shown meanwhile: p50 %v, p99 %v, p100 %v", times.P50, times.P99, times.P100)
			f.promptly(times)
		})
	}
}
