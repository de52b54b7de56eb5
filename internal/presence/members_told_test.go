//go:build !secondpass

package presence

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

// hear collects what a gateway is told of a room.
func (f *fleet) hear(g *gateway, room protocol.Address) <-chan string {
	f.t.Helper()
	user := "user"
	for i := 0; f.group(user) != f.cfg.Layout.GroupOf(room); i++ {
		user = fmt.Sprint("user", i)
	}
	return f.listen(g, user)
}

// wantMembersHeard wants this to be the next word: how many are in a room, and who joined and left it.
func wantMembersHeard(t *testing.T, heard <-chan string, room protocol.Address, count int, changes string) {
	t.Helper()
	if got := membersHeard(t, heard, room, changes); got != count {
		t.Fatalf("heard of %s:%s, and that there are %d, want %d", room, changes, got, count)
	}
}

// membersHeard wants the next word to say who joined and left a room, and returns how many are there by it.
func membersHeard(t *testing.T, heard <-chan string, room protocol.Address, changes string) int {
	t.Helper()
	kind, body, err := protocol.OpenEnvelope(next(t, heard))
	if err != nil || kind != protocol.EnvelopeMembers {
		t.Fatalf("heard %q, %v", kind, err)
	}
	m, err := protocol.OpenMembers(body)
	if got := strings.ReplaceAll(m.Changes, "\n", " "); err != nil || protocol.RoomAddress(m.Room) != room || got != changes {
		t.Fatalf("heard of %s: %d,%s, %v; want %s", m.Room, m.Count, got, err, changes)
	}
	return m.Count
}

// Each gateway that holds a room is told who joined it and who left, with the number that are there, and nobody else is; nothing is said
// of a user's second connection or gateway. Where many leave at once, or a room is larger than agreed, names are not said, or nothing.
func TestHoldersAreToldOfMembers(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.MemberPushes = 200 })
		a, b, c := f.gateway("a"), f.gateway("b"), f.gateway("c")
		room := protocol.Address("r:lobby")
		heard, elsewhere := f.hear(a, room), f.hear(c, room)
		want := func(count int, changes string) {
			t.Helper()
			wantMembersHeard(t, heard, room, count, changes)
		}
		a.enter("alice", room)
		want(1, " +alice")
		b.enter("bob", room)
		want(2, " +bob")
		b.enter("bob", room)
		a.enter("bob", room)
		b.exit("bob", room)
		a.exit("bob", room)
		b.exit("bob", room)
		want(1, " -bob")

		// b dies with 150, who are not counted any more from then on.
		for _, u := range named("user", 150) {
			b.enter(u, room)
		}
		for i, u := range named("user", 150) {
			want(i+2, " +"+u)
		}
		b.stop()
		f.eventually(func() error { return f.reaped(b) })
		want(1, "")

		// The one that makes the room too large is said, the next is not, until it is small again.
		for i, u := range named("more", 200) {
			a.enter(u, room)
			want(i+2, " +"+u)
		}
		a.enter("unsaid", room)
		a.exit("unsaid", room)
		f.wantMembers(room, append(named("more", 200), "alice")...) // or both would be said at once
		a.exit("more00000", room)
		want(200, " -more00000")
		if len(elsewhere) > 0 {
			t.Errorf("a gateway that doesn't hold the room heard %q", <-elsewhere)
		}
	})
}

// An operator wants none of it, and nothing is published.
func TestNobodyIsToldOfMembersWhenThatIsOff(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.MemberPushes = 0 })
		a := f.gateway("a")
		room := protocol.Address("r:lobby")
		heard := f.hear(a, room)
		a.enter("alice", room)
		a.exit("alice", room)
		f.wantMembers(room)
		if err := f.client.Publish(context.Background(), "x", "x").Err(); err != nil { // behind whatever the script said
			t.Fatal(err)
		}
		f.throughout(50*time.Millisecond, func() error {
			if len(heard) > 0 {
				return fmt.Errorf("heard %q", <-heard)
			}
			return nil
		})
	})
}
