//go:build !race

package router

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

// What Redis loses that it had acknowledged, the gateways have.

// crash kills Redis and starts it again, with what it has on disk.
func crash(t *testing.T, r *gatewaytest.Redis, away time.Duration) {
	t.Helper()
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	<-time.After(away)
	if err := r.Restart(); err != nil {
		t.Fatal(err)
	}
}

// acknowledged sends until Redis answers again.
func (g *gateway) acknowledged(from, to protocol.UserID, id string) Result {
	g.t.Helper()
	var r Result
	eventually(g.t, id+" is acknowledged", func() bool {
		r = g.send(from, to, id, `0`).answer()
		return r.Err == nil
	})
	return r
}

// Redis keeps nothing on disk and is killed. Whatever was acknowledged comes again before anything newer, in its order and once; bob, who
// stayed, is told that history changed, and gets it at its new place. So he does the second time, right behind the first.
func TestLostMessagesAreStoredAgain(t *testing.T) {
	t.Parallel()
	r := gatewaytest.StartRedis(t)
	net := newCluster(t, r)
	a := net.gateway("a", func(s *settings) { s.router.HealFor = patience }) // however long a busy machine takes for 200 messages
	b := net.gateway("b")
	bob := b.connect("bob")
	var want []string
	var all []*sent
	for i := range 200 {
		want = append(want, "m"+strconv.Itoa(i))
		all = append(all, a.send("alice", "bob", want[i], strconv.Itoa(i)))
	}
	for _, s := range all {
		s.want(protocol.StatusRouted)
	}
	bob.messages(200)
	for round := 1; round <= 2; round++ {
		crash(t, r, 0)
		id := "after" + strconv.Itoa(round)
		want = append(want, id)
		if got := a.acknowledged("alice", "bob", id); got.Offset != uint64(len(want)) {
			t.Errorf("round %d: %s, want it behind all of before", round, got.text())
		}
		net.wantStream("bob", want...)
		if n := a.router.Stats().Healed; n != uint64(round*200+round-1) {
			t.Errorf("round %d: %d messages healed", round, n)
		}
		eventually(t, "bob has "+id, func() bool {
			all := bob.Notes().Received
			return all[len(all)-1].ID == id
		})
		gaps := bob.Notes().Gaps
		if len(gaps) != round || gaps[round-1].Reason != "history" {
			t.Errorf("round %d: bob was told %v", round, gaps)
		}
	}
	bob.wantOnce(want)
}

// wantOnce checks what a client has that drops what it knows by (from, id): each once, in this order. Every position comes once, too.
func (c *client) wantOnce(want []string) {
	c.t.Helper()
	seen, at := make(map[string]bool), make(map[string]bool)
	var got []string
	for _, f := range c.Notes().Received {
		if p := fmt.Sprint(f.Epoch, "/", f.Offset); at[p] {
			c.t.Errorf("%s got %s twice", c.Name, p)
		} else {
			at[p] = true
		}
		if !seen[f.ID] {
			seen[f.ID] = true
			got = append(got, f.ID)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		c.t.Errorf("%s has %v, want %v", c.Name, got, want)
	}
}

// Redis was away for longer than messages are kept to be sent again: what counts is how old they were when it went.
func TestLongOutageLosesNothing(t *testing.T) {
	t.Parallel()
	r := gatewaytest.StartRedis(t)
	a := newCluster(t, r).gateway("a", func(s *settings) { s.router.HealFor = 2 * time.Second })
	a.send("alice", "bob", "m1", `1`).wantStored(1)
	crash(t, r, 3*time.Second)
	a.acknowledged("alice", "bob", "m2")
	a.cluster.wantStream("bob", "m1", "m2")
}

// Nobody sends anything. The pulse tells the other history, and the lane heals by itself, also when it was refusing at that moment.
func TestIdleLaneHealsByThePulse(t *testing.T) {
	t.Parallel()
	r := gatewaytest.StartRedis(t)
	net := newCluster(t, r)
	a := net.gateway("a")
	for round, away := range []time.Duration{0, 2500 * time.Millisecond} {
		id := "m" + strconv.Itoa(round)
		a.send("alice", "bob", id, `1`).want(protocol.StatusStored)
		crash(t, r, away)
		eventually(t, "the lane has healed", func() bool { return a.router.Stats().Healed >= uint64(2*round+1) })
	}
	net.wantStream("bob", "m0", "m1")
}

// Redis writes everything to disk before it answers. After a crash nothing is missing: it is sent again, known, and stored once.
func TestSurvivingLogHasNothingTwice(t *testing.T) {
	t.Parallel()
	r := gatewaytest.StartRedis(t, "--appendonly", "yes", "--appendfsync", "always")
	net := newCluster(t, r)
	a, b := net.gateway("a"), net.gateway("b")
	bob := b.connect("bob")
	var want []string
	for i := range 100 {
		want = append(want, "m"+strconv.Itoa(i))
		a.send("alice", "bob", want[i], strconv.Itoa(i)).want(protocol.StatusRouted)
	}
	bob.messages(100)
	crash(t, r, 0)
	a.acknowledged("alice", "bob", "after")
	net.wantStream("bob", append(want, "after")...)
	eventually(t, "bob has the last one", func() bool {
		all := bob.Notes().Received
		return all[len(all)-1].ID == "after"
	})
	if got := bob.Notes().Received; len(got) != 101 {
		t.Errorf("bob got %d messages, want 101", len(got))
	}
	if gaps := bob.Notes().Gaps; len(gaps) != 1 || gaps[0].Reason != "history" || string(text(gaps[0].From)) != "101" {
		t.Errorf("bob was told %v", gaps)
	}
}

func text(b []byte) string { return string(bytes.TrimSpace(b)) }

// Redis is killed while nobody sends: the pulse finds out, and the first sender is refused at once. When Redis is back, senders are
// answered within moments.
func TestMissedPulseRefusesAtOnce(t *testing.T) {
	t.Parallel()
	r, within := gatewaytest.StartRedis(t), gatewaytest.Busier(t)
	a := newCluster(t, r).gateway("a")
	a.send("alice", "bob", "m1", `1`).wantStored(1)
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	eventually(t, "a knows", a.router.Degraded)
	t.Logf("a knows %v after the kill", time.Since(killed))
	s := a.send("alice", "bob", "m2", `2`)
	if atOnce, e := s.answered(), s.wantCode(protocol.CodeUnavailable); e.RetryAfterMs <= 0 || !atOnce {
		t.Errorf("refused after %v, again after %d ms", s.took, e.RetryAfterMs)
	}
	if err := r.Restart(); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	a.acknowledged("alice", "bob", "m2")
	t.Logf("first ack %v after Redis is back", time.Since(back))
	if d := time.Since(back); d > within(time.Second) {
		t.Errorf("acknowledged %v after Redis was back", d)
	}
}

// Without healing nothing is kept and nothing comes again, and what is newer is stored at once.
func TestHealingCanBeSwitchedOff(t *testing.T) {
	t.Parallel()
	r := gatewaytest.StartRedis(t)
	a := newCluster(t, r).gateway("a", func(s *settings) { s.router.HealFor = 0 })
	a.send("alice", "bob", "m1", `1`).wantStored(1)
	crash(t, r, 0)
	a.acknowledged("alice", "bob", "m2")
	a.cluster.wantStream("bob", "m2")
	if n := a.router.Stats().Healed; n != 0 {
		t.Errorf("%d messages were sent again", n)
	}
}

// A quiet gateway acknowledged something long ago, and others have filled the log since, so that nothing there knows it any more. Redis is
// restarted and lost nothing. What is too old to have been lost is not sent again, or it would stand there twice.
func TestOldMessagesAreNotSentAgain(t *testing.T) {
	t.Parallel()
	r := gatewaytest.StartRedis(t, "--appendonly", "yes", "--appendfsync", "always")
	net := newCluster(t, r)
	const heal = 300 * time.Millisecond
	a := net.gateway("a", func(s *settings) { s.router.HealFor = heal })
	b := net.gateway("b", func(s *settings) { s.router.HealFor = 0 })
	a.send("alice", "bob", "old", `1`).want(protocol.StatusStored)
	began, n := time.Now(), 0
	for range 3 { // generations of dedupe records, eleven minutes each
		for range 260 {
			n++
			b.send("carol", "bob", "c"+strconv.Itoa(n), `0`).want(protocol.StatusStored)
		}
		h := net.head("bob")
		h.since -= 660
		net.setHead("bob", h)
	}
	eventually(t, "it is old", func() bool { return time.Since(began) > 2*heal })
	a.send("alice", "bob", "new", `2`).want(protocol.StatusStored)
	before, _ := net.stream("bob")
	crash(t, r, 0)
	eventually(t, "what is new was sent again", func() bool { return a.router.Stats().Healed >= 1 })
	a.acknowledged("alice", "bob", "later") // behind all of it
	if after, _ := net.stream("bob"); len(after) != len(before)+1 {
		t.Errorf("%d messages in the log, want %d and the last one", len(after), len(before))
	}
}

// Redis loses the same messages twice, and is away for longer each time than they are kept: what was sent again counts as young.
func TestWhatWasSentAgainIsSentOnceMore(t *testing.T) {
	t.Parallel()
	r := gatewaytest.StartRedis(t)
	net := newCluster(t, r)
	const heal = 500 * time.Millisecond
	a := net.gateway("a", func(s *settings) { s.router.HealFor = heal })
	a.send("alice", "bob", "m1", `1`).want(protocol.StatusStored)
	for lost := range 2 {
		crash(t, r, 2*heal)
		eventually(t, "it was sent again", func() bool { return a.router.Stats().Healed > uint64(lost) })
	}
	net.wantStream("bob", "m1")
}

// What is kept to be sent again is bounded by age and by bytes, and comes back as it was.
func TestRecentIsBounded(t *testing.T) {
	var k recent
	now := time.Now()
	add := func(i, size int, at time.Time) {
		m := &Message{To: "u:bob", From: "alice", ID: []byte(strconv.Itoa(i)), Content: []byte(`0`), Ts: int64(minTs + i), Frame: bytes.Repeat([]byte{'x'}, size)}
		m.hash()
		k.add(m, at)
	}
	for i := range 1000 {
		add(i, 1000, now.Add(time.Duration(i)*time.Millisecond))
	}
	add(1000, 200_000, now.Add(time.Second)) // larger than a chunk
	all := k.messages(now)
	if len(all) != 1001 {
		t.Fatalf("%d messages, want all", len(all))
	}
	for i, m := range all {
		want := &Message{From: "alice", ID: []byte(strconv.Itoa(i)), Content: []byte(`0`)}
		want.hash()
		if m.key != want.key || m.content != want.content || m.Ts != int64(minTs+i) || m.To != "u:bob" {
			t.Fatalf("message %d came back as %+v", i, m)
		}
	}
	if early := k.trim(now.Add(500*time.Millisecond), 32<<20); early != 0 {
		t.Errorf("%d chunks forgotten early, want none", early)
	}
	if n := len(k.messages(now.Add(500 * time.Millisecond))); n != 501 {
		t.Errorf("%d messages younger than half a second, want 501", n)
	}
	// Sent again, they are as young as can be; what was not sent stays old.
	k.renew(now.Add(900*time.Millisecond), now.Add(2*time.Second))
	if n := len(k.messages(now.Add(1500 * time.Millisecond))); n != 101 {
		t.Errorf("%d messages were made young again, want 101", n)
	}
	if early := k.trim(now, 300_000); early == 0 || k.bytes > 300_000 || k.bytes < 200_000 {
		t.Errorf("%d chunks forgotten early, %d bytes left", early, k.bytes)
	}
	if all = k.messages(now); all[len(all)-1].Ts != minTs+1000 {
		t.Error("the newest was forgotten first")
	}
	k.trim(now.Add(time.Hour), 300_000)
	if k.bytes != 0 || len(k.messages(now)) != 0 {
		t.Errorf("%d bytes left", k.bytes)
	}
}

// A call that heals is bounded like any other.
func TestHealingCallsAreBounded(t *testing.T) {
	t.Parallel()
	r := gatewaytest.StartRedis(t)
	net := newCluster(t, r)
	a := net.gateway("a")
	long := quoted(string(bytes.Repeat([]byte{'x'}, 30<<10)))
	for i := range 20 {
		a.send("alice", "bob", "m"+strconv.Itoa(i), long).want(protocol.StatusStored)
	}
	crash(t, r, 0)
	before := a.router.Stats()
	eventually(t, "the lane has healed", func() bool { return a.router.Stats().Healed >= 20 })
	if n := a.router.Stats().Calls - before.Calls; n < 10 {
		t.Errorf("600 KB went in %d calls", n)
	}
	if offsets, _ := net.stream("bob"); len(offsets) != 20 {
		t.Errorf("%d stored, want 20", len(offsets))
	}
}

// Redis loses all it had, and what was acknowledged is sent again: its events too, each once.
func TestHealedMessagesHaveTheirEvents(t *testing.T) {
	t.Parallel()
	r := gatewaytest.StartRedis(t)
	net := newCluster(t, r)
	a := net.gateway("a", withEvents)
	var want []string
	for i := range 150 {
		id := "m" + strconv.Itoa(i)
		a.send("alice", "bob", id, `"`+strings.Repeat("x", i)+`"`).want(protocol.StatusStored)
		want = append(want, fmt.Sprintf("alice>bob %s s@%d to 0", id, i+1))
	}
	crash(t, r, 0)
	a.acknowledged("alice", "bob", "after")
	net.wantEvents("u:bob", append(want, "alice>bob after s@151 to 0")...)
}
