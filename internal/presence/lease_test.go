//go:build !secondpass

package presence

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

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
