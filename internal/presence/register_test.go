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

// Alice connects to one gateway, and every gateway knows where she is and what she said about herself. When she leaves,
// nothing is left but the time she was seen.
func TestARegisteredConnectionIsFoundFromEverywhereUntilItIsRemoved(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a, b := f.gateway("a"), f.gateway("b")

		e := a.entry("alice", "phone")
		e.Meta = `{"colour": "blue",` + "\n\t" + `"n": [1, 2, "}{"]}`
		reg := a.register(e)
		if reg.Fence == 0 || reg.Fence != e.Fence() || reg.Epoch == "" || reg.Top != 0 || reg.First != 1 {
			t.Errorf("registered with %+v, fence %d", reg, e.Fence())
		}
		f.wantAt("alice", e)
		found, err := b.registry.Locate(context.Background(), "bob", "alice")
		if err != nil {
			t.Fatal(err)
		}
		if len(found) != 2 || found[0].User != "bob" || len(found[0].Locations) != 0 || found[0].Version != "" || found[0].LastSeen != 0 {
			t.Errorf("bob, who never came: %+v", found[0])
		}
		l := found[1].Locations[0]
		if l.Gateway != a.id || l.Device != "phone" || l.Meta != e.Meta || l.Since != e.Since || l.Expiry <= e.Since {
			t.Errorf("alice: %+v", l)
		}
		if found[1].Version == "" || found[1].LastSeen != 0 {
			t.Errorf("alice is online, and was seen: %+v", found[1])
		}
		holding, err := b.registry.Holders(context.Background(), "u:alice", "u:bob")
		if err != nil || len(holding) != 2 || !slices.Equal(holding[0], []Holding{{a.id, 1}}) || len(holding[1]) != 0 {
			t.Errorf("holders: %v, %v", holding, err)
		}

		a.disconnect(e)
		f.wantAt("alice")
		f.wantState("alice", "offline")
		found, err = b.registry.Locate(context.Background(), "alice")
		if err != nil || found[0].LastSeen < e.Since {
			t.Errorf("alice is gone: %+v, %v", found, err)
		}
		for key := range f.dump() {
			if _, conns := addressOf(key, "c", "u:"); conns || key == keyspace.Own(f.group("alice"), a.id) || key == keyspace.Holders("u:alice") {
				t.Errorf("%s is left", key)
			}
		}
	})
}

// Ids of every strange shape that the wire lets through are ids like any other, and no two get in each other's way.
func TestStrangeIDsAreIDs(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a := f.gateway("a")
		names := []string{
			"a:b", "{x}", "}{", "*", "a b", " ", "u:alice", "cg:{p17}:c:u:x", "../..", "алиса", "\u200b", "e\u0301", "\u00e9", "%s", "0", "-1", "'\"\\",
		}
		held := make(map[string]*Entry)
		for i, name := range names {
			e := a.entry(name, names[len(names)-1-i])
			a.register(e)
			held[name] = e
		}
		for name, e := range held {
			f.wantAt(name, e)
		}
		for _, e := range held {
			a.registry.Refresh(e)
		}
		a.disconnect(held["}{"])
		f.wantAt("}{")
		f.wantAt("{x}", held["{x}"])
	})
}

// Many clients arrive at once on several gateways. Each is entered, and calls to Redis are shared.
func TestAStormOfRegistrationsIsEnteredWhole(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a, b := f.gateway("a"), f.gateway("b")
		const n = 500
		a.connectMany(users(n)...)
		b.connectMany(users(n)...)
		if s := a.registry.Stats(); s.Registered != n || s.Held != n {
			t.Errorf("a: %+v", s)
		}
		holding, err := a.registry.Holders(context.Background(), "u:user0000", "u:user0499")
		for i := range holding {
			slices.SortFunc(holding[i], func(x, y Holding) int { return int(x.Gateway[0]) - int(y.Gateway[0]) })
		}
		if want := []Holding{{a.id, 1}, {b.id, 1}}; err != nil || !slices.Equal(holding[0], want) || !slices.Equal(holding[1], want) {
			t.Errorf("holders: %v, %v", holding, err)
		}
		f.wantSound()
		for _, e := range a.entries() {
			a.disconnect(e)
		}
		f.wantAt("user0007", b.heldOf("user0007")...)
	})
}

func (g *gateway) heldOf(user string) (all []*Entry) {
	for _, e := range g.entries() {
		if string(e.User) == user {
			all = append(all, e)
		}
	}
	return all
}

// A device that comes back takes its own place: its predecessor is told to go, and nobody else.
func TestTheSameDeviceReplacesItsPredecessorUncounted(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.ConnectionsPerUser = 2 })
		a, b := f.gateway("a"), f.gateway("b")
		desktop := a.connect("alice", "desktop")
		phone := a.connect("alice", "phone")
		again := b.connect("alice", "phone")
		a.wantReplaced(phone, again)
		f.wantAt("alice", desktop, again)
		// Other users have phones too.
		bobs := a.connect("bob", "phone")
		f.wantAt("alice", desktop, again)
		f.wantAt("bob", bobs)
		if _, told := a.verdict(desktop); told {
			t.Error("the desktop was told to go")
		}
	})
}

// A phone on a bad line registers again and again, faster than its old sockets are found dead, and never says goodbye. The
// desktop, which is as old as can be, stays.
func TestAFlappingPhoneNeverPushesOutTheDesktop(t *testing.T) {
	for _, limit := range []int{2, 5} {
		t.Run(fmt.Sprint("limit ", limit), func(t *testing.T) {
			eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
				f := newFleet(t, r, func(c *Config) { c.ConnectionsPerUser = limit })
				a, b := f.gateway("a"), f.gateway("b")
				a.obeys, b.obeys = false, false // the old sockets linger
				desktop := a.connect("alice", "desktop")
				var phone *Entry
				for i := range 30 {
					phone = []*gateway{a, b}[i%2].connect("alice", "phone")
				}
				f.wantAt("alice", desktop, phone)
				a.registry.Refresh(desktop)
				for _, e := range slices.Concat(a.entries(), b.entries()) {
					if e != desktop && e != phone {
						g := f.holder(e)
						g.wantVerdict(e)
						g.disconnect(e)
					}
				}
				f.wantAt("alice", desktop, phone)
				if v, told := a.verdict(desktop); told {
					t.Errorf("the desktop was told %+v", v)
				}
			})
		})
	}
}

// Five connections are allowed; the sixth ends the oldest, wherever it is.
func TestOverTheLimitTheOldestGoes(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a, b := f.gateway("a"), f.gateway("b")
		var all []*Entry
		for i := range 5 {
			all = append(all, []*gateway{a, b}[i%2].connect("alice", ""))
		}
		f.wantAt("alice", all...)
		sixth := b.connect("alice", "")
		a.wantReplaced(all[0], sixth)
		f.wantAt("alice", append(all[1:], sixth)...)
		seventh := a.connect("alice", "tablet") // a device that is new takes a place as well
		b.wantReplaced(all[1], seventh)
		f.wantAt("alice", append(all[2:], sixth, seventh)...)
	})
}

// With a limit of one, the newest wins: single login. The others are told at once, and do not count while they linger.
func TestSingleLoginLetsTheNewestWin(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.ConnectionsPerUser = 1 })
		a, b := f.gateway("a"), f.gateway("b")
		a.obeys = false
		first := a.connect("alice", "")
		second := b.connect("alice", "")
		f.wantAt("alice", second)
		third := a.connect("alice", "")
		f.wantAt("alice", third)
		a.wantReplaced(first, second)
		b.wantReplaced(second, third)
		a.disconnect(first)
		f.wantAt("alice", third)
	})
}

// No limit means no limit.
func TestWithoutALimitNobodyGoes(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.ConnectionsPerUser = 0 })
		a := f.gateway("a")
		var all []*Entry
		for range 20 {
			all = append(all, a.connect("alice", ""))
		}
		f.wantAt("alice", all...)
	})
}

// The limit was lowered by a restart: the next registration ends as many as are too many.
func TestALoweredLimitIsReachedWithTheNextRegistration(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a := f.gateway("a")
		b := f.gateway("b", func(c *Config) { c.ConnectionsPerUser = 2 })
		var all []*Entry
		for range 5 {
			all = append(all, a.connect("alice", ""))
		}
		last := b.connect("alice", "")
		for _, e := range all[:4] {
			a.wantReplaced(e, last)
		}
		f.wantAt("alice", all[4], last)
	})
}

// Who goes first: what a dead gateway left, then who was silent for 1.5 heartbeats, then the oldest.
func TestTheLimitTakesGhostsThenTheSilentThenTheOldest(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) {
			c.ConnectionsPerUser = 4
			c.ReapAfter = time.Hour // the ghosts stay
		})
		// It doesn't run, so that nothing refreshes the silent one; its lease is long enough all the same.
		a := f.prepare("a", func(c *Config) { c.Lease = time.Hour })
		if err := a.registry.Join(context.Background()); err != nil {
			t.Fatal(err)
		}
		b, other := f.gateway("b"), f.gateway("other")
		oldest := a.connect("alice", "")
		silent := a.connect("alice", "")
		ghost := b.connect("alice", "")
		newest := a.connect("alice", "")
		f.shiftExpiry(silent, -(f.cfg.Heartbeat*3/2 + time.Second).Milliseconds())
		b.stop()
		f.eventually(func() error { return other.at("alice", oldest, silent, newest) })

		var marks []protocol.ConnID
		for range 3 {
			// Nobody is judged in a quiet time, which a busy machine may cause.
			f.eventually(func() error { return other.at("alice", a.unmarked("alice")...) })
			a.connect("alice", "")
			for _, conn := range f.marked("alice") {
				if !slices.Contains(marks, conn) {
					marks = append(marks, conn)
				}
			}
		}
		if want := []protocol.ConnID{ghost.Conn, silent.Conn, oldest.Conn}; !slices.Equal(marks, want) {
			t.Errorf("went in the order %v, want %v", marks, want)
		}
	})
}

// unmarked are the connections of a user here that were not told to go.
func (g *gateway) unmarked(user string) (all []*Entry) {
	marked := g.fleet.marked(user)
	for _, e := range g.heldOf(user) {
		if !slices.Contains(marked, e.Conn) {
			all = append(all, e)
		}
	}
	return all
}

// marked are the connections of a user that were told to go.
func (f *fleet) marked(user string) (all []protocol.ConnID) {
	f.t.Helper()
	fields, err := f.client.HGetAll(context.Background(), keyspace.Conns(protocol.UserID(user))).Result()
	if err != nil {
		f.t.Fatal(err)
	}
	for conn, s := range fields {
		if _, marked, ok := parseEntry(s); ok && marked {
			all = append(all, protocol.ConnID(conn))
		}
	}
	slices.Sort(all)
	return all
}

// shiftExpiry moves the time until which an entry counts, as if it had been refreshed earlier or later.
func (f *fleet) shiftExpiry(e *Entry, ms int64) {
	f.t.Helper()
	ctx, key := context.Background(), keyspace.Conns(e.User)
	s, err := f.client.HGet(ctx, key, string(e.Conn)).Result()
	if err != nil {
		f.t.Fatal(err)
	}
	l, _, ok := parseEntry(s)
	if !ok {
		f.t.Fatalf("no entry: %q", s)
	}
	device := string(l.Device)
	if l.Class != "" {
		device += "\x1e" + string(l.Class)
	}
	moved := fmt.Sprintf("%d\x1f%d\x1f%s\x1f\x1f%d\x1f%s\x1f%s", l.Fence, l.Expiry+ms, l.Gateway, l.Since, device, l.Meta)
	if err := f.client.HSet(ctx, key, string(e.Conn), moved).Err(); err != nil {
		f.t.Fatal(err)
	}
}
