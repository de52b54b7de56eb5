package router

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"chatgate/internal/protocol"
)

// stay makes a client a member of a room, told so or not yet.
func (b *bench) stay(user protocol.UserID, told bool) *client {
	b.t.Helper()
	c, a := b.g.hold(user)
	s := &Stay{address: "r:lobby", conn: a.conn}
	s.followed.Store(told)
	a.stay.Store(s)
	b.do(command{kind: commandAttach, address: s.address, stay: s})
	return c
}

// wantPush ends the window, and wants the client to be told just this; "" is nothing.
func (b *bench) wantPush(c *client, want string) {
	b.t.Helper()
	b.tellMembers()
	b.out.Flush()
	if want == "" {
		return
	}
	f, err := c.Next("members", patience)
	if err != nil || string(f.Raw) != want {
		b.t.Fatalf("got %s, want %s, %v", f, want, err)
	}
}

// What is heard of a room in a window is one frame: who joined and who left, but not those who did both.
func TestWhatHappensInAWindowIsOneFrame(t *testing.T) {
	b := newBench(t)
	alice, silent := b.stay("alice", true), b.stay("silent", false)
	b.open("\x01jlobby\n2\n+bob")
	b.open("\x01jlobby\n4\n+carol\n+dave")
	b.open("\x01jelsewhere\n1\n+eve")
	b.open("\x01jlobby\n3\n-bob\n-alice")
	b.open("\x01jlobby\n4\n+alice")
	b.wantPush(alice, `{"type":"members","room":"lobby","count":4,"joined":["carol","dave"],"left":[]}`)

	b.open("\x01jlobby\n3\n-carol")
	b.open("\x01jlobby\n4\n+carol")
	b.wantPush(alice, "")
	b.open("\x01jlobby\n3\n-carol")
	b.wantPush(alice, `{"type":"members","room":"lobby","count":3,"joined":[],"left":["carol"]}`)
	b.wantPush(alice, "")
	b.open("\x01jlobby\n2\n-dave\n+")
	if n := b.g.router.Stats().Unreadable; n != 1 {
		t.Errorf("%d envelopes were not understood, want 1", n)
	}
	if rest := append(alice.Left("members"), silent.Left("members")...); len(rest) > 0 {
		t.Errorf("got what nobody should: %v", rest)
	}
	if n := b.g.router.Stats().MemberPushes; n != 2 {
		t.Errorf("%d pushes are counted, want 2", n)
	}
}

// More than a hundred are not named, nor are they where the script named nobody; and a frame is not longer than clients were told.
func TestManyWhoJoinAreNotNamed(t *testing.T) {
	for name, c := range map[string]struct {
		bodies []string
		want   string
	}{
		"a hundred":               {joins(100, ""), `"joined":["user000",`},
		"one more":                {joins(101, ""), `"count":101}`},
		"many, who mostly left":   {append(joins(150, ""), leaves(149)...), `"count":1,"joined":["user149"],"left":[]}`},
		"far too many":            {append(joins(250, ""), leaves(249)...), `"count":1}`},
		"not named by the script": {append(joins(3, ""), "lobby\n300", "lobby\n301\n+zoe"), `"count":301}`},
		"long names":              {joins(20, strings.Repeat("x", 120)), `"count":20}`},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, func(s *settings) { s.router.PushBytes = 2000 })
			alice := b.stay("alice", true)
			for _, body := range c.bodies {
				b.open("\x01j" + body)
			}
			b.tellMembers()
			b.out.Flush()
			if f, err := alice.Next("members", patience); err != nil || !strings.Contains(string(f.Raw), c.want) || len(f.Raw) > 2000 {
				t.Errorf("got %s, want %s, %v", f, c.want, err)
			}
		})
	}
}

func joins(n int, long string) (bodies []string) {
	for i := range n {
		bodies = append(bodies, fmt.Sprintf("lobby\n%d\n+user%03d%s", i+1, i, long))
	}
	return bodies
}

func leaves(n int) (bodies []string) {
	for i := range n {
		bodies = append(bodies, fmt.Sprintf("lobby\n1\n-user%03d", i))
	}
	return bodies
}

// Alice is in thousands of rooms, and all of them change in one window. She is told of each, a few at a time: at once they are more than her socket
// and her outbox hold, and she would be closed for reading too slowly.
func TestManyRoomsThatChangeAtOnceOverwhelmNobody(t *testing.T) {
	b := newBench(t, func(s *settings) { s.router.MemberWindow = 20 * time.Millisecond })
	const rooms = 3000
	alice, a := b.g.hold("alice")
	for i := range rooms {
		s := &Stay{address: protocol.RoomAddress(protocol.RoomID("room" + strconv.Itoa(i))), conn: a.conn}
		s.followed.Store(true)
		b.do(command{kind: commandAttach, address: s.address, stay: s})
	}
	for i := range rooms {
		b.open(fmt.Sprintf("\x01jroom%d\n2\n+bob", i))
	}
	for before := uint64(0); len(b.rumours)+len(b.due) > 0; {
		select {
		case <-b.tellAt.C:
			b.tellMembers()
			b.out.Flush()
			now := b.g.router.Stats().MemberPushes
			if now-before > toldAtOnce {
				t.Errorf("told of %d rooms at once", now-before)
			}
			before = now
		case <-time.After(patience):
			t.Fatal("it never ended")
		}
	}
	heard := make(map[string]bool)
	for len(heard) < rooms {
		f, err := alice.Next("members", patience)
		if err != nil {
			t.Fatalf("after %d rooms: %v", len(heard), err)
		}
		if heard[f.Room] {
			t.Fatalf("%s was told of twice", f.Room)
		}
		heard[f.Room] = true
	}
}

// The window begins with the first that is heard and ends by itself.
func TestTheWindowEnds(t *testing.T) {
	b := newBench(t, func(s *settings) { s.router.MemberWindow = 20 * time.Millisecond })
	b.stay("alice", true)
	for range 2 {
		b.open("\x01jlobby\n1\n+bob")
		select {
		case <-b.tellAt.C:
			b.tellMembers()
		case <-time.After(patience):
			t.Fatal("it never ended")
		}
	}
}
