//go:build !secondpass

package presence

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// hold counts a member of each room, and wants every position to be told.
func (g *gateway) hold(rooms ...protocol.Address) []Standing {
	g.fleet.t.Helper()
	var out []Standing
	g.fleet.eventually(func() error { // a busy Redis may not answer in time
		out = g.registry.Hold(context.Background(), rooms...)
		for i, s := range out {
			if s.Err != nil {
				for j := range out {
					if out[j].Err == nil {
						g.registry.Release(rooms[j])
					}
				}
				return fmt.Errorf("hold %s: %w", rooms[i], s.Err)
			}
		}
		return nil
	})
	return out
}

// wantHolders waits until a room is held by exactly these gateways.
func (f *fleet) wantHolders(room protocol.Address, want ...*gateway) {
	f.t.Helper()
	f.eventually(func() error {
		found, err := f.gateways[0].registry.Holders(context.Background(), room)
		if err != nil {
			return err
		}
		var got, ids []protocol.GatewayID
		for _, h := range found[0] {
			got = append(got, h.Gateway)
		}
		for _, g := range want {
			ids = append(ids, g.id)
		}
		slices.Sort(got)
		slices.Sort(ids)
		if !slices.Equal(got, ids) {
			return fmt.Errorf("%s is held by %v, want %v", room, got, ids)
		}
		return nil
	})
}

// A gateway holds a room from its first member to its last, however many there are in between; each join is told where the log stands.
func TestARoomIsHeldFromTheFirstMemberToTheLast(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a, b := f.gateway("a"), f.gateway("b")
		first := a.hold("r:lobby")[0]
		if first.Epoch == "" || first.Top != 0 || first.First != 1 {
			t.Errorf("a new room stands at %+v", first)
		}
		if again := a.hold("r:lobby")[0]; again != first {
			t.Errorf("the second member is told %+v, the first was %+v", again, first)
		}
		if there := b.hold("r:lobby", "r:other"); there[0] != first || there[1].Epoch == first.Epoch {
			t.Errorf("another gateway is told %+v", there)
		}
		f.wantHolders("r:lobby", a, b)
		f.wantHolders("r:other", b)
		a.registry.Release("r:lobby")
		b.registry.Release("r:lobby")
		f.wantHolders("r:lobby", a)
		a.registry.Release("r:lobby")
		f.wantHolders("r:lobby")
		f.wantHolders("r:other", b)
		if n := b.registry.Stats().HeldRooms; n != 1 {
			t.Errorf("b counts %d rooms", n)
		}
	})
}

// Members come and go on two gateways at once, in no order. What is left in the end is what the registry says.
func TestJoinsAndLeavesMayOvertakeEachOther(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a, b := f.gateway("a"), f.gateway("b")
		rooms := []protocol.Address{"r:1", "r:2", "r:3", "r:4"}
		var wg sync.WaitGroup
		for i := range 16 {
			g, dice := []*gateway{a, b}[i%2], rand.New(rand.NewPCG(1, uint64(i)))
			wg.Go(func() {
				for range 40 {
					room := rooms[dice.IntN(len(rooms))]
					ctx, cancel := context.WithTimeout(context.Background(), time.Duration(dice.IntN(40))*time.Millisecond)
					held := g.registry.Hold(ctx, room)[0]
					cancel() // some give up before they are answered
					if held.Err == nil {
						g.registry.Release(room)
					}
				}
			})
		}
		wg.Wait()
		a.hold("r:2")
		for _, room := range rooms {
			if room == "r:2" {
				f.wantHolders(room, a)
			} else {
				f.wantHolders(room)
			}
		}
	})
}

// A gateway is killed with rooms in its hands. The survivors let them go, and nothing of it is left.
func TestRoomsOfAKilledGatewayAreReaped(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a, dying := f.gateway("a"), f.gateway("dying")
		a.hold("r:0")
		var rooms []protocol.Address
		for i := range 300 {
			rooms = append(rooms, protocol.RoomAddress(protocol.RoomID(fmt.Sprint(i))))
		}
		dying.hold(rooms...)
		dying.connect("alice", "")
		dying.stop()
		f.eventually(func() error { return f.reaped(dying) })
		f.wantHolders("r:0", a)
		f.wantHolders("r:1")
	})
}

// A gateway was only paused, for so long that it was reaped. When it runs on it holds its rooms again: its members are still there.
func TestAPausedGatewayHoldsItsRoomsAgain(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a, paused := f.gateway("a"), f.gateway("paused")
		a.hold("r:lobby")
		paused.hold("r:lobby")
		paused.stop()
		f.eventually(func() error { return f.reaped(paused) })
		paused.run()
		f.wantHolders("r:lobby", a, paused)
	})
}

// Redis is emptied. Every room is held again, and its feeds are told where the new log stands.
func TestRoomsAreHeldAgainAfterFlushall(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		told := make(chan protocol.Position, 1000)
		a := f.gateway("a", func(c *Config) {
			c.OnLog = func(a protocol.Address, at protocol.Position) {
				if a == "r:lobby" {
					told <- at
				}
			}
		})
		before := a.hold("r:lobby")[0]
		if err := r.FlushAll(); err != nil {
			t.Fatal(err)
		}
		f.wantHolders("r:lobby", a)
		select {
		case at := <-told:
			if at.Epoch == before.Epoch || at.Offset != 0 {
				t.Errorf("told of %v, the log before had epoch %s", at, before.Epoch)
			}
		case <-time.After(patience):
			t.Error("the feed was never told")
		}
	})
}

// Redis doesn't answer. A join is refused and leaves no trace; a leave is done when Redis is back.
func TestLeavingARoomWhileRedisIsAway(t *testing.T) {
	onRedis(t, []gatewaytest.Kind{gatewaytest.Standalone, gatewaytest.Cluster}, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.Timeout = 200 * time.Millisecond })
		a := f.gateway("a")
		a.hold("r:left", "r:stays")
		if err := r.Pause(); err != nil {
			t.Fatal(err)
		}
		a.registry.Release("r:left")
		if s := a.registry.Hold(context.Background(), "r:new")[0]; !errors.Is(s.Err, ErrUnavailable) {
			t.Errorf("a join was answered %+v", s)
		}
		if err := r.Resume(); err != nil {
			t.Fatal(err)
		}
		f.wantHolders("r:left")
		f.wantHolders("r:new")
		f.wantHolders("r:stays", a)
	})
}

// The registry says that a gateway holds a room, and nobody there is in it: a failover lost the word that let it go.
func TestAHoldNobodyWantsIsLetGo(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a := f.gateway("a")
		a.hold("r:lobby")
		ctx, g := context.Background(), keyspace.Layout{Sharded: r.Kind == gatewaytest.Cluster}.GroupOf("r:ghost")
		if err := errors.Join(f.client.HSet(ctx, keyspace.Holders("r:ghost"), string(a.id), 1).Err(),
			f.client.HSet(ctx, keyspace.Own(g, a.id), "r:ghost", "").Err()); err != nil {
			t.Fatal(err)
		}
		f.wantHolders("r:ghost")
		f.wantHolders("r:lobby", a)
	})
}

// Who watches alice holds an address of its own, in her partition, and without a log. States are read as they are, for the many.
func TestAWatchIsHeldWithoutALog(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withGrace(0))
		a, dying := f.gateway("a"), f.gateway("dying")
		a.hold("w:alice", "r:lobby", "w:bob")
		dying.hold("w:alice")
		f.wantHolders("w:alice", a, dying)
		if n := a.registry.Stats(); n.HeldRooms != 1 || n.HeldWatches != 2 {
			t.Errorf("a counts %d rooms and %d watches", n.HeldRooms, n.HeldWatches)
		}
		a.registry.Release("w:bob")
		f.wantHolders("w:bob")
		dying.stop()
		f.eventually(func() error { return f.reaped(dying) })
		f.wantHolders("w:alice", a)
		for key := range f.dump() {
			for _, kind := range []string{"l", "s"} {
				if name, ok := addressOf(key, kind, "w:"); ok {
					t.Errorf("the watch of %s made %s", name, key)
				}
			}
		}

		e := a.connect("alice", "")
		bob := a.connect("bob", "")
		a.disconnect(bob)
		f.wantState("bob", "offline")
		states, err := a.registry.States(context.Background(), "bob", "nobody", "alice")
		if err != nil {
			t.Fatal(err)
		}
		if s := states[0]; s.User != "bob" || s.State != protocol.StateOffline || s.N != 2 || s.LastSeen() == 0 {
			t.Errorf("bob is %+v", s)
		}
		if s := states[1]; s != (protocol.UserState{User: "nobody", State: protocol.StateOffline}) {
			t.Errorf("nobody is %+v", s)
		}
		if s := states[2]; s.User != "alice" || s.State != protocol.StateOnline || s.N != 1 || s.Epoch == "" {
			t.Errorf("alice, whose fence is %d, is %+v", e.Fence(), s)
		}
	})
}

// Redis is emptied, or forgets it. The watch is held again, and whoever follows it is told to look.
func TestAWatchThatRedisLostIsHeldAgain(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		told := make(chan protocol.Position, 1000)
		a := f.gateway("a", func(c *Config) {
			c.OnLog = func(a protocol.Address, at protocol.Position) {
				if a == "w:alice" {
					told <- at
				}
			}
		})
		a.hold("w:alice")
		if err := r.FlushAll(); err != nil {
			t.Fatal(err)
		}
		f.wantHolders("w:alice", a)
		select {
		case at := <-told:
			if at != (protocol.Position{}) {
				t.Errorf("told of a log at %v", at)
			}
		case <-time.After(patience):
			t.Error("nobody was told")
		}
	})
}
