//go:build !secondpass

package router

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"testing"

	"chatgate/internal/connection"
	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// Alice's gateway is a, bob's laptop is on b and his phone on c. What she says is stored once, and each of the two gets it once, as
// the bytes she sent.
func TestStoredMessageCrossesGateways(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a, b, c := net.gateway("a"), net.gateway("b"), net.gateway("c")
		laptop, phone := b.connect("bob"), c.connect("bob")

		content := `{"text":"hi \u0041", "n":1e400}`
		first := a.send("alice", "bob", "m1", content).wantRouted(1, 2)
		if first.Epoch != laptop.registered.Epoch {
			t.Errorf("acknowledged in epoch %s, bob registered in %s", first.Epoch, laptop.registered.Epoch)
		}
		a.send("alice", "bob", "m2", `"again"`).wantRouted(2, 2)

		for _, device := range []*client{laptop, phone} {
			got := device.wantMessages(a, "m1@1", "m2@2")
			m := got[0]
			if m.Sender() != "alice" || string(m.To) != `"bob"` || m.Epoch != first.Epoch || m.Ts != first.Ts || m.Ephemeral {
				t.Errorf("bob got %s, acknowledged was %s", m, first.text())
			}
			if !bytes.Equal(m.Content, []byte(content)) {
				t.Errorf("bob got the content %s, sent was %s", m.Content, content)
			}
		}
	})
}

// Bob sits on the same gateway as alice: the message goes through Redis all the same, and its answer says so.
func TestMessageWithinOneGatewayIsStoredAndNumberedToo(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a := net.gateway("a")
		bob := a.connect("bob")
		a.send("alice", "bob", "m1", `1`).wantRouted(1, 1)
		a.send("bob", "bob", "m2", `2`).wantRouted(2, 1)
		bob.wantMessages(a, "m1@1", "m2@2")
	})
}

// Nobody is there: the message is kept under the next offset. Who registers afterwards is told where the log stands.
func TestMessageForNobodyIsStored(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a, b := net.gateway("a"), net.gateway("b")
		epoch := a.send("alice", "bob", "m1", `1`).wantStored(1).Epoch
		b.send("carol", "bob", "m2", `2`).wantStored(2)
		net.wantStream("bob", "m1", "m2")

		bob := b.connect("bob")
		if f := bob.registered; f.Epoch != epoch || f.Offset != 2 || f.Top != 2 || f.First != 1 {
			t.Errorf("bob registered at %s, want %s/2 with 1 kept first", f, epoch)
		}
		a.send("alice", "bob", "m3", `3`).wantRouted(3, 1)
		bob.wantMessages(a, "m3@3")

		bob.leave(b)
		a.send("alice", "bob", "m4", `4`).wantStored(5) // 4 is the marker
	})
}

// Three gateways, eight senders on each, three receivers, all at once. Every receiver's offsets are 1, 2, 3, … without holes, in the
// acks, in the log and on two devices; and each sender's messages stand in the order it sent them.
func TestConcurrentSendersLeaveNoHoles(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		const senders, each = 8, 40
		net := newCluster(t, r)
		gateways := []*gateway{net.gateway("a"), net.gateway("b"), net.gateway("c")}
		receivers := []protocol.UserID{"rita", "rob", "away"}
		devices := map[protocol.UserID][]*client{
			"rita": {gateways[0].connect("rita"), gateways[1].connect("rita")},
			"rob":  {gateways[2].connect("rob")},
		}

		var mu sync.Mutex
		bySender := make(map[string][]*sent) // sender and receiver
		var wg sync.WaitGroup
		for _, g := range gateways {
			for s := range senders {
				from := protocol.UserID(fmt.Sprintf("%s.%d", g.id, s))
				wg.Go(func() {
					for i := range each {
						to := receivers[i%len(receivers)]
						m := g.send(from, to, "m"+strconv.Itoa(i), strconv.Itoa(i))
						mu.Lock()
						bySender[string(from)+" to "+string(to)] = append(bySender[string(from)+" to "+string(to)], m)
						mu.Unlock()
					}
				})
			}
		}
		wg.Wait()

		acked := make(map[protocol.UserID][]uint64)
		for pair, all := range bySender {
			last := uint64(0)
			for _, m := range all {
				want := protocol.StatusRouted
				if m.To == protocol.UserAddress("away") {
					want = protocol.StatusStored
				}
				offset := m.want(want).Offset
				if offset <= last {
					t.Fatalf("%s: message %s has offset %d, the one before it %d", pair, m.ID, offset, last)
				}
				last = offset
				acked[protocol.UserID(m.To.Name())] = append(acked[protocol.UserID(m.To.Name())], offset)
			}
		}
		total := 0
		for _, user := range receivers {
			offsets := acked[user]
			slices.Sort(offsets)
			wantNoHoles(t, "acks for "+string(user), offsets, 1)
			stored, _ := net.stream(user)
			wantNoHoles(t, "stream of "+string(user), stored, 1)
			if len(stored) != len(offsets) {
				t.Errorf("%s: %d acknowledged, %d stored", user, len(offsets), len(stored))
			}
			for _, c := range devices[user] {
				var got []uint64
				for _, f := range c.messages(len(offsets)) {
					got = append(got, f.Offset)
				}
				wantNoHoles(t, "what came to "+string(user), got, 1)
			}
			total += len(offsets)
		}
		if total != 3*senders*each {
			t.Errorf("%d acknowledged, %d were sent", total, 3*senders*each)
		}
		for _, g := range gateways {
			if s := g.router.Stats(); s.Holes != 0 || s.Duplicates != 0 || s.MissedPublishes != 0 {
				t.Errorf("%s counted %+v", g.id, s)
			}
		}
	})
}

// A sender with 16 in flight writes 600 messages to one address, so that most travel in batches behind one another: they are stored in
// the order they were sent, and come in it.
func TestOrderOfOneSenderIsKeptAcrossBatches(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		const count = 600
		net := newCluster(t, r)
		a, b := net.gateway("a"), net.gateway("b")
		bob := b.connect("bob")
		inFlight := make(chan struct{}, 16)
		all := make([]*sent, count)
		for i := range count {
			m := a.message("alice", "bob", "m"+strconv.Itoa(i), strconv.Itoa(i))
			done := m.Done
			inFlight <- struct{}{}
			m.Done = func(out *connection.Batch, x *Message) { done(out, x); <-inFlight }
			all[i] = a.post(m)
		}
		var want []string
		for i, m := range all {
			m.wantRouted(uint64(i+1), 1)
			want = append(want, fmt.Sprintf("m%d@%d", i, i+1))
		}
		bob.wantMessages(a, want...)
		if calls := a.router.Stats().Calls; calls >= count {
			t.Errorf("%d calls for %d messages: nothing travelled together", calls, count)
		}
	})
}

// A client that got no answer sends again, with the same id: on its gateway, on another one, and twice in one batch. The answer is
// always the first one, nothing is stored again, and bob sees nothing twice.
func TestRepeatedMessageGetsTheFirstAnswer(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a, b := net.gateway("a"), net.gateway("b")
		bob := b.connect("bob")

		first := a.send("alice", "bob", "m1", `"x"`).wantRouted(1, 1)
		a.send("alice", "bob", "m1", `"x"`).wantAnswer(first)
		b.send("alice", "bob", "m1", `"x"`).wantAnswer(first)

		release := a.lane.hold()
		a.send("alice", "bob", "other", `0`) // keeps the lane busy, so that what follows is one batch
		<-a.lane.entered
		one := a.send("alice", "bob", "m2", `"y"`)
		two := a.send("alice", "bob", "m2", `"y"`)
		old := a.send("alice", "bob", "m1", `"x"`)
		three := a.send("alice", "bob", "m2", `"y"`)
		release()
		second := one.want(protocol.StatusRouted)
		two.wantAnswer(second)
		three.wantAnswer(second)
		old.wantAnswer(first)

		bob.wantMessages(a, "m1@1", "other@2", "m2@3")
		bob.leave(b)
		// Bob is away by now. What was answered first was true then, and stays the answer.
		b.send("alice", "bob", "m2", `"y"`).wantAnswer(second)
		if offsets, _ := net.stream("bob"); len(offsets) != 4 {
			t.Errorf("%d stored, want m1, other, m2 and the marker", len(offsets))
		}
	})
}

// The id names one message. Under it, other content is a mistake of the client, and nothing of it is stored or sent.
func TestOtherContentUnderAKnownIDIsAConflict(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a, b := net.gateway("a"), net.gateway("b")
		bob := b.connect("bob")
		first := a.send("alice", "bob", "m1", `"x"`).wantRouted(1, 1)
		for _, g := range []*gateway{a, b} {
			if e := g.send("alice", "bob", "m1", `"y"`).wantCode(protocol.CodeConflict); e.ID != "m1" {
				t.Errorf("the conflict names id %q", e.ID)
			}
		}
		release := a.lane.hold()
		a.send("alice", "bob", "other", `0`)
		<-a.lane.entered
		one := a.send("alice", "bob", "m2", `"x"`)
		two := a.send("alice", "bob", "m2", `"y"`)
		three := a.send("alice", "bob", "m2", `"x"`)
		release()
		second := one.wantRouted(3, 1)
		two.wantCode(protocol.CodeConflict)
		three.wantAnswer(second)
		a.send("alice", "bob", "m1", `"x"`).wantAnswer(first)
		bob.wantMessages(a, "m1@1", "other@2", "m2@3")
		if n := a.router.Stats().Conflicts; n != 2 {
			t.Errorf("%d conflicts counted, want 2", n)
		}
	})
}

// An id is the sender's own: others may use it, and no pair of sender and id can be cut so that it looks like another pair.
func TestSendersShareNoIDs(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a := net.gateway("a")
		bob := a.connect("bob")
		for i, m := range []struct{ from, id string }{
			{"alice", "m1"}, {"carol", "m1"}, {"ab", "c"}, {"a", "bc"}, {"abc", "d"}, {"ab", "cd"}, {"alice", "m1\x00"}, {"al", "icem1"},
		} {
			a.send(protocol.UserID(m.from), "bob", m.id, `"same"`).wantRouted(uint64(i+1), 1)
		}
		bob.messages(8)
	})
}

// Addresses of any shape have a log of their own: braces and colons neither move a key to another slot nor share it.
func TestStrangeAddressesStayApart(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a, b := net.gateway("a"), net.gateway("b")
		users := []protocol.UserID{
			"a:b", "{x}", "}{", "*", "bob ", "Bob", "böb", "日本", "cg:{p1}:l:u:bob", "../..", "1 2 3", "%s", "'; --", "u:bob", "\u2028",
		}
		clients := make(map[protocol.UserID]*client)
		for _, u := range users {
			clients[u] = b.connect(u)
		}
		for _, u := range users {
			a.send("alice", u, "for "+string(u), quoted(string(u))).wantRouted(1, 1)
		}
		for _, u := range users {
			got := clients[u].wantMessages(a, "for "+string(u)+"")
			if string(got[0].Content) != quoted(string(u)) {
				t.Errorf("%q got %s", u, got[0].Content)
			}
		}
	})
}

// The same call run again, as a lane does when an answer was lost, gives the same answer and changes nothing: not the log, not the
// stream, not the numbers, not the events, and nobody is sent anything.
func TestScriptRunTwiceChangesNothing(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a, b := net.gateway("a", withEvents), net.gateway("b", withEvents)
		bob := b.connect("bob")
		a.send("alice", "bob", "m1", `1`).wantRouted(1, 1)

		// A lane of our own, whose batch we run by hand: new messages, one of them twice, a known one, and a conflict.
		l := &lane{router: a.router, group: net.layout.GroupOf(protocol.UserAddress("bob"))}
		for _, m := range []struct{ id, content string }{{"m2", `2`}, {"m3", `3`}, {"m2", `2`}, {"m1", `1`}, {"m1", `9`}} {
			s := a.message("alice", "bob", m.id, m.content)
			s.answers.Add(1) // nobody waits for it
			s.hash()
			l.batch = append(l.batch, s.Message)
		}
		run := func() (string, []Result) {
			t.Helper()
			l.call.build(l, l.batch, "")
			reply, err := l.call.run(context.Background(), a.router)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := l.call.read(l.batch, "", reply); err != nil {
				t.Fatal(err)
			}
			var results []Result
			for _, m := range l.batch {
				results = append(results, m.Result)
			}
			return fmt.Sprint(reply), results
		}
		once, results := run()
		for i, want := range []uint64{2, 3, 2, 1} {
			if r := results[i]; r.Err != nil || r.Offset != want || r.Status != protocol.StatusRouted {
				t.Errorf("message %d: %s, want offset %d", i, r.text(), want)
			}
		}
		if results[4].Err == nil || results[4].Err.Code != protocol.CodeConflict {
			t.Errorf("other content under m1: %s", results[4].text())
		}
		before := net.dump("bob")
		for range 3 {
			if again, _ := run(); again != once {
				t.Fatalf("the same call answered\n%s\nthen\n%s", once, again)
			}
		}
		if after := net.dump("bob"); !maps.Equal(before, after) {
			t.Errorf("the same call changed\n%v\nto\n%v", before, after)
		}
		bob.wantMessages(a, "m1@1", "m2@2", "m3@3")
	})
}

// dump returns everything the send script may change for a user.
func (c *cluster) dump(user protocol.UserID) map[string]string {
	c.t.Helper()
	ctx, a := context.Background(), protocol.UserAddress(user)
	all := make(map[string]string)
	log, err := c.redis.Client().HGetAll(ctx, keyspace.Log(a)).Result()
	if err != nil {
		c.t.Fatal(err)
	}
	for k, v := range log {
		all["log "+k] = v
	}
	numbers, err := c.redis.Client().HGetAll(ctx, keyspace.Numbers(c.layout.GroupOf(a))).Result()
	if err != nil {
		c.t.Fatal(err)
	}
	for k, v := range numbers {
		all["number "+k] = v
	}
	offsets, frames := c.stream(user)
	for i := range offsets {
		all["stream "+strconv.FormatUint(offsets[i], 10)] = frames[i]
	}
	for _, e := range c.events(a) {
		all["event "+e.n] = e.sent + " " + e.origin
	}
	return all
}
