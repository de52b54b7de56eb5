//go:build !race

package gatewaytest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A chatter is alice, who writes to bob, as a client does that repeats what it got no ack for.
type chatter struct {
	t       *testing.T
	alice   *Client
	stop    chan struct{}
	done    sync.WaitGroup
	settled []string // ids that were acknowledged; written before done
}

// chatPace is slow enough that all of it is still in the log, which keeps 1,000 messages, and within the rate of one connection.
const chatPace = 15 * time.Millisecond

func (c *chatter) run() {
	pace := time.NewTicker(chatPace)
	defer pace.Stop()
	for n := 0; ; n++ {
		select {
		case <-c.stop:
			return
		case <-pace.C:
		}
		id, err := c.alice.Send("bob", n, "")
		if err != nil {
			c.t.Error(err)
			return
		}
		if answer, err := c.alice.Settle(id, 30*time.Second); err != nil || answer.Type != "ack" {
			c.t.Errorf("%s: %v, %v", id, answer, err)
			return
		}
		c.settled = append(c.settled, id)
	}
}

// chat lets alice write to bob until the function it returns is called, which returns the ids of what was acknowledged.
func chat(t *testing.T, alice *Client) (end func() []string) {
	c := &chatter{t: t, alice: alice, stop: make(chan struct{})}
	c.done.Go(c.run)
	stop := sync.OnceFunc(func() { close(c.stop) })
	t.Cleanup(func() { stop(); c.done.Wait() })
	return func() []string {
		stop()
		c.done.Wait()
		return c.settled
	}
}

// log returns the ids of the messages a server has for a user, in their order.
func (n *RedisNode) log(t *testing.T, user string) (ids []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
	defer cancel()
	keys, err := n.client.Keys(ctx, "cg:*:s:u:"+user).Result()
	if err != nil || len(keys) > 1 {
		t.Fatalf("the streams of %s on %s: %v, %v", user, n.Addr, keys, err)
	}
	for _, key := range keys {
		for _, entry := range n.client.XRange(ctx, key, "-", "+").Val() {
			_, rest, _ := strings.Cut(fmt.Sprint(entry.Values["1"]), `"id":"`)
			id, _, _ := strings.Cut(rest, `"`)
			ids = append(ids, id)
		}
	}
	return ids
}

// wantAllOnce checks that what was acknowledged is on a server, once and in its order, and that bob got it so too, when he drops what he
// has already.
func wantAllOnce(t *testing.T, acked []string, server *RedisNode, bob *Client) {
	t.Helper()
	if got := server.log(t, "bob"); !slices.Equal(got, acked) {
		t.Errorf("%s has %d messages, %d were acknowledged: %s", server.Addr, len(got), len(acked), difference(got, acked))
	}
	var got []string
	err := Poll(20*time.Second, func() error {
		got = got[:0]
		seen := make(map[string]bool)
		for _, f := range bob.Notes().Received {
			if !seen[f.ID] {
				seen[f.ID] = true
				got = append(got, f.ID)
			}
		}
		if !slices.Equal(got, acked) {
			return fmt.Errorf("bob has %d messages, %d were acknowledged: %s", len(got), len(acked), difference(got, acked))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// difference names the first place where two lists differ.
func difference(a, b []string) string {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("at %d %s and %s", i, a[i], b[i])
		}
	}
	return fmt.Sprintf("the same up to %d", min(len(a), len(b)))
}

// The master dies, or hangs. The gateways find the promoted one by the Sentinels, and lose nothing that was acknowledged.
func TestGatewaysFollowAFailover(t *testing.T) {
	for name, fail := range map[string]func(*Process){"killed": (*Process).Kill, "hangs": (*Process).Pause} {
		t.Run(name, func(t *testing.T) {
			r := StartSentinel(t)
			a, b := StartGateway(t, r, Options{Name: "a"}), StartGateway(t, r, Options{Name: "b"})
			alice, bob := Connect(t, a.WS(), "alice"), Connect(t, b.WS(), "bob")
			end := chat(t, alice)
			if err := bob.WaitCount(20, Deadline, "message"); err != nil {
				t.Fatal(err)
			}
			if err := r.LetFailOver(); err != nil {
				t.Fatal(err)
			}
			old := r.Nodes[0]
			fail(old.Process)
			began := time.Now()
			heard := len(alice.Notes().Acked)
			if err := alice.WaitCount(heard+20, 30*time.Second, "ack"); err != nil {
				t.Fatal(err)
			}
			t.Logf("acks again %v after the master %s", time.Since(began), name)
			heard = len(bob.Notes().Received)
			if err := bob.WaitCount(heard+20, 20*time.Second, "message"); err != nil {
				t.Errorf("bob hears nothing: %v", err)
			}
			acked := end()
			old.Kill()
			masters, err := r.Masters()
			if err != nil {
				t.Fatal(err)
			}
			wantAllOnce(t, acked, masters[0], bob)
		})
	}
}

// An operator has acks wait for a replica. While none answers, alice is told unknown, in well under a second and never an ack, although bob
// has the message; when they are back her repeat is acknowledged with the place it was stored at. Where there are no replicas at all the
// gateway says so at its start.
func TestAcksWaitForReplicas(t *testing.T) {
	r := StartSentinel(t)
	g := StartGateway(t, r, Options{Flags: []string{"--redis.wait-replicas=1"}})
	alice, bob := Connect(t, g.WS(), "alice"), Connect(t, g.WS(), "bob")
	settle := func(id string) Frame {
		t.Helper()
		answer, err := alice.Settle(id, 20*time.Second)
		if err != nil || answer.Type != "ack" {
			t.Fatalf("%s: %v, %v", id, answer, err)
		}
		return answer
	}
	send := func(id string) {
		t.Helper()
		if _, err := alice.Send("bob", id, id); err != nil {
			t.Fatal(err)
		}
	}
	send("m1")
	settle("m1")
	for _, n := range r.Nodes[1:] {
		n.Pause()
	}
	send("m2")
	within, began := Busier(t), time.Now()
	answer, err := alice.Ack("m2", Deadline)
	if err != nil || answer.CodeText() != "unknown" || answer.Retry == 0 {
		t.Fatalf("%v, %v, want unknown", answer, err)
	}
	if d := time.Since(began); d > within(time.Second) {
		t.Errorf("unknown after %v", d)
	}
	if err := bob.WaitCount(2, Deadline, "message"); err != nil {
		t.Errorf("bob: %v", err)
	}
	for _, n := range r.Nodes[1:] {
		n.Resume()
	}
	if err := alice.Repeat("m2"); err != nil {
		t.Fatal(err)
	}
	if answer := settle("m2"); answer.Offset != 2 {
		t.Errorf("the repeat got %v, want offset 2", answer)
	}
	const warning = "fewer replicas than redis.wait-replicas"
	if strings.Contains(g.Log(), warning) {
		t.Error("warned of missing replicas that are there")
	}
	alone := StartGateway(t, Shared(t, Standalone), Options{Flags: []string{"--redis.wait-replicas=1"}})
	if !strings.Contains(alone.Log(), warning) {
		t.Error("no warning of missing replicas")
	}
}
