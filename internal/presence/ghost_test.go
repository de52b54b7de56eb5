//go:build !secondpass

package presence

import (
	"context"
	"fmt"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// A failover lost the removal of a connection: the new master still has it, its gateway lives, and nobody will ever end it
// again. The pulse sees that the registry has more than there is, and the gateway takes out what it doesn't hold.
func TestAGhostBroughtBackByAFailoverIsTakenOut(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents, func(c *Config) { c.Timeout = 300 * time.Millisecond })
		a, b := f.gateway("a"), f.gateway("b")
		stays := a.connectMany(users(50)...)
		ghost := a.connect("alice", "phone")
		before := f.dump()
		a.disconnect(ghost)
		f.wantState("alice", "offline")
		f.bringBack(before, ghost)
		if err := b.at("alice", ghost); err != nil {
			t.Fatalf("the ghost didn't come back: %v", err)
		}

		f.wantAt("alice")
		f.wantSound()
		f.wantStory("alice", "connect online disconnect offline disconnect offline")
		if e := f.events("alice"); e[len(e)-2]["cause"] != "abandoned" {
			t.Errorf("taken out with %v", e[len(e)-2])
		}
		for _, e := range stays {
			if v, told := a.verdict(e); told {
				t.Errorf("%s was told %+v", e.Conn, v)
			}
		}
	})
}

// Redis is away for long, clients come again and again in vain, and each attempt leaves a removal to be done. They are
// bounded, and what was forgotten is found when Redis is back.
func TestRemovalsThatWaitAreBounded(t *testing.T) {
	eachRealRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.Timeout = 300 * time.Millisecond })
		a := f.gateway("a")
		mates := f.partitionMates(300) // on Cluster a group keeps 256
		all := a.connectMany(mates...)
		if err := r.Pause(); err != nil {
			t.Fatal(err)
		}
		for _, e := range all {
			a.disconnect(e)
		}
		g := a.registry.groupOf(all[0].User)
		for range 50_000 {
			e := a.entry(mates[0], "")
			g.removes.add(&departure{entry: e, end: End{Cause: "never_registered"}})
		}
		bound := max(256, maxParked/len(a.registry.groups))
		f.eventually(func() error {
			if n := g.removes.unfinished(); n > bound+g.removes.max {
				return fmt.Errorf("%d removals wait, want at most %d", n, bound)
			}
			return nil
		})
		if err := r.Resume(); err != nil {
			t.Fatal(err)
		}
		f.wantSound()
		f.wantState(mates[299], "offline")
	})
}

// On Cluster a group that lost something asks for the refresh of its own entries, not of all 64 groups.
func TestOnlyTheGroupThatLostSomethingIsRefreshed(t *testing.T) {
	f := newFleet(t, gatewaytest.Shared(t, gatewaytest.Cluster))
	a := f.gateway("a")
	all := a.connectMany(users(500)...)
	f.wantSound()
	before := a.registry.Stats().Refreshed
	lost := all[0]
	f.lose(lost)
	f.wantAt(string(lost.User), lost)
	if n := a.registry.Stats().Refreshed - before; n > 100 {
		t.Errorf("%d of 500 entries were refreshed for one group of 64", n)
	}
}

// bringBack undoes the removal of a connection, as a failover to a replica does that had not heard of it.
func (f *fleet) bringBack(before dump, e *Entry) {
	f.t.Helper()
	ctx, gw := context.Background(), before[keyspace.Conns(e.User)][string(e.Conn)]
	l, _, _ := parseEntry(gw)
	own := keyspace.Own(f.group(string(e.User)), l.Gateway)
	for key, fields := range map[string][]string{
		keyspace.Conns(e.User): {string(e.Conn)},
		own:                    {string(e.Conn)},
		keyspace.Holders(protocol.UserAddress(e.User)): {string(l.Gateway)},
	} {
		for _, field := range fields {
			if err := f.client.HSet(ctx, key, field, before[key][field]).Err(); err != nil {
				f.t.Fatal(err)
			}
		}
	}
	state := keyspace.State(e.User)
	if err := f.client.Set(ctx, state, before[state][""], 0).Err(); err != nil {
		f.t.Fatal(err)
	}
}

// A failover lost a removal and a registration alike, so the numbers agree. Both are mended.
func TestALostRemovalBesideALostRegistrationIsSeen(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.Timeout = 300 * time.Millisecond })
		a := f.prepare("a")
		mates := f.partitionMates(2)
		ghost := a.connect(mates[0], "")
		before := f.dump()
		a.disconnect(ghost)
		f.wantState(mates[0], "online") // its grace runs on, nobody ends it yet
		f.eventually(func() error {
			if n := len(f.dump()[keyspace.Conns(ghost.User)]); n != 0 {
				return fmt.Errorf("%d left", n)
			}
			return nil
		})
		lost := a.connect(mates[1], "")
		if err := r.FlushAll(); err != nil {
			t.Fatal(err)
		}
		f.bringBack(before, ghost)
		a.run()
		a.registry.Refresh(lost) // its heartbeat, or a new history line, finds the lost one
		f.wantAt(mates[1], lost)
		f.wantSound()
		f.wantAt(mates[0])
	})
}

// Connections come and go all the time, so the registry and its gateway never quite agree. Nobody living is taken for a
// ghost.
func TestNobodyLivingIsTakenForAGhost(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents, func(c *Config) { c.Timeout = 300 * time.Millisecond })
		a := f.gateway("a")
		stays := a.connectMany(users(20)...)
		for until := time.Now().Add(1500 * time.Millisecond); time.Now().Before(until); {
			for _, e := range a.connectMany("come", "and", "go") {
				a.disconnect(e)
			}
		}
		f.wantSound()
		all := f.allEvents()
		for _, e := range stays {
			if n := len(all[string(e.User)]); n != 2 {
				t.Errorf("%s: %v", e.User, all[string(e.User)])
			}
		}
		for _, user := range []string{"come", "and", "go"} {
			for _, e := range all[user] {
				if e["cause"] == "abandoned" {
					t.Errorf("%s: %v", user, e)
				}
			}
		}
		if n := a.registry.Stats().Again; n != 0 {
			t.Errorf("%d were registered again", n)
		}
	})
}
