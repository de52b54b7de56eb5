//go:build !secondpass

package presence

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
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

// A gateway with many connections is killed, and two survivors notice at once. Each connection gets exactly one disconnect
// event, not before lease and patience are over, and nothing of the gateway is left but a tombstone.
func TestAKilledGatewayIsReapedOnceByWhoeverComesFirst(t *testing.T) {
	for name, survivors := range map[string]int{"one survivor": 1, "two survivors": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
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

// outpulsed keeps every call of one script waiting until its gateway has pulsed twice meanwhile.
type outpulsed struct {
	gateway *gateway
	script  *redis.Script
	held    atomic.Int64 // calls that waited
	alone   atomic.Int64 // of them, those during which no pulse came
}

func (*outpulsed) DialHook(next redis.DialHook) redis.DialHook { return next }

func (*outpulsed) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (x *outpulsed) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "evalsha" && fmt.Sprint(cmd.Args()[1]) == x.script.Hash() {
			x.held.Add(1)
			view := &x.gateway.registry.groups[0].view
			for range 2 {
				before := view.Load()
				if gatewaytest.Poll(patience/2, func() error {
					if view.Load() == before {
						return errors.New("no pulse")
					}
					return nil
				}) != nil {
					x.alone.Add(1)
				}
			}
		}
		return next(ctx, cmd)
	}
}

// A large gateway takes its survivor seconds to reap. Meanwhile the survivor goes on pulsing: if it stopped, Redis would
// seem to have been away, reaping would stop, and its own lease would end.
func TestReapingHoldsNoPulseUp(t *testing.T) {
	f := newFleet(t, gatewaytest.Shared(t, gatewaytest.Standalone), func(c *Config) {
		c.Pulse, c.Lease, c.Timeout = 300*time.Millisecond, 900*time.Millisecond, 2*patience
	})
	b := f.gateway("b")
	b.connectMany(users(600)...)
	f.client = f.ownClient("", "")
	a := f.gateway("a")
	slow := &outpulsed{gateway: a, script: a.registry.remove}
	f.client.AddHook(slow)
	b.stop()
	f.eventually(func() error {
		if n := slow.alone.Load(); n > 0 {
			t.Fatalf("%d times no pulse came while a call of the reaper was under way", n)
		}
		return wantReaped(a, 600)
	})
	if n := slow.held.Load(); n < 3 {
		t.Errorf("reaped by %d calls: this proves nothing", n)
	}
}

// A gateway with thousands of connections and rooms is killed. All of it is taken out: Redis keeps the size of a hash that shrinks, so a
// scan that always began at its beginning would soon find nothing there.
func TestALargeGatewayIsReapedToTheLast(t *testing.T) {
	onRedis(t, []gatewaytest.Kind{gatewaytest.Embedded, gatewaytest.Standalone}, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		b := f.gateway("b")
		many := 2000 // and as many rooms, in one hash
		if r.Kind == gatewaytest.Embedded {
			many = 500 // which gives the whole hash for each page
		}
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
		if n := a.registry.Stats().Reaped; n < uint64(many) { // a call that Redis answered late is not counted
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
