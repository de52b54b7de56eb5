//go:build !secondpass

package router

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// lostWithin is how long a message may take whose publish was lost: two pulses and a read, and more on a busy machine.
const lostWithin = 3*time.Second + 500*time.Millisecond

// A client that comes with a position gets everything above it.
func (g *gateway) resume(user protocol.UserID, epoch string, offset uint64) (*client, *arrival) {
	g.t.Helper()
	c, a := g.hold(user)
	a.attach()
	reg := a.register()
	if epoch == "" {
		epoch = reg.Epoch
	}
	a.followFrom(protocol.Position{Epoch: epoch, Offset: offset}, reg)
	c.wantRegistered()
	return c, a
}

// backlog writes a log of so many messages of a size by hand.
func (c *cluster) backlog(g *gateway, user protocol.UserID, n, size int) {
	c.t.Helper()
	ctx := context.Background()
	g.send("seed", user, newID("seed"), `0`).want(protocol.StatusStored)
	h := c.head(user)
	content := quoted(fmt.Sprintf("%*s", size, ""))
	for from := h.top; from < uint64(n); from += 1000 {
		_, err := c.redis.Client().Pipelined(ctx, func(p redis.Pipeliner) error {
			for o := from + 1; o <= min(from+1000, uint64(n)); o++ {
				p.XAdd(ctx, &redis.XAddArgs{Stream: keyspace.Stream(protocol.UserAddress(user)), ID: fmt.Sprintf("%d-%d", o, 1000), Values: []string{
					"1", string(protocol.AppendMessageHead(nil, &protocol.MessageHead{
						ID: []byte("b" + strconv.FormatUint(o, 10)), From: "seed", To: []byte(user), Content: []byte(content), Ts: 1,
					})),
				}})
			}
			return nil
		})
		if err != nil {
			c.t.Fatal(err)
		}
	}
	h.top = uint64(n)
	c.setHead(user, h)
}

// Bob comes back after a long time: 10,000 messages wait for him, and 500 a second arrive. He reads in fits and starts, and his outbox is
// small; he is never closed as too slow, and gets everything once and in order.
func TestBacklogComesAtTheOutboxsPace(t *testing.T) {
	// The embedded Redis looks at the whole log for each page.
	for kind, backlog := range map[gatewaytest.Kind]int{gatewaytest.Embedded: 1000, gatewaytest.Standalone: 10_000} {
		t.Run(string(kind), func(t *testing.T) {
			net := newCluster(t, gatewaytest.Shared(t, kind))
			large := func(s *settings) {
				s.router.Kept, s.router.HeldBytes = 100_000, 64<<10
				s.conns.OutboxBytes, s.conns.MaxFrameBytes, s.conns.OutboxFrames = 64<<10, 32<<10, 200
			}
			a, b := net.gateway("a", large), net.gateway("b", large)
			net.backlog(a, "bob", backlog, 500)
			ctx, stop := context.WithCancel(context.Background())
			var talking sync.WaitGroup
			defer talking.Wait()
			defer stop()
			var last uint64
			talking.Go(func() {
				tick := time.NewTicker(2 * time.Millisecond)
				defer tick.Stop()
				for ctx.Err() == nil {
					<-tick.C
					last = a.send("alice", "bob", newID("m"), `0`).answer().Offset
				}
			})
			bob, end := b.resume("bob", "", 0)
			for range 5 {
				bob.Freeze()
				<-time.After(100 * time.Millisecond)
				bob.Thaw()
				<-time.After(50 * time.Millisecond)
			}
			bob.messages(backlog)
			stop()
			talking.Wait()
			var got []uint64
			for _, f := range bob.messages(int(last)) {
				got = append(got, f.Offset)
			}
			wantNoHoles(t, "bob", got, 1)
			if cause, ended := end.conn.Cause(); ended {
				t.Errorf("bob's connection ended: %v", cause.Kind)
			}
			if len(got) != int(last) {
				t.Errorf("bob got %d messages, %d are stored", len(got), last)
			}
			// He is live now: what comes takes no read.
			reads := b.router.Stats().Reads
			a.send("alice", "bob", "live", `0`).want(protocol.StatusRouted)
			bob.messages(int(last) + 1)
			if n := b.router.Stats().Reads; n != reads {
				t.Errorf("%d reads for a live member", n-reads)
			}
		})
	}
}

// Fifty devices come back at once, each at another place: each gets what it lacks, and reads of logs are bounded.
func TestManyDevicesResumeAtOnce(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a := net.gateway("a", func(s *settings) { s.registry.ConnectionsPerUser = 0 })
		net.backlog(a, "bob", 500, 10)
		for i := range 50 {
			from := uint64(i * 10)
			bob, _ := a.resume("bob", "", from)
			defer func() {
				var got []uint64
				for _, f := range bob.messages(501 - int(from)) {
					got = append(got, f.Offset)
				}
				wantNoHoles(t, fmt.Sprint("device from ", from), got, from+1)
			}()
		}
		if n := len(a.router.reading); n > reads {
			t.Errorf("%d reads at once, want %d at most", n, reads)
		}
		a.send("alice", "bob", "last", `0`).want(protocol.StatusRouted)
	})
}

// Whatever is lost on the way to bob, he has it in time, once and in order.
func TestLostPublishesAreRepaired(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, r *gatewaytest.Redis, net *cluster, a, b *gateway) (want []string){
		// Nothing else comes, so only the number in the pulse's answer tells.
		"the first of the channel": func(t *testing.T, r *gatewaytest.Redis, net *cluster, a, b *gateway) []string {
			acl(t, r, "-publish", "-spublish")
			a.send("alice", "bob", "m1", `1`).want(protocol.StatusStored)
			acl(t, r, "+publish", "+spublish")
			return []string{"m1"}
		},
		"one, and the next is for somebody else": func(t *testing.T, r *gatewaytest.Redis, net *cluster, a, b *gateway) []string {
			a.send("alice", "bob", "m1", `1`).want(protocol.StatusRouted)
			acl(t, r, "-publish", "-spublish")
			a.send("alice", "bob", "m2", `2`).want(protocol.StatusStored)
			acl(t, r, "+publish", "+spublish")
			a.send("alice", "carol", "m3", `3`).answer()
			return []string{"m1", "m2"}
		},
		"a hole": func(t *testing.T, r *gatewaytest.Redis, net *cluster, a, b *gateway) []string {
			a.send("alice", "bob", "m1", `1`).want(protocol.StatusRouted)
			acl(t, r, "-publish", "-spublish")
			a.send("alice", "bob", "m2", `2`).want(protocol.StatusStored)
			acl(t, r, "+publish", "+spublish")
			a.send("alice", "bob", "m3", `3`).want(protocol.StatusRouted)
			return []string{"m1", "m2", "m3"}
		},
		"all of them, pulses too": func(t *testing.T, r *gatewaytest.Redis, net *cluster, a, b *gateway) []string {
			acl(t, r, "-publish", "-spublish")
			var want []string
			for i := range 20 {
				want = append(want, "m"+strconv.Itoa(i))
				a.send("alice", "bob", want[i], `0`).want(protocol.StatusStored)
			}
			return want
		},
		"while it is not subscribed": func(t *testing.T, r *gatewaytest.Redis, net *cluster, a, b *gateway) []string {
			var want []string
			for i := range 5 {
				for _, n := range r.Nodes {
					if _, err := n.Do("CLIENT", "KILL", "TYPE", "pubsub"); err != nil {
						t.Fatal(err)
					}
				}
				for j := range 3 {
					id := fmt.Sprintf("m%d.%d", i, j)
					want = append(want, id)
					a.send("alice", "bob", id, `0`).answer()
				}
			}
			return want
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, kind := range realKinds {
				t.Run(string(kind), func(t *testing.T) {
					t.Parallel()
					r, within := gatewaytest.Shared(t, kind), gatewaytest.Busier(t)
					t.Cleanup(func() { acl(t, r, "+publish", "+spublish") })
					net := newCluster(t, r)
					a, b := net.gateway("a"), net.gateway("b")
					bob := b.connect("bob")
					want := lose(t, r, net, a, b)
					lost := time.Now()
					eventually(t, "bob has everything", func() bool { return len(bob.Notes().Received) >= len(want) })
					if d := time.Since(lost); d > within(lostWithin) {
						t.Errorf("bob had everything after %v", d)
					}
					var got []string
					for _, f := range bob.Notes().Received {
						got = append(got, f.ID)
					}
					if !slices.Equal(got, want) {
						t.Errorf("bob got %v, want %v", got, want)
					}
					if gaps := bob.Notes().Gaps; len(gaps) != 0 {
						t.Errorf("bob was told %v, nothing is missing", gaps)
					}
				})
			}
		})
	}
}

// FLUSHALL, and a message at the same moment, when nobody knows of bob any more: he is told that history changed, and has the message as
// soon as he is registered again, though it was published to nobody.
func TestMessageToAForgottenUserArrives(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net, within := newCluster(t, r), gatewaytest.Busier(t)
		a, b := net.gateway("a"), net.gateway("b")
		bob := b.connect("bob")
		a.send("alice", "bob", "m1", `1`).wantRouted(1, 1)
		bob.messages(1)
		if err := r.FlushAll(); err != nil {
			t.Fatal(err)
		}
		a.send("alice", "bob", "m2", `2`).wantStored(1)
		flushed := time.Now()
		eventually(t, "bob has m2", func() bool { return len(bob.Notes().Received) == 2 })
		if d := time.Since(flushed); d > within(5*time.Second) {
			t.Errorf("bob had m2 after %v", d)
		}
		n := bob.Notes()
		if len(n.Gaps) != 1 || n.Gaps[0].Reason != "history" || n.Gaps[0].Epoch != n.Received[0].Epoch || n.Received[1].Offset != 1 {
			t.Errorf("bob was told %v, and got %v", n.Gaps, n.Received)
		}
	})
}

// The history line changes, and the log with it. Bob is told where the old epoch ended, and what comes goes on from there.
func TestRollIsToldToLiveMembers(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a, b := net.gateway("a"), net.gateway("b")
		bob := b.connect("bob")
		first := a.send("alice", "bob", "m1", `1`).wantRouted(1, 1)
		h := net.head("bob")
		h.line = "another"
		net.setHead("bob", h)
		second := a.send("alice", "bob", "m2", `2`).wantRouted(2, 1)
		bob.wantMessages(a, "m1@1", "m2@2")
		gaps := bob.Notes().Gaps
		if len(gaps) != 1 || gaps[0].Epoch != first.Epoch || string(gaps[0].From) != "2" || gaps[0].Reason != "history" {
			t.Fatalf("bob was told %v, want one gap of %s from 2", gaps, first.Epoch)
		}
		if n := bob.Notes().Received; n[1].Epoch != second.Epoch || second.Epoch == first.Epoch {
			t.Errorf("bob got %v", n)
		}
	})
}
