//go:build !secondpass

package presence

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// Fences order the connections of a user, on whichever gateway and however close in time.
func TestFencesOfAUserOnlyGrow(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.ConnectionsPerUser = 0 })
		a, b := f.gateway("a"), f.gateway("b")
		last := uint64(0)
		for i := range 100 {
			g := []*gateway{a, b}[i%2]
			e := g.connect("alice", "")
			if e.Fence() <= last {
				t.Fatalf("connection %d has fence %d, the one before %d", i, e.Fence(), last)
			}
			last = e.Fence()
			if i%3 == 0 {
				g.disconnect(e)
			}
		}
	})
}

// Redis' clock was set back, or a failover led to a machine that is behind: the next fence is higher all the same.
func TestAFenceIsHigherThanAnyBeforeThoughTheClockGoesBack(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a := f.gateway("a")
		first := a.connect("alice", "")
		// As if the first had come when the clock was a day ahead.
		ahead := first.Fence() + 86400*1e6
		first.fence.Store(ahead)
		ctx := context.Background()
		for _, key := range []string{keyspace.Conns("alice"), keyspace.Own(f.group("alice"), a.id)} {
			s := f.client.HGet(ctx, key, string(first.Conn)).Val()
			_, rest, _ := strings.Cut(s, "\x1f")
			if err := f.client.HSet(ctx, key, string(first.Conn), fmt.Sprintf("%d\x1f%s", ahead, rest)).Err(); err != nil {
				t.Fatal(err)
			}
		}
		second := a.connect("alice", "")
		if second.Fence() != ahead+1 {
			t.Errorf("fence %d after %d", second.Fence(), ahead)
		}
	})
}

// Alice moved from a to b. The end of her socket on a is noticed minutes later: it takes away what was on a, nothing else.
func TestALateGoodbyeErasesOnlyItsOwnConnection(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a, b := f.gateway("a"), f.gateway("b")
		a.obeys = false
		old := a.connect("alice", "phone")
		now := b.connect("alice", "phone")
		a.disconnect(old)
		f.wantSound()
		f.wantAt("alice", now)
	})
}

// A removal names a connection, its gateway and its fence. Where one of them differs, nothing happens: not to the entry,
// not to the counts, not to the state.
func TestARemovalThatDiffersInAnythingDoesNothing(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents)
		a, b := f.gateway("a"), f.gateway("b")
		e := a.connect("alice", "")
		a.stop()
		b.stop()
		// The fence of this test's own pretence is put back for the last check.
		pretend := func(conn protocol.ConnID, fence uint64) *Entry {
			other := &Entry{Conn: conn, User: e.User, Since: e.Since}
			other.fence.Store(fence)
			return other
		}
		before := f.dump()
		for name, d := range map[string]struct {
			g *gateway
			e *Entry
		}{
			"an older life of the connection": {a, pretend(e.Conn, e.Fence()-1)},
			"a newer one":                     {a, pretend(e.Conn, e.Fence()+1)},
			"another gateway":                 {b, pretend(e.Conn, e.Fence())},
			"another gateway, any fence":      {b, pretend(e.Conn, 0)},
			"another connection":              {a, pretend("nobody", e.Fence())},
			"a connection never registered":   {a, pretend("nobody", 0)},
		} {
			d.g.registry.runRemoves(d.g.registry.groupOf(e.User), []*departure{{entry: d.e, end: End{Cause: "late"}}})
			if got := f.dump(); !maps.EqualFunc(got, before, maps.Equal) {
				t.Errorf("%s: changed %v to %v", name, before, got)
			}
		}
	})
}

// The same connection id lives twice: its first registration was given up and removed, then it was made again. What is
// still under way for the first life must not touch the second.
func TestTheSecondLifeOfAConnectionSurvivesTheFirst(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a := f.gateway("a")
		first := a.connect("alice", "")
		a.disconnect(first)
		f.wantAt("alice")
		second := &Entry{Conn: first.Conn, User: first.User, Since: first.Since}
		a.register(second)
		if second.Fence() <= first.Fence() {
			t.Errorf("fence %d after %d", second.Fence(), first.Fence())
		}
		a.registry.runRemoves(a.registry.groupOf("alice"), []*departure{{entry: first, end: End{Cause: "late"}}})
		f.wantSound()
		f.wantAt("alice", second)
		// Should a gateway still hold the first, its refresh is told that it is gone.
		stale := &Entry{Conn: first.Conn, User: first.User}
		stale.fence.Store(first.Fence())
		stale.life.Store(entryHeld)
		g := a.registry.groupOf("alice")
		g.held.Add(1)
		a.registry.refreshSome(context.Background(), g, []*Entry{stale})
		if v, ok := a.verdict(stale); !ok || !v.Reaped || v.Fence != first.Fence() {
			t.Errorf("the first life was told %+v", v)
		}
		f.wantAt("alice", second)
	})
}

// masked is a dump without what is meant to move with time: ends of leases, of entries and of graces.
func (f *fleet) masked() dump {
	f.t.Helper()
	d := f.dump()
	for key, fields := range d {
		switch {
		case strings.HasSuffix(key, "}:lease"), strings.HasSuffix(key, "}:off"):
			for k := range fields {
				fields[k] = "time"
			}
		case strings.HasSuffix(key, "}:line"):
			fields["pulse"], fields["quiet"] = "time", "time" // a second run that comes late finds that Redis was away
		}
		if _, conns := addressOf(key, "c", "u:"); conns {
			for k, s := range fields {
				if p := strings.SplitN(s, "\x1f", 3); len(p) == 3 {
					fields[k] = p[0] + "\x1ftime\x1f" + p[2]
				}
			}
		}
	}
	return d
}

// twice runs every script a second time, as a client does that didn't get the answer, and compares all of Redis before
// and after.
type twice struct {
	f  *fleet
	mu sync.Mutex // guards the rest, and lets one script run at a time
	// ran counts the scripts that were run twice, by their name.
	ran map[string]int
}

func (*twice) DialHook(next redis.DialHook) redis.DialHook { return next }

func (*twice) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (w *twice) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if !strings.HasPrefix(cmd.Name(), "eval") {
			return next(ctx, cmd)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if err := next(ctx, cmd); err != nil {
			return err
		}
		after := w.f.masked()
		second := redis.NewCmd(ctx, cmd.Args()...)
		if err := next(ctx, second); err != nil {
			w.f.t.Errorf("the second run failed: %v", err)
			return nil
		}
		if again := w.f.masked(); !maps.EqualFunc(again, after, maps.Equal) {
			w.f.t.Errorf("the second run of %.60v changed\n%v\nto\n%v", cmd.Args(), after, again)
		}
		w.ran[fmt.Sprint(cmd.Args()[1])]++
		return nil
	}
}

// Every script may run twice: the second run changes nothing, emits nothing, and counts nothing. A client that lost the
// answer can therefore ask again.
func TestEveryScriptRunsTwiceSafely(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents, func(c *Config) {
			c.Grace, c.ReapAfter, c.Quiet, c.Timeout, c.ConnectionsPerUser = 1e6, 1e6, 1e6, patience, 2
		})
		w := &twice{f: f, ran: make(map[string]int)}
		f.client = f.ownClient("", "")
		f.client.AddHook(w)
		ctx := context.Background()
		a, b := f.prepare("a"), f.prepare("b")
		reg, g := a.registry, a.registry.groupOf("alice")
		beat := func(g *gateway) {
			for _, user := range []protocol.UserID{"alice", "bob", "carol"} {
				g.registry.beat(ctx, g.registry.groupOf(user))
			}
		}

		beat(a)
		beat(b)
		a.hold("w:alice", "w:carol", "r:lobby")
		desktop := a.connect("alice", "desktop")
		phone := a.connect("alice", "phone")
		again := b.connect("alice", "phone")   // replaces
		tablet := b.connect("alice", "tablet") // and pushes out the desktop
		lost := a.connect("bob", "")
		reg.refreshSome(ctx, g, []*Entry{desktop, phone})
		for _, meta := range []string{`{"a":1}`, `{"a":2}`} {
			if err := <-b.registry.SetMeta(tablet, meta); err != nil {
				t.Error(err)
			}
		}
		if n, err := reg.Kick(ctx, "alice", Order{Conn: again.Conn, Code: protocol.CloseKicked, Reason: "kicked", By: "ops"}); n.Marked != 1 || err != nil {
			t.Errorf("the kick marked %+v, %v", n, err)
		}
		f.wantAt("alice", tablet)

		a.enter("alice", "r:lobby", "r:news")
		b.enter("alice", "r:lobby")
		b.enter("bob", "r:lobby")
		a.exit("alice", "r:lobby")
		b.exit("alice", "r:lobby")
		a.exit("alice", "r:news")
		f.eventually(func() error {
			got, _, err := b.list("r:lobby", 50)
			return errors.Join(err, wantText(fmt.Sprint(got), "[bob]"))
		})

		f.eventually(func() error {
			if n := a.registry.removing() + b.registry.removing(); n > 0 {
				return fmt.Errorf("%d removals are under way", n)
			}
			return nil
		})

		// The registry forgets bob, who registers again with his fence.
		if err := f.redis.FlushAll(); err != nil {
			t.Fatal(err)
		}
		beat(a)
		beat(b)
		a.registry.groupOf("bob").registers.add(&registration{entry: lost, again: true, done: make(chan struct{})})
		f.eventually(func() error { return a.at("bob", lost) })
		a.forget()
		b.forget()
		reg.Remove(lost, End{Cause: "client_close"})
		f.eventually(func() error { return a.at("bob") })
		f.eventually(func() error { beat(a); beat(b); return wantText(f.story("bob"), "disconnect offline") })

		// b dies with a connection; a reaps it, and the user is offline after the grace.
		b.connect("carol", "")
		b.forget()
		f.eventually(func() error { beat(a); return wantText(f.story("carol"), "connect online disconnect offline") })
		w.mu.Lock() // what was held may still be told to Redis
		defer w.mu.Unlock()
		if len(w.ran) < 7 {
			t.Errorf("ran twice: %v, want register, refresh, remove, kick, pulse, offline and hold", w.ran)
		}
	})
}

func wantText(got, want string) error {
	if got != want {
		return fmt.Errorf("%q, want %q", got, want)
	}
	return nil
}

// hops is how often somebody hops; `make chaos` has him do it 100,000 times.
var hops = flag.Int("hops", 1000, "hops of a user between gateways")

// One user wanders over three gateways, as fast as it goes, now with a device id and now without, while the gateways he left
// find out late and in any order. Wherever he just arrived, no end of an earlier connection takes him away: he is never
// offline. In the end he is in one place, and nothing of the others is left.
func TestManyHopsLeaveOneOwner(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, patient, func(c *Config) { c.ConnectionsPerUser, c.EventsKept = 1, 3**hops+100 })
		gs := []*gateway{f.gateway("a"), f.gateway("b"), f.gateway("c")}
		var left []*Entry
		var last *Entry
		wrong := 0
		there := func() {
			t.Helper()
			if ok, err := f.client.HExists(context.Background(), keyspace.Conns("alice"), string(last.Conn)).Result(); err != nil {
				t.Fatal(err)
			} else if !ok {
				wrong++
			}
		}
		for i := range *hops {
			last = gs[i%3].connect("alice", []string{"phone", ""}[i/2%2])
			there()
			// One in ten is noticed only when the registry says so; the others a few hops later, the newest first.
			if i%10 != 0 {
				left = append(left, last)
			}
			if i%7 == 0 && i < *hops-10 {
				for _, e := range slices.Backward(left) {
					if own := f.holder(e); own != nil && e != last {
						own.disconnect(e)
					}
				}
				left = left[:0]
				there()
			}
		}
		t.Logf("%d hops, %d wrong deletes", *hops, wrong)
		if wrong > 0 {
			t.Errorf("he was taken away %d times from where he had just arrived", wrong)
		}
		f.eventually(func() error {
			for _, g := range gs {
				for _, e := range g.entries() {
					g.registry.Refresh(e)
				}
			}
			if n := f.client.HLen(context.Background(), keyspace.Conns("alice")).Val(); n != 1 {
				return fmt.Errorf("%d connections are left", n)
			}
			return nil
		})
		f.wantAt("alice", last)
		f.wantSound()
		ended := make(map[string]int)
		for _, e := range f.allEvents()["alice"] {
			switch e["type"] {
			case "disconnect":
				ended[e["conn"]]++
			case "offline":
				t.Fatalf("he was offline: %v", e)
			}
		}
		if len(ended) != *hops-1 || ended[string(last.Conn)] != 0 {
			t.Errorf("%d of %d connections ended, the last one %d times", len(ended), *hops, ended[string(last.Conn)])
		}
		for conn, n := range ended {
			if n != 1 {
				t.Errorf("%s ended %d times", conn, n)
			}
		}
		f.holder(last).disconnect(last)
		f.wantState("alice", "offline")
	})
}

// holder is the gateway that holds an entry, or nil.
func (f *fleet) holder(e *Entry) *gateway {
	for _, g := range f.gateways {
		g.mu.Lock()
		_, ok := g.held[e.Conn]
		g.mu.Unlock()
		if ok {
			return g
		}
	}
	return nil
}
