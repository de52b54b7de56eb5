//go:build !secondpass

package router

import (
	"fmt"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/history"
	"chatgate/internal/protocol"
)

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
