package handler

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

// What a token does not allow is forbidden from the first frame on, and ended when a new token says so.
func TestClaimsLimitWhatAConnectionDoes(t *testing.T) {
	x := guard(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	x.enter(x.token("bob", time.Hour))
	c := x.open()
	c.say(`{"type":"register","rooms":{"team-1":null,"secret":null,"\"staff\"":null},"token":"` + x.token("alice", time.Hour,
		"rooms", []string{"team-*", "lobby"}, "watch", []string{"bob", "carol"}, "limits", map[string]int{"rooms": 2, "watches": 1}) + `"}`)
	c.next("registered")
	if f := c.next("joined"); f.Room != "team-1" {
		t.Errorf("joined %s", f)
	}
	if f := c.wantError(protocol.CodeForbidden, ""); !slices.Equal(f.RoomNames(), []string{"secret", `"staff"`}) {
		t.Errorf("refused: %s", f)
	}
	ask := func(frame string, code protocol.ErrorCode) {
		t.Helper()
		c.say(frame)
		c.wantError(code, "q")
	}
	c.say(`{"type":"join","id":"j","room":"lobby"}`)
	c.next("joined")
	ask(`{"type":"join","id":"q","room":"secret"}`, protocol.CodeForbidden)
	ask(`{"type":"join","id":"q","room":"team-2"}`, protocol.CodeLimited)
	ask(`{"type":"message","id":"q","room":"secret","content":1}`, protocol.CodeNotJoined)
	c.say(`{"type":"watch","id":"w","users":["bob","alice"]}`)
	c.wantError(protocol.CodeLimited, "w")
	c.say(`{"type":"watch","id":"w","users":["bob"]}`)
	c.next("presence")
	ask(`{"type":"watch","id":"q","users":["dave"]}`, protocol.CodeForbidden)
	ask(`{"type":"presence","id":"q","users":["bob","dave"]}`, protocol.CodeForbidden)
	c.say(`{"type":"presence","id":"p","users":["bob","alice"]}`) // oneself always
	c.next("presence")

	// To end a watch tells of nobody either.
	x.enter(x.token("dave", time.Hour))
	c.say(`{"type":"unwatch","id":"u","users":["dave","bob"]}`)
	if f := c.next("presence"); f.ID != "u" || f.States()["dave"].State != "unknown" || f.States()["bob"].State != "online" {
		t.Errorf("got %s", f)
	}
	c.say(`{"type":"watch","id":"w","users":["bob"]}`)
	c.next("presence")

	c.renew(x.token("alice", time.Hour, "rooms", []string{"lobby"}, "watch", []string{}, "limits", map[string]int{"messageRate": 0}))
	if f := c.next("left"); f.Room != "team-1" || f.ID != "" {
		t.Errorf("left %s", f)
	}
	c.next("refreshed")
	if n := x.registry.Stats(); n.HeldRooms != 1 || n.HeldWatches != 0 {
		t.Errorf("%d rooms and %d watches are held", n.HeldRooms, n.HeldWatches)
	}
	ask(`{"type":"message","id":"q","to":"bob","content":1}`, protocol.CodeForbidden)
	c.wantAlive()
}

func TestTheRateOfATokenHolds(t *testing.T) {
	t.Parallel()
	x := guard(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	c, _ := x.enter(x.token("alice", time.Hour, "limits", map[string]int{"messageRate": 5}))
	began := time.Now()
	for i := range 12 {
		wantAck(t, c.send("bob", "hi", fmt.Sprint("m", i)), protocol.StatusStored, uint64(i+1), 0)
	}
	if took := time.Since(began); took < 1390*time.Millisecond {
		t.Errorf("12 messages in %v at 5 a second", took)
	}
}

// A token may allow no frame to others at all. To end what its connection has is none.
func TestWhoMaySendNothingMayLeaveAndUnwatch(t *testing.T) {
	t.Parallel()
	for name, rate := range map[string]int{"with a rate": 2, "without": 0} {
		t.Run(name, func(t *testing.T) {
			x := guard(t, gatewaytest.Shared(t, gatewaytest.Embedded), func(s *settings) { s.handler.MessageRate = rate })
			c := x.open()
			c.say(`{"type":"register","rooms":{"lobby":null,"attic":null},"token":"` + x.token("alice", time.Hour, "limits", map[string]int{"messageRate": 0}) + `"}`)
			c.next("registered")
			c.next("joined")
			c.next("joined")
			for _, frame := range []string{
				`{"type":"message","id":"q","to":"bob","content":1}`, `{"type":"join","id":"q","room":"cellar"}`, `{"type":"history","id":"q"}`,
				`{"type":"presence","id":"q","users":["bob"]}`, `{"type":"watch","id":"q","users":["bob"]}`, `{"type":"members","id":"q","room":"lobby"}`,
			} {
				c.say(frame)
				if f := c.wantError(protocol.CodeForbidden, "q"); f.Limit != "message-rate" {
					t.Errorf("%s: %s", frame, f)
				}
			}
			c.say(`{"type":"leave","id":"l","room":"lobby"}`)
			c.next("left")
			c.say(`{"type":"unwatch","id":"u","users":["bob"]}`)
			c.next("presence")
			// But not as often as he likes: the reader is held.
			began := time.Now()
			for range 5 {
				c.say(`{"type":"unwatch","id":"u","users":["bob"]}`)
			}
			c.say(`{"type":"leave","id":"l","room":"attic"}`)
			c.next("left")
			if took := time.Since(began); rate > 0 && took < 2*time.Second { // 8 in all, of which 2 at once and the rest 2 a second
				t.Errorf("answered after %v", took)
			}
		})
	}
}
