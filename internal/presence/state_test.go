//go:build !secondpass

package presence

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

func withGrace(d time.Duration) func(*Config) { return func(c *Config) { c.Grace = d } }

// Alice's only connection ends. She is offline when the grace period is over, not before.
func TestAUserIsOfflineOnlyAfterTheGrace(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents, withGrace(400*time.Millisecond))
		a := f.gateway("a")
		f.wantState("alice", "")
		e := a.connect("alice", "")
		f.wantState("alice", "online")
		a.disconnect(e)
		f.wantStory("alice", "connect online disconnect offline")
		ms := make(map[string]int64)
		for _, x := range f.events("alice") {
			ms[x["type"]], _ = strconv.ParseInt(x["ms"], 10, 64)
		}
		if d := ms["offline"] - ms["disconnect"]; d < f.cfg.Grace.Milliseconds() {
			t.Errorf("offline %d ms after the disconnect", d)
		}
		f.wantState("alice", "offline")
		if n := len(f.dump()[keyspace.Offlines(f.group("alice"))]); n != 0 {
			t.Errorf("%d graces still run", n)
		}
	})
}

// She is back within the grace, perhaps on another gateway: for the outside she never left.
func TestAReturnWithinTheGraceIsNoChange(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents, withGrace(3*time.Second))
		a, b := f.gateway("a"), f.gateway("b")
		e := a.connect("alice", "phone")
		version := f.version("alice")
		a.disconnect(e)
		f.wantStory("alice", "connect online disconnect")
		if n := len(f.dump()[keyspace.Offlines(f.group("alice"))]); n != 1 {
			t.Errorf("%d graces run", n)
		}
		back := b.connect("alice", "phone")
		if n := len(f.dump()[keyspace.Offlines(f.group("alice"))]); n != 0 {
			t.Errorf("%d graces still run", n)
		}
		f.wantStory("alice", "connect online disconnect connect")
		if got := f.version("alice"); got != version {
			t.Errorf("version %s, was %s", got, version)
		}
		f.wantAt("alice", back)
	})
}

// Without grace the same step that takes the last connection out makes the user offline.
func TestWithoutGraceOfflineIsAtOnce(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents, withGrace(0))
		a := f.prepare("a") // no pulse could help
		one, two := a.connect("alice", ""), a.connect("alice", "")
		a.disconnect(one)
		f.wantStory("alice", "connect online connect disconnect")
		a.disconnect(two)
		f.wantStory("alice", "connect online connect disconnect disconnect offline")
	})
}

// The gateway that saw the end of the connection is killed while the grace runs. The pulse of another ends it.
func TestTheGraceSurvivesItsGateway(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents, withGrace(1500*time.Millisecond))
		a, b := f.gateway("a"), f.gateway("b")
		b.disconnect(b.connect("alice", ""))
		f.wantStory("alice", "connect online disconnect")
		b.stop()
		f.wantStory("alice", "connect online disconnect offline")
		_ = a
	})
}

// A whole gateway leaves with all its users. They are offline a moment after the grace, however many they are.
func TestManyGracesEndTogether(t *testing.T) {
	onRedis(t, []gatewaytest.Kind{gatewaytest.Embedded, gatewaytest.Standalone}, func(t *testing.T, r *gatewaytest.Redis) {
		// Pulses are rare, so that few come while a busy machine does what follows from one.
		var pulses atomic.Int64
		f := newFleet(t, r, withGrace(100*time.Millisecond), func(c *Config) {
			c.Pulse, c.Lease = 1500*time.Millisecond, 4500*time.Millisecond
			c.OnPulse = func(int, uint64, string, int) { pulses.Add(1) }
		})
		a := f.gateway("a")
		names := users(1000)
		for _, e := range a.connectMany(names...) {
			a.disconnect(e)
		}
		before := pulses.Load()
		f.eventually(func() error {
			left := a.registry.removing() // whose grace has not begun
			if n, err := f.client.ZCard(context.Background(), keyspace.Offlines(keyspace.All)).Result(); left > 0 || n > 0 || err != nil {
				return fmt.Errorf("%d are to be removed, %d graces run, %v", left, n, err)
			}
			return nil
		})
		if n := pulses.Load() - before; n > 5 { // and ten, if each made a hundred users offline
			t.Errorf("the last was offline after %d pulses", n)
		}
		f.wantState(names[999], "offline")
	})
}

// While the grace runs nobody can say when the user was last seen, nor is it when she came.
func TestLastSeenIsWhenTheUserWentOffline(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents, withGrace(1500*time.Millisecond))
		a := f.gateway("a")
		seen := func() int64 {
			w, err := a.registry.Locate(context.Background(), "alice")
			if err != nil {
				t.Fatal(err)
			}
			return w[0].LastSeen
		}
		e := a.connect("alice", "")
		if got := seen(); got != 0 {
			t.Errorf("online, and last seen at %d", got)
		}
		a.disconnect(e)
		f.wantStory("alice", "connect online disconnect")
		if got := seen(); got != 0 {
			t.Errorf("in her grace, and last seen at %d", got)
		}
		f.wantState("alice", "offline")
		all := f.events("alice")
		if got := strconv.FormatInt(seen(), 10); got != all[len(all)-1]["ms"] {
			t.Errorf("last seen at %s, offline since %s", got, all[len(all)-1]["ms"])
		}
	})
}

// The state of who is offline is kept for some weeks; of who is online, for as long as that lasts. Else somebody who stays
// for months would end without an offline.
func TestTheStateOfWhoIsOnlineDoesNotExpire(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a := f.gateway("a")
		ttl := func() time.Duration { return f.client.PTTL(context.Background(), keyspace.State("alice")).Val() }
		for range 2 {
			e := a.connect("alice", "")
			if got := ttl(); got != -1 {
				t.Errorf("online for %v", got)
			}
			a.disconnect(e)
			f.wantState("alice", "offline")
			if got := ttl(); got < 36*24*time.Hour || got > 38*24*time.Hour {
				t.Errorf("offline is known for %v", got)
			}
		}
	})
}

// Those who watch alice get every change once, in order, with a version that grows by one; who comes and goes with
// several connections is one change each.
func TestWatchersHearEveryChangeOnceInOrder(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withGrace(0))
		a, b := f.gateway("a"), f.gateway("b")
		a.hold("w:alice")
		b.hold("w:alice")
		toA, toB := f.listen(a, "alice"), f.listen(b, "alice")
		for range 3 {
			one, two := a.connect("alice", ""), b.connect("alice", "")
			a.disconnect(one)
			f.wantAt("alice", two)
			b.disconnect(two)
			f.wantState("alice", "offline")
		}
		a.registry.Release("w:alice")
		b.registry.Release("w:alice")
		f.wantHolders("w:alice")
		a.connect("alice", "")
		epoch, _, _ := f.state("alice")
		for _, heard := range []<-chan string{toA, toB} {
			var got []string
			for i := range 6 {
				payload := next(t, heard)
				kind, body, err1 := protocol.OpenEnvelope(payload)
				number, s, err2 := protocol.OpenState(body)
				if err := errors.Join(err1, err2); err != nil || kind != protocol.EnvelopeState || s.User != "alice" || s.Epoch != epoch {
					t.Fatalf("heard %q: %v", payload, err)
				}
				if number != uint64(i+1) {
					t.Errorf("change %d has the channel's number %d", i+1, number)
				}
				got = append(got, fmt.Sprintf("%s %d", s.State, s.N))
			}
			if want := []string{"online 1", "offline 2", "online 3", "offline 4", "online 5", "offline 6"}; !slices.Equal(got, want) {
				t.Errorf("heard %v, want %v", got, want)
			}
		}
	})
}

// What a failover may have forgotten was told to those who watch: a version that comes again in another history is of another epoch. The
// numbers go on.
func TestAVersionIsOfOneHistory(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withGrace(0))
		a := f.gateway("a")
		e := a.connect("alice", "")
		epoch, _, _ := f.state("alice")
		ctx, key := context.Background(), keyspace.State("alice")
		s := strings.Fields(f.client.Get(ctx, key).Val())
		for name, line := range map[string]string{"another history": "0123456789ab", "a version that didn't note it": ""} {
			if err := f.client.Set(ctx, key, strings.TrimSpace(fmt.Sprintf("%s 7 online %s %s", s[0], s[3], line)), 0).Err(); err != nil {
				t.Fatal(err)
			}
			a.disconnect(e)
			f.wantState("alice", "offline")
			rolled, n, _ := f.state("alice")
			if rolled == epoch || n != "8" {
				t.Errorf("%s: version %s.%s behind %s.7", name, rolled, n, epoch)
			}
			e = a.connect("alice", "")
			if now, n, _ := f.state("alice"); now != rolled || n != "9" {
				t.Errorf("%s: version %s.%s behind %s.8", name, now, n, rolled)
			}
		}
	})
}

// A user has no end of changes in a row, on two gateways at once. In the end all agree, and each change follows from the
// one before.
func TestChangesAlternateHoweverTheyRace(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents, withGrace(0), func(c *Config) { c.ConnectionsPerUser = 0 })
		a, b := f.gateway("a"), f.gateway("b")
		done := make(chan error, 2)
		for _, g := range []*gateway{a, b} {
			go func() {
				for range 100 {
					e := g.entry("alice", "")
					if _, err := g.registry.Register(context.Background(), e); err != nil {
						done <- err
						return
					}
					g.registry.Remove(e, End{Cause: "client_close"})
				}
				done <- nil
			}()
		}
		for range 2 {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		f.wantState("alice", "offline")
		f.wantSound()
		connected, n, last := 0, 0, "offline"
		for i, e := range f.events("alice") {
			switch e["type"] {
			case "connect":
				connected++
			case "disconnect":
				connected--
			default:
				n++
				_, version, _ := strings.Cut(e["version"], ".")
				if e["type"] == last || version != strconv.Itoa(n) || (connected > 0) != (e["type"] == "online") {
					t.Fatalf("event %d: %v after %s, with %d connections", i, e, last, connected)
				}
				last = e["type"]
			}
		}
		if connected != 0 || last != "offline" {
			t.Errorf("in the end %d connections, %s", connected, last)
		}
	})
}

// Events tell who, where, when and why, and are written only when somebody wants them.
func TestEventsTellTheWholeStory(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents)
		a := f.gateway("a")
		e := a.entry("alice", "phone")
		e.Meta = `{"n":1}`
		a.register(e)
		if _, err := a.registry.Kick(context.Background(), "alice", Order{Code: protocol.CloseKicked, Reason: "kicked", By: "ops"}); err != nil {
			t.Fatal(err)
		}
		a.disconnect(e)
		f.wantStory("alice", "connect online disconnect offline")
		all := f.events("alice")
		for _, x := range all {
			if _, err := strconv.ParseUint(x["ms"], 10, 64); err != nil {
				t.Errorf("%v has no time", x)
			}
			delete(x, "ms")
			if n, err := strconv.Atoi(x["n"]); err != nil || n < 1 {
				t.Errorf("%v has no number", x)
			}
			delete(x, "n")
		}
		if d, err := strconv.Atoi(all[2]["dur"]); err != nil || d < 0 || d > 60_000 {
			t.Errorf("lived %q ms", all[2]["dur"])
		}
		delete(all[2], "dur")
		epoch, _, _ := f.state("alice")
		fence, since := strconv.FormatUint(e.Fence(), 10), strconv.FormatInt(e.Since, 10)
		want := []event{
			{"type": "connect", "user": "alice", "conn": string(e.Conn), "gateway": string(a.id), "device": "phone", "meta": `{"n":1}`, "since": since, "fence": fence},
			{"type": "online", "user": "alice", "version": epoch + ".1"},
			{
				"type": "disconnect", "user": "alice", "conn": string(e.Conn), "gateway": string(a.id), "device": "phone", "meta": `{"n":1}`, "since": since, "fence": fence,
				"cause": "client_close", "kind": "goodbye", "code": "1000", "mark": "4503 kicked ops",
			},
			{"type": "offline", "user": "alice", "version": epoch + ".2"},
		}
		for i := range want {
			if !maps.Equal(all[i], want[i]) {
				t.Errorf("event %d: %v, want %v", i, all[i], want[i])
			}
		}
	})
}

func TestWithoutASinkNoEventIsWritten(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a, b := f.gateway("a"), f.gateway("b")
		a.disconnect(a.connect("alice", ""))
		b.connect("bob", "")
		b.stop()
		f.eventually(func() error { return f.reaped(b) })
		f.wantState("alice", "offline")
		f.wantState("bob", "offline")
		for key := range f.dump() {
			if strings.HasSuffix(key, "}:ev") {
				t.Errorf("%s was written", key)
			}
		}
	})
}

// The stream of events is bounded: a sink that is down for too long loses the oldest, not Redis its memory.
func TestTheStreamOfEventsIsBounded(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.EventsKept = 100 })
		a := f.gateway("a")
		for range 300 {
			a.disconnect(a.connect("alice", ""))
		}
		// Redis trims whole nodes, of 100 entries by default.
		if n := len(f.events("alice")); n < 100 || n > 250 {
			t.Errorf("%d events are kept", n)
		}
	})
}

// Whoever ends graces was told of them a moment ago. A user who came back since, or came back and left again, is not made
// offline by it, nor is one whose grace somebody else has ended.
func TestTheEndOfAGraceIsJudgedAgain(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents, withGrace(time.Hour))
		a := f.gateway("a")
		mates := f.partitionMates(3)
		back, again, gone := mates[0], mates[1], mates[2]
		a.connect(back, "")
		a.disconnect(a.connect(again, ""))
		a.disconnect(a.connect(gone, ""))
		for _, user := range []string{again, gone} {
			f.wantStory(user, "connect online disconnect")
		}
		ctx, g := context.Background(), a.registry.groupOf(protocol.UserID(back))
		// The grace of the last one is over; the first one is left from a time that a failover forgot.
		if err := f.client.ZAdd(ctx, keyspace.Offlines(g.name), redis.Z{Score: 1, Member: gone}, redis.Z{Score: 1, Member: back}).Err(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			a.registry.endGrace(ctx, g, []protocol.UserID{protocol.UserID(back), protocol.UserID(again), protocol.UserID(gone), "nobody"})
		}
		for user, want := range map[string]string{back: "connect online", again: "connect online disconnect", gone: "connect online disconnect offline"} {
			f.wantStory(user, want)
		}
		if n := len(f.dump()[keyspace.Offlines(g.name)]); n != 1 {
			t.Errorf("%d graces run, want one", n)
		}
	})
}
