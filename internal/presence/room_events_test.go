//go:build !secondpass

package presence

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

func withRoomEvents(c *Config) { c.EventsKept, c.RoomEventsKept = 100_000, 100_000 }

// roomStory is what the stream of events says of a room: who joined (+) and left (-), and how many were in it then.
func (f *fleet) roomStory(room protocol.Address) string {
	f.t.Helper()
	var story []string
	sign := map[string]string{"joined": "+", "left": "-"}
	for _, x := range f.entriesOf(f.cfg.Layout.GroupOf(room)) {
		if x["room"] == room.Name() {
			story = append(story, sign[x["type"]]+x["user"]+" "+x["members"])
		}
	}
	return strings.Join(story, ", ")
}

func (f *fleet) wantRoomStory(room protocol.Address, want string) {
	f.t.Helper()
	f.eventually(func() error {
		if got := f.roomStory(room); got != want {
			return fmt.Errorf("events of %s: %q, want %q", room, got, want)
		}
		return nil
	})
}

// One event for a user's first connection in a room and one for his last, wherever they are: as the members of the room see it.
func TestAUserJoinsAndLeavesARoomOnce(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withRoomEvents)
		a, b := f.gateway("a"), f.gateway("b")
		a.enter("alice", "r:lobby")
		a.enter("alice", "r:lobby") // another connection of hers
		b.enter("alice", "r:lobby") // and one on another gateway
		b.enter("bob", "r:lobby")
		f.wantMembers("r:lobby", "alice", "bob")
		f.wantRoomStory("r:lobby", "+alice 1, +bob 2")
		a.exit("alice", "r:lobby")
		a.exit("alice", "r:lobby")
		f.wantMembers("r:lobby", "alice", "bob")
		b.exit("alice", "r:lobby")
		f.wantMembers("r:lobby", "bob")
		b.exit("bob", "r:lobby")
		f.wantRoomStory("r:lobby", "+alice 1, +bob 2, -alice 1, -bob 0")
		a.enter("alice", "r:lobby")
		f.wantRoomStory("r:lobby", "+alice 1, +bob 2, -alice 1, -bob 0, +alice 1")
		for _, x := range f.entriesOf(f.cfg.Layout.GroupOf("r:lobby")) {
			if x["gateway"] == "" || x["ms"] == "" || x["n"] == "" || x["user"] == "" {
				t.Errorf("the event %v lacks something", x)
			}
		}
	})
}

// Where nobody wants to hear of rooms, nothing is written of them; of connections it is.
func TestEventsOfRoomsAreWrittenForSomebodyOnly(t *testing.T) {
	f := newFleet(t, gatewaytest.Shared(t, gatewaytest.Standalone), withEvents)
	a := f.gateway("a")
	a.connect("alice", "")
	a.enter("alice", "r:lobby")
	f.wantMembers("r:lobby", "alice")
	a.exit("alice", "r:lobby")
	f.wantMembers("r:lobby")
	f.wantStory("alice", "connect online")
}

// A gateway is killed with people in rooms. Who is back elsewhere before it is reaped was never away; of everyone else it is said once
// that he left, however many gateways reap.
func TestWhoLeftWithAKilledGateway(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withRoomEvents)
		a, b, killed := f.gateway("a"), f.gateway("b"), f.gateway("killed")
		killed.enterMany("r:hall", named("user", 450)) // more than one call takes out
		killed.enter("zoe", "r:hall")
		f.wantMembers("r:hall", append(named("user", 450), "zoe")...)
		killed.stop()
		killed.forget()
		a.enter("zoe", "r:hall")
		b.enter("bob", "r:hall")
		f.eventually(func() error { return f.reaped(killed) })
		f.wantMembers("r:hall", "bob", "zoe")
		told := make(map[string]string)
		for _, x := range f.entriesOf(f.cfg.Layout.GroupOf("r:hall")) {
			if x["room"] == "hall" {
				told[x["user"]] += x["type"] + " "
			}
		}
		for user, story := range told {
			want := "joined left "
			if user == "zoe" || user == "bob" {
				want = "joined "
			}
			if story != want {
				t.Errorf("%s: %s, want %s", user, story, want)
			}
		}
		if len(told) != 452 {
			t.Errorf("of %d users something is told", len(told))
		}
	})
}

// Redis is emptied. Everybody is in the rooms again, and nobody is said to have joined: nobody left.
func TestWhatRedisLostOfARoomIsNoEvent(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withRoomEvents)
		a, b := f.gateway("a"), f.gateway("b")
		a.enter("alice", "r:lobby")
		b.enter("bob", "r:lobby")
		f.wantMembers("r:lobby", "alice", "bob")
		if err := r.FlushAll(); err != nil {
			t.Fatal(err)
		}
		f.wantMembers("r:lobby", "alice", "bob")
		b.enter("carol", "r:lobby")
		f.wantMembers("r:lobby", "alice", "bob", "carol")
		a.exit("alice", "r:lobby")
		f.wantRoomStory("r:lobby", "+carol 3, -alice 2")
	})
}

// A gateway stands still and is reaped in part: those who were taken out have left. When it goes on they are there again, so they joined.
func TestWhoWasTakenOutJoinsAgain(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withRoomEvents)
		paused, reaper := f.gateway("paused"), f.prepare("reaper")
		paused.enterMany("r:hall", named("user", 300))
		f.wantMembers("r:hall", named("user", 300)...)
		paused.stop()
		ctx, g := context.Background(), reaper.registry.groups[f.cfg.Layout.GroupIndex("r:hall")]
		f.eventually(func() error {
			if _, err := reaper.registry.pulseOnce(ctx, g, ""); err != nil {
				return err
			}
			reaper.registry.reapHolds(ctx, g, paused.id, []protocol.Address{"r:hall"})
			if !strings.Contains(f.roomStory("r:hall"), "-") {
				return errors.New("it may not be judged yet")
			}
			return nil
		})
		if err := paused.registry.Join(ctx); err != nil { // the reaper must not go on with it
			t.Fatal(err)
		}
		paused.run()
		f.wantMembers("r:hall", named("user", 300)...)
		told := make(map[string]string)
		for _, x := range f.entriesOf(f.cfg.Layout.GroupOf("r:hall")) {
			if x["room"] == "hall" {
				told[x["user"]] += x["type"] + " "
			}
		}
		again := 0
		for user, story := range told {
			switch story {
			case "joined ":
			case "joined left joined ":
				again++
			default:
				t.Errorf("%s: %s", user, story)
			}
		}
		if again < 200 || again > 299 {
			t.Errorf("%d of 300 were taken out and came again", again)
		}
	})
}
