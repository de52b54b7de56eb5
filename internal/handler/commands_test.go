//go:build !secondpass

package handler

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chatgate/internal/connection"
	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
	"chatgate/internal/router"
)

// ask asks gateways something, and returns what each answered.
func (g *gateway) ask(verb protocol.Verb, question any, within time.Duration) map[protocol.GatewayID]string {
	g.t.Helper()
	body, err := json.Marshal(question)
	if err != nil {
		g.t.Fatal(err)
	}
	replies, err := g.router.Ask(context.Background(), router.Question{Verb: verb, Body: body, Within: within})
	if err != nil || len(replies.Missing) != 0 {
		g.t.Fatalf("%s: %+v, %v", verb, replies, err)
	}
	out := make(map[protocol.GatewayID]string)
	for _, a := range replies.Answers {
		if a.Status != protocol.AnswerDone {
			g.t.Fatalf("%s: %s answered %s %s", verb, a.Gateway, a.Status, a.Body)
		}
		out[a.Gateway] = a.Body
	}
	return out
}

// place asks for rooms, and returns the outcomes of each connection, as one text.
func (g *gateway) place(verb protocol.Verb, q protocol.RoomsQuestion, within time.Duration) map[protocol.ConnID]string {
	g.t.Helper()
	out := make(map[protocol.ConnID]string)
	for gw, body := range g.ask(verb, &q, within) {
		var o protocol.RoomsOutcome
		if err := json.Unmarshal([]byte(body), &o); err != nil || o.Connections == nil {
			g.t.Fatalf("%s answered %s: %v", gw, body, err)
		}
		for _, c := range o.Connections {
			text := make([]string, len(c.Outcomes))
			for i, x := range c.Outcomes {
				text[i] = string(x)
			}
			out[c.Conn] = strings.Join(text, " ")
		}
	}
	return out
}

func (c *client) id() protocol.ConnID {
	c.t.Helper()
	return protocol.ConnID(c.ConnID())
}

// wantUnasked waits for the word about a room that the client did not ask for. Rooms of several groups are spoken of in any order.
func (c *client) wantUnasked(kind, room string) gatewaytest.Frame {
	c.t.Helper()
	f, err := c.NextOf(kind, patience, func(f gatewaytest.Frame) bool { return f.Room == room })
	if err != nil {
		c.t.Fatalf("%v\n%s", err, c.Story(5))
	}
	if f.ID != "" || kind == "joined" && (f.Epoch == "" || !f.Recovered) {
		c.t.Fatalf("%s got %s, want %s of %s without an id", c.Name, f, kind, room)
	}
	return f
}

// A backend puts alice into rooms, on all her devices wherever they are. Each is told so and where it stands, and gets what is said there from
// then on; once more changes nothing, and nobody is told twice. So it is with taking out.
func TestABackendPutsAUserIntoRoomsAndOut(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		a, b, c := newGateway(t, r), newGateway(t, r), newGateway(t, r)
		desktop, phone, bob := a.connect("alice"), b.connect("alice"), c.connect("bob")
		bob.join("lobby", "")
		bob.shout("lobby", "before", "m1")
		bob.wantRoom("lobby", "m1", 1)
		in := protocol.RoomsQuestion{User: "alice", Rooms: []protocol.RoomID{"lobby", "news"}}
		want := func(got map[protocol.ConnID]string, text string, clients ...*client) {
			t.Helper()
			if len(got) != len(clients) {
				t.Fatalf("got %v", got)
			}
			for _, x := range clients {
				if got[x.id()] != text {
					t.Fatalf("got %v, want %q for %s", got, text, x.id())
				}
			}
		}
		want(c.place(protocol.VerbJoin, in, patience), "joined joined", desktop, phone)
		for _, x := range []*client{desktop, phone} {
			if f := x.wantUnasked("joined", "lobby"); f.Offset != 1 || f.Top != 1 {
				t.Errorf("told %s", f)
			}
			x.wantUnasked("joined", "news")
		}
		want(a.place(protocol.VerbJoin, in, patience), "already already", desktop, phone)
		bob.shout("lobby", "hi", "m2")
		for _, x := range []*client{desktop, phone, bob} {
			x.wantRoom("lobby", "m2", 2)
		}
		// They are in it as if they had come by themselves.
		desktop.shout("lobby", "me too", "m3")
		phone.wantRoom("lobby", "m3", 3)
		if p, err := c.registry.Members(context.Background(), "r:lobby", "", 10); err != nil || !slices.Equal(p.Users, []protocol.UserID{"alice", "bob"}) {
			t.Errorf("in the lobby are %+v, %v", p, err)
		}

		// One connection alone, and one room of two.
		want(c.place(protocol.VerbLeave, protocol.RoomsQuestion{User: "alice", Conn: phone.id(), Rooms: []protocol.RoomID{"lobby", "attic"}}, patience), "left already", phone)
		phone.wantUnasked("left", "lobby")
		bob.shout("lobby", "still there?", "m4")
		desktop.wantRoom("lobby", "m3", 3)
		desktop.wantRoom("lobby", "m4", 4)
		if got := c.place(protocol.VerbLeave, in, patience); got[desktop.id()] != "left left" || got[phone.id()] != "already left" {
			t.Errorf("got %v", got)
		}
		desktop.wantUnasked("left", "lobby")
		phone.wantUnasked("left", "news")
	})
}

// A connection may be in so many rooms, and a backend can't put it into more. The client is not bothered with what was refused.
func TestABackendIsHeldToTheRoomsOfAConnection(t *testing.T) {
	g := embedded(t, func(s *settings) { s.handler.MaxRooms = 2 })
	alice := g.connect("alice")
	alice.join("own", "")
	q := protocol.RoomsQuestion{User: "alice", Rooms: []protocol.RoomID{"a", "b", "own"}}
	if got := g.place(protocol.VerbJoin, q, patience); got[alice.id()] != "joined limited already" {
		t.Errorf("got %v", got)
	}
	alice.wantUnasked("joined", "a")
	alice.wantAlive()
	if left := append(alice.Left("error"), alice.Left("joined")...); len(left) != 0 {
		t.Errorf("the client was told %v", left)
	}
	if got := g.place(protocol.VerbJoin, protocol.RoomsQuestion{User: "bob", Rooms: []protocol.RoomID{"a"}}, patience); len(got) != 0 {
		t.Errorf("who is not here is in %v", got)
	}
}

// What a token says of rooms is about what its user may do by himself. A backend put him into another one, and a new token leaves him there; his own
// leave does not.
func TestABackendIsAboveTheRoomsOfAToken(t *testing.T) {
	x := guard(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	alice, _ := x.enter(x.token("alice", time.Hour, "rooms", []string{"own", "other"}))
	alice.join("own", "")
	if got := x.place(protocol.VerbJoin, protocol.RoomsQuestion{User: "alice", Rooms: []protocol.RoomID{"staff", "other"}}, patience); len(got) != 1 {
		t.Fatalf("got %v", got)
	}
	alice.wantUnasked("joined", "staff")
	alice.wantUnasked("joined", "other")
	alice.renew(x.token("alice", time.Hour, "rooms", []string{}))
	alice.wantUnasked("left", "own")
	alice.next("refreshed")
	alice.shout("staff", "hi", "m1")
	alice.wantRoom("staff", "m1", 1)
	alice.shout("other", "hi", "m2")
	alice.wantRoom("other", "m2", 1)
	alice.say(`{"type":"leave","id":"l","room":"staff"}`)
	alice.next("left")
	alice.say(`{"type":"join","id":"j","room":"staff"}`)
	alice.wantError(protocol.CodeForbidden, "j")
}

// The reader waits for Redis with a join of the client's own. A command waits for its turn, not for longer than it was given, and what came too late is
// never done. One that may wait is done behind the frame.
func TestACommandWaitsForItsTurn(t *testing.T) {
	g := newGateway(t, gatewaytest.Shared(t, gatewaytest.Standalone), func(s *settings) { s.handler.RegisterWait = patience })
	alice := g.connect("alice")
	release := g.general.hold("r:slow")
	defer release()
	alice.say(`{"type":"join","id":"j","room":"slow"}`)
	eventually(t, "the join is on its way", g.general.holds)
	replies, err := g.router.Ask(context.Background(), router.Question{
		Verb: protocol.VerbJoin, Body: []byte(`{"userId":"alice","rooms":["late"]}`), Within: 300 * time.Millisecond,
	})
	// The answer comes when the asker has just given up, or just in time.
	if err != nil || len(replies.Answers) == 1 && !strings.Contains(replies.Answers[0].Body, `["busy"]`) {
		t.Errorf("got %+v, %v", replies, err)
	}
	done := make(chan map[protocol.ConnID]string, 1)
	go func() {
		done <- g.place(protocol.VerbJoin, protocol.RoomsQuestion{User: "alice", Rooms: []protocol.RoomID{"next"}}, patience)
	}()
	eventually(t, "a command waits", func() bool {
		s := sessionOf(g.manager.ByConn(alice.id()))
		s.turns.mu.Lock()
		defer s.turns.mu.Unlock()
		return len(s.turns.waiting) == 2
	})
	release()
	if f := alice.next("joined"); f.Room != "slow" || f.ID != "j" {
		t.Errorf("first came %s", f)
	}
	if got := <-done; got[alice.id()] != "joined" {
		t.Errorf("got %v", got)
	}
	alice.wantUnasked("joined", "next")
	alice.wantAlive()
	if left := alice.Left("joined"); len(left) != 0 {
		t.Errorf("what came too late was done: %v", left)
	}
}

// Clients and backends pull at the same rooms at the same time, and connections come and go. Nobody trips over anybody, and what a client was told last
// is what is true.
func TestClientsAndBackendsAtOnce(t *testing.T) {
	g := newGateway(t, gatewaytest.Shared(t, gatewaytest.Standalone))
	const rooms = 3
	stop := make(chan struct{})
	var pulling sync.WaitGroup
	for i := range 2 {
		pulling.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				verb := []protocol.Verb{protocol.VerbJoin, protocol.VerbLeave}[n%2]
				g.place(verb, protocol.RoomsQuestion{User: "alice", Rooms: []protocol.RoomID{protocol.RoomID(fmt.Sprint("r", (n/2+i)%rooms))}}, patience)
				g.ask(protocol.VerbConnection, &protocol.ConnectionQuestion{Conn: "nobody"}, patience)
			}
		})
	}
	for range 5 {
		alice := g.connect("alice")
		for n := range 30 {
			room := fmt.Sprint("r", n%rooms)
			alice.say(fmt.Sprintf(`{"type":"join","id":"j%d","room":%q}`, n, room))
			if n%2 == 0 {
				alice.say(fmt.Sprintf(`{"type":"leave","id":"l%d","room":%q}`, n, room))
			}
		}
		alice.wantAlive()
		if n := len(g.ask(protocol.VerbConnection, &protocol.ConnectionQuestion{Conn: alice.id()}, patience)); n != 1 {
			t.Errorf("%d answers", n)
		}
		alice.Cut()
	}
	close(stop)
	pulling.Wait()

	alice := g.connect("alice")
	for n := range 20 {
		room := protocol.RoomID(fmt.Sprint("r", n%rooms))
		g.place([]protocol.Verb{protocol.VerbJoin, protocol.VerbLeave}[n/2%2], protocol.RoomsQuestion{User: "alice", Rooms: []protocol.RoomID{room}}, patience)
	}
	alice.wantAlive()
	d := g.details(alice.id())
	// The word about a room comes behind what was said there, and a heartbeat may overtake it.
	if err := gatewaytest.Poll(patience, func() error {
		told := append(alice.Left("joined"), alice.Left("left")...)
		slices.SortFunc(told, func(a, b gatewaytest.Frame) int { return a.At.Compare(b.At) })
		in := make(map[protocol.RoomID]bool)
		for _, f := range told {
			switch f.Type {
			case "joined":
				in[protocol.RoomID(f.Room)] = true
			case "left":
				delete(in, protocol.RoomID(f.Room))
			}
		}
		if rooms := slices.Sorted(maps.Keys(in)); !slices.Equal(rooms, d.Rooms) {
			return fmt.Errorf("in %v, and was told %v", d.Rooms, rooms)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// details asks all gateways for a connection; one has it.
func (g *gateway) details(id protocol.ConnID) (held protocol.ConnectionDetails) {
	g.t.Helper()
	n := 0
	for _, body := range g.ask(protocol.VerbConnection, &protocol.ConnectionQuestion{Conn: id}, patience) {
		var d protocol.ConnectionDetails
		if err := json.Unmarshal([]byte(body), &d); err != nil {
			g.t.Fatal(err)
		}
		if d.Held {
			held = d
			n++
		}
	}
	if n != 1 {
		g.t.Fatalf("%d gateways have %s", n, id)
	}
	return held
}

// The gateway that has a connection tells what it does.
func TestTheGatewayOfAConnectionTellsOfIt(t *testing.T) {
	x := guard(t, gatewaytest.Shared(t, gatewaytest.Standalone))
	alice, _ := x.enter(x.token("alice", time.Hour, "jti", "t-1"))
	alice.join("b", "")
	alice.join("a", "")
	alice.say(`{"type":"watch","id":"w","users":["bob","carol"]}`)
	alice.next("presence")
	d := x.details(alice.id())
	if !slices.Equal(d.Rooms, []protocol.RoomID{"a", "b"}) || d.Watches != 2 || d.TokenID != "t-1" || d.ExpiresAt < time.Now().UnixMilli() ||
		d.Remote == "" || d.Waiting != 0 || d.InFlight != 0 || d.SilentMs < 0 || d.SilentMs > patience.Milliseconds() || d.IdleMs < 0 {
		t.Errorf("got %+v", d)
	}
}

// Nothing but whoever has the turn touches a session: the reader and commands never at once, and none is forgotten.
func TestTurnsExcludeEachOther(t *testing.T) {
	var turns turns
	var inside atomic.Int32
	enter := func() {
		if n := inside.Add(1); n != 1 {
			t.Errorf("%d at once", n)
		}
		inside.Add(-1)
	}
	var done, taken atomic.Int64
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 2000 {
				if turns.do(func() { enter(); done.Add(1) }) {
					taken.Add(1)
				}
			}
		})
	}
	for range 2000 {
		turns.take()
		enter()
		turns.give()
	}
	all.Wait()
	if done.Load() != taken.Load() || taken.Load() == 0 {
		t.Errorf("%d of %d commands were done", done.Load(), taken.Load())
	}
	turns.end()
	turns.give()
	if turns.do(func() { t.Error("done after the end") }) {
		t.Error("taken after the end")
	}
}

// The registry has alice's connection, and a backend heard of it, before her gateway is through with her register. Nobody leaves it out for that: it is
// waited for as long as there is time, and then called busy, so that he who asks asks again. One whose register comes to nothing is not hers.
func TestWhatIsAskedOfAConnectionWaitsForItsRegister(t *testing.T) {
	late, over := context.WithCancel(context.Background())
	over()
	for name, c := range map[string]struct {
		wait           time.Duration // of the register for Redis
		comesToNothing bool
		want           func(id protocol.ConnID) string
	}{
		"registered": {patience, false, func(id protocol.ConnID) string { return fmt.Sprintf("[{%s [joined]}]", id) }},
		"refused":    {time.Second, true, func(protocol.ConnID) string { return "[]" }},
	} {
		t.Run(name, func(t *testing.T) {
			g := embedded(t, func(s *settings) { s.handler.RegisterWait = c.wait })
			place := func(ctx context.Context) string {
				q := protocol.RoomsQuestion{User: "alice", Rooms: []protocol.RoomID{"lobby"}}
				return fmt.Sprint(g.handler.place(ctx, &q, (*session).putIn).Connections)
			}
			release := g.general.hold("alice")
			defer release()
			alice := g.open()
			alice.say(`{"type":"register","userId":"alice"}`)
			eventually(t, "the register is with redis", g.general.holds)
			var conn *connection.Connection
			g.manager.ForEach(func(c *connection.Connection) bool { conn = c; return true })
			if got, want := place(late), fmt.Sprintf("[{%s [busy]}]", conn.ID()); got != want {
				t.Errorf("without time to wait it is %s, want %s", got, want)
			}
			if o := g.handler.setMeta(late, &protocol.MetaQuestion{Conn: conn.ID(), Patch: `{"a":1}`}); o.Result != protocol.MetaBusy {
				t.Errorf("without time to wait its meta is %+v", o)
			}
			rooms, meta := make(chan string, 1), make(chan protocol.MetaOutcome, 1)
			go func() { rooms <- place(context.Background()) }()
			go func() {
				meta <- g.handler.setMeta(context.Background(), &protocol.MetaQuestion{Conn: conn.ID(), Patch: `{"a":1}`})
			}()
			if c.comesToNothing {
				alice.next("error") // it has waited for Redis for as long as it does
			}
			release()
			if got, want := <-rooms, c.want(conn.ID()); got != want {
				t.Errorf("its rooms are %s, want %s", got, want)
			}
			if o := <-meta; (o.Result == protocol.MetaSet) == c.comesToNothing {
				t.Errorf("its meta is %+v", o)
			}
		})
	}
}
