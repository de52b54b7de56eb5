//go:build !secondpass

package router

import (
	"context"
	"errors"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/presence"
	"chatgate/internal/protocol"
)

// Bob's laptop is on b, his phone on c. Gateway b loses its subscription: what is sent then has reached the phone only. When c is deaf
// too, it has reached nobody and is only stored.
func TestGatewayWithoutSubscriptionCountsAsNotReached(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a, b, c := net.gateway("a"), net.gateway("b"), net.gateway("c")
		b.connect("bob")
		phone := c.connect("bob")
		a.send("alice", "bob", "m1", `1`).wantRouted(1, 2)

		b.stopRouter()
		a.wantDeaf("bob", b)
		a.send("alice", "bob", "m2", `2`).wantRouted(2, 1)
		phone.wantMessages(a, "m1@1", "m2@2")

		c.stopRouter()
		a.wantDeaf("bob", c)
		a.send("alice", "bob", "m3", `3`).wantStored(4)
	})
}

// wantDeaf waits until Redis has noticed that a gateway listens no more on the channel of a user's group.
func (g *gateway) wantDeaf(user protocol.UserID, other *gateway) {
	g.t.Helper()
	p := &parcel{group: g.cluster.layout.GroupOf(protocol.UserAddress(user)), gateway: other.id, payload: []byte{protocol.EnvelopeVersion, 'p'}}
	eventually(g.t, string(other.id)+" is deaf", func() bool {
		return g.router.publish(context.Background(), []*parcel{p}) == nil && p.receivers == 0
	})
}

// Gateway b is paused: Redis still counts its subscription, but its lease is over. Nobody knows whether it will ever read what is
// published, so it does not count as reached. When no gateway at all renews its lease, it is Redis that was away, and b gets the
// benefit of the doubt.
func TestGatewayWhoseLeaseIsOverCountsAsNotReached(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		short := func(s *settings) {
			s.registry.Lease, s.registry.ReapAfter = time.Second, time.Hour
			// A pulse that is 0.1 s late begins a quiet time, which should end before the next late one on a busy machine.
			s.registry.Quiet = 200 * time.Millisecond
		}
		a, b := net.gateway("a", brisk, short), net.gateway("b", brisk, short)
		bob := b.connect("bob")
		a.send("alice", "bob", "m1", `1`).wantRouted(1, 1)

		b.stopRegistry() // it holds its lease no more, and reads on
		eventually(t, "b's lease is over", func() bool {
			holders, err := a.registry.Holders(context.Background(), "u:bob")
			return err == nil && len(holders[0]) == 0
		})
		a.send("alice", "bob", "m2", `2`).wantStored(2)
		bob.messages(2) // it was not as dead as it seemed

		a.stopRegistry()
		// Now nobody pulses, and after a while that is quiet time. Until then the lease decides, so the status may be either.
		eventually(t, "nobody is judged", func() bool {
			return a.send("alice", "bob", newID("later"), `3`).answer().Status == protocol.StatusRouted
		})
	})
}

// Redis forbids publishing: messages are stored all the same, and nobody is said to have got them. Publishing is allowed again: the
// receiver's gateway sees by the channel's number that it missed something, and reads it from the log.
func TestForbiddenPublishIsOnlyStored(t *testing.T) {
	for _, kind := range realKinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			r := gatewaytest.Shared(t, kind)
			net := newCluster(t, r)
			a, b := net.gateway("a"), net.gateway("b")
			bob := b.connect("bob")
			a.send("alice", "bob", "m1", `1`).wantRouted(1, 1)
			bob.messages(1)

			t.Cleanup(func() { acl(t, r, "+publish", "+spublish") })
			acl(t, r, "-publish", "-spublish")
			first := a.send("alice", "bob", "m2", `2`).wantStored(2)
			a.send("alice", "bob", "m2", `2`).wantAnswer(first)
			a.send("alice", "bob", "m3", `3`).wantStored(3)
			acl(t, r, "+publish", "+spublish")

			a.send("alice", "bob", "m4", `4`).wantRouted(4, 1)
			bob.wantMessages(a, "m1@1", "m2@2", "m3@3", "m4@4")
			net.wantStreamLen("bob", 5)
			if s := b.router.Stats(); s.MissedPublishes < 2 || s.Repairs == 0 {
				t.Errorf("%d missed publishes and %d repairs counted, want at least 2 and 1", s.MissedPublishes, s.Repairs)
			}
		})
	}
}

// acl changes what everybody may do, on every server with data.
func acl(t *testing.T, r *gatewaytest.Redis, rules ...any) {
	t.Helper()
	for _, n := range r.Nodes {
		if _, err := n.Do(append([]any{"ACL", "SETUSER", "default"}, rules...)...); err != nil {
			t.Error(err)
		}
	}
}

func (c *cluster) wantStreamLen(user protocol.UserID, want int64) {
	c.t.Helper()
	n, err := c.redis.Client().XLen(context.Background(), keyspace.Stream(protocol.UserAddress(user))).Result()
	if err != nil || n != want {
		c.t.Errorf("%d entries stored for %s (%v), want %d", n, user, err, want)
	}
}

// A word to a gateway that nobody hears is an error of its own, told apart from a Redis that doesn't answer.
func TestWordToOneGateway(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		kicks := make(chan protocol.Kick, 64)
		a, b := net.gateway("a"), net.gateway("b", func(s *settings) { s.router.OnKick = func(k protocol.Kick) { kicks <- k } })
		word := []byte("\x01kc7\x1f42\x1f4503\x1fkicked\x1foperator")
		if err := a.router.RouteToGateway(context.Background(), b.id, word); err != nil {
			t.Fatal(err)
		}
		if k, want := <-kicks, (protocol.Kick{Conn: "c7", Fence: 42, Code: 4503, Reason: "kicked", By: "operator"}); k != want {
			t.Errorf("b was told %+v, want %+v", k, want)
		}
		if err := a.router.RouteToGateway(context.Background(), a.id, word); err != nil {
			t.Errorf("to oneself: %v", err)
		}
		if err := a.router.RouteToGateway(context.Background(), "nobody", word); !errors.Is(err, ErrNoReceiver) {
			t.Errorf("to a gateway that does not exist: %v, want ErrNoReceiver", err)
		}
		// A kick in the registry takes the same way.
		bob := b.connect("bob")
		if n, err := a.registry.Kick(context.Background(), "bob", presence.Order{Code: 4503, Reason: "kicked", By: "operator"}); n.Marked != 1 || err != nil {
			t.Errorf("kick: %+v marked, %v", n, err)
		}
		if k := <-kicks; string(k.Conn) != bob.registered.ConnID {
			t.Errorf("%s was to be closed, b was told %+v", bob.registered.ConnID, k)
		}
	})
}
