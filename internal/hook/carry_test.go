//go:build !secondpass

package hook

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
)

// turns has the script called for the group of user0, as a gateway does.
func (w *world) turns() (turn func(gateway string, lease time.Duration, count int, read string, acked uint64, acks ...any) carried) {
	cfg := DefaultConfig()
	cfg.Layout, cfg.Log = w.layout, newSilent()
	s := sinkNamed("web", Filter{})
	client := w.client()
	w.Cleanup(func() { _ = client.Close() })
	c := newCarrier(client, &cfg, &s, nil)
	h := c.hauls[w.layout.GroupIndex("u:user0")]
	return func(gateway string, lease time.Duration, count int, read string, acked uint64, acks ...any) carried {
		w.Helper()
		args := append([]any{"web", gateway, lease.Milliseconds(), count, read, acked, string(h.source)}, acks...)
		v, err := c.script.Run(context.Background(), client, h.keys, args...).Result()
		a, err := c.parse(h, v, err)
		if err != nil {
			w.Fatal(err)
		}
		return a
	}
}

// An answer that never came holds events that are read then. The next call brings them once more: the script runs twice safely.
func TestALostAnswerComesAgain(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		w := newWorld(t, r)
		turn := w.turns()
		ask := func(count int, read string, acks ...any) carried {
			t.Helper()
			return turn("a-1", time.Minute, count, read, 0, acks...)
		}
		story := func(a carried) string {
			var b strings.Builder
			fmt.Fprintf(&b, "%s read %s top %d acked %d:", a.state, a.read, a.top, a.acked)
			for _, e := range a.events {
				fmt.Fprintf(&b, " %d", e.N)
			}
			return b.String()
		}
		want := func(a carried, want string) carried {
			t.Helper()
			if got := story(a); got != want {
				t.Errorf("%s, want %s", got, want)
			}
			return a
		}
		w.happenEach(1, 0, 3)
		want(ask(-1, ""), "kept read 0 top 3 acked 0:")
		first := want(ask(2, ""), "new read 2 top 3 acked 0: 1 2")
		want(ask(2, ""), "kept read 2 top 3 acked 0: 1 2")  // it did not get that answer
		want(ask(2, "0"), "kept read 2 top 3 acked 0: 1 2") // nor that
		want(ask(0, "2"), "kept read 2 top 3 acked 0:")     // it did
		a := ask(5, "2", first.events[0].entry)             // one of them is done, the answer is lost
		want(a, "kept read 3 top 3 acked 2: 3")             // which the caller never sees
		want(ask(5, "2", first.events[0].entry), "kept read 3 top 3 acked 2: 2 3")
		want(ask(5, "3", first.events[1].entry, a.events[0].entry), "kept read 3 top 3 acked 3:")
		want(ask(-1, "3"), "kept read 3 top 3 acked 3:")
		w.happenEach(1, 3, 4)
		want(ask(5, "3"), "kept read 4 top 4 acked 3: 4")
	})
}

// The answer that said how many events fell out of retention never came. The next one says so too, to whoever gets it; and then nobody does.
func TestALossIsSaidUntilItIsHeard(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		w := newWorld(t, r)
		g := w.layout.GroupOf("u:user0")
		turn := w.turns()
		ask := func(gateway string, lease time.Duration, read string, acked uint64, acks ...any) carried {
			t.Helper()
			return turn(gateway, lease, 5, read, acked, acks...)
		}
		want := func(a carried, state string, lost uint64, from, to uint64) carried {
			t.Helper()
			var got []uint64
			for _, e := range a.events {
				got = append(got, e.N)
			}
			if a.state != state || a.lost != lost || len(got) != int(to-from)+1 || got[0] != from {
				t.Errorf("%s, %d lost, %d; want %s, %d lost, %d to %d", a.state, a.lost, got, state, lost, from, to)
			}
			return a
		}
		w.happenEach(1, 0, 2)
		first := want(ask("a-1", time.Minute, "", 0), "new", 0, 1, 2)
		w.happenEach(1, 2, 20)
		if err := r.Client().XTrimMaxLen(context.Background(), keyspace.Events(g), 8).Err(); err != nil {
			t.Fatal(err)
		}
		acks := []any{first.events[0].entry, first.events[1].entry}
		want(ask("a-1", time.Minute, "2", 2, acks...), "kept", 10, 13, 17) // the answer is lost
		want(ask("a-1", time.Minute, "2", 2, acks...), "kept", 10, 13, 17)
		want(ask("a-1", 0, "2", 2, acks...), "kept", 10, 13, 17) // nor did this one come, and the gateway is killed
		a := want(ask("b-1", time.Minute, "", 0), "taken", 10, 13, 17)
		acks = nil
		for _, e := range a.events {
			acks = append(acks, e.entry)
		}
		want(ask("b-1", time.Minute, "17", 17, acks...), "kept", 0, 18, 20)
		want(ask("b-1", time.Minute, "17", 17, acks...), "kept", 0, 18, 20)
	})
}

// A failover forgets what was written, read and acknowledged. What the gateway still acknowledges then says nothing of what is read next.
func TestNoMoreIsAcknowledgedThanWasRead(t *testing.T) {
	w := newWorld(t, gatewaytest.Shared(t, gatewaytest.Standalone))
	turn := w.turns()
	w.happenEach(1, 0, 3)
	if a := turn("a-1", time.Minute, 5, "", 0); a.acked != 0 || len(a.events) != 3 {
		t.Errorf("acked %d, and %d events", a.acked, len(a.events))
	}
	if a := turn("a-1", time.Minute, 0, "20", 20, "1-1"); a.acked != 3 {
		t.Errorf("acked %d, want 3", a.acked)
	}
}
