//go:build !secondpass

package presence

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// reaped returns nil when nothing of a gateway is left but its tombstones.
func (f *fleet) reaped(g *gateway) error {
	for key, fields := range f.dump() {
		if strings.HasSuffix(key, "}:tomb") {
			continue
		}
		_, ev := strings.CutSuffix(key, "}:ev")
		if _, ok := fields[string(g.id)]; ok || !ev && strings.HasSuffix(key, ":own:"+string(g.id)) {
			return fmt.Errorf("%s still knows %s", key, g.id)
		}
		if _, members := addressOf(key, "m", "r:"); members {
			for x := range fields {
				if strings.HasPrefix(x, "g"+string(g.id)+separator) {
					return fmt.Errorf("%s still has %q", key, x)
				}
			}
		}
		if _, conns := addressOf(key, "c", "u:"); conns {
			for conn, s := range fields {
				if l, _, _ := parseEntry(s); l.Gateway == g.id {
					return fmt.Errorf("%s still has %s on %s", key, conn, g.id)
				}
			}
		}
	}
	return nil
}

// leaseEnd is when a gateway's lease ends in the group of a user, by Redis' clock in ms.
func (f *fleet) leaseEnd(g *gateway, user string) int64 {
	f.t.Helper()
	score, err := f.client.ZScore(context.Background(), keyspace.Leases(f.group(user)), string(g.id)).Result()
	if err != nil {
		f.t.Fatal(err)
	}
	return int64(score)
}

// A gateway is killed. From the end of its lease on nobody counts what it held, neither for presence nor for sending,
// though it is all still there.
func TestAKilledGatewayIsNotCountedAfterItsLease(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.ReapAfter = time.Hour })
		a, b := f.gateway("a"), f.gateway("b")
		phone, desktop := b.connect("alice", "phone"), a.connect("alice", "desktop")
		bobs := b.connect("bob", "")
		f.wantAt("alice", phone, desktop)
		b.stop()
		if a.at("bob", bobs) == nil {
			// Until then it counts, for all anyone knows.
			f.eventually(func() error { return a.at("bob") })
		}
		f.wantAt("alice", desktop)
		holding, err := a.registry.Holders(context.Background(), "u:alice", "u:bob")
		if err != nil || !slices.Equal(holding[0], []Holding{{a.id, 1}}) || len(holding[1]) != 0 {
			t.Errorf("holders: %v, %v", holding, err)
		}
		if _, ok := f.dump()[keyspace.Conns("bob")][string(bobs.Conn)]; !ok {
			t.Error("the entry is gone before its time")
		}
	})
}

// A gateway with many connections is killed, and two survivors notice at once. Each connection gets exactly one disconnect
// event, not before lease and patience are over, and nothing of the gateway is left but a tombstone.
func TestAKilledGatewayIsReapedOnceByWhoeverComesFirst(t *testing.T) {
	for name, survivors := range map[string]int{"one survivor": 1, "two survivors": 2} {
		t.Run(name, func(t *testing.T) {
			eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
				// Time to read the ends of the leases on a busy machine before the first is reaped.
				f := newFleet(t, r, withEvents, func(c *Config) { c.ReapAfter = 2 * time.Second })
				dying := f.gateway("dying", func(c *Config) { c.Snapshot = func() []byte { return []byte(`{"connections":400}`) } })
				var alive []*gateway
				for i := range survivors {
					alive = append(alive, f.gateway(fmt.Sprint("alive", i)))
				}
				names := users(400)
				entries := dying.connectMany(names...)
				stays := alive[0].connect(names[7], "")
				if err := f.client.HSet(context.Background(), keyspace.Numbers(f.group("x")), string(dying.id), 17).Err(); err != nil {
					t.Fatal(err)
				}
				dying.stop()
				ends, inGroup := make(map[string]int64), make(map[keyspace.Group]int64)
				for _, user := range names {
					g := f.group(user)
					if inGroup[g] == 0 {
						inGroup[g] = f.leaseEnd(dying, user)
					}
					ends[user] = inGroup[g]
				}

				f.eventually(func() error { return f.reaped(dying) })
				all := f.allEvents()
				for i, user := range names {
					var ms []int64
					for _, e := range all[user] {
						if e["type"] == "disconnect" && e["conn"] == string(entries[i].Conn) {
							at, _ := strconv.ParseInt(e["ms"], 10, 64)
							ms = append(ms, at)
							if e["cause"] != "gateway_lost" || e["gateway"] != string(dying.id) {
								t.Errorf("%s: %v", user, e)
							}
						}
					}
					if len(ms) != 1 || ms[0] < ends[user]+f.cfg.ReapAfter.Milliseconds() {
						t.Fatalf("%s: disconnected at %v, the lease ended at %d", user, ms, ends[user])
					}
					if i%50 == 0 && i != 7 {
						f.wantStory(user, "connect online disconnect offline")
					}
				}
				f.wantAt(names[7], stays)
				f.wantStory(names[7], "connect online connect disconnect")
				if tomb := f.dump()[keyspace.Tombstones(f.group(names[0]))][string(dying.id)]; tomb != strconv.FormatInt(ends[names[0]], 10) {
					t.Errorf("tombstone %q, want the end of the lease, %d", tomb, ends[names[0]])
				}
				n := uint64(0)
				for _, g := range alive {
					n += g.registry.Stats().Reaped
				}
				if n != 400 {
					t.Errorf("the survivors count %d reaped", n)
				}
			})
		})
	}
}

// A gateway stands still for so long that it is reaped, and runs on. It is told for each connection that it lost it, and
// what registers there from then on is as good as anywhere.
func TestAPausedGatewayIsToldThatItWasReaped(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents, withGrace(patience))
		a, b := f.gateway("a"), f.gateway("b")
		lost := b.connectMany("alice", "bob", "carol")
		b.stop()
		f.eventually(func() error { return f.reaped(b) })
		moved := a.connect("alice", "")
		b.run()
		for _, e := range lost {
			if v := b.wantVerdict(e); !v.Reaped || v.Fence != e.Fence() {
				t.Errorf("%s was told %+v", e.User, v)
			}
		}
		fresh := b.connect("bob", "")
		f.wantAt("alice", moved)
		f.wantAt("bob", fresh)
		f.wantAt("carol")
		b.registry.Refresh(fresh)
		f.wantSound()
		if v, told := b.verdict(fresh); told {
			t.Errorf("the new connection was told %+v", v)
		}
		f.wantStory("alice", "connect online disconnect connect") // within the grace
	})
}

// Paused for less than that, a gateway goes on as if nothing had been.
func TestAGatewayPausedPastItsLeaseButNotReapedKeepsAll(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents, func(c *Config) { c.ReapAfter = time.Hour })
		a, b := f.gateway("a"), f.gateway("b")
		e := b.connect("alice", "")
		b.stop()
		f.eventually(func() error { return a.at("alice") })
		b.run()
		f.wantAt("alice", e)
		f.wantStory("alice", "connect online")
		if v, told := b.verdict(e); told {
			t.Errorf("told %+v", v)
		}
	})
}

// A gateway that comes back while it is being reaped keeps what was not taken yet.
func TestReapingStopsWhenTheGatewayIsBack(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a := f.prepare("a")
		b := f.prepare("b")
		ctx, g := context.Background(), b.registry.groupOf("alice")
		if _, err := a.registry.pulseOnce(ctx, g, ""); err != nil {
			t.Fatal(err)
		}
		e := b.connect("alice", "")
		f.eventually(func() error { // judged dead by a
			p, err := a.registry.pulseOnce(ctx, g, "")
			if err == nil && !slices.Contains(p.dead, b.id) {
				err = fmt.Errorf("dead are %v", p.dead)
			}
			return err
		})
		if _, err := b.registry.pulseOnce(ctx, g, ""); err != nil {
			t.Fatal(err)
		}
		if _, _, ok := a.registry.reapSome(ctx, g, b.id, 0); ok {
			t.Error("a gateway that is back was reaped")
		}
		if err := a.at("alice", e); err != nil {
			t.Error(err)
		}
		if n := a.registry.Stats().Reaped; n != 0 {
			t.Errorf("%d reaped", n)
		}
	})
}

// slow delays every call of one script.
type slow struct {
	script *redis.Script
	by     time.Duration
}

func (*slow) DialHook(next redis.DialHook) redis.DialHook { return next }

func (*slow) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (s *slow) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "evalsha" && fmt.Sprint(cmd.Args()[1]) == s.script.Hash() {
			<-time.After(s.by)
		}
		return next(ctx, cmd)
	}
}

// A large gateway takes its survivor seconds to reap. Meanwhile the survivor goes on pulsing: if it stopped, Redis would
// seem to have been away, reaping would stop, and its own lease would end.
func TestReapingHoldsNoPulseUp(t *testing.T) {
	f := newFleet(t, gatewaytest.Shared(t, gatewaytest.Standalone), func(c *Config) { c.Pulse, c.Lease = time.Second, 2*time.Second })
	b := f.gateway("b")
	b.connectMany(users(1000)...)
	f.client = f.ownClient("", "")
	a := f.gateway("a")
	f.client.AddHook(&slow{a.registry.remove, 400 * time.Millisecond})
	b.stop()
	f.eventually(func() error { return wantReaped(a, 1) })
	began := time.Now()
	f.eventually(func() error {
		if v := a.registry.groups[0].view.Load(); v.quiet != 0 || time.Since(v.at) > f.cfg.Lease {
			t.Fatalf("the last pulse was %v ago, quiet time until %d", time.Since(v.at), v.quiet)
		}
		return wantReaped(a, 1000)
	})
	if d := time.Since(began); d < f.cfg.Pulse*2 {
		t.Errorf("reaped within %v: this proves nothing", d)
	}
}

// A gateway with thousands of connections and rooms is killed. All of it is taken out: Redis keeps the size of a hash that shrinks, so a
// scan that always began at its beginning would soon find nothing there.
func TestALargeGatewayIsReapedToTheLast(t *testing.T) {
	onRedis(t, []gatewaytest.Kind{gatewaytest.Embedded, gatewaytest.Standalone}, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		b := f.gateway("b")
		const many = 2000 // and as many rooms, in one hash
		for names := users(many); len(names) > 0; names = names[500:] {
			b.connectMany(names[:500]...)
		}
		var rooms []protocol.Address
		for i := range many {
			rooms = append(rooms, protocol.RoomAddress(protocol.RoomID(fmt.Sprint(i))))
		}
		b.hold(rooms...)
		a := f.gateway("a")
		b.stop()
		f.eventually(func() error { return f.reaped(b) })
		if n := a.registry.Stats().Reaped; n < many { // a call that Redis answered late is not counted
			t.Errorf("a counts %d reaped", n)
		}
	})
}

func wantReaped(g *gateway, atLeast uint64) error {
	if n := g.registry.Stats().Reaped; n < atLeast {
		return fmt.Errorf("%s reaped %d", g.id, n)
	}
	return nil
}

// The snapshots of all gateways are there for whoever asks; that of a killed one says it is dead until it is reaped.
func TestSnapshotsTellWhoIsDead(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.ReapAfter = time.Second })
		says := func(s string) func(*Config) {
			return func(c *Config) { c.Snapshot = func() []byte { return []byte(s) } }
		}
		a, b := f.gateway("a", says(`{"a":1}`)), f.gateway("b", says(`{"b":1}`))
		cluster := func(dead ...protocol.GatewayID) error {
			all, d, _, err := a.registry.Cluster(context.Background())
			if err == nil && (len(all) != 2 || all[a.id] != `{"a":1}` || all[b.id] != `{"b":1}` || !slices.Equal(d, dead)) {
				err = fmt.Errorf("%v, dead %v", all, d)
			}
			return err
		}
		f.eventually(func() error { return cluster() })
		b.stop()
		f.eventually(func() error { return cluster(b.id) })
		f.eventually(func() error {
			if all, _, _, err := a.registry.Cluster(context.Background()); err != nil || len(all) != 1 {
				return fmt.Errorf("%v, %v", all, err)
			}
			return nil
		})
	})
}

// A gateway that leaves gives its lease back with everything else, though its pulses go on until it ends.
func TestAGatewayThatLeftIsGone(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents)
		a, b := f.gateway("a"), f.gateway("b", func(c *Config) { c.Pulse = 20 * time.Millisecond })
		for _, e := range b.connectMany(users(100)...) {
			b.disconnect(e)
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := b.registry.Leave(ctx); err != nil {
			t.Fatal(err)
		}
		now := time.Now().UnixMilli()
		for key, fields := range f.dump() {
			if _, conns := addressOf(key, "c", "u:"); conns || strings.HasSuffix(key, ":own:"+string(b.id)) {
				t.Errorf("%s is left", key)
			}
			if end, _ := strconv.ParseInt(fields[string(b.id)], 10, 64); strings.HasSuffix(key, "}:lease") && end > now {
				t.Errorf("%s runs on for %d ms", key, end-now)
			}
		}
		f.throughout(300*time.Millisecond, func() error {
			for _, g := range f.cfg.Layout.Groups() {
				if end, err := f.client.ZScore(ctx, keyspace.Leases(g), string(b.id)).Result(); err == nil && int64(end) > now {
					return fmt.Errorf("it took a lease again, of %s, until %v", g, end)
				}
			}
			return nil
		})
		b.stop()
		f.eventually(func() error { return f.reaped(b) })
		if n := a.registry.Stats().Reaped; n != 0 {
			t.Errorf("%d connections were left to be reaped", n)
		}
	})
}

// Removals that are on their way to Redis count as undone.
func TestLeavingWaitsForRemovalsUnderWay(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		f.client = f.ownClient("", "")
		a := f.gateway("a")
		f.client.AddHook(&slow{a.registry.remove, 300 * time.Millisecond})
		a.disconnect(a.connect("alice", ""))
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := a.registry.Leave(ctx); err != nil {
			t.Fatal(err)
		}
		if fields := f.dump()[keyspace.Conns("alice")]; len(fields) != 0 {
			t.Errorf("left behind: %v", fields)
		}
		a.stop()
	})
}

// A gateway that can't say goodbye doesn't hang.
func TestLeavingGivesUpWhenRedisIsAway(t *testing.T) {
	eachRealRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.Timeout = 100 * time.Millisecond })
		a := f.gateway("a")
		e := a.connect("alice", "")
		if err := r.Pause(); err != nil {
			t.Fatal(err)
		}
		a.disconnect(e)
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		defer cancel()
		if err := a.registry.Leave(ctx); err == nil {
			t.Error("left without a word")
		}
		if err := r.Resume(); err != nil {
			t.Fatal(err)
		}
	})
}

// Redis is away for a moment just when a gateway leaves, with nothing left to remove. It says goodbye as soon as it is heard.
func TestLeavingWaitsForARedisThatComesBack(t *testing.T) {
	eachRealRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.Timeout = 100 * time.Millisecond })
		a, b := f.gateway("a"), f.gateway("b")
		if err := r.Pause(); err != nil {
			t.Fatal(err)
		}
		left := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			left <- b.registry.Leave(ctx)
		}()
		f.outlast(300 * time.Millisecond)
		if err := r.Resume(); err != nil {
			t.Fatal(err)
		}
		if err := <-left; err != nil {
			t.Errorf("left: %v", err)
		}
		b.stop()
		f.eventually(func() error { return f.reaped(b) })
		f.wantAt("alice", a.connect("alice", ""))
	})
}

// Sockets end until the very last moment, also while Run waits for its workers.
func TestConnectionsMayComeAndGoWhileRunEnds(t *testing.T) {
	f := newFleet(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	a := f.gateway("a")
	for range 20 {
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				select {
				case <-stop:
					return
				default:
					e := a.entry("alice", "")
					if _, err := a.registry.Register(context.Background(), e); err != nil {
						t.Error(err)
					}
					a.registry.Remove(e, End{Cause: "client_close"})
				}
			}
		}()
		f.outlast(5 * time.Millisecond)
		a.stop()
		a.run()
		close(stop)
		<-stopped
	}
}

// The end of a reaped connection is spread over some seconds. Until then it isn't judged again and again, which would
// bring its end forward, nor asked about.
func TestAReapedConnectionIsJudgedOnce(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a, b := f.gateway("a"), f.gateway("b")
		b.obeys = false
		e := b.connect("alice", "")
		b.stop()
		f.eventually(func() error { return f.reaped(b) })
		b.run()
		b.wantVerdict(e)
		before := b.registry.Stats()
		f.throughout(f.cfg.Pulse*4, func() error {
			b.registry.Refresh(e)
			if s := b.registry.Stats(); s.Verdicts != 1 || s.Refreshed > before.Refreshed+1 {
				return fmt.Errorf("%+v, was %+v", s, before)
			}
			return nil
		})
		b.disconnect(e)
		_ = a
	})
}

// Run is kept busy, by a walk over many connections or because others use the processor. On Cluster 64 pulses are due each
// second; none of them is left out, or leases would end though everything works.
func TestPulsesKeepTheirPaceOnABusyMachine(t *testing.T) {
	f := newFleet(t, gatewaytest.Shared(t, gatewaytest.Cluster))
	counter := &scripts{ran: make(map[string][]int)}
	f.client = f.ownClient("", "")
	a := f.prepare("a", func(c *Config) {
		c.Each = func(func(*Entry) bool) { <-time.After(f.cfg.Pulse / 4) }
	})
	if err := a.registry.Join(context.Background()); err != nil {
		t.Fatal(err)
	}
	f.client.AddHook(counter)
	a.run()
	const rounds = 5
	f.throughout(rounds*f.cfg.Pulse, func() error {
		a.registry.refreshGroup(a.registry.groups[0])
		return nil
	})
	if n, want := len(counter.calls(a.registry.pulse)), rounds*len(a.registry.groups); n < want/4 {
		t.Errorf("%d pulses of %d", n, want)
	}
}

// Who was found dead stays dead: that the survivor's pulses are late, as on a busy machine, brings no ghost back.
func TestALatePulseBringsNoGhostBack(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.ReapAfter = time.Hour })
		a, b := f.gateway("a"), f.gateway("b")
		phone := b.connect("bob", "phone")
		f.wantAt("bob", phone)
		b.stop()
		g := a.registry.groupOf("bob")
		f.eventually(func() error {
			if _, gone := g.view.Load().gone[b.id]; !gone {
				return fmt.Errorf("no pulse found %s dead", b.id)
			}
			return a.at("bob")
		})
		a.stop()
		late := g.view.Load()
		f.throughout(2*f.cfg.gap(), func() error { return a.at("bob") })
		if late != g.view.Load() || time.Since(late.at) <= f.cfg.gap() {
			t.Fatal("the last pulse isn't late")
		}
		a.run()
		f.throughout(f.cfg.gap(), func() error { return a.at("bob") })

		// It was only paused: with its next pulse it counts again.
		b.run()
		f.wantAt("bob", phone)
	})
}

// What was read a moment before a gateway was reaped is judged a moment after it: its lease is gone by then.
func TestWhatWasReadBeforeReapingIsNoGhost(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a, b := f.gateway("a"), f.gateway("b")
		f.wantAt("bob", b.connect("bob", "phone"))
		read, err := f.client.HGetAll(context.Background(), keyspace.Conns("bob")).Result()
		if err != nil || len(read) != 1 {
			t.Fatalf("%v, %v", read, err)
		}
		b.stop()
		f.eventually(func() error { return f.reaped(b) })
		g := a.registry.groupOf("bob")
		f.eventually(func() error {
			if _, ok := g.view.Load().leases[b.id]; ok {
				return fmt.Errorf("the lease of %s is there", b.id)
			}
			return nil
		})
		if w := a.registry.whereabouts("bob", read, "", false); len(w.Locations) != 0 {
			t.Errorf("bob counts at %v", w.Locations)
		}
	})
}

// What a pulse says of the dead, after what the one before said.
func TestTheDeadOfAView(t *testing.T) {
	const a, now = protocol.GatewayID("a-1"), int64(1_000_000)
	seen := func(line string, at, quiet int64, leases map[protocol.GatewayID]int64) *view {
		return &view{at: time.Now().Add(-time.Hour), redisNow: at, line: line, quiet: quiet, leases: leases}
	}
	ended := map[protocol.GatewayID]int64{a: now - 1}
	for name, c := range map[string]struct {
		before, after *view
		dead          bool
	}{
		"its lease runs":                    {nil, seen("x", now, 0, map[protocol.GatewayID]int64{a: now}), false},
		"its lease ended":                   {nil, seen("x", now, 0, ended), true},
		"its lease ended, in quiet time":    {nil, seen("x", now, now+5000, ended), false},
		"dead before, and quiet time began": {seen("x", now, 0, ended), seen("x", now+1600, now+6600, ended), true},
		"dead before, in another history":   {seen("x", now, 0, ended), seen("y", now+1600, now+6600, ended), false},
		"it came back":                      {seen("x", now, 0, ended), seen("x", now+100, 0, map[protocol.GatewayID]int64{a: now + 3000}), false},
		"it came back, in quiet time":       {seen("x", now, 0, ended), seen("x", now+100, now+500, map[protocol.GatewayID]int64{a: now + 3000}), false},
		"it was reaped":                     {seen("x", now, 0, ended), seen("x", now+5000, 0, nil), true},
		"it was reaped long ago":            {seen("x", now, 0, ended), seen("x", now+goneKept, 0, nil), false},
	} {
		t.Run(name, func(t *testing.T) {
			if c.before != nil {
				c.before.follow(nil)
			}
			c.after.follow(c.before)
			// Both are an hour old: only what a pulse said can count.
			if c.after.dead(a, time.Second) != c.dead {
				t.Errorf("dead is %v", !c.dead)
			}
		})
	}
}
