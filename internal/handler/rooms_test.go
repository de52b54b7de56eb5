package handler

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/presence"
	"chatgate/internal/protocol"
)

// join enters a room and returns the answer. What stands behind the room in the frame may be empty: `,"resume":{"offset":0}`.
func (c *client) join(room, rest string) gatewaytest.Frame {
	c.t.Helper()
	c.say(fmt.Sprintf(`{"type":"join","id":"join-%s","room":%q%s}`, room, room, rest))
	f := c.next("joined")
	if f.ID != "join-"+room || f.Room != room || f.Epoch == "" {
		c.t.Fatalf("got %s, want joined %s with a position", f, room)
	}
	return f
}

// shout sends a message to a room and returns the answer.
func (c *client) shout(room, content, id string) gatewaytest.Frame {
	c.t.Helper()
	c.say(fmt.Sprintf(`{"type":"message","id":%q,"room":%q,"content":%q}`, id, room, content))
	return c.answer(id)
}

// wantRoom waits for the next message, which must be of a room, with this id and offset.
func (c *client) wantRoom(room, id string, offset uint64) {
	c.t.Helper()
	if m := c.next("message"); m.Room != room || m.ID != id || m.Offset != offset {
		c.t.Fatalf("%s got %s, want %s of %s at %d\n%s", c.Name, m, id, room, offset, c.Story(8))
	}
}

// Who is in a room gets what is said there, the one who says it too, each message once and under the room's own offsets. Who has left
// gets nothing more, and may say nothing.
func TestRoomsReachTheirMembers(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		g := newGateway(t, r)
		alice, bob, carol := g.connect("alice"), g.connect("bob"), g.connect("carol")
		if f := alice.join("lobby", ""); f.Offset != 0 || f.First != 1 || f.Top != 0 || !f.Recovered {
			t.Errorf("the first to join is told %s", f)
		}
		bob.join("lobby", "")
		if f := carol.shout("lobby", "let me in", "m0"); f.CodeText() != string(protocol.CodeNotJoined) {
			t.Errorf("who is not in the room is answered %s", f)
		}
		first := alice.shout("lobby", "hi", "m1")
		if first.Type != "ack" || first.Status != string(protocol.StatusRouted) || first.Devices != nil || first.Offset != 1 {
			t.Errorf("answered %s, want routed at 1, without devices", first)
		}
		if again := alice.shout("lobby", "hi", "m1"); string(again.Raw) != string(first.Raw) {
			t.Errorf("the repeat got %s, the first %s", again, first)
		}
		alice.wantRoom("lobby", "m1", 1)
		bob.wantRoom("lobby", "m1", 1)

		// The same id in the own inbox is another message: dedupe is of an address.
		wantAck(t, alice.send("bob", "hi", "m1"), protocol.StatusRouted, 1, 1)
		if m := bob.next("message"); m.Room != "" || m.Offset != 1 {
			t.Errorf("bob got %s, want the message to himself", m)
		}

		bob.say(`{"type":"leave","id":"l1","room":"lobby"}`)
		if f := bob.next("left"); f.ID != "l1" || f.Room != "lobby" {
			t.Errorf("left: %s", f)
		}
		bob.say(`{"type":"leave","id":"l2","room":"lobby"}`)
		bob.wantError(protocol.CodeNotJoined, "l2")
		alice.shout("lobby", "gone?", "m2")
		alice.wantRoom("lobby", "m2", 2)
		wantAck(t, alice.send("bob", "end", "m3"), protocol.StatusRouted, 2, 1)
		if m := bob.next("message"); m.ID != "m3" {
			t.Errorf("bob has left, and got %s", m)
		}

		alice.say(`{"type":"message","id":"s1","room":"lobby","content":"typing","ephemeral":true}`)
		if f := alice.answer("s1"); f.Status != string(protocol.StatusRouted) || f.Devices != nil {
			t.Errorf("a signal to a room is answered %s", f)
		}
		if m := alice.next("message"); !m.Ephemeral || m.Room != "lobby" || m.Epoch != "" {
			t.Errorf("alice got %s, want the signal", m)
		}
	})
}

// Where the operator opened the rooms, who is outside may say something, and still learns nothing.
func TestOpenRoomsTakeMessagesFromOutside(t *testing.T) {
	g := embedded(t, func(s *settings) { s.handler.OpenRooms = true })
	alice, bob := g.connect("alice"), g.connect("bob")
	alice.join("lobby", "")
	if f := bob.shout("lobby", "hi", "m1"); f.Status != string(protocol.StatusRouted) || f.Offset != 1 {
		t.Errorf("from outside, answered %s", f)
	}
	alice.wantRoom("lobby", "m1", 1)
	if f := bob.shout("attic", "anybody?", "m2"); f.Status != string(protocol.StatusStored) || f.Offset != 1 {
		t.Errorf("to an empty room, answered %s", f)
	}
	// What is said there, and who is there, is still for those who are in it.
	bob.say(`{"type":"history","id":"h","room":"lobby"}`)
	if f := bob.answer("h"); f.CodeText() != string(protocol.CodeNotJoined) {
		t.Errorf("history of a room from outside: %s", f)
	}
}

// A client goes on in a room where it was: by join or in its register, behind the position it gives; and is told what it can't have.
func TestRoomsAreResumed(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		g := newGateway(t, r)
		alice := g.connect("alice")
		epoch := alice.join("lobby", "").Epoch
		for i := range 3 {
			alice.shout("lobby", "x", fmt.Sprint("m", i+1))
		}

		bob := g.open()
		bob.say(fmt.Sprintf(`{"type":"register","userId":"bob","rooms":{"lobby":{"epoch":%q,"offset":1},"news":null}}`, epoch))
		bob.next("registered")
		if f := bob.next("joined"); f.ID != "" || f.Room != "lobby" || f.Epoch != epoch || f.Offset != 1 || f.Top != 3 || !f.Recovered {
			t.Errorf("joined by register: %s", f)
		}
		if f := bob.next("joined"); f.Room != "news" || f.Offset != 0 {
			t.Errorf("joined by register: %s", f)
		}
		bob.wantRoom("lobby", "m2", 2)
		bob.wantRoom("lobby", "m3", 3)

		// Joining again is leaving and coming back: from there on everything comes once.
		if f := bob.join("lobby", `,"resume":{"offset":0}`); f.Offset != 0 || f.Top != 3 {
			t.Errorf("joined again: %s", f)
		}
		for i := range 3 {
			bob.wantRoom("lobby", fmt.Sprint("m", i+1), uint64(i+1))
		}
		if f := bob.join("lobby", `,"resume":{"epoch":"foreign","offset":2}`); f.Recovered || f.Offset != 0 {
			t.Errorf("joined with a foreign epoch: %s", f)
		}
		if f := bob.next("gap"); f.Room != "lobby" || f.Reason != string(protocol.GapHistory) || text(f.From) != "3" {
			t.Errorf("gap: %s", f)
		}
		for i := range 3 {
			bob.wantRoom("lobby", fmt.Sprint("m", i+1), uint64(i+1))
		}
		alice.shout("lobby", "x", "m4")
		bob.wantRoom("lobby", "m4", 4)

		bob.say(`{"type":"history","id":"h1","room":"lobby","after":1,"limit":2}`)
		if f := bob.next("history"); f.ID != "h1" || f.Room != "lobby" || f.Top != 4 || f.Epoch != epoch {
			t.Errorf("history of a room: %s", f)
		}
		bob.say(`{"type":"history","id":"h2","room":"elsewhere"}`)
		bob.wantError(protocol.CodeNotJoined, "h2")
	})
}

func text(raw []byte) string { return string(raw) }

// A device has a cursor in each room as in its own inbox: it goes on behind what it said it kept.
func TestDeviceGoesOnInItsRooms(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		g := newGateway(t, r)
		alice := g.connect("alice")
		epoch := alice.join("lobby", "").Epoch
		for i := range 4 {
			alice.shout("lobby", "x", fmt.Sprint("m", i+1))
		}
		const register = `{"type":"register","userId":"bob","deviceId":"phone","rooms":{"lobby":null}}`
		bob := g.open()
		bob.say(register)
		if f := bob.next("joined"); f.Offset != 0 { // never seen: what is kept
			t.Errorf("joined: %s", f)
		}
		for i := range 4 {
			bob.wantRoom("lobby", fmt.Sprint("m", i+1), uint64(i+1))
		}
		bob.say(fmt.Sprintf(`{"type":"received","room":"lobby","epoch":%q,"offset":3}`, epoch))
		bob.say(`{"type":"received","room":"elsewhere","epoch":"e","offset":3}`)
		bob.wantError(protocol.CodeNotJoined, "")
		eventually(t, "the cursor stands at 3", func() bool {
			at, err := g.handler.history.Kept(t.Context(), "bob", "phone", "r:lobby")
			return err == nil && at[0] != nil && *at[0] == protocol.Position{Epoch: epoch, Offset: 3}
		})
		again := g.open()
		again.say(register)
		if f := again.next("joined"); f.Offset != 3 || !f.Recovered {
			t.Errorf("joined: %s", f)
		}
		again.wantRoom("lobby", "m4", 4)
	})
}

// Rooms are limited for each connection; leaving one makes room for another. Neither the limit nor 1,000 joins harm a neighbour.
func TestRoomsOfAConnectionAreLimited(t *testing.T) {
	g := embedded(t, func(s *settings) { s.handler.MaxRooms, s.handler.MessageRate = 3, 0 })
	bob, alice := g.connect("bob"), g.open()
	alice.say(`{"type":"register","userId":"alice","rooms":{"1":null,"2":null,"3":null,"4":null,"5":null}}`)
	for _, room := range []string{"1", "2", "3"} {
		if f := alice.next("joined"); f.Room != room {
			t.Errorf("joined %s, want %s", f, room)
		}
	}
	if f := alice.wantError(protocol.CodeLimited, ""); f.Limit != "rooms-per-connection" || !slices.Equal(f.RoomNames(), []string{"4", "5"}) {
		t.Errorf("refused: %s", f)
	}
	for i := range 1000 {
		alice.say(fmt.Sprintf(`{"type":"join","id":"j%d","room":"room %[1]d"}`, i))
		alice.wantError(protocol.CodeLimited, fmt.Sprint("j", i))
	}
	bob.wantAlive()
	alice.join("2", "") // is in it already
	alice.say(`{"type":"leave","room":"1"}`)
	alice.next("left")
	alice.join("4", "")
	if n := g.registry.Stats().HeldRooms; n != 3 {
		t.Errorf("%d rooms are held", n)
	}
}

// A client comes back to all its rooms with a device, and to rooms whose history has changed: however many, Redis is asked a handful
// of times, so that it may be far away.
func TestManyRoomsAreEnteredWithAHandfulOfCalls(t *testing.T) {
	r := gatewaytest.Shared(t, gatewaytest.Standalone)
	g := newGateway(t, r)
	const many = 300
	commands := func() int64 {
		n, err := r.Client().Info(t.Context(), "stats").Result()
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(n, "total_reads_processed:")
		reads, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return reads
	}
	register := func(user, resume string) string {
		var b strings.Builder
		for i := range many {
			fmt.Fprintf(&b, `,"%d":%s`, i, resume)
		}
		return fmt.Sprintf(`{"type":"register","userId":%q,"deviceId":"d","rooms":{%s}}`, user, b.String()[1:])
	}
	for name, resume := range map[string]string{"device": `null`, "foreign": `{"epoch":"foreign","offset":7}`} {
		t.Run(name, func(t *testing.T) {
			c := g.open()
			before := commands()
			c.say(register(name, resume))
			if err := c.WaitCount(many, patience, "joined"); err != nil {
				t.Fatal(err)
			}
			if n := commands() - before; n > many/4 {
				t.Errorf("%d requests for %d rooms", n, many)
			}
		})
	}
}

// Room names are any id; what is none is refused, and nothing is joined.
func TestRoomNames(t *testing.T) {
	g := embedded(t)
	alice := g.connect("alice")
	for _, room := range []string{"a:b", "{x}", "}{", "*", "r:lobby", "u:alice", "../..", " ", "\u2028", "комната"} {
		alice.join(room, "")
		alice.shout(room, "x", "m")
		alice.wantRoom(room, "m", 1)
	}
	for _, room := range []string{"", "a\\nb", "\\u0000", "\\u001f"} {
		alice.say(`{"type":"join","id":"j","room":"` + room + `"}`)
		alice.wantError(protocol.CodeBadRequest, "j")
	}
	alice.say(`{"type":"join","id":"j","room":["lobby"]}`)
	alice.wantError(protocol.CodeBadRequest, "j")
}

// The session ends, and with it its part in its rooms: nobody holds them any more, and what is said there is only stored.
func TestEndedSessionLeavesItsRooms(t *testing.T) {
	g := embedded(t)
	alice, bob := g.connect("alice"), g.connect("bob")
	for _, room := range []string{"one", "two"} {
		alice.join(room, "")
	}
	bob.join("two", "")
	alice.Cut()
	holders := func(room protocol.Address) []presence.Holding {
		found, err := g.registry.Holders(t.Context(), room)
		if err != nil {
			t.Fatal(err)
		}
		return found[0]
	}
	eventually(t, "the room is let go", func() bool { return len(holders("r:one")) == 0 })
	if len(holders("r:two")) != 1 {
		t.Error("the room that bob is in is held by nobody")
	}
	bob.shout("two", "x", "m1")
	bob.wantRoom("two", "m1", 1)
}

// Redis doesn't answer. A join is refused at once and may be repeated; rooms joined before stay.
func TestJoinWhileRedisIsAway(t *testing.T) {
	t.Parallel()
	r := gatewaytest.Shared(t, gatewaytest.Standalone)
	g := newGateway(t, r)
	alice := g.connect("alice")
	alice.join("lobby", "")
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	alice.say(`{"type":"join","id":"j1","room":"news"}`)
	if f := alice.wantError(protocol.CodeUnavailable, "j1"); f.Retry == 0 || !slices.Equal(f.RoomNames(), []string{"news"}) {
		t.Errorf("refused: %s", f)
	}
	// Who is in a room and asks to be put at another position is still in it.
	alice.say(`{"type":"join","id":"j0","room":"lobby","resume":{"offset":0}}`)
	alice.wantError(protocol.CodeUnavailable, "j0")
	eventually(t, "redis is known not to answer", func() bool { return !g.registry.Answers("r:lobby") })
	began := time.Now()
	for range 20 {
		alice.say(`{"type":"history","id":"h1","room":"lobby"}`)
		alice.wantError(protocol.CodeUnavailable, "h1")
	}
	alice.wantAlive()
	if d := time.Since(began); d > patience/4 { // and a second for each, did they wait for Redis
		t.Errorf("20 histories and a heartbeat took %v", d)
	}
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the join is taken", func() bool {
		alice.say(`{"type":"join","id":"j2","room":"news"}`)
		f, err := alice.Next("joined", patience/40)
		return err == nil && f.Room == "news"
	})
	eventually(t, "the room works", func() bool { return alice.shout("lobby", "x", "m1").Type == "ack" })
	alice.wantRoom("lobby", "m1", 1)
}

// A message for everyone, as a backend will send it, reaches whoever has registered, and nobody else.
func TestEveryoneRegisteredIsTold(t *testing.T) {
	g := embedded(t)
	alice, bob, stranger := g.connect("alice"), g.connect("bob"), g.open()
	reach, err := g.router.Broadcast(context.Background(), &protocol.MessageHead{
		ID: []byte("news"), From: "ops", Content: []byte(`"maintenance at six"`), Ts: 1, Ephemeral: true,
	})
	if err != nil || reach.Gateways != 1 {
		t.Fatalf("%+v, %v", reach, err)
	}
	for _, c := range []*client{alice, bob} {
		if m := c.next("message"); m.ID != "news" || m.To != nil || m.Room != "" || !m.Ephemeral {
			t.Errorf("%s got %s", c.Name, m)
		}
	}
	stranger.register("carol")
	if got := stranger.Notes().Received; len(got) != 0 {
		t.Errorf("who had not registered got %v", got)
	}
}
