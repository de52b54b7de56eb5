//go:build !secondpass

package router

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// An eavesdropper hears everything on the channel of a gateway, in the group of a user.
type eavesdropper struct {
	t  *testing.T
	ps *redis.PubSub
}

func (c *cluster) eavesdrop(gw protocol.GatewayID, user protocol.UserID) *eavesdropper {
	c.t.Helper()
	client, lane := c.clients()
	ctx := context.Background()
	channel := keyspace.Channel(c.layout.GroupOf(protocol.UserAddress(user)), gw)
	e := &eavesdropper{t: c.t}
	if c.layout.Sharded {
		e.ps = client.SSubscribe(ctx, channel)
	} else {
		e.ps = client.Subscribe(ctx, channel)
	}
	c.t.Cleanup(func() { _, _, _ = e.ps.Close(), client.Close(), lane.Close() })
	if _, err := e.ps.ReceiveTimeout(ctx, patience); err != nil {
		c.t.Fatal(err)
	}
	return e
}

func (e *eavesdropper) next() (protocol.EnvelopeKind, string) {
	e.t.Helper()
	v, err := e.ps.ReceiveTimeout(context.Background(), patience)
	if err != nil {
		e.t.Fatal(err)
	}
	kind, body, err := protocol.OpenEnvelope(v.(*redis.Message).Payload)
	if err != nil {
		e.t.Fatalf("%v: %v", v, err)
	}
	return kind, body
}

// Two gateways publish to the channel of b. Every envelope has the number after the one before it, whoever published; the pulse says the
// last number again, and takes none.
func TestNumbersOnAChannelAreConsecutive(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a, b, c := net.gateway("a"), net.gateway("b", brisk), net.gateway("c")
		ear := net.eavesdrop(b.id, "bob")
		b.connect("bob")
		var wg sync.WaitGroup
		for _, g := range []*gateway{a, c} {
			wg.Go(func() {
				for range 30 {
					g.send("alice", "bob", newID("m"), `0`).want(protocol.StatusRouted)
				}
			})
		}
		wg.Wait()
		number, records, pulses := uint64(0), 0, 0
		for records < 60 || pulses == 0 {
			switch kind, body := ear.next(); kind {
			case protocol.EnvelopeMessages:
				n, rest, err := protocol.OpenMessages(body)
				if err != nil || n != number+1 {
					t.Fatalf("number %d (%v) behind %d", n, err, number)
				}
				number = n
				var rec protocol.Record
				for {
					more, err := rest.Next(&rec)
					if err != nil {
						t.Fatal(err)
					}
					if !more {
						break
					}
					if records++; rec.Offset != uint64(records) || rec.Address != "u:bob" {
						t.Fatalf("record %d is for %s at %d", records, rec.Address, rec.Offset)
					}
				}
			case protocol.EnvelopePulse:
				p, err := protocol.OpenPulse(body)
				if err != nil || p.Number != number || p.Own != 1 && p.Own != 0 {
					t.Fatalf("the pulse says %+v (%v) behind number %d", p, err, number)
				}
				if records == 60 {
					pulses++
				}
			}
		}
		b.wantNothingCounted()
	})
}

// One batch for many users of one gateway is one publish there, and one at each other gateway that holds somebody.
func TestOneBatchIsOnePublishForEachGateway(t *testing.T) {
	net := newCluster(t, gatewaytest.Shared(t, gatewaytest.Standalone))
	a, b, c := net.gateway("a"), net.gateway("b"), net.gateway("c")
	clients := make(map[protocol.UserID][]*client)
	for i := range 20 {
		user := protocol.UserID("user" + strconv.Itoa(i))
		clients[user] = append(clients[user], b.connect(user))
		if i%2 == 0 {
			clients[user] = append(clients[user], c.connect(user))
		}
	}
	release := a.lane.hold()
	all := []*sent{a.send("alice", "nobody", "m0", `0`)}
	<-a.lane.entered
	for i := range 60 {
		all = append(all, a.send("alice", protocol.UserID("user"+strconv.Itoa(i%20)), "m"+strconv.Itoa(i+1), `0`))
	}
	release()
	for _, s := range all {
		s.answer()
	}
	for _, devices := range clients {
		for _, d := range devices {
			d.messages(3)
		}
	}
	numbers, err := net.redis.Client().HGetAll(context.Background(), keyspace.Numbers(keyspace.All)).Result()
	if err != nil || numbers[string(b.id)] != "1" || numbers[string(c.id)] != "1" || numbers[string(a.id)] != "" {
		t.Errorf("numbers %v (%v), want one for b and c", numbers, err)
	}
}

// A publish is lost: here its number is taken and nothing is sent. The next message shows it, and when none comes, the next pulse.
func TestMissedPublishIsCounted(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a, b := net.gateway("a"), net.gateway("b", brisk)
		bob := b.connect("bob")
		numbers := keyspace.Numbers(net.layout.GroupOf("u:bob"))
		lose := func(n int64) {
			t.Helper()
			if err := r.Client().HIncrBy(context.Background(), numbers, string(b.id), n).Err(); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "b has had its pulses", b.router.Subscribed)

		lose(1) // the very first publish of the channel
		a.send("alice", "bob", "m1", `1`).wantRouted(1, 1)
		bob.messages(1)
		if n := b.router.Stats().MissedPublishes; n != 1 {
			t.Errorf("%d missed publishes counted behind a message, want 1", n)
		}
		lose(3)
		eventually(t, "the pulse shows the lost ones", func() bool { return b.router.Stats().MissedPublishes == 4 })
		a.send("alice", "bob", "m2", `2`).wantRouted(2, 1)
		bob.wantMessages(a, "m1@1", "m2@2")
		if s := b.router.Stats(); s.MissedPublishes != 4 || s.Holes != 0 {
			t.Errorf("%d missed publishes and %d holes counted, want 4 and none", s.MissedPublishes, s.Holes)
		}

		// The hash with the numbers is gone, as after FLUSHALL: they begin again, and nothing was missed by that.
		if err := r.Client().Del(context.Background(), numbers).Err(); err != nil {
			t.Fatal(err)
		}
		a.send("alice", "bob", "m3", `3`).wantRouted(4, 1)
		bob.messages(4)
		d := b.router.deliverer("u:bob")
		heard := d.pulsed.Load()
		eventually(t, "b has had pulses of the new numbers", func() bool { return d.pulsed.Load() > heard+int64(2*200*time.Millisecond) })
		if n := b.router.Stats().MissedPublishes; n != 4 {
			t.Errorf("%d missed publishes counted after the numbers began again, want 4", n)
		}
		if n := a.router.Stats().MissedPublishes; n != 0 {
			t.Errorf("a counted %d missed publishes, it got none", n)
		}
	})
}

// Redis lost the numbers of a channel, and they begin again. Whatever is heard of it first, and though a pulse that has seen the old ones is late,
// nothing counts as missed that never was published.
func TestNumbersThatBeginAgainAreNoGap(t *testing.T) {
	message := func(n uint64) func(*bench) { return func(b *bench) { b.open(envelopeOf(n, record("bob", "e1", 1))) } }
	pulse := func(n uint64) func(*bench) {
		return func(b *bench) { b.do(command{kind: commandPulse, number: n, line: "line"}) }
	}
	for name, heard := range map[string][]func(*bench){
		"a message":                   {message(1), pulse(1), pulse(1), message(2)},
		"a pulse":                     {pulse(0), message(1), pulse(1), pulse(1), message(2)},
		"a message, then an old word": {message(1), pulse(5), pulse(1), pulse(1), message(2)},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			message(5)(b)
			pulse(5)(b)
			for _, hear := range heard {
				hear(b)
			}
			if n := b.g.router.Stats().MissedPublishes; n != 0 {
				t.Errorf("%d missed publishes counted, want none", n)
			}
		})
	}
}

// A gateway that is new to a channel doesn't know which number comes next: whatever comes first is right.
func TestFirstNumberOnAChannelIsNoGap(t *testing.T) {
	b := newBench(t)
	b.open(envelopeOf(812, record("bob", "e1", 1)))
	b.open(envelopeOf(813, record("bob", "e1", 2)))
	if n := b.g.router.Stats().MissedPublishes; n != 0 {
		t.Errorf("%d missed publishes counted, want none", n)
	}
	b.open(envelopeOf(816, record("bob", "e1", 3)))
	b.open("\x01p818 1 line")
	if n := b.g.router.Stats().MissedPublishes; n != 4 {
		t.Errorf("%d missed publishes counted, want 814, 815, 817 and 818", n)
	}
}

// A gateway is fit to serve when each of its channels has lately brought a pulse. When its pulses stop, so does the proof.
func TestSubscribedMeansThatPulsesArrive(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		g := net.makeGateway("a", brisk, func(s *settings) { s.router.Starved = time.Second })
		if g.router.Subscribed() || g.router.Listening() {
			t.Error("fit before it ran")
		}
		g.startRouter()
		eventually(t, "listening", g.router.Listening)
		if g.router.Subscribed() {
			t.Error("fit before the first pulse")
		}
		stop := running(t, g.registry.Run)
		defer stop()
		eventually(t, "fit", g.router.Subscribed)
		stop()
		eventually(t, "unfit when no pulse comes", func() bool { return !g.router.Subscribed() })
	})
}

// The subscription looks alive and brings nothing, not even the pulse. It is thrown away and made anew, and messages come again.
func TestStarvedSubscriptionIsMadeAnew(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a, b := net.gateway("a"), net.gateway("b", func(s *settings) { s.router.Starved = 600 * time.Millisecond })
		bob := b.connect("bob")
		a.send("alice", "bob", "m1", `1`).wantRouted(1, 1)
		b.stopRegistry() // no pulses
		before := b.router.Stats().Subscriptions
		eventually(t, "every channel was subscribed again", func() bool {
			return b.router.Stats().Subscriptions >= before+uint64(len(net.layout.Groups()))
		})
		eventually(t, "a message arrives", func() bool {
			a.send("alice", "bob", newID("m"), `0`).answer()
			return len(bob.Notes().Received) >= 2
		})
	})
}

// Somebody cuts every subscription, again and again. They are made anew within moments; what was published in between is missed by its
// number or by the hole it leaves, and what comes afterwards comes in order.
func TestCutSubscriptionsAreMadeAnew(t *testing.T) {
	for _, kind := range realKinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			r := gatewaytest.Shared(t, kind)
			net := newCluster(t, r)
			a, b := net.gateway("a"), net.gateway("b")
			bob := b.connect("bob")
			for round := range 3 {
				before := b.router.Stats().Subscriptions
				for _, n := range r.Nodes {
					if _, err := n.Do("CLIENT", "KILL", "TYPE", "pubsub"); err != nil {
						t.Fatal(err)
					}
				}
				eventually(t, "every channel was subscribed again", func() bool {
					return b.router.Listening() && b.router.Stats().Subscriptions >= before+uint64(len(net.layout.Groups()))
				})
				id := "after" + strconv.Itoa(round)
				a.send("alice", "bob", id, `0`).want(protocol.StatusRouted)
				eventually(t, id+" arrives", func() bool {
					return slices.ContainsFunc(bob.Notes().Received, func(f gatewaytest.Frame) bool { return f.ID == id })
				})
			}
			var last uint64
			for _, f := range bob.Notes().Received {
				if f.Offset <= last {
					t.Errorf("offset %d came behind %d", f.Offset, last)
				}
				last = f.Offset
			}
		})
	}
}

// Another version of Chatgate speaks on the channel, or somebody who has no business there. Each envelope that can't be understood is
// counted, and the ones around it are delivered as ever.
func TestUnreadableEnvelopesAreCountedAndBreakNothing(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a := net.gateway("a", func(s *settings) { s.router.OnKick = func(k protocol.Kick) { t.Errorf("kicked: %+v", k) } })
		bob := a.connect("bob")
		group := net.layout.GroupOf("u:bob")
		whole := envelopeOf(1, record("bob", "e", 1))
		bad := []string{
			"", "\x01", "\x02m1\n" + whole[4:], "\x00", "m", "\x01x", "\x01M1\n", "{}", "\x01m", "\x01m1", "\x01mx\n", "\x01m-1\n",
			"\x01m99999999999999999999\n", whole[:len(whole)-1], whole + "x", whole[:8], envelopeOf(1, "e 1 5\nu:bob"),
			envelopeOf(1, "e 1 99999999999999999999 1\nu:bobx"), envelopeOf(1, "e 1 18446744073709551615 18446744073709551615\nu:bobx"),
			"\x01p", "\x01p1", "\x01p1 2", "\x01px y z", "\x01p-1 1 l", "\x01k", "\x01kc\x1f1", "\x01kc\x1fx\x1f4503\x1fr\x1fb", "\x01kc\x1f1\x1f99999\x1fr\x1fb",
			"\x01e", "\x01ex", "\x01e- 0 5 5\nu:bob", strings.Repeat("\xff", 100_000),
		}
		const harmless = 1 // an ephemeral envelope without records
		before := a.router.Stats()
		for i, payload := range bad {
			p := &parcel{group: group, gateway: a.id, payload: []byte(payload)}
			if err := a.router.publish(context.Background(), []*parcel{p}); err != nil || p.receivers != 1 {
				t.Fatalf("envelope %d: %d receivers, %v", i, p.receivers, err)
			}
			id := "m" + strconv.Itoa(i)
			a.send("alice", "bob", id, `0`).want(protocol.StatusRouted)
			eventually(t, fmt.Sprintf("%s arrives behind %.20q", id, payload), func() bool {
				all := bob.Notes().Received
				return len(all) > 0 && all[len(all)-1].ID == id
			})
		}
		if n := a.router.Stats().Unreadable - before.Unreadable; n != uint64(len(bad)-harmless) {
			t.Errorf("%d unreadable envelopes counted, %d were sent", n, len(bad)-harmless)
		}
	})
}

// A gateway that is subscribed where nothing is published hears all the same, from a replica, but is counted by nobody. Two pulses in a row
// that nobody heard end such a subscription; one doesn't, nor a Redis that may not say.
func TestASubscriptionNobodyPublishesToIsMadeAnew(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a := net.gateway("a", func(s *settings) { s.registry.Pulse, s.router.Starved = time.Hour, time.Hour })
		d := a.router.deliverers[0]
		line, err := r.Client().HGet(context.Background(), keyspace.Line(d.group), "id").Result()
		if err != nil {
			t.Fatal(err)
		}
		began := a.router.Stats().Subscriptions
		for _, heard := range []int{0, 1, 0, -1, 0, 1} {
			a.router.Pulsed(0, 0, line, heard)
		}
		if a.settle(); a.router.Stats().Subscriptions != began || d.listening.Load() == nil {
			t.Fatalf("%d subscriptions after %d", a.router.Stats().Subscriptions, began)
		}
		before := d.listening.Load()
		a.router.Pulsed(0, 0, line, 0)
		a.router.Pulsed(0, 0, line, 0)
		if err := gatewaytest.Poll(patience, func() error {
			if d.listening.Load() == before || !d.subscribed.Load() {
				return fmt.Errorf("it is the same subscription")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		c := a.connect("bob")
		a.send("alice", "bob", "m1", `"hi"`).wantRouted(1, 1)
		c.wantMessages(a, "m1@1")
	})
}
