//go:build !secondpass

package router

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"chatgate/internal/connection"
	"chatgate/internal/gatewaytest"
	"chatgate/internal/history"
	"chatgate/internal/protocol"
)

// wantPositions checks what a client got, up to now: the bench runs nothing behind the test's back.
func (b *bench) wantPositions(c *client, want ...string) {
	b.t.Helper()
	got := c.messages(len(want))
	var positions []string
	for _, f := range got {
		positions = append(positions, fmt.Sprintf("%s/%d", f.Epoch, f.Offset))
		if f.ID != positions[len(positions)-1] {
			b.t.Errorf("%s came at the position %s", f.ID, positions[len(positions)-1])
		}
	}
	if strings.Join(positions, " ") != strings.Join(want, " ") {
		b.t.Fatalf("%s got %v, want %v", c.Name, positions, want)
	}
}

// Bob's phone registers while messages for him come in. What comes between attaching and going live is kept; behind `registered` he gets
// what is above his position, and nothing at or below it: neither what was kept, nor what comes late.
func TestMessagesKeptBeforeRegisteredComeBehindIt(t *testing.T) {
	b := newBench(t)
	bob, a := b.attach("bob")
	for offset := uint64(3); offset <= 6; offset++ {
		b.stored("bob", "e1", offset)
	}
	if err := bob.None("message", 0); err != nil {
		t.Fatal(err)
	}
	b.live(bob, a, "e1", 4)
	b.stored("bob", "e1", 7)
	b.wantPositions(bob, "e1/5", "e1/6", "e1/7")
	if all := bob.Notes().Received; !all[0].At.After(bob.registered.At) && !all[0].At.Equal(bob.registered.At) {
		t.Error("a message came before registered")
	}
}

// The register script says position 4, and the gateway's channel lags: 3 and 4 come only now. They were stored before bob came.
func TestWhatIsAtOrBelowThePositionIsNotDelivered(t *testing.T) {
	b := newBench(t)
	bob, a := b.attach("bob")
	b.live(bob, a, "e1", 4)
	for offset := uint64(3); offset <= 6; offset++ {
		b.stored("bob", "e1", offset)
	}
	b.wantPositions(bob, "e1/5", "e1/6")
	if n := b.g.router.Stats().Duplicates; n != 2 {
		t.Errorf("%d duplicates counted, want 2", n)
	}
}

// Bob's laptop is there; the feed lags at 2 when his phone comes in at 4. The laptop gets 3 and 4 when they come, the phone doesn't.
func TestSecondDeviceStartsAtItsOwnPosition(t *testing.T) {
	b := newBench(t)
	laptop, one := b.attach("bob")
	b.live(laptop, one, "e1", 0)
	b.stored("bob", "e1", 1)
	b.stored("bob", "e1", 2)
	phone, two := b.attach("bob")
	b.stored("bob", "e1", 3)
	b.live(phone, two, "e1", 4)
	b.stored("bob", "e1", 4)
	b.stored("bob", "e1", 5)
	b.wantPositions(laptop, "e1/1", "e1/2", "e1/3", "e1/4", "e1/5")
	b.wantPositions(phone, "e1/5")
}

// The laptop has 3 already when the phone comes in at 2, and nothing waits for the phone: 3 was published before it was attached, and
// nobody publishes it again. So it isn't live before it has read 3 from the log.
func TestWhoIsBehindTheFeedReadsFirst(t *testing.T) {
	b := newBench(t)
	laptop, one := b.attach("bob")
	b.live(laptop, one, "e1", 0)
	for offset := range uint64(3) {
		b.stored("bob", "e1", offset+1)
	}
	phone, two := b.attach("bob")
	if b.goLive(two, "e1", 2) {
		t.Error("live at 2, and 3 will never come")
	}
	b.live(phone, two, "e1", 3) // which came from the log
	b.stored("bob", "e1", 4)
	b.wantPositions(laptop, "e1/1", "e1/2", "e1/3", "e1/4")
	b.wantPositions(phone, "e1/4")
}

// The phone came in at 4 while the feed lagged at 2, and then the log was lost: Redis is empty, and the next message is the first of
// another epoch. What it is worth only the log knows, so it is read, and both are told. Its offset is lower than the phone's position,
// which says nothing: epochs come first.
func TestLowerOffsetInAnotherEpochIsDelivered(t *testing.T) {
	b := newBench(t)
	laptop, one := b.attach("bob")
	b.live(laptop, one, "e1", 2)
	phone, two := b.attach("bob")
	b.live(phone, two, "e1", 4)
	b.stored("bob", "e2", 1)
	b.stored("bob", "e2", 2)
	if b.feeds["u:bob"].repairing == nil {
		t.Fatal("the log is not read")
	}
	// It is another log: what the feed's position asks for is not in it.
	if b.read("bob", history.Log{Epoch: "e2", First: 1, Top: 1}, false) {
		t.Error("whole before anything was read")
	}
	if !b.read("bob", history.Log{Epoch: "e2", First: 1, Top: 1}, false, 1) {
		t.Error("what waited goes on from what was read, and the feed is not whole")
	}
	b.wantPositions(laptop, "e2/1", "e2/2")
	b.wantPositions(phone, "e2/1", "e2/2")
	for _, c := range []*client{laptop, phone} {
		if gaps := c.Notes().Gaps; len(gaps) != 1 || gaps[0].Reason != "history" || gaps[0].Epoch != "e1" {
			t.Errorf("%s was told %v, want one gap of e1 by history", c.Name, gaps)
		}
	}
}

// While bob's phone waits, the log rolls to another epoch. What waits is of two epochs, so the log is read, and from there on the phone
// is live: what comes a second time is a duplicate.
func TestEpochMayRollWhileAMemberWaits(t *testing.T) {
	b := newBench(t)
	bob, a := b.attach("bob")
	b.stored("bob", "e1", 5)
	b.stored("bob", "e2", 6)
	if b.goLive(a, "e1", 4) {
		t.Fatal("live over a roll that nobody was told of")
	}
	b.stored("bob", "e2", 7)
	b.live(bob, a, "e2", 6) // 5 and 6 came from the log
	b.stored("bob", "e2", 7)
	b.stored("bob", "e2", 8)
	b.wantPositions(bob, "e2/7", "e2/8")
	if s := b.g.router.Stats(); s.Duplicates != 1 || s.Holes != 0 {
		t.Errorf("%d duplicates and %d holes counted, want one and none", s.Duplicates, s.Holes)
	}
}

// A publish came twice, others were lost. What is not above the last one is dropped; a hole is filled from the log, and what arrives while
// it is read waits. Everything comes once and in order.
func TestHolesAreFilledFromTheLog(t *testing.T) {
	b := newBench(t)
	bob, a := b.attach("bob")
	b.live(bob, a, "e1", 0)
	for _, offset := range []uint64{1, 2, 2, 1, 3, 6, 7, 8} {
		b.stored("bob", "e1", offset)
	}
	b.wantPositions(bob, "e1/1", "e1/2", "e1/3")
	if !b.read("bob", history.Log{Epoch: "e1", First: 1, Top: 7}, false, 4, 5, 6, 7) {
		t.Error("the feed is not whole")
	}
	b.stored("bob", "e1", 8)
	b.stored("bob", "e1", 9)
	b.wantPositions(bob, "e1/1", "e1/2", "e1/3", "e1/4", "e1/5", "e1/6", "e1/7", "e1/8", "e1/9")
	if s := b.g.router.Stats(); s.Duplicates != 3 || s.Holes != 1 || s.Repairs != 1 || s.Delivered != 9 {
		t.Errorf("%d duplicates, %d holes, %d repairs, %d delivered, want 3, 1, 1 and 9", s.Duplicates, s.Holes, s.Repairs, s.Delivered)
	}
}

// So much comes between attaching and going live that it can't all be kept. What waits is bounded and then dropped: it is in the log, and
// reading goes on from there, behind bob's back. His neighbour carol notices nothing.
func TestTooMuchWhileWaitingIsReadFromTheLog(t *testing.T) {
	b := newBench(t, func(s *settings) { s.router.HeldBytes = 1000 })
	carol, c := b.attach("carol")
	b.live(carol, c, "e1", 0)
	bob, a := b.attach("bob")
	for offset := uint64(1); offset <= 1000; offset++ {
		b.stored("bob", "e1", offset)
		if held := b.feeds["u:bob"].members[0].waiting; len(held.messages) > 1000/50 {
			t.Fatalf("%d messages are kept in 1000 bytes", len(held.messages))
		}
	}
	if b.goLive(a, "e1", 0) {
		t.Fatal("live with a hole behind him")
	}
	b.stored("bob", "e1", 1001)
	if b.goLive(a, "e1", 999) {
		t.Fatal("live, and 1000 is missing")
	}
	b.stored("bob", "e1", 1002)
	b.live(bob, a, "e1", 1001) // 1001 came from the log
	b.stored("carol", "e1", 1)
	b.wantPositions(carol, "e1/1")
	b.wantPositions(bob, "e1/1002")
	if n := len(bob.Notes().Received); n != 1 {
		t.Errorf("bob got %d messages, want the one above what he read", n)
	}
}

// What is kept for a member that waits is bounded by bytes, and just below the bound everything is delivered.
func TestEverythingThatFitsIsKept(t *testing.T) {
	b := newBench(t, func(s *settings) { s.router.HeldBytes = 64 << 10 })
	bob, a := b.attach("bob")
	var want []string
	size := 0
	for offset := uint64(1); ; offset++ {
		// What counts is the frame; the record has a head around it.
		if size += len(record("bob", "e1", offset)); size > b.g.router.cfg.HeldBytes {
			break
		}
		b.stored("bob", "e1", offset)
		want = append(want, fmt.Sprintf("e1/%d", offset))
	}
	b.live(bob, a, "e1", 0)
	b.wantPositions(bob, want...)
}

// A detached member gets nothing, in whatever state it was; the others go on, and with the last one the feed is forgotten.
func TestDetachedMembersGetNothing(t *testing.T) {
	b := newBench(t)
	var clients []*client
	var arrivals []*arrival
	for range 4 {
		c, a := b.attach("bob")
		clients, arrivals = append(clients, c), append(arrivals, a)
	}
	for i := range 3 { // the last one waits
		b.live(clients[i], arrivals[i], "e1", 0)
	}
	b.stored("bob", "e1", 1)
	b.detach(arrivals[0])
	b.detach(arrivals[0]) // twice is once
	b.detach(arrivals[3])
	b.stored("bob", "e1", 2)
	if !b.goLive(arrivals[2], "", 0) { // live already: only the first time counts
		t.Error("a live member has something to do")
	}
	b.stored("bob", "e1", 3)
	b.wantPositions(clients[0], "e1/1")
	b.wantPositions(clients[1], "e1/1", "e1/2", "e1/3")
	b.detach(arrivals[1])
	b.detach(arrivals[2])
	if len(b.feeds) != 0 {
		t.Errorf("feeds are left: %v", b.feeds)
	}
	// Nobody is there: it is counted, and goes nowhere.
	b.stored("bob", "e1", 4)
	if n := b.g.router.Stats().Unheld; n != 1 {
		t.Errorf("%d messages for nobody counted, want 1", n)
	}
}

// deliverMessage hands to local connections or to nobody. Whatever it is given, it says no word to Redis.
func TestDeliverMessageNeverForwards(t *testing.T) {
	b := newBench(t)
	bob, a := b.attach("bob")
	b.live(bob, a, "e1", 0)
	before := b.g.general.total() + b.g.lane.total()
	for offset := uint64(1); offset <= 50; offset++ {
		b.stored("bob", "e1", offset)
		b.stored("carol", "e1", offset)
		b.open(string(protocol.AppendEphemeralRecord(protocol.AppendEphemeralHeader(nil), "u:carol", []byte(`{"type":"message"`))))
	}
	bob.messages(50)
	if n := b.g.general.total() + b.g.lane.total() - before; n != 0 {
		t.Errorf("%d calls to Redis for messages that came from there", n)
	}
	if s := b.g.router.Stats(); s.Unheld != 100 || s.Calls != 0 {
		t.Errorf("%d messages for nobody and %d calls counted, want 100 and none", s.Unheld, s.Calls)
	}
}

// total is the number of all commands that went over the line.
func (x *tap) total() (n int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, c := range x.calls {
		n += c
	}
	return n
}

// A signal comes while one of bob's devices waits: who is live gets it, and the other one missed it. Signals are not kept.
func TestSignalsAreNotKeptForWhoWaits(t *testing.T) {
	b := newBench(t)
	laptop, one := b.attach("bob")
	b.live(laptop, one, "e1", 0)
	phone, two := b.attach("bob")
	b.open(string(protocol.AppendEphemeralRecord(protocol.AppendEphemeralHeader(nil), "u:bob", []byte(`{"type":"message","id":"typing"`))))
	b.live(phone, two, "e1", 0)
	b.stored("bob", "e1", 1)
	if got := laptop.messages(2); got[0].ID != "typing" || got[0].Epoch != "" || got[1].Offset != 1 {
		t.Errorf("the laptop got %v", got)
	}
	b.wantPositions(phone, "e1/1")
}

// Bob's laptop never reads. It is closed as too slow; his phone, in the same feed, gets everything.
func TestMemberThatDoesNotReadHurtsNobody(t *testing.T) {
	b := newBench(t, func(s *settings) { s.conns.OutboxBytes, s.conns.MaxFrameBytes = 64<<10, 32<<10 })
	laptop, one := b.attach("bob")
	b.live(laptop, one, "e1", 0)
	phone, two := b.attach("bob")
	b.live(phone, two, "e1", 0)
	laptop.Freeze()
	long := strings.Repeat("x", 10<<10)
	offset := uint64(0)
	for ; ; offset++ {
		if cause, ended := one.conn.Cause(); ended {
			if cause.Kind != connection.KindSlowConsumer {
				t.Errorf("the laptop's connection ended by %s", cause.Kind)
			}
			break
		}
		frame := protocol.AppendMessageHead(nil, &protocol.MessageHead{ID: []byte(long), From: "alice", To: []byte("bob"), Content: []byte(`0`)})
		b.open(envelopeOf(b.number+1, fmt.Sprintf("e1 %d 5 %d\nu:bob%s", offset+1, len(frame), frame)))
		b.out.Flush()
		if int(offset) > 10000 {
			t.Fatal("100 MB went to a client that reads nothing")
		}
		phone.messages(int(offset + 1))
	}
	if _, ended := two.conn.Cause(); ended {
		t.Error("the phone was closed too")
	}
	laptop.Thaw()
}

// The whole way: bob's laptop is at b, his phone registers there while alice sends without pause. The phone gets what comes after its
// position, everything, and in order.
func TestRegisteringInTheMiddleOfAConversation(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a, b := net.gateway("a"), net.gateway("b")
		laptop := b.connect("bob")
		ctx, stop := context.WithCancel(context.Background())
		talking := make(chan uint64)
		go func() {
			last := uint64(0)
			for ctx.Err() == nil {
				last = a.send("alice", "bob", newID("m"), `0`).answer().Offset
			}
			talking <- last
		}()
		var phones []*client
		for range 20 {
			phones = append(phones, b.connect("bob"))
			laptop.messages(int(phones[len(phones)-1].registered.Offset) + 3)
		}
		stop()
		last := <-talking
		for i, c := range append(phones, laptop) {
			from := c.registered.Offset
			var got []uint64
			for _, f := range c.messages(int(last - from)) {
				got = append(got, f.Offset)
			}
			wantNoHoles(t, fmt.Sprintf("device %d from %d on", i, from), got, from+1)
		}
		b.wantNothingCounted()
	})
}

func (g *gateway) wantNothingCounted() {
	g.t.Helper()
	if s := g.router.Stats(); s.Holes != 0 || s.MissedPublishes != 0 || s.Unreadable != 0 {
		g.t.Errorf("%s counted %d holes, %d missed publishes, %d unreadable envelopes", g.id, s.Holes, s.MissedPublishes, s.Unreadable)
	}
}

// A register comes in while the deliverer is busy. What was published after bob was entered in the registry came to this gateway after
// the word to attach him; both wait, and whichever the deliverer takes up first, bob gets the message.
func TestWhatIsPublishedAfterAttachIsNotMissed(t *testing.T) {
	const rounds = 200
	b := newBench(t)
	bob, a := b.g.hold("bob")
	for round := range rounds {
		d := newDeliverer(b.g.router, b.group)
		stay := &Stay{address: a.address(), conn: a.conn}
		d.commands <- command{kind: commandAttach, address: a.address(), stay: stay}
		d.payloads <- envelopeOf(1, record("bob", "e1", uint64(2*round+1)))
		d.payloads <- envelopeOf(2, record("bob", "e1", uint64(2*round+2)))
		stop := running(t, func(ctx context.Context) error { d.run(ctx); return nil })
		eventually(t, "the deliverer is through", func() bool { return len(d.commands) == 0 && len(d.payloads) == 0 })
		answer := make(chan bool, 1)
		d.commands <- command{
			kind: commandLive, address: a.address(), stay: stay, at: protocol.Position{Epoch: "e1", Offset: uint64(2 * round)}, answer: answer,
		}
		if !<-answer {
			t.Fatalf("round %d: not live", round)
		}
		stop()
	}
	var got []uint64
	for _, f := range bob.messages(2 * rounds) {
		got = append(got, f.Offset)
	}
	wantNoHoles(t, "what bob got", got, 1)
}
