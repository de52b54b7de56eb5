//go:build !race

package gatewaytest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// sinksFile writes a configuration file with these sinks, one YAML mapping each.
func sinksFile(t testing.TB, sinks ...string) (flag string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "gateway.yaml")
	text := "events:\n  sinks:\n"
	for _, s := range sinks {
		text += "    - " + s + "\n"
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return "--config=" + path
}

// webhookSink is a sink that a test's receiver gets everything by, soon after it fails.
func webhookSink(r *Receiver) string {
	return fmt.Sprintf("{name: web, timeout: 1s, retry-after: 100ms, retry-most: 500ms, webhook: "+
		"{url: %q, secret: 'a secret of enough characters', allow: [127.0.0.0/8]}}", r.URL)
}

// written are the events in Redis, by id.
func written(t testing.TB, r *Redis) map[string]Received {
	t.Helper()
	all := make(map[string]Received)
	eachEntry(t, r, "cg:*:ev*", func(key string, x redis.XMessage) {
		group, stream, _ := strings.Cut(strings.TrimPrefix(key, "cg:{"), "}:")
		e := Received{ID: group + "-" + strings.TrimPrefix(stream, "ev") + x.ID}
		for name, into := range map[string]*string{
			"type": &e.Type, "user": &e.User, "room": &e.Room, "conn": &e.Conn, "cause": &e.Cause, "kind": &e.Kind, "gateway": &e.Gateway,
		} {
			*into, _ = x.Values[name].(string)
		}
		if origin, ok := x.Values["origin"].(string); ok {
			if err := json.Unmarshal([]byte(origin), &e); err != nil {
				t.Errorf("%s: %v", origin, err)
			}
		}
		all[e.ID] = e
	})
	return all
}

// eachEntry yields what is in the streams whose key matches.
func eachEntry(t testing.TB, r *Redis, match string, yield func(key string, x redis.XMessage)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var mu sync.Mutex
	read := func(ctx context.Context, c redis.Cmdable) error {
		keys := c.ScanType(ctx, 0, match, 1000, "stream").Iterator()
		for keys.Next(ctx) {
			for from := "-"; ; {
				entries, err := c.XRangeN(ctx, keys.Val(), from, "+", 5000).Result()
				if err != nil {
					return err
				}
				mu.Lock()
				for _, x := range entries {
					yield(keys.Val(), x)
				}
				mu.Unlock()
				if len(entries) < 5000 {
					break
				}
				from = "(" + entries[len(entries)-1].ID
			}
		}
		return keys.Err()
	}
	var err error
	if cluster, ok := r.Client().(*redis.ClusterClient); ok {
		err = cluster.ForEachMaster(ctx, func(ctx context.Context, c *redis.Client) error { return read(ctx, c) })
	} else {
		err = read(ctx, r.Client())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// wantEventOfEachMessage compares the events of messages that came with what is in the logs: one for each stored message but a sender's
// own copy, and none beside. It returns how many there are.
func wantEventOfEachMessage(t testing.TB, r *Redis, to *Receiver) int {
	t.Helper()
	events, _, err := to.Once()
	if err != nil {
		t.Fatal(err)
	}
	told := make(map[string]int)
	for _, e := range events {
		if e.Type == "message" {
			told[fmt.Sprintf("%s>%s%s %s@%d", e.User, e.To, e.Room, e.Message, e.Offset)]++
		}
	}
	n := 0
	eachEntry(t, r, "cg:*:s:*", func(key string, x redis.XMessage) {
		var m struct {
			ID, From, To, Room string
			Own                bool
		}
		if err := json.Unmarshal([]byte(x.Values["1"].(string)+"}"), &m); err != nil {
			t.Fatal(err)
		}
		if m.Own && m.From != m.To {
			return
		}
		n++
		offset, _, _ := strings.Cut(x.ID, "-")
		what := fmt.Sprintf("%s>%s%s %s@%s", m.From, m.To, m.Room, m.ID, offset)
		if told[what] != 1 {
			t.Errorf("%s has %d events", what, told[what])
		}
		delete(told, what)
	})
	for what := range told {
		t.Errorf("%s has an event, and is not stored", what)
	}
	return n
}

// wantAllReceived waits until a receiver has every event that is in Redis, each user's in their order, and nothing else. It
// returns how many came more than once.
func wantAllReceived(t testing.TB, r *Redis, to *Receiver, within time.Duration) (events []Received, again int) {
	t.Helper()
	err := Poll(within, func() (err error) {
		if events, again, err = to.Once(); err != nil {
			return stop{err}
		}
		want := written(t, r) // after it: what came was written before
		for _, e := range events {
			if there, ok := want[e.ID]; !ok || there.Type != e.Type || there.User != e.User || there.Conn != e.Conn {
				return stop{fmt.Errorf("%+v came, Redis has %+v", e, there)}
			}
		}
		if len(events) != len(want) {
			return fmt.Errorf("%d of %d events came", len(events), len(want))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return events, again
}

// wantOneEnd waits until everything has ended: for each connection one connect and after it one disconnect, and in turn each user's
// online and offline, and for each room joined and left.
func wantOneEnd(t testing.TB, r *Redis, to *Receiver) (all, again int) {
	t.Helper()
	err := Poll(time.Minute, func() error {
		var events []Received
		events, again = wantAllReceived(t, r, to, time.Minute)
		all = len(events)
		conns, states, inRoom := make(map[string]string), make(map[string]string), make(map[[2]string]bool)
		members := make(map[string]int)
		for _, e := range events {
			switch {
			case e.Type == "message":
			case e.Conn != "":
				conns[e.Conn] += e.Type + " "
			case e.Room != "":
				who := [2]string{e.User, e.Room}
				if inRoom[who] == (e.Type == "joined") {
					return stop{fmt.Errorf("%s %s %s twice", e.User, e.Type, e.Room)}
				}
				if inRoom[who] = e.Type == "joined"; inRoom[who] {
					members[e.Room]++
				} else {
					members[e.Room]--
				}
				if members[e.Room] != e.Members {
					return stop{fmt.Errorf("%s %s %s as one of %d, of %d who are told of", e.User, e.Type, e.Room, e.Members, members[e.Room])}
				}
			case states[e.User] == e.Type || states[e.User] == "" && e.Type == "offline":
				return stop{fmt.Errorf("%s is %s twice", e.User, e.Type)}
			default:
				states[e.User] = e.Type
			}
		}
		wrong := 0
		var err error
		for conn, story := range conns {
			if story != "connect disconnect " {
				wrong++
				err = fmt.Errorf("connection %s has %s", conn, story)
			}
		}
		for room, n := range members {
			if n != 0 {
				wrong++
				err = fmt.Errorf("%d are still in %s", n, room)
			}
		}
		if err != nil {
			err = fmt.Errorf("%d of %d connections and rooms have not ended once: %w", wrong, len(conns), err)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all, again
}

// carries reports whether a gateway carries events to a sink.
func carries(g *Gateway) bool {
	_, body, err := g.Get("/stats")
	var s struct {
		Sinks []struct{ Groups int }
	}
	return err == nil && json.Unmarshal(body, &s) == nil && slices.ContainsFunc(s.Sinks, func(s struct{ Groups int }) bool { return s.Groups > 0 })
}

// A sink hangs, then answers 500, under people who talk and come and go. Nobody's message waits for it, and it gets everything in the end.
func TestFaultSinkDown(t *testing.T) {
	t.Parallel()
	to := StartReceiver(t)
	f := try(t, StartRedis(t), 2, append(slices.Clone(swift), sinksFile(t, webhookSink(to)))...)
	f.people(6, 30)
	come := func(d time.Duration) {
		for end := time.Now().Add(d); time.Now().Before(end); lasts(200 * time.Millisecond) {
			Connect(t, f.gateways[0].WS(), "passer-by").Cut()
		}
	}
	outage := scaled(3*time.Second, time.Minute)
	for name, fault := range map[string]func(on bool){
		"hangs": to.Hang,
		"500":   func(on bool) { to.Answer(map[bool]int{true: 500}[on]) },
	} {
		fault(true)
		come(outage)
		missing := len(written(t, f.r)) - len(to.Events())
		fault(false)
		began := time.Now()
		_, again := wantAllReceived(t, f.r, to, time.Minute)
		f.note("%s %v: %d events waited, delivered %v after, %d twice", name, outage, missing, time.Since(began).Round(10*time.Millisecond), again)
		if missing < 20 {
			t.Errorf("only %d events waited", missing)
		}
	}
	v := f.done()
	if v.FromAck.P100 > time.Second {
		t.Errorf("a message was shown %v after its ack", v.FromAck.P100)
	}
	f.ledger.Close()
	wantOneEnd(t, f.r, to)
}

// The gateway that carries the events is killed, again and again, while people talk, come and go. Nothing is lost, each user's events
// stay in order, what comes twice has the same id, and each message that is stored has one event.
func TestFaultKilledCarrier(t *testing.T) {
	t.Parallel()
	for _, kind := range []Kind{Standalone, Cluster} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			to := StartReceiver(t)
			f := try(t, StartKind(t, kind), 3, append(slices.Clone(swift), sinksFile(t, webhookSink(to)),
				"--events.messages=envelope", "--history.messages=100000", "--events.messages-kept=10000000")...)
			f.people(4, 10)
			kills := scaled(3, 50)
			for range kills {
				var carrier *Gateway
				wantWithin(t, 4*Deadline, func() bool {
					i := slices.IndexFunc(f.gateways, carries)
					if i >= 0 {
						carrier = f.gateways[i]
					}
					return i >= 0
				})
				other := f.gateways[(slices.Index(f.gateways, carrier)+1)%3]
				for i := range 10 {
					c := Connect(t, other.WS(), "passer-by"+itoa(i))
					if i == 5 {
						carrier.Kill()
					}
					c.Cut()
				}
				f.must(carrier.Restart())
				f.shown(20)
			}
			f.done()
			f.ledger.Close()
			all, again := wantOneEnd(t, f.r, to)
			messages := wantEventOfEachMessage(t, f.r, to)
			t.Logf("%d kills, %d events, %d of them of messages, %d twice with one id", kills, all, messages, again)
		})
	}
}

// A gateway with many connections is killed -9, sometimes in the middle of an ordinary mass disconnect. Each connection has one
// disconnect event, and nobody else has any.
func TestFaultEventsOfAKilledGateway(t *testing.T) {
	t.Parallel()
	for _, kind := range []Kind{Standalone, Cluster} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			to := StartReceiver(t)
			r := StartKind(t, kind)
			// All of it is compared with what is written, so nothing of it may be trimmed.
			flags := append(slices.Clone(swift), sinksFile(t, webhookSink(to)), "--events.kept=1000000")
			stays := StartGateway(t, r, Options{Name: "stays", Flags: flags})
			var waiting []*Client
			for i := range 20 {
				waiting = append(waiting, Connect(t, stays.WS(), "stays"+itoa(i)))
			}
			kills, seats := scaled(3, 50), scaled(100, 1000)
			lost, slowest := 0, time.Duration(0)
			var times []time.Duration // from the kill to the event, of those that were reaped
			for k := range kills {
				for _, c := range waiting {
					if _, err := c.Heartbeat(Deadline); err != nil {
						t.Fatal(err)
					}
				}
				g := StartGateway(t, r, Options{Name: "doomed" + itoa(k), Flags: flags})
				before, clients := to.Count(), make([]*Client, seats)
				var coming sync.WaitGroup
				for part := range 10 {
					coming.Go(func() {
						for i := part; i < seats; i += 10 {
							clients[i] = takeSeat(t, g, fmt.Sprintf("user%d.%d", k, i), "hall"+itoa(i%10))
						}
					})
				}
				if coming.Wait(); t.Failed() {
					return
				}
				ordinary := 0
				if k%2 == 1 {
					ordinary = seats / 2
				}
				half := make(chan struct{})
				var going sync.WaitGroup
				for i := range 4 {
					going.Go(func() {
						mine := clients[i*ordinary/4 : (i+1)*ordinary/4]
						for n, c := range mine {
							c.Cut()
							if i == 0 && n == len(mine)/2 {
								close(half)
							}
						}
					})
				}
				if ordinary > 0 {
					<-half
				}
				g.Kill()
				killed := time.Now()
				going.Wait()
				ends := make(map[string]Received)
				err := Poll(time.Minute, func() error {
					left := 0
					for _, e := range to.From(before) {
						switch mine := strings.HasPrefix(e.User, fmt.Sprintf("user%d.", k)); {
						case mine && e.Type == "disconnect":
							ends[e.ID] = e
						case mine && e.Type == "left":
							left++
						}
					}
					if len(ends) < seats || left < seats {
						return fmt.Errorf("%d disconnects of %d came, and %d left the rooms", len(ends), seats, left)
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range ends {
					slowest = max(slowest, e.At.Sub(killed))
					if e.Cause == "gateway_lost" {
						lost++
						times = append(times, e.At.Sub(killed))
					}
					if e.Kind != "drop" {
						t.Errorf("%s ended with %s, a %s", e.User, e.Cause, e.Kind)
					}
				}
			}
			for _, c := range waiting {
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			}
			wantWithin(t, time.Minute, func() bool {
				events, _, _ := to.Once()
				n := 0
				for _, e := range events {
					if strings.HasPrefix(e.User, "stays") && e.Type == "disconnect" {
						if e.Kind != "goodbye" || e.Code != 1000 {
							t.Errorf("%s ended with %s, a %s", e.User, e.Cause, e.Kind)
						}
						n++
					}
				}
				return n == len(waiting)
			})
			_, again := wantOneEnd(t, r, to)
			slices.Sort(times)
			t.Logf("%d kills of %d connections, %d of them reaped: a disconnect came %v after the kill in the median, the last after %v; %d events twice",
				kills, seats, lost, times[len(times)/2].Round(10*time.Millisecond), slowest.Round(10*time.Millisecond), again)
		})
	}
}

// takeSeat connects a user who is in a room; again, where Redis doesn't answer a register in time on a busy machine.
func takeSeat(t testing.TB, g *Gateway, user, room string) *Client {
	var c *Client
	err := Poll(time.Minute, func() (err error) {
		if c, err = Dial(g.WS(), nil); err != nil {
			return err
		}
		if _, err = c.Register(user, "rooms", map[string]any{room: nil}); err == nil {
			_, err = c.Next("joined", Deadline)
		}
		if err != nil {
			c.Cut()
		}
		return err
	})
	if err != nil {
		t.Errorf("%s: %v", user, err)
	}
	return c
}
