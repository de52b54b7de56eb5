//go:build !secondpass

package router

import (
	"context"
	"strconv"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

const generation = 256 // records that close a generation, once it is old enough

// fill stores so many messages from alice for bob and returns their answers by id.
func (g *gateway) fill(prefix string, n int) map[string]Result {
	g.t.Helper()
	all := make([]*sent, n)
	for i := range all {
		all[i] = g.send("alice", "bob", prefix+strconv.Itoa(i), `0`)
	}
	results := make(map[string]Result)
	for _, s := range all {
		results[string(s.ID)] = s.want(protocol.StatusStored)
	}
	return results
}

// wantKnown checks that a repeat of each of these messages gets its first answer.
func (g *gateway) wantKnown(results map[string]Result) {
	g.t.Helper()
	again := make(map[string]*sent)
	for id := range results {
		again[id] = g.send("alice", "bob", id, `0`)
	}
	for id, s := range again {
		s.wantAnswer(results[id])
	}
}

// age makes the generation that is being filled look so old.
func (c *cluster) age(user protocol.UserID, d time.Duration) {
	c.t.Helper()
	h := c.head(user)
	h.since -= int64(d / time.Second)
	c.setHead(user, h)
}

// records counts the dedupe records of a log.
func (c *cluster) records(user protocol.UserID) int {
	c.t.Helper()
	n, err := c.redis.Client().HLen(context.Background(), keyspace.Log(protocol.UserAddress(user))).Result()
	if err != nil {
		c.t.Fatal(err)
	}
	if len(c.pairs(user)) > 0 {
		n--
	}
	return int(n) - 1
}

// A retry may come minutes later. A generation is closed when it is full and ten minutes old, and what it held is known until the one
// after it is closed too: ten minutes at least. Then it is swept, some with each call, so that memory stays bounded.
func TestRecordsAreKnownForTenMinutesAndSweptThen(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a := net.gateway("a")

		// Full, and young: nothing is closed, whatever the number.
		first := a.fill("first", generation+100)
		if h := net.head("bob"); h.gen != 0 || h.count != generation+100 {
			t.Fatalf("generation %d holds %d, want everything in the first", h.gen, h.count)
		}
		net.age("bob", 9*time.Minute+50*time.Second)
		for id, m := range a.fill("young", 1) {
			first[id] = m
		}
		if h := net.head("bob"); h.gen != 0 {
			t.Fatalf("a generation was closed before it was ten minutes old")
		}

		// Full, and old: the next message closes it. Everything in it is still known.
		net.age("bob", time.Minute)
		for id, m := range a.fill("closing", 1) {
			first[id] = m
		}
		if h := net.head("bob"); h.gen != 1 || h.count != 0 {
			t.Fatalf("generation %d holds %d after the first was closed", h.gen, h.count)
		}
		second := a.fill("second", 10)
		a.wantKnown(first)

		// Old, and not full: a quiet address keeps its records longer.
		net.age("bob", time.Hour)
		for id, m := range a.fill("quiet", 1) {
			second[id] = m
		}
		if h := net.head("bob"); h.gen != 1 {
			t.Fatalf("a generation was closed with %d records", h.count)
		}
		a.wantKnown(first)

		// Full at last, and old: now the first generation is swept, and only that one.
		for id, m := range a.fill("third", generation) {
			second[id] = m
		}
		if h := net.head("bob"); h.gen != 2 {
			t.Fatalf("generation %d is being filled, want 2", h.gen)
		}
		for i := 0; net.head("bob").cursor != "-"; i++ {
			if i > 200 {
				t.Fatal("the sweep does not end")
			}
			for id, m := range a.fill("sweeping"+strconv.Itoa(i)+".", 1) {
				second[id] = m
			}
		}
		if got := net.records("bob"); got != len(second) {
			t.Errorf("%d records are kept, want the %d of the last two generations", got, len(second))
		}
		a.wantKnown(second)
		// What was swept is forgotten: a retry after all this time is a new message.
		top := net.head("bob").top
		a.send("alice", "bob", "first0", `0`).wantStored(top + 1)
	})
}

// Generations go round many times. Memory is bounded by what two of them hold.
func TestRecordsStayBounded(t *testing.T) {
	for _, kind := range []gatewaytest.Kind{gatewaytest.Embedded, gatewaytest.Standalone} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			net := newCluster(t, gatewaytest.Shared(t, kind))
			a := net.gateway("a")
			last := make(map[string]Result)
			for i := range 7 {
				last = a.fill("m"+strconv.Itoa(i)+".", 2*generation)
				net.age("bob", 11*time.Minute)
			}
			a.wantKnown(last)
			if got := net.records("bob"); got > 3*2*generation {
				t.Errorf("%d records after seven generations of %d", got, 2*generation)
			}
		})
	}
}
