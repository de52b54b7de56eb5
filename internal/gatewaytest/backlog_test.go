//go:build !race

package gatewaytest

import (
	"strconv"
	"strings"
	"testing"
	"time"
)

// 10,000 messages wait for bob, alice goes on with 500 a second, and he stops reading for a second in the middle of it. He gets all of
// them, each once and in order, at his own pace. An outbox that is asked to hold more than its 256 KB closes the connection, and what
// waits for a reader of the log has its own bound: that he is never closed as a slow consumer shows that both are kept.
func TestLongBacklogStaysWithinItsBounds(t *testing.T) {
	const backlog, rate = 10_000, 500
	text := strings.Repeat("x", 2000) // more in all than the kernel's buffers take
	content := strconv.Quote(text)
	r := StartRedis(t)
	g := StartGateway(t, r, Options{Flags: []string{"--history.messages=20000", "--limits.message-rate=0", "--limits.frame-rate=0", "--limits.byte-rate=0"}})
	alice := Connect(t, g.WS(), "alice")
	for range backlog {
		if _, err := alice.Send("bob", text, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := alice.WaitCount(backlog, 4*Deadline, "ack"); err != nil {
		t.Fatal(err)
	}
	before, err := g.RSS()
	if err != nil {
		t.Fatal(err)
	}

	bob := Open(t, g.WS())
	registered, err := bob.Register("bob", "resume", map[string]any{"offset": 0})
	if err != nil || registered.Offset != 0 || registered.Top != backlog || !registered.Recovered {
		t.Fatalf("registered: %v, %v, want the whole backlog", registered, err)
	}
	began := time.Now()
	bob.Freeze()
	tick := time.NewTicker(time.Second / rate)
	defer tick.Stop()
	sent := backlog
	var most int64
	for resumed := time.Duration(0); ; sent++ {
		<-tick.C
		if _, err := alice.Send("bob", text, ""); err != nil {
			t.Fatal(err)
		}
		if sent == backlog+rate {
			bob.Thaw() // after a second
		}
		if rss, err := g.RSS(); err == nil {
			most = max(most, rss-before)
		}
		if n := len(bob.Left("message")); n >= backlog && resumed == 0 {
			resumed = time.Since(began)
			t.Logf("%d messages after %v, one second of it frozen; the gateway took %d KB more at most, garbage included", n, resumed, most>>10)
		} else if resumed > 0 && time.Since(began) > resumed+time.Second || time.Since(began) > 2*Deadline {
			break
		}
	}
	if err := alice.WaitCount(sent, Deadline, "ack"); err != nil {
		t.Fatal(err)
	}
	if err := bob.WaitCount(sent, Deadline, "message"); err != nil {
		t.Fatal(err)
	}
	for i, m := range bob.Left("message") {
		if m.Offset != uint64(i+1) || string(m.Content) != content {
			t.Fatalf("message %d is %v", i+1, m)
		}
	}
	if gaps := bob.Left("gap"); len(gaps) > 0 || bob.Ended() != nil {
		t.Errorf("gaps %v, end %v", gaps, bob.Ended())
	}
}
