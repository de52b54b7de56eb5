//go:build !race

package router

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

// Faults of real servers. Their figures are times, so they run without the race detector.

const (
	// refusedWithin is how long a sender may wait for a Redis that does not answer. The figure is 300 ms; the rest is for a busy machine.
	refusedWithin = 300*time.Millisecond + 250*time.Millisecond
	// unknownWithin is how long the batch in flight may wait: three attempts of a third of a second.
	unknownWithin = time.Second + 500*time.Millisecond
)

// Redis hangs (SIGSTOP) under load. The batch in flight ends as unknown, everybody else is refused quickly and then at once; every
// message is answered exactly once. Redis goes on: so do the gateways, nobody restarts anything, and offsets have no holes. What was
// unknown is repeated with its id and gets its place, once.
func TestRedisThatHangs(t *testing.T) {
	for _, kind := range realKinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			r, within := gatewaytest.Shared(t, kind), gatewaytest.Busier(t)
			net := newCluster(t, r)
			starving := func(s *settings) { s.router.Starved = 1500 * time.Millisecond }
			a, b := net.gateway("a", prompt, starving), net.gateway("b", prompt, starving)
			bob := b.connect("bob")
			a.send("alice", "bob", "before", `0`).wantRouted(1, 1)

			if err := r.Pause(); err != nil {
				t.Fatal(err)
			}
			paused := time.Now()
			var all []*sent
			waited := 0
			for i := 0; time.Since(paused) < 3*time.Second; i++ {
				s := a.send("alice", "bob", "m"+strconv.Itoa(i), `0`)
				if all = append(all, s); !s.answered() && s.at.Sub(all[0].at) > within(refusedWithin) {
					waited++
				}
				<-time.After(5 * time.Millisecond)
			}
			var unknown, refused []*sent
			slowest := time.Duration(0)
			for _, s := range all {
				switch e := s.answer().Err; {
				case e == nil:
					t.Errorf("message %s: %s from a Redis that hangs", s.ID, s.result.text())
				case e.Code == protocol.CodeUnknown:
					unknown = append(unknown, s)
					if s.took > within(unknownWithin) {
						t.Errorf("the outcome of %s was unknown after %v", s.ID, s.took)
					}
				case e.Code == protocol.CodeUnavailable:
					refused = append(refused, s)
					slowest = max(slowest, s.took)
				default:
					t.Errorf("message %s: %s", s.ID, s.result.text())
				}
			}
			if slowest > within(refusedWithin) {
				t.Errorf("a refusal took %v", slowest)
			}
			// One may come just between the end of the batch and the first probe.
			if waited > 2 {
				t.Errorf("%d messages waited for a Redis that was known to hang", waited)
			}
			if len(unknown) == 0 || len(unknown) > 8 {
				t.Errorf("%d of %d are unknown, want what was in flight", len(unknown), len(all))
			}
			if !a.router.Degraded() {
				t.Error("a does not know that it is degraded")
			}
			t.Logf("%d sent: %d unknown after %v, %d refused within %v", len(all), len(unknown), unknown[0].took, len(refused), slowest)

			if err := r.Resume(); err != nil {
				t.Fatal(err)
			}
			resumed := time.Now()
			var first *sent
			eventually(t, "a is acknowledged again", func() bool {
				first = a.send("alice", "bob", newID("after"), `0`)
				return first.answer().Err == nil
			})
			t.Logf("first ack %v after Redis went on", time.Since(resumed))
			if d := time.Since(resumed); d > within(3*time.Second) {
				t.Errorf("acknowledged %v after Redis went on", d)
			}
			// Redis may have carried out, when it woke, what had been given up.
			for _, s := range unknown {
				a.send("alice", "bob", string(s.ID), `0`).answer()
			}
			seen := make(map[string]int)
			offsets, frames := net.stream("bob")
			wantNoHoles(t, "bob's stream", offsets, 1)
			for _, f := range frames {
				seen[f]++
			}
			if len(seen) != len(frames) {
				t.Errorf("%d stored, %d of them different", len(frames), len(seen))
			}
			for _, s := range refused {
				if seen[string(s.Frame)] != 0 {
					t.Errorf("message %s was refused as certainly not stored, and is stored", s.ID)
				}
			}
			for _, s := range unknown {
				if seen[string(s.Frame)] > 1 {
					t.Errorf("message %s is stored %d times", s.ID, seen[string(s.Frame)])
				}
			}
			eventually(t, "b is subscribed", b.router.Subscribed)
			id := newID("last")
			a.send("alice", "bob", id, `0`).want(protocol.StatusRouted)
			eventually(t, "bob hears again", func() bool {
				all := bob.Notes().Received
				return len(all) > 0 && all[len(all)-1].ID == id
			})
			last := uint64(0)
			for _, f := range bob.Notes().Received {
				if f.Offset <= last {
					t.Errorf("bob got offset %d behind %d", f.Offset, last)
				}
				last = f.Offset
			}
		})
	}
}

// Redis is killed. The gateway finds out with the next message, tells its sender that it is certainly not stored, and refuses everyone
// at once from then on. Redis is started again: messages flow.
func TestRedisThatIsKilled(t *testing.T) {
	for _, kind := range []gatewaytest.Kind{gatewaytest.Standalone, gatewaytest.Cluster} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			r, within := gatewaytest.Shared(t, kind), gatewaytest.Busier(t)
			net := newCluster(t, r)
			a, b := net.gateway("a", prompt), net.gateway("b", prompt)
			bob := b.connect("bob")
			a.send("alice", "bob", "before", `0`).wantRouted(1, 1)
			if err := r.Kill(); err != nil {
				t.Fatal(err)
			}
			killed := a.send("alice", "bob", "killed", `0`)
			killed.wantCode(protocol.CodeUnavailable)
			t.Logf("the first message was refused after %v", killed.took)
			if killed.took > within(refusedWithin) {
				t.Errorf("the first message was refused after %v", killed.took)
			}
			eventually(t, "a knows", a.router.Degraded)
			for i := range 200 {
				s := a.send("alice", "bob", "m"+strconv.Itoa(i), `0`)
				if !s.answered() {
					t.Errorf("message %s was not refused at once", s.ID)
				}
				s.wantCode(protocol.CodeUnavailable)
				<-time.After(2 * time.Millisecond)
			}
			if err := r.Restart(); err != nil {
				t.Fatal(err)
			}
			restarted := time.Now()
			var first *sent
			eventually(t, "a is acknowledged again", func() bool {
				first = a.send("alice", "bob", newID("after"), `0`)
				return first.answer().Err == nil
			})
			t.Logf("first ack %v after Redis was ready", time.Since(restarted))
			if d := time.Since(restarted); d > within(2*time.Second) {
				t.Errorf("acknowledged %v after Redis was ready", d)
			}
			// What had been acknowledged comes first: it is stored again before anything newer.
			net.wantStream("bob", "before", string(first.ID))
			if first.result.Offset != 2 {
				t.Errorf("%s from a Redis that came back empty, behind the one message it had lost", first.result.text())
			}
			eventually(t, "b listens again", b.router.Listening)
			eventually(t, "bob is told that history changed", func() bool { return len(bob.Notes().Gaps) == 1 })
			// Nobody knows of bob for a moment, so this may go to nobody: it is read when he is registered again.
			a.send("alice", "bob", "last", `0`).answer()
			eventually(t, "bob hears again", func() bool {
				all := bob.Notes().Received
				return len(all) > 0 && all[len(all)-1].ID == "last"
			})
		})
	}
}

// The master of a Sentinel group dies. Messages are refused until another one is promoted, and then stored under the offsets behind the
// last, in another epoch.
func TestSentinelFailover(t *testing.T) {
	t.Parallel()
	r, within := gatewaytest.StartSentinel(t), gatewaytest.Busier(t)
	net := newCluster(t, r)
	a, b := net.gateway("a", prompt), net.gateway("b", prompt)
	bob := b.connect("bob")
	before := a.send("alice", "bob", "m1", `1`).wantRouted(1, 1)
	masters, err := r.Masters()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := masters[0].Client().Wait(context.Background(), 2, 5*time.Second).Result(); n != 2 || err != nil {
		t.Fatalf("%d replicas have everything (%v)", n, err)
	}
	if err := r.LetFailOver(); err != nil {
		t.Fatal(err)
	}
	masters[0].Kill()
	killed := time.Now()
	var slowest time.Duration
	var first *sent
	eventually(t, "a new master acknowledges", func() bool {
		first = a.send("alice", "bob", newID("m"), `2`)
		if first.answer().Err == nil {
			return true
		}
		slowest = max(slowest, first.took)
		return false
	})
	t.Logf("first ack %v after the kill, slowest refusal %v", time.Since(killed), slowest)
	if slowest > within(unknownWithin) {
		t.Errorf("a refusal took %v", slowest)
	}
	// What was unknown meanwhile may be stored, so the offset is 2 at least.
	if first.result.Offset < 2 || first.result.Epoch == before.Epoch {
		t.Errorf("%s behind %s: the offset goes on and the epoch is another", first.result.text(), before.text())
	}
	a.send("alice", "bob", "m1", `1`).wantAnswer(before)
	eventually(t, "b listens again", b.router.Listening)
	eventually(t, "bob hears again", func() bool {
		a.send("alice", "bob", newID("m"), `3`).answer()
		return len(bob.Notes().Received) > 1
	})
}

// Signals too are refused quickly while Redis hangs.
func TestSignalsToARedisThatHangs(t *testing.T) {
	t.Parallel()
	r, within := gatewaytest.Shared(t, gatewaytest.Standalone), gatewaytest.Busier(t)
	net := newCluster(t, r)
	a, b := net.gateway("a", prompt), net.gateway("b", prompt)
	bob := b.connect("bob")
	a.signal("alice", "bob", "t", `0`).want(protocol.StatusRouted)
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	var all []*sent
	for began := time.Now(); time.Since(began) < 2*time.Second; {
		all = append(all, a.signal("alice", protocol.UserID(fmt.Sprint("u", len(all))), newID("t"), `0`))
		<-time.After(2 * time.Millisecond)
	}
	slowest := time.Duration(0)
	for _, s := range all {
		s.wantCode(protocol.CodeUnavailable)
		slowest = max(slowest, s.took)
	}
	t.Logf("%d signals refused within %v", len(all), slowest)
	if slowest > within(refusedWithin) {
		t.Errorf("a refusal took %v", slowest)
	}
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "signals go again", func() bool {
		a.signal("alice", "bob", newID("t"), `0`).answer()
		return len(bob.Notes().Received) > 1
	})
}

// A proxy that lets a call through to Redis, and then breaks the line before the answer and takes no more calls: the node died between
// storing and answering. Whatever the client library does by itself, nobody may be told that the message is certainly not stored.
func TestNodeThatDiesBehindTheCallLeavesTheOutcomeUnknown(t *testing.T) {
	for _, kind := range []gatewaytest.Kind{gatewaytest.Standalone, gatewaytest.Cluster} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			net := newCluster(t, gatewaytest.Shared(t, kind))
			line := &brokenLine{}
			net.dialer = line.dial
			a := net.gateway("a", prompt)
			net.dialer = nil
			a.send("alice", "bob", "m0", `0`).wantStored(1)
			line.breaks.Store(true)
			s := a.send("alice", "bob", "m1", `1`)
			code := s.answer().Err
			line.breaks.Store(false)
			if offsets, _ := net.stream("bob"); len(offsets) != 2 {
				t.Fatalf("%d stored: the proxy let nothing through", len(offsets))
			}
			if code == nil || code.Code != protocol.CodeUnknown {
				t.Errorf("told %s of a message that is stored, want unknown", s.result.text())
			}
			a.sendUntilTaken("alice", "bob", "m1", `1`).wantStored(2)
		})
	}
}

// brokenLine is a network on which, once breaks is set, no answer comes back and no new connection is made.
type brokenLine struct {
	breaks atomic.Bool
}

func (l *brokenLine) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if l.breaks.Load() {
		return nil, &net.OpError{Op: "dial", Net: network, Err: fmt.Errorf("%s: connection refused", addr)}
	}
	c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &brokenConn{Conn: c, line: l}, nil
}

type brokenConn struct {
	net.Conn
	line *brokenLine
	once sync.Once
}

func (c *brokenConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.line.breaks.Load() && n > 0 {
		// The answer is here, so Redis has carried it out; nobody hears of it.
		c.once.Do(func() { _ = c.Conn.Close() })
		return 0, io.EOF
	}
	return n, err
}
