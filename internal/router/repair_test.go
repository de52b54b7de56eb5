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
	"chatgate/internal/history"
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

// Holes come faster than the log is read: a feed has one read in flight.
func TestOneReadInFlightForEachFeed(t *testing.T) {
	b := newBench(t)
	bob, a := b.attach("bob")
	b.live(bob, a, "e1", 0)
	for offset := uint64(2); offset <= 200; offset += 2 {
		b.stored("bob", "e1", offset)
	}
	if s := b.g.router.Stats(); s.Repairs != 1 || s.Holes != 1 {
		t.Errorf("%d repairs for %d holes, want one", s.Repairs, s.Holes)
	}
}

// A check finds the feed behind while its log is read: that read may be older than what the check saw, so it goes on.
func TestReadUnderWayGoesOnWhenTheLogIsFurther(t *testing.T) {
	b := newBench(t)
	bob, a := b.attach("bob")
	b.live(bob, a, "e1", 0)
	b.stored("bob", "e1", 2)
	b.do(command{kind: commandStands, address: "u:bob", at: protocol.Position{Epoch: "e1", Offset: 3}})
	if b.read("bob", logOf("e1", 2), false, 1, 2) {
		t.Error("whole, and 3 is missing")
	}
	if !b.read("bob", logOf("e1", 3), false, 3) {
		t.Error("not whole")
	}
	b.wantPositions(bob, "e1/1", "e1/2", "e1/3")
}

// Redis tells another history, and nothing else shows it: the channel's numbers are what they were, and nobody writes to bob. With the
// pulse that says so his feed is compared with his log, which has another epoch, and reads it.
func TestAnotherHistoryLineIsEnoughToCompare(t *testing.T) {
	b := newBench(t)
	bob, a := b.attach("bob")
	b.live(bob, a, "e1", 0)
	for range 2 {
		b.do(command{kind: commandPulse, number: 1, line: "before"})
	}
	if b.checking {
		t.Fatal("feeds are compared although nothing has changed")
	}
	b.do(command{kind: commandPulse, number: 1, line: "after"})
	if !b.checking {
		t.Fatal("no feed is compared")
	}
	for b.checking {
		select {
		case cmd := <-b.commands:
			b.do(cmd)
		case <-time.After(gatewaytest.Deadline):
			t.Fatal("no log was looked at")
		}
	}
	if b.feeds["u:bob"].repairing == nil {
		t.Error("the log is not read")
	}
}

// Bob's register is under way when a publish to his gateway is lost. He goes live, and has the message all the same: whoever waits for his
// turn when something is missed reads his log once more.
func TestWhatIsMissedWhileSomebodyComesIsRead(t *testing.T) {
	r := gatewaytest.Shared(t, gatewaytest.Standalone)
	net := newCluster(t, r)
	a, b := net.gateway("a", brisk), net.gateway("b", brisk)
	bob, x := b.hold("bob")
	x.attach()
	reg := x.register()
	t.Cleanup(func() { acl(t, r, "+publish", "+spublish") })
	acl(t, r, "-publish", "-spublish")
	a.send("alice", "bob", "m1", `1`).want(protocol.StatusStored)
	acl(t, r, "+publish", "+spublish")
	eventually(t, "b has missed it", func() bool { return b.router.Stats().MissedPublishes > 0 })
	x.follow(reg)
	bob.wantRegistered()
	bob.messages(1)
}

// Bob's register is under way when Redis' history changes. He is told of it once he is live.
func TestRollWhileSomebodyComesIsTold(t *testing.T) {
	r := gatewaytest.Shared(t, gatewaytest.Standalone)
	net := newCluster(t, r)
	a, b := net.gateway("a", brisk), net.gateway("b", brisk)
	a.send("alice", "bob", "m1", `1`).want(protocol.StatusStored)
	bob, x := b.hold("bob")
	x.attach()
	reg := x.register()
	newLine(t, r)
	d := b.router.deliverer("u:bob")
	heard := d.pulsed.Load()
	eventually(t, "b has heard of it", func() bool { return d.pulsed.Load() > heard+int64(time.Second) })
	x.follow(reg)
	bob.wantRegistered()
	eventually(t, "bob is told", func() bool { return len(bob.Notes().Gaps) == 1 })
}

// Everybody left while the log was read for them, and others came, for whom it is read as well: the first read ends with those it was for.
func TestReadOfThoseWhoLeftEnds(t *testing.T) {
	b := newBench(t)
	bob, one := b.attach("bob")
	b.live(bob, one, "e1", 0)
	b.stored("bob", "e1", 2)
	first := b.feeds["u:bob"].repairing
	b.detach(one)
	phone, two := b.attach("bob")
	b.live(phone, two, "e1", 0)
	b.stored("bob", "e1", 2)
	page := history.Page{Log: logOf("e1", 2)}
	var next protocol.Position
	answer := make(chan bool, 1)
	b.do(command{kind: commandRepair, address: "u:bob", repairing: first, at: protocol.Position{Epoch: "e1"}, page: &page, next: &next, answer: answer})
	if !<-answer {
		t.Error("the read of those who left goes on")
	}
	if f := b.feeds["u:bob"]; f.repairing == nil || f.repairing == first {
		t.Error("the read of those who came has ended")
	}
}

// An operator deleted the newest message: a feed that reads the log is whole all the same, and goes on behind it.
func TestDeletedMessageDoesNotHoldAFeedUp(t *testing.T) {
	b := newBench(t)
	bob, a := b.attach("bob")
	b.live(bob, a, "e1", 0)
	b.stored("bob", "e1", 3)
	if b.read("bob", logOf("e1", 2), false, 1) {
		t.Log("what waited was beyond it")
	}
	b.read("bob", logOf("e1", 3), false, 3)
	b.stored("bob", "e1", 4)
	b.wantPositions(bob, "e1/1", "e1/3", "e1/4")
}

// The phone came at 4 while the feed lagged at 2, and then the log rolled, with nothing lost: the phone still starts behind 4.
func TestLaterMemberKeepsItsStartOverARoll(t *testing.T) {
	b := newBench(t)
	laptop, one := b.attach("bob")
	b.live(laptop, one, "e1", 2)
	phone, two := b.attach("bob")
	b.live(phone, two, "e1", 4)
	b.stored("bob", "e2", 6)
	log := logOf("e2", 6)
	log.Rolls = []protocol.Position{{Epoch: "e1", Offset: 5}}
	if !b.read("bob", log, false, 3, 4, 5, 6) {
		t.Error("the feed is not whole")
	}
	b.wantPositions(laptop, "e2/3", "e2/4", "e2/5", "e2/6")
	b.wantPositions(phone, "e2/5", "e2/6")
}

// What waits for a member is more than its outbox takes at once: it is not live yet, and reads on at its own pace.
func TestWaitingMessagesNeverBurstIntoTheOutbox(t *testing.T) {
	b := newBench(t, func(s *settings) { s.conns.OutboxFrames = 50 })
	bob, a := b.attach("bob")
	for offset := uint64(1); offset <= 200; offset++ {
		b.stored("bob", "e1", offset)
	}
	if b.goLive(a, "e1", 0) {
		t.Fatal("200 frames for an outbox of 50")
	}
	b.live(bob, a, "e1", 160)
	if n := len(bob.messages(40)); n != 40 {
		t.Errorf("bob got %d messages, want 161 to 200", n)
	}
	if _, ended := a.conn.Cause(); ended {
		t.Error("bob's connection ended")
	}
}

// Bob's laptop lags at 2, his phone came in at 4. What is lost of the log between is the laptop's loss alone, and of an epoch that is gone each
// is told from where it stands.
func TestEachMemberIsToldItsOwnGap(t *testing.T) {
	for name, tc := range map[string]struct {
		log           history.Log
		laptop, phone string // "": none
	}{
		"trimmed up to the phone":  {history.Log{Epoch: "e1", First: 5, Top: 6}, "trimmed 3", ""},
		"trimmed beyond the phone": {history.Log{Epoch: "e1", First: 6, Top: 6}, "trimmed 3", "trimmed 5"},
		"emptied":                  {history.Log{Epoch: "e2", First: 1, Top: 1}, "history 3", "history 5"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			laptop, one := b.attach("bob")
			b.live(laptop, one, "e1", 2)
			phone, two := b.attach("bob")
			b.live(phone, two, "e1", 4)
			b.stored("bob", tc.log.Epoch, tc.log.Top)
			b.read("bob", tc.log, false)
			var kept []uint64
			for o := tc.log.First; o <= tc.log.Top; o++ {
				kept = append(kept, o)
			}
			b.read("bob", tc.log, false, kept...)
			last := fmt.Sprintf("%s/%d", tc.log.Epoch, tc.log.Top)
			for c, want := range map[*client]string{laptop: tc.laptop, phone: tc.phone} {
				if err := c.WaitCount(len(kept), gatewaytest.Deadline, "message"); err != nil {
					t.Fatal(err)
				}
				var got string
				for _, f := range c.Notes().Gaps {
					got += f.Reason + " " + string(f.From)
				}
				if got != want {
					t.Errorf("told of the gap %q, want %q", got, want)
				}
				if all := c.Notes().Received; all[len(all)-1].ID != last {
					t.Errorf("got %v, want %s last", all, last)
				}
			}
		})
	}
}
