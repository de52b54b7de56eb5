//go:build !secondpass

package presence

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// A connection ends while Redis is away. Its event comes late, and says how long it lived, not how long Redis was away besides.
func TestAnEndThatRedisHearsOfLateIsNoLongerLife(t *testing.T) {
	r := gatewaytest.Shared(t, gatewaytest.Standalone)
	f := newFleet(t, r, withEvents, func(c *Config) { c.Timeout = 300 * time.Millisecond })
	a := f.gateway("a")
	alice := a.connect("alice", "")
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	before := a.registry.Stats().Failed
	a.disconnect(alice)
	lived := time.Now().UnixMilli() - alice.Since
	err := gatewaytest.Poll(patience, func() error {
		if n := a.registry.Stats().Failed - before; n < 4 {
			return fmt.Errorf("%d calls failed", n)
		}
		return nil
	})
	if err := errors.Join(err, r.Resume()); err != nil {
		t.Fatal(err)
	}
	f.eventually(func() error {
		for _, e := range f.events("alice") {
			if e["type"] == "disconnect" {
				if dur, err := strconv.ParseInt(e["dur"], 10, 64); err != nil || dur > lived {
					t.Errorf("it is said to have lived for %s ms, not %d: %v", e["dur"], lived, e)
				}
				return nil
			}
		}
		return fmt.Errorf("no disconnect")
	})
}

// Somebody types FLUSHALL. Within seconds everyone is registered again, with the fence he had, and for the outside
// nothing has happened: not one event.
func TestFlushAllIsHealedWithTheSameFencesAndWithoutEvents(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents)
		a, b := f.gateway("a"), f.gateway("b")
		phone := a.connect("alice", "phone")
		desktop := b.connect("alice", "desktop")
		a.connectMany(users(300)...)
		fences := []uint64{phone.Fence(), desktop.Fence()}
		f.wantSound()

		began := time.Now()
		if err := r.FlushAll(); err != nil {
			t.Fatal(err)
		}
		f.eventually(func() error {
			if n := a.registry.Stats().Again; n < 301 {
				return fmt.Errorf("a registered %d of 301 again", n)
			}
			return nil
		})
		f.wantAt("alice", phone, desktop)
		f.wantSound()
		t.Logf("everybody was back after %v", time.Since(began).Round(time.Millisecond))
		if got := []uint64{phone.Fence(), desktop.Fence()}; got[0] != fences[0] || got[1] != fences[1] {
			t.Errorf("fences are %v, were %v", got, fences)
		}
		f.wantState("alice", "online")
		for _, user := range append(users(300), "alice") {
			if got := f.story(user); got != "" {
				t.Fatalf("after the flush %s had the events %q", user, got)
			}
		}
		// What happens from then on is told again.
		a.disconnect(phone)
		b.disconnect(desktop)
		f.wantStory("alice", "disconnect disconnect offline")
		for _, g := range []*gateway{a, b} {
			if n := len(g.verdicts); n != 0 {
				t.Errorf("%s heard %d verdicts", g.id, n)
			}
		}
	})
}

// A Redis that forgot who is there is not believed when it finds nobody, until everyone had the time to register again. Who left since
// is offline, as ever.
func TestWhoMayBeForgottenIsNotSaidToBeOffline(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withGrace(0), func(c *Config) { c.Quiet = 3 * time.Second })
		a, b := f.gateway("a"), f.gateway("b")
		unsure := func(user string) (bool, error) {
			w, err := a.registry.Locate(context.Background(), protocol.UserID(user))
			if err != nil {
				return false, err
			}
			if n := len(w[0].Locations); n != 0 {
				return false, fmt.Errorf("%s has %d connections", user, n)
			}
			return w[0].Unsure, nil
		}
		wantUnsure := func(user string, want bool) {
			t.Helper()
			f.eventually(func() error {
				if is, err := unsure(user); err != nil || is != want {
					return fmt.Errorf("unsure of %s: %t, %w", user, is, err)
				}
				return nil
			})
		}
		wantUnsure("alice", false) // in a Redis that is new, nobody can be forgotten
		b.connect("alice", "")
		bobs := a.connect("bob", "")
		f.wantState("bob", "online")
		b.stop() // it will register nobody again
		if err := r.FlushAll(); err != nil {
			t.Fatal(err)
		}
		f.eventually(func() error {
			if !f.quiet(a, "alice") {
				return errors.New("no quiet time began")
			}
			return nil
		})
		wantUnsure("alice", true)
		f.wantState("bob", "online")
		a.disconnect(bobs)
		f.wantState("bob", "offline")
		wantUnsure("bob", false)
		if is, err := unsure("alice"); !is && f.quiet(a, "alice") {
			t.Errorf("alice is offline, with %v", err)
		}
		wantUnsure("alice", false)
	})
}

// While everyone registers again, one has left already: nobody brings him back.
func TestAConnectionThatEndsDuringTheFlushStaysAway(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a := f.gateway("a")
		for i := range 20 {
			e := a.connect("alice", "")
			if err := r.FlushAll(); err != nil {
				t.Fatal(err)
			}
			f.outlast(time.Duration(i) * 10 * time.Millisecond) // before, while and after it is registered again
			a.disconnect(e)
		}
		f.wantSound()
		if n, err := f.client.Exists(context.Background(), keyspace.Conns("alice")).Result(); n != 0 || err != nil {
			t.Errorf("alice is still there: %d, %v", n, err)
		}
	})
}

// Redis is away for longer than every lease and all patience. When it is back, nobody is judged dead, and not one event
// tells of it.
func TestNobodyIsJudgedWhileRedisIsAway(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents, func(c *Config) { c.Timeout, c.Quiet = 300*time.Millisecond, 1500*time.Millisecond })
		a, b := f.gateway("a"), f.gateway("b")
		alices, bobs := a.connect("alice", ""), b.connect("bob", "")
		f.wantAt("alice", alices)
		f.away(f.cfg.Lease + f.cfg.ReapAfter + f.cfg.Pulse*2)
		if s := a.registry.Stats(); r.Kind != gatewaytest.Embedded && (s.Failed == 0 || s.Verdicts != 0) {
			t.Errorf("while Redis was away: %+v", s)
		}
		// At once, and for as long as a judgement could take.
		f.throughout(f.cfg.Lease+f.cfg.ReapAfter+f.cfg.Pulse*2, func() error {
			if err := a.at("bob", bobs); err != nil && !isUnavailable(err) {
				return err
			}
			if err := b.at("alice", alices); err != nil && !isUnavailable(err) {
				return err
			}
			return nil
		})
		for _, user := range []string{"alice", "bob"} {
			f.wantStory(user, "connect online")
		}
		if n := a.registry.Stats().Reaped + b.registry.Stats().Reaped; n != 0 {
			t.Errorf("%d reaped", n)
		}
	})
}

// A gateway dies while Redis is away. It gets the benefit of the doubt for the quiet time, then it is dead like any other.
func TestAGatewayThatDiedWhileRedisWasAwayIsJudgedAfterTheQuietTime(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents, func(c *Config) { c.Timeout, c.Quiet = 300*time.Millisecond, 2*time.Second })
		a, b := f.gateway("a"), f.gateway("b")
		bobs := b.connect("bob", "")
		f.wantAt("bob", bobs)
		b.stop() // and says no word; that Redis is away as well, nobody knows yet
		f.away(f.cfg.Lease + f.cfg.ReapAfter + f.cfg.Pulse*2)
		var back *view
		f.eventually(func() error {
			if back = a.registry.groupOf("bob").view.Load(); back.quiet == 0 {
				return fmt.Errorf("no quiet time")
			}
			return nil
		})
		end := time.UnixMilli(back.quiet).Add(-500 * time.Millisecond)
		f.throughout(time.Until(end), func() error {
			if err := a.at("bob", bobs); err != nil && !isUnavailable(err) && time.Now().Before(end) {
				return err
			}
			return nil
		})
		f.eventually(func() error { return a.at("bob") })
		f.eventually(func() error { return f.reaped(b) })
		f.wantStory("bob", "connect online disconnect offline")
		for _, e := range f.events("bob") {
			if ms, _ := strconv.ParseInt(e["ms"], 10, 64); e["type"] == "disconnect" && ms < back.quiet {
				t.Errorf("disconnected at %d, within the quiet time until %d", ms, back.quiet)
			}
		}
	})
}

// Alice's line broke just before Redis went away, so she can't come back within the grace: nobody can register. She
// returns as soon as Redis does, and was never offline.
func TestNobodyGoesOfflineBecauseRedisWasAway(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents, withGrace(1500*time.Millisecond), func(c *Config) { c.Timeout, c.Quiet = 300*time.Millisecond, 2*time.Second })
		a, b := f.gateway("a"), f.gateway("b")
		a.disconnect(a.connect("alice", ""))
		a.disconnect(a.connect("bob", ""))
		f.wantStory("alice", "connect online disconnect")
		f.away(2 * time.Second)
		// Whoever pulses first finds the grace over.
		f.eventually(func() error {
			for _, g := range []*gateway{a, b} {
				if v := g.registry.groupOf("alice").view.Load(); v.quiet == 0 {
					return fmt.Errorf("%s saw no quiet time", g.id)
				}
			}
			return nil
		})
		back := b.connect("alice", "")
		f.wantAt("alice", back)
		f.wantStory("alice", "connect online disconnect connect")
		// Bob stays away: he is offline when the quiet time is over.
		f.wantStory("bob", "connect online disconnect offline")
		f.wantStory("alice", "connect online disconnect connect")
	})
}

// Redis is away for longer than an entry lives unrefreshed. Clients gave signs of life all the while, but Redis couldn't
// hear them; they count when it is back, also after the quiet time.
func TestEntriesOutliveAnOutageLongerThanTheirTTL(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.Timeout, c.TTL = 300*time.Millisecond, 20*time.Second })
		a, b := f.gateway("a"), f.gateway("b")
		e := a.connect("alice", "")
		f.shiftExpiry(e, -f.cfg.TTL.Milliseconds()+1000) // it was refreshed just before a heartbeat is due
		f.away(1500 * time.Millisecond)
		f.eventually(func() error {
			if v := b.registry.groupOf("alice").view.Load(); v.quiet != 0 || time.Since(v.at) > f.cfg.Pulse*2 {
				return fmt.Errorf("quiet time, or no pulse yet")
			}
			return nil
		})
		f.throughout(500*time.Millisecond, func() error { return b.at("alice", e) })
	})
}

// Redis was restarted and its memory is another one: a new history line. Nobody is judged for it, everybody is registered
// again, and the positions of the logs are of a new epoch.
func TestARestartedRedisIsANewHistoryLine(t *testing.T) {
	r := gatewaytest.StartRedis(t, "--appendonly", "yes", "--appendfsync", "always")
	f := newFleet(t, r, withEvents, func(c *Config) { c.Timeout, c.Quiet = 300*time.Millisecond, 1500*time.Millisecond })
	defer f.finish()
	a, b := f.gateway("a"), f.gateway("b")
	e := a.entry("alice", "")
	before := a.register(e)
	bobs := b.connect("bob", "")
	line := a.registry.groups[0].view.Load().line

	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	f.outlast(f.cfg.Lease + f.cfg.ReapAfter)
	if err := r.Restart(); err != nil {
		t.Fatal(err)
	}
	f.eventually(func() error {
		for _, g := range []*gateway{a, b} {
			if v := g.registry.groups[0].view.Load(); v.line == line {
				return fmt.Errorf("%s still sees the line %s", g.id, line)
			}
		}
		return nil
	})
	f.throughout(f.cfg.Lease+f.cfg.ReapAfter, func() error {
		if err := a.at("bob", bobs); err != nil && !isUnavailable(err) {
			return err
		}
		return nil
	})
	f.wantAt("alice", e)
	for _, user := range []string{"alice", "bob"} {
		f.wantStory(user, "connect online")
	}
	// The log is the same and goes on, in an epoch of its own.
	two := b.entry("alice", "")
	if after := b.register(two); after.Epoch == before.Epoch || after.Top != before.Top {
		t.Errorf("registered with %+v, before the restart with %+v", after, before)
	}
}

// The same while Redis kept nothing at all.
func TestARestartedRedisWithoutItsMemoryIsFilledAgain(t *testing.T) {
	r := gatewaytest.StartRedis(t)
	f := newFleet(t, r, withEvents, func(c *Config) { c.Timeout = 300 * time.Millisecond })
	defer f.finish()
	a, b := f.gateway("a"), f.gateway("b")
	a.connectMany(users(200)...)
	e := b.connect("alice", "phone")
	fence := e.Fence()
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	f.outlast(f.cfg.Lease)
	if err := r.Restart(); err != nil {
		t.Fatal(err)
	}
	f.wantAt("alice", e)
	f.wantSound()
	if e.Fence() != fence {
		t.Errorf("fence %d, was %d", e.Fence(), fence)
	}
	if all := f.allEvents(); len(all) != 0 {
		t.Errorf("events: %v", all)
	}
}

// The master dies and a replica takes over: another history line, and a tail may be lost. Nobody is judged for it, and
// everybody is where he was, with the same fence.
func TestAFailoverJudgesNobody(t *testing.T) {
	r := gatewaytest.Shared(t, gatewaytest.Sentinel)
	f := newFleet(t, r, withEvents, func(c *Config) { c.Timeout, c.Quiet = 300*time.Millisecond, 2*time.Second })
	a, b := f.gateway("a"), f.gateway("b")
	a.connectMany(users(100)...)
	alice, bob := a.connect("alice", "phone"), b.connect("bob", "")
	line := a.registry.groups[0].view.Load().line
	masters, err := r.Masters()
	if err != nil {
		t.Fatal(err)
	}
	before := masters[0].Addr
	masters[0].Kill()
	if _, err := r.WaitFailover(before, patience); err != nil {
		t.Fatal(err)
	}
	f.eventually(func() error {
		for _, g := range []*gateway{a, b} {
			if v := g.registry.groups[0].view.Load(); v.line == line || time.Since(v.at) > f.cfg.Pulse*3 {
				return fmt.Errorf("%s still sees the line %s", g.id, line)
			}
		}
		return nil
	})
	f.wantAt("alice", alice)
	f.wantAt("bob", bob)
	f.throughout(f.cfg.Lease+f.cfg.ReapAfter, func() error {
		if err := b.at("alice", alice); err != nil && !isUnavailable(err) {
			return err
		}
		return nil
	})
	f.wantSound()
	for _, g := range []*gateway{a, b} {
		if s := g.registry.Stats(); s.Reaped != 0 || s.Verdicts != 0 {
			t.Errorf("%s: %+v", g.id, s)
		}
	}
	for user, all := range f.allEvents() {
		for _, e := range all {
			if e["type"] == "disconnect" || e["type"] == "offline" {
				t.Errorf("%s: %v", user, e)
			}
		}
	}
}
