package router

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
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

func withEvents(s *settings) { s.router.EventsKept, s.router.EventContent = 10_000, true }

func withEnvelopes(s *settings) { s.router.EventsKept = 10_000 }

// A messageEvent is one entry of the stream of events of messages.
type messageEvent struct{ n, kind, sent, origin, frame string }

// events returns those of the group of an address, in their order.
func (c *cluster) events(a protocol.Address) (all []messageEvent) {
	c.t.Helper()
	entries, err := c.redis.Client().XRange(context.Background(), keyspace.MessageEvents(c.layout.GroupOf(a)), "-", "+").Result()
	if err != nil {
		c.t.Fatal(err)
	}
	for i, e := range entries {
		field := func(name string) string { s, _ := e.Values[name].(string); return s }
		m := messageEvent{field("n"), field("type"), field("sent"), field("origin"), field("frame")}
		if want := strconv.Itoa(i + 1); m.n != want || m.kind != "message" || field("ms") == "" {
			c.t.Errorf("event %s is %v", want, e.Values)
		}
		all = append(all, m)
	}
	return all
}

// told is an event in one line: who to whom, the id, and the answer without its epoch and time.
func (m messageEvent) told() string {
	f := strings.Fields(m.sent)
	if len(f) != 5 {
		return "sent " + m.sent
	}
	var o struct{ User, To, Message string }
	if err := json.Unmarshal([]byte(m.origin), &o); err != nil {
		return "origin " + m.origin
	}
	return fmt.Sprintf("%s>%s %s %s@%s to %s", o.User, o.To, o.Message, f[0], f[2], f[3])
}

func (c *cluster) wantEvents(a protocol.Address, want ...string) {
	c.t.Helper()
	var got []string
	for _, m := range c.events(a) {
		got = append(got, m.told())
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		c.t.Errorf("events of %s: %q, want %q", a, got, want)
	}
}

// Each message that is stored has one event, which says what its sender was told; a repetition, a conflict, an ephemeral message and the
// sender's own copy have none.
func TestAStoredMessageHasOneEvent(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a, b := net.gateway("a", withEvents), net.gateway("b", withEvents)
		bob := b.connect("bob")
		a.send("alice", "bob", "m1", `"x"`).wantRouted(1, 1)
		b.send("alice", "bob", "m1", `"x"`).wantRouted(1, 1)
		a.send("alice", "bob", "m1", `"y"`).wantCode(protocol.CodeConflict)
		a.signal("alice", "bob", "s1", `1`).answer()
		// Sent together: they are one call.
		release := a.lane.hold()
		a.send("alice", "bob", "other", `0`)
		<-a.lane.entered
		one, two := a.send("alice", "bob", "m2", `2`), a.send("alice", "bob", "m2", `2`)
		three := a.post(a.message("bob", "bob", "m3", `3`))
		release()
		one.want(protocol.StatusRouted)
		two.want(protocol.StatusRouted)
		three.want(protocol.StatusRouted)
		bob.leave(b)
		a.post(a.message("alice", "bob", "m4", `{"a": "\u003c"}`).withCopy()).want(protocol.StatusStored)

		told := net.events("u:bob")
		net.wantEvents("u:bob", "alice>bob m1 r@1 to 1", "alice>bob other r@2 to 1", "alice>bob m2 r@3 to 1", "bob>bob m3 r@4 to 1", "alice>bob m4 s@5 to 0")
		if len(told) == 5 && (told[0].frame == "" || !strings.Contains(told[4].frame, `"content":{"a": "\u003c"}`)) {
			t.Errorf("frames %q and %q", told[0].frame, told[4].frame)
		}
	})
}

// Without the content an event has no frame; and where none is wanted none is written, whatever the message says.
func TestEventsHoldNoMoreThanIsWanted(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a, off := net.gateway("a", withEnvelopes), net.gateway("off")
		off.send("alice", "bob", "m0", `"secret"`).wantStored(1)
		net.wantEvents("u:bob")
		a.send("alice", "bob", "m1", `"secret"`).wantStored(2)
		s := a.message("alice", "bob", "m2", `"secret"`)
		s.Origin = nil // it has none
		a.post(s).wantStored(3)
		net.wantEvents("u:bob", "alice>bob m1 s@2 to 0")
		for _, m := range net.events("u:bob") {
			if m.frame != "" || strings.Contains(fmt.Sprint(m), "secret") {
				t.Errorf("the event has the content: %+v", m)
			}
		}
	})
}

// A first answer that was lost, and the same call again: the event is there once, as the message is.
func TestALostAnswerLeavesOneEvent(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a := net.gateway("a", withEvents)
		a.send("alice", "bob", "m0", `0`).wantStored(1)
		var calls atomic.Int64
		a.lane.set(func(x *tap) {
			x.after = func(_ redis.Cmder, err error) error {
				if calls.Add(1) == 1 {
					return io.EOF // it was executed
				}
				return err
			}
		})
		a.send("alice", "bob", "m1", `1`).wantStored(2)
		if n := calls.Load(); n != 2 {
			t.Errorf("%d calls", n)
		}
		net.wantEvents("u:bob", "alice>bob m0 s@1 to 0", "alice>bob m1 s@2 to 0")
	})
}

// The stream is bounded, and the numbers go on.
func TestEventsOfMessagesAreBounded(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a := net.gateway("a", func(s *settings) { s.router.EventsKept = 100 })
		var last *sent
		for i := range 1000 {
			last = a.send("alice", "bob", "m"+strconv.Itoa(i), `0`)
		}
		last.wantStored(1000)
		ctx, g := context.Background(), net.layout.GroupOf("u:bob")
		n, err := r.Client().XLen(ctx, keyspace.MessageEvents(g)).Result()
		top, _ := r.Client().HGet(ctx, keyspace.Numbers(g), "evm").Result()
		if err != nil || n < 100 || n > 300 || top != "1000" {
			t.Errorf("%d events are kept of %s (%v)", n, top, err)
		}
	})
}

// An event is kept no longer than the message is: what is older than that leaves the stream when a log is looked at, which is once an hour, and with the last
// message the stream goes too.
func TestEventsOfMessagesAreKeptNoLongerThanMessages(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a := net.gateway("a", withEvents)
		ctx, g := context.Background(), net.layout.GroupOf("u:bob")
		key, age := keyspace.MessageEvents(g), a.router.cfg.Retention
		for i, ago := range []time.Duration{age + time.Hour, age + time.Minute, age - time.Minute, time.Hour} {
			if err := r.Client().XAdd(ctx, &redis.XAddArgs{
				Stream: key, ID: fmt.Sprintf("%d-0", time.Now().Add(-ago).UnixMilli()), Values: []string{"n", strconv.Itoa(i + 1)},
			}).Err(); err != nil {
				t.Fatal(err)
			}
		}
		wantKept := func(story string, want int64) {
			t.Helper()
			n, err := r.Client().XLen(ctx, key).Result()
			ttl := r.Client().PTTL(ctx, key).Val()
			if err != nil || n != want || ttl < age-time.Minute || ttl > age+3*time.Hour {
				t.Errorf("%s: %d events are kept (%v), want %d, for %v, want %v", story, n, err, want, ttl, age)
			}
		}
		a.send("alice", "bob", "m1", `1`).wantStored(1)
		wantKept("the first message to bob", 3)
		h := net.head("bob")
		h.extended = time.Now().Unix() - 3700
		net.setHead("bob", h)
		if err := r.Client().Persist(ctx, key).Err(); err != nil {
			t.Fatal(err)
		}
		a.send("alice", "bob", "m2", `2`).wantStored(2)
		wantKept("a message an hour later", 4)
	})
}
