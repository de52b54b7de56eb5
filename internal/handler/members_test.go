package handler

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

// members asks for a page and returns the answer. What stands behind the room in the frame may be empty: `,"limit":2`.
func (c *client) members(room, rest string) gatewaytest.Frame {
	c.t.Helper()
	c.say(fmt.Sprintf(`{"type":"members","id":"ask-%s","room":%q%s}`, room, room, rest))
	f, err := c.NextOf("members", patience, func(f gatewaytest.Frame) bool { return f.ID != "" })
	if err != nil || f.ID != "ask-"+room || f.Room != room || f.Users == nil || f.Joined != nil || f.Left != nil {
		c.t.Fatalf("got %s, want the members of %s, %v\n%s", f, room, err, c.Story(5))
	}
	return f
}

// wantNews waits until the pushes about a room have said this, in how many frames does not matter: a busy machine may end a window early.
func (c *client) wantNews(room string, count int, want ...string) {
	c.t.Helper()
	var news []string
	for {
		f, err := c.NextOf("members", patience, func(f gatewaytest.Frame) bool { return f.ID == "" })
		if err != nil || f.Room != room || f.Users != nil || f.Joined == nil || f.Left == nil {
			c.t.Fatalf("%s got %s, heard %v, wants %d in %s and %v, %v\n%s", c.Name, f, news, count, room, want, err, c.Story(8))
		}
		for _, u := range f.Joined {
			news = append(news, "+"+u)
		}
		for _, u := range f.Left {
			news = append(news, "-"+u)
		}
		if slices.Sort(news); slices.Equal(news, want) && f.Count == count {
			return
		}
		if len(news) >= len(want) {
			c.t.Fatalf("%s heard %v and %d in %s, want %d and %v\n%s", c.Name, news, f.Count, room, count, want, c.Story(8))
		}
	}
}

// The members of a room are told page by page, in order, each once, as soon as they were told that they joined; to those who are in it.
func TestMembersAreToldPageByPage(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		g, h := newGateway(t, r), newGateway(t, r)
		alice := g.connect("alice")
		alice.join("lobby", "")
		if f := alice.members("lobby", ""); f.Count != 1 || !slices.Equal(f.Names(), []string{"alice"}) || f.Next != nil {
			t.Errorf("just joined: %s", f)
		}
		for i := range 7 {
			[]*gateway{g, h}[i%2].connect(fmt.Sprint("user", i)).join("lobby", "")
		}
		h.connect("alice").join("lobby", "")
		var got []string
		for after, pages := "", 0; ; pages++ {
			f := alice.members("lobby", after+`,"limit":3`)
			if f.Count != 8 || len(f.Names()) > 3 || pages > 2 {
				t.Fatalf("page %d: %s", pages, f)
			}
			got = append(got, f.Names()...)
			if f.Next == nil {
				break
			}
			after = `,"after":` + string(f.Next)
		}
		if want := []string{"alice", "user0", "user1", "user2", "user3", "user4", "user5", "user6"}; !slices.Equal(got, want) {
			t.Errorf("got %v", got)
		}
		if f := alice.members("lobby", `,"after":"zoe"`); f.Count != 8 || len(f.Names()) != 0 || string(f.Users) != "[]" || f.Next != nil {
			t.Errorf("behind the last: %s", f)
		}

		alice.say(`{"type":"members","id":"m1","room":"elsewhere"}`)
		alice.wantError(protocol.CodeNotJoined, "m1")
		for _, after := range []string{`"\u0000"`, `"a\u001fb"`, `"` + strings.Repeat("x", 129) + `"`, `""`, `7`} {
			alice.say(`{"type":"members","id":"m2","room":"lobby","after":` + after + `}`)
			alice.wantError(protocol.CodeBadRequest, "m2")
		}
		alice.say(`{"type":"leave","room":"lobby"}`)
		alice.next("left")
		alice.say(`{"type":"members","id":"m3","room":"lobby"}`)
		alice.wantError(protocol.CodeNotJoined, "m3")
	})
}

// Who is in a room is told who else joins and leaves it, on whichever gateway; and nothing more once he has left.
func TestMembersArePushed(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		brief := func(s *settings) { s.router.MemberWindow = 50 * time.Millisecond }
		g, h := newGateway(t, r, brief), newGateway(t, r, brief)
		alice := g.connect("alice")
		alice.join("lobby", "")
		alice.wantNews("lobby", 1, "+alice")
		dave, carol, bob := h.connect("dave"), h.connect("carol"), g.connect("bob")
		dave.join("lobby", "")
		carol.join("lobby", "")
		bob.join("lobby", "")
		alice.wantNews("lobby", 4, "+bob", "+carol", "+dave")
		dave.wantNews("lobby", 4, "+bob", "+carol", "+dave")

		// A second connection of bob's is no news, nor is the end of his first.
		again := h.connect("bob")
		again.join("lobby", "")
		bob.Cut()
		carol.Cut()
		alice.wantNews("lobby", 3, "-carol")
		again.wantNews("lobby", 3, "-carol")
		dave.wantNews("lobby", 3, "-carol")
		dave.say(`{"type":"leave","room":"lobby"}`)
		dave.next("left")
		alice.wantNews("lobby", 2, "-dave")
		again.wantNews("lobby", 2, "-dave")
		dave.send("dave", "x", "m1") // behind whatever else could come
		if rest := dave.Left("members"); len(rest) > 0 {
			t.Errorf("dave has left, and got %v", rest)
		}
	})
}

// Many at once are not named, neither in a push nor beyond what a client may be sent.
func TestManyMembersAreNotNamed(t *testing.T) {
	t.Parallel()
	g := embedded(t, func(s *settings) {
		s.router.PushBytes, s.handler.MaxFrameBytes = 1024, 1024
		s.router.MemberWindow, s.handler.MessageRate = time.Second, 0
	})
	alice := g.connect("alice")
	alice.join("lobby", "")
	alice.wantNews("lobby", 1, "+alice")
	long := strings.Repeat("x", 100)
	var all []*client
	for i := range 15 {
		all = append(all, g.connect(fmt.Sprintf("user%02d%s", i, long)))
	}
	for _, c := range all { // within one window, also where it takes a while to come
		c.say(`{"type":"join","room":"lobby"}`)
	}
	for _, c := range all {
		c.next("joined")
	}
	eventually(t, "it is said how many are there, and not who", func() bool {
		f := alice.next("members")
		return f.Count == 16 && f.Joined == nil && f.Left == nil
	})
	var got []string
	for after, pages := "", 0; ; pages++ {
		f := alice.members("lobby", after)
		if len(f.Raw) > 1024 || pages > 10 {
			t.Fatalf("page %d has %d bytes", pages, len(f.Raw))
		}
		got = append(got, f.Names()...)
		if f.Next == nil {
			break
		}
		after = `,"after":` + string(f.Next)
	}
	if len(got) != 16 || !slices.IsSorted(got) {
		t.Errorf("got %v", got)
	}
}

// Redis doesn't answer: nobody can say who is there, and says so.
func TestMembersWhileRedisIsAway(t *testing.T) {
	t.Parallel()
	r := gatewaytest.Shared(t, gatewaytest.Standalone)
	g := newGateway(t, r)
	alice := g.connect("alice")
	alice.join("lobby", "")
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	alice.say(`{"type":"members","id":"m1","room":"lobby"}`)
	if f := alice.wantError(protocol.CodeUnavailable, "m1"); f.Retry == 0 {
		t.Errorf("refused: %s", f)
	}
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the members are told", func() bool {
		alice.say(`{"type":"members","id":"m2","room":"lobby"}`)
		f, err := alice.NextOf("members", patience/4, func(f gatewaytest.Frame) bool { return f.ID == "m2" })
		return err == nil && f.Count == 1
	})
}
