//go:build !secondpass

package router

import (
	"context"
	"io"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

// A gateway stops in the middle of work. What it had taken is carried through and acknowledged, what comes afterwards is refused at once,
// and when Run has returned nothing of it is left.
func TestStoppingCarriesThroughWhatWasTaken(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a, b := net.gateway("a"), net.gateway("b")
		bob := b.connect("bob")
		release := a.lane.hold()
		all := []*sent{a.send("alice", "bob", "m0", `0`)}
		<-a.lane.entered
		for i := range 200 {
			all = append(all, a.send("alice", "bob", "m"+strconv.Itoa(i+1), `0`))
		}
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			a.stopRouter()
		}()
		eventually(t, "the gateway is stopping", func() bool {
			a.router.ephemeral.mu.Lock() // closed last
			defer a.router.ephemeral.mu.Unlock()
			return a.router.ephemeral.closed
		})
		late := []*sent{a.send("alice", "bob", "late", `0`), a.signal("alice", "bob", "late", `0`)}
		for _, s := range late {
			if !s.answered() {
				t.Error("a message waits in a gateway that is stopping")
			}
			if e := s.wantCode(protocol.CodeUnavailable); e.RetryAfterMs <= 0 {
				t.Errorf("refused without a time to come back: %+v", e)
			}
		}
		release()
		for i, s := range all {
			s.wantRouted(uint64(i+1), 1)
		}
		<-stopped
		bob.messages(201)
	})
}

// Redis hangs, and the gateway is told to stop. It waits no longer than it would have waited for an answer; everything is answered.
func TestStoppingWithoutRedisEnds(t *testing.T) {
	net, within := newCluster(t, gatewaytest.Shared(t, gatewaytest.Embedded)), gatewaytest.Busier(t)
	a := net.gateway("a", prompt)
	a.lane.set(func(x *tap) {
		x.refuse = func(ctx context.Context, _ redis.Cmder) error { <-ctx.Done(); return ctx.Err() }
	})
	var all []*sent
	for i := range 100 {
		all = append(all, a.send("alice", "bob", "m"+strconv.Itoa(i), `0`))
	}
	began := time.Now()
	a.stopRouter()
	if d := time.Since(began); d > within(2*time.Second) {
		t.Errorf("Run returned after %v", d)
	}
	for _, s := range all {
		if !s.answered() {
			t.Fatalf("message %s was not answered when Run had returned", s.ID)
		}
		if s.result.Err == nil {
			t.Errorf("message %s: %s from a Redis that hangs", s.ID, s.result.text())
		}
	}
	a.lane.set(func(x *tap) { x.refuse = nil })
}

// The lane is probing a Redis that is away when the gateway is told to stop.
func TestStoppingWhileProbingEnds(t *testing.T) {
	net, within := newCluster(t, gatewaytest.Shared(t, gatewaytest.Embedded)), gatewaytest.Busier(t)
	a := net.gateway("a", prompt)
	a.lane.set(func(x *tap) { x.refuse = func(context.Context, redis.Cmder) error { return io.EOF } })
	a.send("alice", "bob", "m1", `1`).wantCode(protocol.CodeUnknown)
	eventually(t, "the lane probes", a.router.Degraded)
	began := time.Now()
	a.stopRouter()
	if d := time.Since(began); d > within(2*time.Second) {
		t.Errorf("Run returned after %v", d)
	}
}

// Many goroutines send while the gateway stops, many times over. Every message is answered before Run returns, or refused by Send: none
// is answered by a goroutine that outlived Run.
func TestNothingOutlivesRun(t *testing.T) {
	t.Parallel()
	net := newCluster(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	for range 60 {
		a := net.gateway("a")
		ctx, stop := context.WithCancel(context.Background())
		var senders sync.WaitGroup
		for s := range 4 {
			senders.Go(func() {
				for ctx.Err() == nil {
					user := protocol.UserID("user" + strconv.Itoa(s))
					a.send(user, user, newID("m"), `0`).answer()
					a.signal(user, user, newID("t"), `0`).answer()
				}
			})
		}
		eventually(t, "messages flow", func() bool { return a.router.Stats().Stored > 20 })
		a.stopRouter()
		// Whoever is answered from now on was refused by Send itself: no worker is left to be joined.
		for _, l := range a.router.lanes.all {
			l.mu.Lock()
			if l.busy || len(l.pending) > 0 {
				t.Errorf("a lane works on behind Run: busy %v, %d pending", l.busy, len(l.pending))
			}
			l.mu.Unlock()
		}
		a.router.ephemeral.mu.Lock()
		if e := a.router.ephemeral; e.busy || len(e.pending) > 0 {
			t.Errorf("the ephemeral lane works on behind Run: busy %v, %d pending", e.busy, len(e.pending))
		}
		a.router.ephemeral.mu.Unlock()
		stop()
		senders.Wait()
		a.stop()
	}
}

// Commands to deliverers that have stopped come back at once: sessions end whenever they end.
func TestFeedsMayBeLeftAfterRun(t *testing.T) {
	net := newCluster(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	a := net.gateway("a")
	_, bob := a.hold("bob")
	a.stopRouter()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 2 * commandQueue {
			bob.attach()
			a.router.Follow(bob.stay.Load(), protocol.Position{Epoch: "e", Offset: 1}, 1, []byte("{}"))
			a.router.Pulsed(0, 1, "line", 1)
			a.router.Detach(bob.stay.Load(), nil)
		}
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("a session hangs on a router that has stopped")
	}
}
