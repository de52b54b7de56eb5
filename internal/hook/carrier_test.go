//go:build !secondpass

package hook

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
)

// Three gateways carry to one webhook. Everything comes, each user's events in their order, and nothing twice.
func TestEventsComeInOrderAndOnce(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		w, to := newWorld(t, r), gatewaytest.StartReceiver(t)
		w.calm = true
		sink := webhookTo(to, Filter{})
		sink.Timeout = patience
		w.happenEach(5, 0, 10) // before anyone listens
		nodes := []*node{w.gateway("a", sink), w.gateway("b", sink), w.gateway("c", sink)}
		w.happenEach(5, 10, 60)
		if again := w.wantEach(to, 5, 60); again != 0 {
			t.Errorf("%d events came twice", again)
		}
		if s := w.wantSettled(nodes...); s.Delivered != 300 || s.Lost != 0 || s.Again != 0 || s.Refused != 0 {
			t.Errorf("counted %+v", s)
		}
	})
}

// A sink hangs, then answers 500, then is well: the backlog comes in order, and nobody else waits for it.
func TestASinkThatFailsGetsItsBacklog(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		w, to, other := newWorld(t, r), gatewaytest.StartReceiver(t), gatewaytest.StartReceiver(t)
		well := webhookTo(other, Filter{})
		well.Name = "other"
		a := w.gateway("a", webhookTo(to, Filter{}), well)
		w.happenEach(3, 0, 5)
		w.wantEach(to, 3, 5)
		to.Hang(true)
		w.happenEach(3, 5, 40)
		w.wantEach(other, 3, 40)
		w.eventually(func() error {
			if s := a.hooks.Stats()[0]; s.Failures == 0 || s.Failing == 0 || s.Backlog < 1 {
				return fmt.Errorf("nothing is seen of the failure: %+v", s)
			}
			return nil
		})
		to.Answer(500)
		to.Hang(false)
		before := to.Requests()
		w.eventually(func() error {
			if n := to.Requests() - before; n < 2 {
				return fmt.Errorf("tried %d times", n)
			}
			return nil
		})
		to.Answer(0)
		w.wantEach(to, 3, 40)
		if s := w.wantSettled(a); s.Lost != 0 {
			t.Errorf("counted %+v", s)
		}
		if s := a.hooks.Stats()[0]; s.Failing != 0 {
			t.Errorf("still failing: %+v", s)
		}
	})
}

// The gateway that carries dies with a batch on its way. Another goes on where it was: nothing is lost, the order holds, and
// what comes twice has one id.
func TestADeadGatewaysEventsAreTakenOver(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		w, to := newWorld(t, r), gatewaytest.StartReceiver(t)
		a := w.gateway("a", webhookTo(to, Filter{}))
		w.happenEach(3, 0, 10)
		w.wantEach(to, 3, 10)
		w.wantSettled(a)
		b := w.gateway("b", webhookTo(to, Filter{}))
		to.Hang(true)
		w.happenEach(3, 10, 60)
		w.eventually(func() error {
			if a.hooks.Stats()[0].Failures == 0 {
				return fmt.Errorf("nothing is on its way")
			}
			return nil
		})
		a.kill()
		to.Hang(false)
		w.wantEach(to, 3, 60)
		if s := w.wantSettled(b); s.Again == 0 {
			t.Errorf("what was on its way was not read again: %+v", s)
		}
		// The dead consumer is gone, and nothing is pending.
		for _, g := range w.layout.Groups() {
			consumers, err := r.Client().XInfoConsumers(context.Background(), keyspace.Events(g), "web").Result()
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range consumers {
				if c.Name != "b-1" || c.Pending != 0 {
					t.Errorf("%s: consumer %s has %d pending", g, c.Name, c.Pending)
				}
			}
		}
	})
}

// A gateway that is drained gives its groups up, and waits for what it is delivering.
func TestADrainedGatewayHandsOver(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		w, to := newWorld(t, r), gatewaytest.StartReceiver(t)
		a := w.gateway("a", webhookTo(to, Filter{}))
		w.happenEach(3, 0, 10)
		w.wantSettled(a)
		for i := range 5 {
			b := w.gateway("b"+strconv.Itoa(i), webhookTo(to, Filter{}))
			w.happenEach(3, 10+10*i, 20+10*i)
			a.stop()
			a = b
		}
		if again := w.wantEach(to, 3, 60); again != 0 {
			t.Errorf("%d events came twice", again)
		}
	})
}

// A sink is down for longer than events are kept. What fell out is counted exactly, the rest comes.
func TestWhatFallsOutOfRetentionIsCounted(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		w, to := newWorld(t, r), gatewaytest.StartReceiver(t)
		a := w.gateway("a", webhookTo(to, Filter{}))
		g := w.layout.GroupOf("u:user0")
		w.happenEach(1, 0, 10)
		w.wantEach(to, 1, 10)
		w.wantSettled(a)
		to.Answer(503)
		w.happenEach(1, 10, 300)
		w.eventually(func() error {
			if a.hooks.Stats()[0].Failures == 0 {
				return fmt.Errorf("nothing is on its way")
			}
			return nil
		})
		if err := r.Client().XTrimMaxLen(context.Background(), keyspace.Events(g), 100).Err(); err != nil {
			t.Fatal(err)
		}
		to.Answer(0)
		// One batch was read before the trimming. It comes too: it is in memory.
		w.eventually(func() error {
			if s := a.hooks.Stats()[0]; s.Delivered+s.Lost != 300 || s.Lost == 0 || s.Backlog != 0 {
				return fmt.Errorf("counted %+v", s)
			}
			return nil
		})
		all, _, err := to.Once()
		if s := a.hooks.Stats()[0]; err != nil || uint64(len(all)) != s.Delivered || s.Lost > 190 || s.Lost < 170 {
			t.Errorf("%d events came, counted %+v, %v", len(all), s, err)
		}
		if last := all[len(all)-1]; string(last.Meta) != "299" {
			t.Errorf("the last is %+v", last)
		}
	})
}

// What a dead gateway had read is trimmed before anyone could take it over: that is counted, too.
func TestWhatIsTrimmedUnderADeadGatewayIsCounted(t *testing.T) {
	for _, kind := range []gatewaytest.Kind{gatewaytest.Standalone, gatewaytest.Cluster} { // miniredis doesn't tell
		t.Run(string(kind), func(t *testing.T) {
			r := gatewaytest.Shared(t, kind)
			w, to := newWorld(t, r), gatewaytest.StartReceiver(t)
			to.Answer(500)
			a := w.gateway("a", webhookTo(to, Filter{}))
			w.happenEach(1, 0, 30)
			w.eventually(func() error {
				if a.hooks.Stats()[0].Failures == 0 {
					return fmt.Errorf("nothing is on its way")
				}
				return nil
			})
			read := int(a.hooks.Stats()[0].Backlog)
			a.kill()
			if err := r.Client().XTrimMaxLen(context.Background(), keyspace.Events(w.layout.GroupOf("u:user0")), 0).Err(); err != nil {
				t.Fatal(err)
			}
			b := w.gateway("b", webhookTo(to, Filter{}))
			to.Answer(0)
			w.happenEach(1, 30, 31)
			w.eventually(func() error {
				if s := b.hooks.Stats()[0]; s.Delivered != 1 || s.Lost != 30 || s.Backlog != 0 {
					return fmt.Errorf("of 30 lost events, %d of them seen, counted %+v", read, s)
				}
				return nil
			})
		})
	}
}

// Redis forgets everything. What was known to be waiting is counted as lost, and what happens then comes.
func TestAnEmptiedRedisIsNoticed(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		w, to := newWorld(t, r), gatewaytest.StartReceiver(t)
		a := w.gateway("a", webhookTo(to, Filter{}))
		w.happenEach(2, 0, 10)
		w.wantEach(to, 2, 10)
		w.wantSettled(a)
		to.Answer(500)
		w.happenEach(1, 10, 50)
		w.eventually(func() error {
			if s := a.hooks.Stats()[0]; s.Backlog != 40 || s.Failures == 0 {
				return fmt.Errorf("counted %+v", s)
			}
			return nil
		})
		if err := r.FlushAll(); err != nil {
			t.Fatal(err)
		}
		w.eventually(func() error {
			if s := a.hooks.Stats()[0]; s.Lost == 0 {
				return fmt.Errorf("counted %+v", s)
			}
			return nil
		})
		to.Answer(0)
		w.happen("late", "meta", "0")
		w.eventually(func() error {
			all := to.Events()
			if last := all[len(all)-1]; last.User != "late" && len(all) < 20 {
				return fmt.Errorf("the last is %+v", last)
			}
			s := a.hooks.Stats()[0]
			if s.Delivered+s.Lost != 61 {
				return fmt.Errorf("counted %+v", s)
			}
			return nil
		})
		w.wantSettled(a)
	})
}

// Redis stands still for longer than the lease. Nobody delivers meanwhile, and then it goes on.
func TestRedisAwayIsWaitedOut(t *testing.T) {
	w, to := newWorld(t, gatewaytest.Shared(t, gatewaytest.Standalone)), gatewaytest.StartReceiver(t)
	a, b := w.gateway("a", webhookTo(to, Filter{})), w.gateway("b", webhookTo(to, Filter{}))
	w.happenEach(3, 0, 10)
	w.wantEach(to, 3, 10)
	to.Answer(500)
	w.happenEach(3, 10, 20)
	w.eventually(func() error {
		if a.hooks.Stats()[0].Failing+b.hooks.Stats()[0].Failing == 0 {
			return fmt.Errorf("nothing is on its way")
		}
		return nil
	})
	if err := w.redis.Pause(); err != nil {
		t.Fatal(err)
	}
	w.eventually(func() error { // a delivery is cut short when the lease is over
		before := to.Requests()
		<-time.After(500 * time.Millisecond)
		if n := to.Requests(); n != before {
			return fmt.Errorf("still delivering: %d requests", n)
		}
		return nil
	})
	to.Answer(0)
	if err := w.redis.Resume(); err != nil {
		t.Fatal(err)
	}
	w.wantEach(to, 3, 20)
	w.wantSettled(a, b)
}

// Only what is meant for a sink is sent to it; the rest is passed over, and counted.
func TestAFilterPassesOverTheRest(t *testing.T) {
	w, to := newWorld(t, gatewaytest.Shared(t, gatewaytest.Embedded)), gatewaytest.StartReceiver(t)
	a := w.gateway("a", webhookTo(to, Filter{Users: []string{"user1", "user3"}}))
	for u := range 5 {
		for i := range 30 {
			w.happen("user"+strconv.Itoa(u), "meta", strconv.Itoa(i))
		}
	}
	if again := w.wantEach(to, 2, 30); again != 0 {
		t.Errorf("%d came twice", again)
	}
	// The last that were passed over may not be read yet when the last of the others is delivered.
	w.eventually(func() error {
		if s := w.wantSettled(a); s.Delivered != 60 || s.Filtered != 90 {
			return fmt.Errorf("counted %+v", s)
		}
		return nil
	})
}

// Redis' clock is set back by an hour, or a master with another clock takes over, while a lease runs whose holder is dead. Nobody waits out the hour.
func TestALeaseOfTheFutureIsNone(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		w, to := newWorld(t, r), gatewaytest.StartReceiver(t)
		for _, g := range w.layout.Groups() {
			till := time.Now().Add(time.Hour).UnixMilli()
			if err := r.Client().HSet(context.Background(), keyspace.Sinks(g), "web", fmt.Sprintf("dead-1 %d 0 0", till)).Err(); err != nil {
				t.Fatal(err)
			}
		}
		w.happenEach(2, 0, 10)
		w.gateway("a", webhookTo(to, Filter{}))
		w.wantEach(to, 2, 10)
	})
}

// A batch that is given to the sink in several goes counts what is not meant for it once.
func TestWhatIsPassedOverIsCountedOnce(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Log = newSilent()
	s := sinkNamed("web", Filter{Users: []string{"alice"}})
	c := newCarrier(nil, &cfg, &s, nil)
	h := c.hauls[0]
	h.batch = []*Event{{User: "bob"}, {User: "alice"}, {User: "bob"}, {User: "alice"}, {User: "bob"}}
	for _, taken := range []int{3, 0, 2} {
		c.take(h, taken)
	}
	if n := c.counts.filtered.Load(); n != 3 || len(h.batch) != 0 {
		t.Errorf("%d passed over, %d left", n, len(h.batch))
	}
}
