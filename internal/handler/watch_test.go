//go:build !secondpass

package handler

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

// atOnce has who leaves offline at once.
func atOnce(s *settings) { s.registry.Grace = 0 }

// watch begins or ends to watch users, and returns the states in the answer.
func (c *client) watch(kind string, users ...string) map[string]gatewaytest.UserState {
	c.t.Helper()
	states, err := c.Watch(kind, users...)
	if err != nil {
		c.t.Fatalf("%v\n%s", err, c.Story(5))
	}
	return states
}

// wantTold waits until a client was told this of a user, and nothing else: "online.1 offline.2".
func (c *client) wantTold(user, want string) {
	c.t.Helper()
	var got []string
	err := gatewaytest.Poll(patience, func() error {
		got = got[:0]
		all := c.Told(user)
		for _, s := range all {
			_, n, _ := s.Position()
			got = append(got, fmt.Sprintf("%s.%d", s.State, n))
		}
		if story := strings.Join(got, " "); story != want {
			return fmt.Errorf("%s was told %q of %s, want %q", c.Name, story, user, want)
		}
		return gatewaytest.CheckTold(all)
	})
	if err != nil {
		c.t.Fatalf("%v\n%s", err, c.Story(8))
	}
}

// watched are the users for whom this gateway is told of changes.
func (g *gateway) watched(users ...string) (held []string) {
	g.t.Helper()
	addresses := make([]protocol.Address, len(users))
	for i, u := range users {
		addresses[i] = protocol.WatchAddress(protocol.UserID(u))
	}
	found, err := g.registry.Holders(g.t.Context(), addresses...)
	if err != nil {
		g.t.Fatal(err)
	}
	for i := range found {
		if len(found[i]) > 0 {
			held = append(held, users[i])
		}
	}
	return held
}

// Alice watches people who are there, who are not, whom nobody has ever seen, and herself. The answer says how they are; then each change
// comes by itself, from whichever gateway, until she has seen enough.
func TestAWatcherIsToldTheStateAndThenEachChange(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		a, b := newGateway(t, r, atOnce), newGateway(t, r, atOnce)
		alice, bob := a.connect("alice"), b.connect("bob")
		carol := b.connect("carol")
		carol.Cut()
		eventually(t, "carol is gone", func() bool {
			states, err := alice.Presence("carol")
			return err == nil && states["carol"].State == "offline"
		})

		states := alice.watch("watch", "bob", "carol", "nobody", "alice", "bob")
		if s := states["bob"]; s.State != "online" || s.Devices != 1 || s.Version == "" || s.LastSeen != 0 {
			t.Errorf("bob is %+v", s)
		}
		if s := states["carol"]; s.State != "offline" || s.Devices != 0 || s.Version == "" || s.LastSeen == 0 {
			t.Errorf("carol is %+v", s)
		}
		if s := states["nobody"]; s != (gatewaytest.UserState{State: "offline"}) {
			t.Errorf("nobody is %+v", s)
		}
		if s := states["alice"]; s.State != "online" || s.Devices != 1 || len(states) != 4 {
			t.Errorf("alice is %+v, of %d", s, len(states))
		}

		b.connect("bob") // a second device is no change
		nobody := a.connect("nobody")
		alice.wantTold("nobody", "online.1")
		nobody.Cut()
		alice.wantTold("nobody", "online.1 offline.2")
		if s := alice.Told("nobody")[1]; s.LastSeen == 0 || s.Devices != 0 {
			t.Errorf("told %+v", s)
		}
		bob.Cut()
		if s := alice.watch("watch", "bob")["bob"]; s.State != "online" || s.Version != states["bob"].Version {
			t.Errorf("bob, with a device left, is %+v", s)
		}

		if s := alice.watch("unwatch", "nobody", "stranger")["nobody"]; s.State != "offline" || s.LastSeen == 0 {
			t.Errorf("in the end nobody is %+v", s)
		}
		a.connect("nobody")
		a.connect("carol")
		alice.wantTold("carol", "online.3")
		alice.wantTold("nobody", "online.1 offline.2")
		alice.wantTold("bob", "")
		alice.wantTold("alice", "")
		if f := alice.Left("presence"); f[len(f)-1].ID != "" {
			t.Errorf("a push has the id %q", f[len(f)-1].ID)
		}
		if held := a.watched("alice", "bob", "carol", "nobody", "stranger"); !slices.Equal(held, []string{"alice", "bob", "carol"}) {
			t.Errorf("held: %v", held)
		}
	})
}

// Bob comes while alice's watch is on its way to Redis: too early to be told to her gateway, so it is in the answer. And he leaves while
// the answer isn't there yet: that comes behind it.
func TestAChangeIsInTheAnswerOrBehindIt(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		patient := func(s *settings) { s.registry.Timeout, s.handler.RegisterWait = patience, patience }
		a, b := newGateway(t, r, atOnce, patient), newGateway(t, r, atOnce)
		alice := a.connect("alice")
		release := a.general.hold("w:bob")
		alice.say(`{"type":"watch","id":"w1","users":["bob"]}`)
		eventually(t, "the watch is on its way", a.general.holds)
		bob := b.connect("bob")
		release()
		if f := alice.next("presence"); f.ID != "w1" || f.States()["bob"].State != "online" {
			t.Errorf("answered %s, want bob online", f)
		}
		bob.Cut()
		alice.wantTold("bob", "offline.2")
	})
}

// In his grace bob is offline for who counts, and online for who watches: should he come back, nobody would say so.
func TestWhoWatchesSeesTheGraceOut(t *testing.T) {
	t.Parallel()
	g := embedded(t, func(s *settings) { s.registry.Grace = 3 * time.Second })
	alice, bob := g.connect("alice"), g.connect("bob")
	bob.Cut()
	eventually(t, "bob is gone", func() bool {
		states, err := alice.Presence("bob")
		return err == nil && states["bob"].State == "offline"
	})
	s := alice.watch("watch", "bob")["bob"]
	if s.State != "online" || s.Devices != 0 || s.Version == "" {
		t.Errorf("in his grace bob is %+v", s)
	}
	again := g.connect("bob")
	if now := alice.watch("watch", "bob")["bob"]; now.Version != s.Version || now.Devices != 1 {
		t.Errorf("back again bob is %+v, was %+v", now, s)
	}
	again.Cut()
	alice.wantTold("bob", "offline.2")
}

// A long list is answered in parts, like a question for presence, and all of them are watched.
func TestThousandsAreWatchedAtOnce(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		g := newGateway(t, r, atOnce, func(s *settings) {
			s.handler.MaxWatches, s.registry.Timeout, s.handler.RegisterWait = 0, patience, patience
		})
		alice := g.connect("alice")
		var names []string
		for i := range 2500 {
			names = append(names, fmt.Sprintf("user%04d", i))
		}
		if err := alice.Write(map[string]any{"type": "watch", "id": "w1", "users": names}); err != nil {
			t.Fatal(err)
		}
		seen := make(map[string]bool)
		for _, size := range []int{1000, 1000, 500} {
			f := alice.next("presence")
			states := f.States()
			if f.ID != "w1" || len(states) != size {
				t.Fatalf("an answer %q of %d users, want %d", f.ID, len(states), size)
			}
			for u := range states {
				seen[u] = true
			}
		}
		if len(slices.Collect(maps.Keys(seen))) != 2500 {
			t.Errorf("%d users were answered", len(seen))
		}
		for _, i := range []int{0, 999, 1000, 2499} {
			g.connect(names[i])
			alice.wantTold(names[i], "online.1")
		}
		alice.Cut()
		eventually(t, "nobody is watched", func() bool { return g.registry.Stats().HeldWatches == 0 && g.router.Stats().Watches == 0 })
		eventually(t, "Redis knows", func() bool { return len(g.watched(names...)) == 0 })
	})
}

// A connection watches only so many. One frame too many is refused as a whole; what is watched already does not count twice, and what is
// given up counts no more.
func TestWatchesAreLimited(t *testing.T) {
	g := embedded(t, atOnce, func(s *settings) { s.handler.MaxWatches = 3 })
	alice := g.connect("alice")
	alice.watch("watch", "u1", "u2")
	alice.say(`{"type":"watch","id":"w1","users":["u3","u4"]}`)
	if f := alice.wantError(protocol.CodeLimited, "w1"); f.Limit != "watches-per-connection" {
		t.Errorf("refused: %s", f)
	}
	if held := g.watched("u1", "u2", "u3", "u4"); !slices.Equal(held, []string{"u1", "u2"}) {
		t.Errorf("held: %v", held)
	}
	alice.watch("watch", "u1", "u2", "u3")
	alice.say(`{"type":"watch","id":"w2","users":["u4"]}`)
	alice.wantError(protocol.CodeLimited, "w2")
	alice.watch("unwatch", "u1")
	alice.watch("watch", "u4")
	for _, u := range []string{"u1", "u2", "u3", "u4"} {
		g.connect(u)
	}
	for _, u := range []string{"u2", "u3", "u4"} {
		alice.wantTold(u, "online.1")
	}
	alice.wantTold("u1", "")
	// Another connection has its own.
	g.connect("bob").watch("watch", "u1", "u2", "u3")
}

// Whoever asks for many users spends as much of his rate as by asking for their presence.
func TestWatchingCountsAgainstTheRate(t *testing.T) {
	g := embedded(t, func(s *settings) { s.handler.MessageRate = 10 })
	for _, kind := range []string{"watch", "unwatch"} {
		alice := g.connect("alice-" + kind)
		var names []string
		for i := range 1000 {
			names = append(names, fmt.Sprint("u", i))
		}
		alice.watch(kind, names...)
		alice.say(fmt.Sprintf(`{"type":%q,"id":"again","users":["u1"]}`, kind))
		if f := alice.wantError(protocol.CodeLimited, "again"); f.Limit != "message-rate" || f.Retry == 0 {
			t.Errorf("refused: %s", f)
		}
	}
}

// Redis doesn't answer. Nothing is watched that could not be held, and the client is told so at once; what was watched before stays, and
// its changes are told when Redis is back. To give up watching needs no Redis.
func TestWatchingWhileRedisIsAway(t *testing.T) {
	t.Parallel()
	r := gatewaytest.Shared(t, gatewaytest.Standalone)
	a, b := newGateway(t, r, atOnce), newGateway(t, r, atOnce)
	alice, bob := a.connect("alice"), b.connect("bob")
	alice.watch("watch", "bob", "carol")
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	alice.say(`{"type":"watch","id":"w1","users":["bob","dave"]}`)
	if f := alice.wantError(protocol.CodeUnavailable, "w1"); f.Retry == 0 {
		t.Errorf("refused: %s", f)
	}
	eventually(t, "it is known that Redis is away", func() bool { return !a.registry.Answers("u:bob") })
	began := time.Now()
	for range 20 {
		alice.say(`{"type":"watch","id":"w2","users":["dave"]}`)
		alice.wantError(protocol.CodeUnavailable, "w2")
	}
	if s := alice.watch("unwatch", "carol")["carol"]; s.State != "unknown" || s.Version != "" {
		t.Errorf("carol is %+v", s)
	}
	if d := time.Since(began); d > patience/4 { // and a second for each, did they wait for Redis
		t.Errorf("20 times refused within %v", d)
	}
	bob.Cut()
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	alice.wantTold("bob", "offline.2")
	eventually(t, "dave can be watched", func() bool {
		states, err := alice.Watch("watch", "dave")
		return err == nil && states["dave"].State == "offline"
	})
	a.connect("carol")
	a.connect("dave")
	alice.wantTold("dave", "online.1")
	alice.wantTold("carol", "")
	if n := a.router.Stats().Watches; n != 2 {
		t.Errorf("%d watches", n)
	}
}

// Somebody comes and goes as fast as he can while others begin to watch and cease again. What each is told, answers and pushes together,
// never goes back, and whoever watches in the end knows the truth.
func TestAnswersAndPushesNeverGoBack(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		a, b := newGateway(t, r, atOnce), newGateway(t, r, atOnce)
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				select {
				case <-stop:
					return
				default:
					c, err := gatewaytest.Dial("ws"+strings.TrimPrefix(b.server.URL, "http"), nil)
					if err != nil {
						t.Error(err)
						return
					}
					if _, err := c.Register("bob"); err != nil {
						t.Error(err)
					}
					c.Cut()
				}
			}
		}()
		var watchers []*client
		for i := range 3 {
			c := a.connect(fmt.Sprint("alice", i))
			watchers = append(watchers, c)
			for range 30 {
				c.watch("watch", "bob", "carol")
				if i == 1 {
					c.watch("unwatch", "bob")
				}
			}
			c.watch("watch", "bob")
		}
		close(stop)
		<-stopped
		eventually(t, "bob is gone", func() bool {
			w, err := a.registry.Locate(t.Context(), "bob")
			return err == nil && w[0].State.State == protocol.StateOffline && len(w[0].Locations) == 0
		})
		final, err := a.registry.States(t.Context(), "bob")
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range watchers {
			eventually(t, c.Name+" knows the truth", func() bool {
				highest, last := uint64(0), ""
				for _, f := range c.Left("presence") {
					s, ok := f.States()["bob"]
					if !ok {
						continue
					}
					if _, n, known := s.Position(); known && (n < highest || n == highest && f.ID == "") {
						t.Fatalf("%s is told version %d behind %d", c.Name, n, highest)
					} else if known {
						highest, last = n, s.Version
					}
				}
				return last == final[0].Version()
			})
		}
	})
}
