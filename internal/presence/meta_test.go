//go:build !secondpass

package presence

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// set binds a meta, again where a busy machine let Redis be late, and wants Redis to have it.
func (g *gateway) set(e *Entry, meta string) {
	g.fleet.t.Helper()
	g.fleet.eventually(func() error { return <-g.registry.SetMeta(e, meta) })
	if got := e.MetaNow(); got != meta {
		g.fleet.t.Errorf("%s has %s after it was set to %s", e.Conn, got, meta)
	}
}

// entryOf is what Redis has of a connection, in its user's conns and in its gateway's own.
func (f *fleet) entryOf(e *Entry, g *gateway) (l Location, own string) {
	f.t.Helper()
	ctx := context.Background()
	l, _, _ = parseEntry(f.client.HGet(ctx, keyspace.Conns(e.User), string(e.Conn)).Val())
	return l, f.client.HGet(ctx, keyspace.Own(f.group(string(e.User)), g.id), string(e.Conn)).Val()
}

// kept returns nil when Redis has this meta of a connection, in both places.
func (f *fleet) kept(e *Entry, g *gateway, meta string) error {
	f.t.Helper()
	l, own := f.entryOf(e, g)
	if fields := strings.Split(own, "\x1f"); l.Meta != meta || len(fields) < 5 || fields[4] != meta {
		return fmt.Errorf("conns have %q and own has %q, want %s", l.Meta, own, meta)
	}
	return nil
}

func (f *fleet) wantKept(e *Entry, g *gateway, meta string) {
	f.t.Helper()
	f.eventually(func() error { return f.kept(e, g, meta) })
}

// metasOf are the metas in a user's events of his connections.
func (f *fleet) metasOf(user string) (all []string) {
	f.t.Helper()
	for _, e := range f.events(user) {
		if e["conn"] != "" {
			all = append(all, e["type"]+" "+e["meta"])
		}
	}
	return all
}

func (f *fleet) wantMetas(user string, want ...string) {
	f.t.Helper()
	f.eventually(func() error {
		return wantText(fmt.Sprintf("%q", f.metasOf(user)), fmt.Sprintf("%q", want))
	})
}

// What is set later stands in the registry and in the event of the end; what was told before stays. It is no sign of life.
func TestAMetaThatIsSetIsKeptAndTold(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents)
		a := f.gateway("a")
		e, bare := a.entry("alice", "phone"), a.connect("bob", "")
		e.Meta, e.Class = `{"n":1}`, "small"
		a.register(e)
		a.set(e, `{"n":1}`) // as it is
		if _, own := f.entryOf(e, a); strings.Count(own, "\x1f") != 4 {
			t.Errorf("own has %q of a meta that never changed", own)
		}
		f.shiftExpiry(e, -20_000)
		before, _ := f.entryOf(e, a)
		for _, meta := range []string{`{"n":2}`, `{"n":3,"x":"` + "\u2028" + `ü"}`, `{}`, `{"n":3}`} {
			a.set(e, meta)
			if err := f.kept(e, a, meta); err != nil {
				t.Error(err)
			}
		}
		a.set(bare, `{"b":1}`)
		after, _ := f.entryOf(e, a)
		if before.Meta = `{"n":3}`; after != before {
			t.Errorf("the entry is %+v, want %+v", after, before)
		}
		a.registry.refreshSome(context.Background(), a.registry.groupOf("alice"), []*Entry{e})
		f.wantKept(e, a, `{"n":3}`)
		f.wantSound()
		a.disconnect(e)
		a.disconnect(bare)
		f.wantMetas("alice", `connect {"n":1}`, `disconnect {"n":3}`)
		f.wantMetas("bob", `connect `, `disconnect {"b":1}`)
	})
}

// The gateway is killed: whoever reaps it tells the end of its connections with what was set last.
func TestAReapedConnectionEndsWithTheMetaThatWasSet(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents)
		a, b := f.gateway("a"), f.gateway("b")
		e := b.entry("alice", "")
		e.Meta = `{"n":1}`
		b.register(e)
		b.set(e, `{"n":2}`)
		b.stop()
		b.forget()
		f.eventually(func() error { return f.reaped(b) })
		f.wantAt("alice")
		f.wantMetas("alice", `connect {"n":1}`, `disconnect {"n":2}`)
		_ = a
	})
}

// A meta is for one life of a connection on one gateway. Where connection, gateway or fence differ, nothing happens.
func TestAMetaForAnotherLifeChangesNothing(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents)
		a, b := f.gateway("a"), f.gateway("b")
		a.obeys, b.obeys = false, false
		e := a.connect("alice", "")
		a.set(e, `{"n":1}`)
		a.stop()
		b.stop()
		before := f.dump()
		for name, x := range map[string]struct {
			g     *gateway
			conn  protocol.ConnID
			fence uint64
			want  error
		}{
			"an older life":        {a, e.Conn, e.Fence() - 1, ErrEnding},
			"a newer one":          {a, e.Conn, e.Fence() + 1, ErrEnding},
			"another gateway":      {b, e.Conn, e.Fence(), ErrEnding},
			"another connection":   {a, "nobody", e.Fence(), ErrUnavailable},
			"a digit of the fence": {a, e.Conn, e.Fence() / 10, ErrEnding},
		} {
			other := &Entry{Conn: x.conn, User: e.User}
			other.fence.Store(x.fence)
			other.meta.Store(&meta{number: 7, text: `{"n":7}`})
			q := &rebinding{entry: other, told: make(chan error, 1)}
			x.g.registry.runMetas(x.g.registry.groupOf(e.User), []*rebinding{q})
			if err := <-q.told; !errors.Is(err, x.want) {
				t.Errorf("%s: %v, want %v", name, err, x.want)
			}
			if got := f.dump(); !maps.EqualFunc(got, before, maps.Equal) {
				t.Errorf("%s: changed %v to %v", name, before, got)
			}
		}
		f.gateways = nil // their leases are over
	})
}

// A call that was given up is carried out after a later one: what it says is old, and changes nothing. So it is after Redis was
// emptied, too.
func TestAMetaThatComesLateChangesNothing(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a := f.gateway("a")
		e := a.connect("alice", "")
		late := func() {
			t.Helper()
			old := &Entry{Conn: e.Conn, User: e.User}
			old.fence.Store(e.Fence())
			old.meta.Store(&meta{number: 1, text: `{"n":1}`})
			lines, err := a.registry.askAbout(context.Background(), a.registry.groupOf("alice"), []*Entry{old}, 0)
			if err != nil || !strings.HasPrefix(lines[0], "o") {
				t.Errorf("told %v, %v", lines, err)
			}
			if err := f.kept(e, a, `{"n":2}`); err != nil {
				t.Error(err)
			}
		}
		a.set(e, `{"n":1}`)
		a.set(e, `{"n":2}`)
		late()
		if err := r.FlushAll(); err != nil {
			t.Fatal(err)
		}
		f.wantKept(e, a, `{"n":2}`)
		late()
		f.wantSound()
	})
}

// A register that was given up enters the connection with the meta before: when it is repeated it has the last one.
func TestARegisterAgainThatIsRepeatedHasTheLastMeta(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a := f.gateway("a")
		e := a.connect("alice", "")
		a.set(e, `{"n":1}`)
		g := a.registry.groupOf("alice")
		for _, n := range []uint64{1, 2} {
			if n == 1 {
				f.lose(e)
			}
			e.meta.Store(&meta{number: n, text: fmt.Sprintf(`{"n":%d}`, n)})
			q := &registration{entry: e, again: true, done: make(chan struct{})}
			a.registry.runRegisters(g, []*registration{q})
			if q.err != nil {
				t.Fatal(q.err)
			}
		}
		if err := f.kept(e, a, `{"n":2}`); err != nil {
			t.Error(err)
		}
	})
}

// A failover lost the end of what Redis acknowledged, and the meta with it: the next refresh enters it again.
func TestAMetaThatRedisLostIsEnteredByTheNextRefresh(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a := f.gateway("a")
		e := a.connect("alice", "phone")
		a.set(e, `{"n":1}`)
		ctx, keys := context.Background(), []string{keyspace.Conns("alice"), keyspace.Own(f.group("alice"), a.id)}
		var before []string
		for _, key := range keys {
			before = append(before, f.client.HGet(ctx, key, string(e.Conn)).Val())
		}
		a.set(e, `{"n":2}`)
		for i, key := range keys {
			if err := f.client.HSet(ctx, key, string(e.Conn), before[i]).Err(); err != nil {
				t.Fatal(err)
			}
		}
		a.registry.Refresh(e)
		f.wantKept(e, a, `{"n":2}`)
	})
}

// Redis is away. What is set counts here at once, nobody is held up for longer than a call may take, and Redis hears of it when
// it is back.
func TestAMetaThatIsSetWhileRedisIsAwayIsKeptLater(t *testing.T) {
	onRedis(t, []gatewaytest.Kind{gatewaytest.Standalone, gatewaytest.Cluster}, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents, func(c *Config) { c.Timeout = 300 * time.Millisecond })
		a := f.gateway("a")
		e, gone := a.connect("alice", ""), a.connect("bob", "")
		if err := r.Pause(); err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			a.registry.SetMeta(gone, fmt.Sprintf(`{"n":%d}`, i))
			if err := <-a.registry.SetMeta(e, fmt.Sprintf(`{"n":%d}`, i)); !errors.Is(err, ErrUnavailable) {
				t.Errorf("set while Redis is away: %v", err)
			}
		}
		f.eventually(func() error {
			if n := a.registry.groupOf("bob").metas.unfinished(); n > 0 {
				return fmt.Errorf("%d wait for a Redis that is away", n)
			}
			return nil
		})
		a.disconnect(gone)
		if err := r.Resume(); err != nil {
			t.Fatal(err)
		}
		f.wantKept(e, a, `{"n":99}`)
		f.wantMetas("bob", `connect `, `disconnect {"n":99}`)
		f.wantMetas("alice", `connect `)
	})
}

// Set as fast as it goes, without waiting for any: the last one is what stays, here and in Redis, and the end that overtakes
// it has it too.
func TestTheLastMetaStays(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents)
		a := f.gateway("a")
		e := a.connect("alice", "")
		for i := range 200 {
			a.registry.SetMeta(e, fmt.Sprintf(`{"n":%d}`, i))
		}
		f.wantKept(e, a, `{"n":199}`)
		for range 20 {
			hasty := a.connect("carol", "")
			a.registry.SetMeta(hasty, `{"n":"last"}`)
			a.disconnect(hasty)
		}
		f.eventually(func() error {
			ends := 0
			for _, m := range f.metasOf("carol") {
				if m == `disconnect {"n":"last"}` {
					ends++
				} else if m != "connect " {
					t.Fatal(m)
				}
			}
			if ends != 20 {
				return fmt.Errorf("%d ends", ends)
			}
			return nil
		})
	})
}

// Who was told to go takes nothing more, and whoever sets it is told so.
func TestAMetaForSomebodyWhoWasToldToGo(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a := f.gateway("a")
		a.obeys = false
		e := a.connect("alice", "")
		if _, err := a.registry.Kick(context.Background(), "alice", Order{Code: protocol.CloseKicked, Reason: "kicked"}); err != nil {
			t.Fatal(err)
		}
		if err := <-a.registry.SetMeta(e, `{"n":1}`); !errors.Is(err, ErrEnding) {
			t.Errorf("told %v", err)
		}
		a.wantVerdict(e)
		a.disconnect(e)
		if err := <-a.registry.SetMeta(e, `{"n":2}`); !errors.Is(err, ErrEnding) {
			t.Errorf("told %v after the end", err)
		}
	})
}
