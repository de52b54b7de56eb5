//go:build !secondpass

package router

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

// signaled checks what became of an ephemeral message.
func (s *sent) wantSignaled(devices int) {
	s.t.Helper()
	status := protocol.StatusRouted
	if devices == 0 {
		status = protocol.StatusDropped
	}
	r := s.want(status)
	if r.Epoch != "" || r.Offset != 0 || r.Devices != devices || r.Ts != s.Ts {
		s.t.Fatalf("signal %s: %s, want %d devices and no position", s.ID, r.text(), devices)
	}
}

// Alice is typing. Bob's laptop on b and his phone on a, her own gateway, see it once each, without a position. Nothing of it is in any
// log, and it takes no number. When nobody is there it is dropped, and she is told so.
func TestSignalReachesWhoIsThereAndIsNotStored(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a, b := net.gateway("a"), net.gateway("b")
		laptop, phone := b.connect("bob"), a.connect("bob")
		before := net.dump("bob")
		for i := range 5 {
			a.signal("alice", "bob", "t"+strconv.Itoa(i), `"typing"`).wantSignaled(2)
		}
		for _, c := range []*client{laptop, phone} {
			for i, f := range c.messages(5) {
				if f.ID != "t"+strconv.Itoa(i) || !f.Ephemeral || f.Epoch != "" || strings.Contains(string(f.Raw), "offset") {
					t.Errorf("%s got %s as signal %d", c.Name, f, i)
				}
			}
		}
		if after := net.dump("bob"); len(after) != len(before) || after["number "+string(b.id)] != "" {
			t.Errorf("signals changed\n%v\nto\n%v", before, after)
		}
		a.signal("alice", "nobody", "t", `"typing"`).wantSignaled(0)
		if n := r.Client().Exists(context.Background(), keyspace.Log("u:nobody"), keyspace.Stream("u:nobody")).Val(); n != 0 {
			t.Errorf("%d keys for somebody who got a signal", n)
		}
		if s := a.router.Stats(); s.Ephemeral != 5 || s.Dropped != 1 || s.Calls != 0 {
			t.Errorf("counted %d ephemeral, %d dropped, %d calls", s.Ephemeral, s.Dropped, s.Calls)
		}
		// A stored message in between finds its place.
		a.send("alice", "bob", "m", `"hi"`).wantRouted(1, 2)
		b.wantNothingCounted()
	})
}

// Once the holders are known, a signal to somebody on the same gateway asks Redis nothing.
func TestLocalSignalNeedsNoRedis(t *testing.T) {
	net := newCluster(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	a := net.gateway("a", func(s *settings) { s.router.HoldersTTL = time.Hour })
	bob := a.connect("bob")
	a.signal("alice", "bob", "t0", `0`).wantSignaled(1)
	a.stopRegistry()
	before := a.general.total() + a.lane.total()
	for i := range 100 {
		a.signal("alice", "bob", "t"+strconv.Itoa(i+1), `0`).wantSignaled(1)
	}
	if n := a.general.total() + a.lane.total() - before; n != 0 {
		t.Errorf("%d commands to Redis for signals that stayed here", n)
	}
	bob.messages(101)
}

// Signals to 40 users on two gateways that wait together: one publish for each gateway.
func TestManySignalsAreOnePublishForEachGateway(t *testing.T) {
	net := newCluster(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	a, b, c := net.gateway("a"), net.gateway("b"), net.gateway("c")
	var clients []*client
	for i := range 40 {
		clients = append(clients, []*gateway{b, c}[i%2].connect(protocol.UserID("user"+strconv.Itoa(i))))
	}
	signals := func(prefix string) {
		t.Helper()
		release := a.holdSignals()
		var all []*sent
		for i := range 200 {
			all = append(all, a.signal("alice", protocol.UserID("user"+strconv.Itoa(i%40)), prefix+strconv.Itoa(i), `0`))
		}
		release()
		for _, s := range all {
			s.wantSignaled(1)
		}
	}
	before, lookups := a.general.count("publish"), a.general.count("hgetall")
	signals("t")
	// The first signal may have travelled alone, before the others came.
	if n := a.general.count("publish") - before; n > 2 {
		t.Errorf("%d publishes for 200 signals to two gateways, want 2", n)
	}
	if n := a.general.count("hgetall") - lookups; n != 40 {
		t.Errorf("%d lookups of holders, want one for each of 40 users", n)
	}
	for i, c := range clients {
		var got []string
		for _, f := range c.messages(5) {
			got = append(got, f.ID)
		}
		want := []string{}
		for j := range 5 {
			want = append(want, "t"+strconv.Itoa(i+40*j))
		}
		if !slices.Equal(got, want) {
			t.Errorf("user%d got %v, want %v", i, got, want)
		}
	}
}

// holdSignals keeps signals waiting, so that those of the test travel together.
func (g *gateway) holdSignals() (release func()) {
	e := g.router.ephemeral
	e.mu.Lock()
	busy := e.busy
	e.busy = true // as though a batch were under way
	e.mu.Unlock()
	if busy {
		g.t.Fatal("signals are under way")
	}
	return func() {
		g.router.running.Add(1)
		go e.work()
	}
}

// Bob moves from b to c. For a second alice's gateway may believe the old place; then it looks again. That he went offline, and that he
// came online, is noticed within that second too.
func TestHoldersAreBelievedForASecondAtMost(t *testing.T) {
	for _, kind := range []gatewaytest.Kind{gatewaytest.Embedded, gatewaytest.Cluster} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			r, within := gatewaytest.Shared(t, kind), gatewaytest.Busier(t)
			net := newCluster(t, r)
			a, b, c := net.gateway("a"), net.gateway("b"), net.gateway("c")
			old := b.connect("bob")
			a.signal("alice", "bob", "t0", `0`).wantSignaled(1)
			lookups := a.general.count("hgetall")
			began := time.Now()
			for i := range 20 {
				a.signal("alice", "bob", "t"+strconv.Itoa(i+1), `0`).wantSignaled(1)
			}
			if n := a.general.count("hgetall") - lookups; n != 0 && time.Since(began) < 900*time.Millisecond {
				t.Errorf("%d lookups within a second, want none", n)
			}

			moved := c.connect("bob")
			old.leave(b)
			gone := time.Now()
			eventually(t, "a signal reaches bob's new place", func() bool {
				a.signal("alice", "bob", newID("t"), `0`).answer()
				return len(moved.Notes().Received) > 0
			})
			if d := moved.Notes().Received[0].At.Sub(gone); d > within(1500*time.Millisecond) {
				t.Errorf("bob's new place was found after %v", d)
			}
			moved.leave(c)
			left := time.Now()
			eventually(t, "alice hears that he is gone", func() bool {
				return a.signal("alice", "bob", newID("t"), `0`).answer().Status == protocol.StatusDropped
			})
			if d := time.Since(left); d > within(1500*time.Millisecond) {
				t.Errorf("bob was gone for %v when alice heard of it", d)
			}
		})
	}
}

// Bob is on b, and on a gateway that died a moment ago and is still listed. What b got counts as routed, for every message of the batch,
// and b's devices only.
func TestDeadGatewayAmongTheHoldersIsNotCounted(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a, b := net.gateway("a"), net.gateway("b")
		bob := b.connect("bob")
		if err := r.Client().HSet(context.Background(), keyspace.Holders("u:bob"), "dead-1", 3).Err(); err != nil {
			t.Fatal(err)
		}
		release := a.holdSignals()
		one, two, three := a.signal("alice", "bob", "t1", `0`), a.signal("alice", "bob", "t2", `0`), a.signal("alice", "bob", "t3", `0`)
		release()
		one.wantSignaled(1)
		two.wantSignaled(1)
		three.wantSignaled(1)
		bob.messages(3)
		// A list that named a dead gateway is looked up again at once.
		lookups := a.general.count("hgetall")
		a.signal("alice", "bob", "t4", `0`).wantSignaled(1)
		if n := a.general.count("hgetall") - lookups; n != 1 {
			t.Errorf("%d lookups behind a list with a dead gateway, want 1", n)
		}
	})
}

// The ephemeral lane is bounded too.
func TestFullEphemeralLaneRefusesAsOverloaded(t *testing.T) {
	net := newCluster(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	a := net.gateway("a", func(s *settings) { s.router.LaneBytes = 100_000 })
	release := a.holdSignals()
	var taken, refused []*sent
	held := 0
	for i := range 200 {
		s := a.signal("alice", "bob", "t"+strconv.Itoa(i), quoted(strings.Repeat("x", 1000)))
		if s.answered() {
			refused = append(refused, s)
		} else {
			taken, held = append(taken, s), held+s.size()
		}
	}
	if held > 100_000 || held < 98_000 {
		t.Errorf("%d bytes are held, want just below 100000", held)
	}
	for _, s := range refused {
		if e := s.wantCode(protocol.CodeOverloaded); e.RetryAfterMs <= 0 {
			t.Errorf("refused without a time to come back: %+v", e)
		}
	}
	release()
	for _, s := range taken {
		s.wantSignaled(0)
	}
	a.signal("alice", "bob", "after", `0`).wantSignaled(0)
}

// Redis answers with an error, or not at all: a signal is refused, since nobody knows who is there.
func TestSignalsAreRefusedWhileRedisIsAway(t *testing.T) {
	net, within := newCluster(t, gatewaytest.Shared(t, gatewaytest.Embedded)), gatewaytest.Busier(t)
	a := net.gateway("a", prompt)
	a.stopRegistry()
	a.general.set(func(x *tap) {
		x.pipe = func(ctx context.Context, _ []redis.Cmder) error {
			<-ctx.Done() // Redis hangs
			return ctx.Err()
		}
	})
	var all []*sent
	for i := range 3000 { // many more than one batch
		all = append(all, a.signal("alice", protocol.UserID(fmt.Sprint("user", i)), newID("t"), `0`))
	}
	began := time.Now()
	for i := 0; time.Since(began) < 2*time.Second; i++ {
		all = append(all, a.signal("alice", protocol.UserID(fmt.Sprint("user", i%1000)), newID("t"), `0`))
		<-time.After(200 * time.Microsecond) // the pace of many typing people
	}
	slowest := time.Duration(0)
	for _, s := range all {
		if e := s.wantCode(protocol.CodeUnavailable); e.RetryAfterMs <= 0 {
			t.Fatalf("refused without a time to come back: %+v", e)
		}
		slowest = max(slowest, s.took)
	}
	if slowest > within(600*time.Millisecond) {
		t.Errorf("a signal of %d waited %v for a Redis that hangs", len(all), slowest)
	}
	a.general.set(func(x *tap) { x.pipe = nil })
	eventually(t, "signals go again", func() bool { return a.signal("alice", "bob", newID("t"), `0`).answer().Err == nil })
}
