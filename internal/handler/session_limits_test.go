//go:build !secondpass

package handler

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"chatgate/internal/protocol"
)

// A connection may send so many messages a second, with as many at once, however hard it tries. Over that its reader is held: nothing is
// refused, and all of it is stored in the order it was sent.
func TestMessagesAreHeldToTheRate(t *testing.T) {
	t.Parallel()
	const perSecond, burst = 100, 100
	g := embedded(t, func(s *settings) { s.handler.MessageRate = perSecond })
	bob := g.connect("bob")
	c := g.connect("alice")
	began := time.Now()
	const sent = 250
	for i := range sent {
		c.say(`{"type":"message","id":"m` + strconv.Itoa(i) + `","to":"bob","content":` + strconv.Itoa(i) + `}`)
	}
	for i := range sent {
		if f := bob.next("message"); f.ID != "m"+strconv.Itoa(i) {
			t.Fatalf("message %d is %s", i, f)
		}
	}
	if took, least := time.Since(began), time.Second*(sent-burst)/perSecond; took < least {
		t.Errorf("%d messages in %v, want at least %v", sent, took, least)
	}
	c.wantAlive()
	if errors := c.Notes().Errors; len(errors) > 0 {
		t.Errorf("refused: %s", errors[0])
	}
}

// The limit holds for whatever goes to others or asks about them: signals, rooms not joined, presence.
func TestEverythingToOthersIsHeldToTheRate(t *testing.T) {
	t.Parallel()
	for name, frame := range map[string]string{
		"signals":          `{"type":"message","id":"x","to":"bob","content":1,"ephemeral":true}`,
		"rooms not joined": `{"type":"message","id":"x","room":"lobby","content":1}`,
		"copies":           `{"type":"message","id":"x","to":"bob","content":1,"copy":true}`,
		"presence":         `{"type":"presence","id":"x","users":["bob"]}`,
	} {
		t.Run(name, func(t *testing.T) {
			g := embedded(t, func(s *settings) { s.handler.MessageRate, s.handler.MaxBadFrames = 50, 0 })
			c := g.connect("alice")
			began := time.Now()
			for range 100 {
				c.say(frame)
			}
			c.wantAlive()
			if took := time.Since(began); took < 990*time.Millisecond {
				t.Errorf("100 frames in %v at 50 a second", took)
			}
		})
	}
}

// What would have to wait for more than a second is refused, at once, and the time it is told is right: after it, the next message is taken.
func TestRetryAfterIsEnough(t *testing.T) {
	g := embedded(t, func(s *settings) { s.handler.MessageRate = 20 })
	c := g.connect("alice")
	names := make([]string, 1000) // count as a hundred
	for i := range names {
		names[i] = strconv.Itoa(i)
	}
	c.say(fmt.Sprintf(`{"type":"presence","id":"p","users":["%s"]}`, strings.Join(names, `","`)))
	began := time.Now()
	f := c.send("bob", "x", "m")
	if f.CodeText() != "limited" || f.Limit != "message-rate" || f.Retry < 1000 || f.Retry > 5000 || f.ID != "m" {
		t.Fatalf("answered with %s", f)
	}
	<-time.After(time.Until(began.Add(time.Duration(f.Retry) * time.Millisecond)))
	wantAck(t, c.send("bob", "x", "m"), protocol.StatusStored, 1, 0)
}

// No limit is no limit.
func TestZeroRateLimitsNothing(t *testing.T) {
	g := embedded(t)
	c := g.connect("alice")
	for i := range 500 {
		if _, err := c.Send("bob", i, ""); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all are acknowledged", func() bool { return len(c.Notes().Acked) == 500 })
}

// One bad frame behind the other, 64 in all: whoever that is, he isn't talking to us. One good frame in between, and the count begins
// again. His neighbour notices nothing.
func TestTooManyBadFramesEndTheConnection(t *testing.T) {
	for name, tc := range map[string]struct {
		registered bool
		bad        string
	}{
		"no JSON":              {true, `{`},
		"no object":            {true, `[]`},
		"empty":                {true, ``},
		"unknown type":         {true, `{"type":"dance"}`},
		"not served yet":       {true, `{"type":"refresh","token":"new"}`},
		"register again":       {true, `{"type":"register","userId":"alice"}`},
		"before register":      {false, `{"type":"heartbeat"}`},
		"no JSON, not known":   {false, `}`},
		"a field is missing":   {true, `{"type":"message","to":"bob"}`},
		"an id with a newline": {true, `{"type":"message","to":"a\nb","content":1}`},
		"two objects":          {true, `{"type":"heartbeat"}{"type":"heartbeat"}`},
		"a signal with a copy": {true, `{"type":"message","to":"bob","content":1,"ephemeral":true,"copy":true}`},
	} {
		t.Run(name, func(t *testing.T) {
			g := embedded(t)
			neighbour := g.connect("carol")
			c := g.open()
			if tc.registered {
				c.register("alice")
				for range 63 {
					c.say(tc.bad)
				}
				c.wantAlive()
			}
			for range 63 {
				c.say(tc.bad)
			}
			if tc.registered {
				c.wantAlive()
				for range 63 {
					c.say(tc.bad)
				}
			}
			if ended := c.Ended(); ended != nil {
				t.Fatalf("ended too early: %v", ended)
			}
			c.say(tc.bad)
			if f := c.wantEnd(protocol.CloseTooManyErrors); f.Reconnect {
				t.Errorf("told to come back: %s", f)
			}
			neighbour.wantAlive()
		})
	}
}

// Errors that are no fault of the client's wording are no bad frames: it may go on for as long as it likes.
func TestHonestErrorsEndNothing(t *testing.T) {
	g := embedded(t)
	c := g.connect("alice")
	for range 200 {
		c.say(`{"type":"message","id":"x","room":"lobby","content":1}`)
	}
	c.wantAlive()
	wantAnyError := c.Left("error")
	if len(wantAnyError) != 200 {
		t.Errorf("%d errors, want 200", len(wantAnyError))
	}
}

// Redis is slow, and alice goes on sending. 64 of her messages are on their way; the rest stays with her: the gateway reads no further,
// not even a heartbeat, until one is answered. Then everything is acknowledged, in order, and nothing was lost. Bob, on the same
// gateway, is served meanwhile.
func TestWindowHoldsTheReader(t *testing.T) {
	g := embedded(t)
	alice, bob := g.connect("alice"), g.connect("bob")
	before := g.handler.Stats().Frames
	release := g.lane.hold("")
	defer release()
	const count = 200
	for i := range count {
		if _, err := alice.Send("bob", i, "m"+strconv.Itoa(i)); err != nil {
			t.Fatal(err)
		}
	}
	alice.say(`{"type":"heartbeat"}`)
	// The reader has the 65th frame in its hand.
	eventually(t, "the window is full", func() bool { return g.handler.Stats().Frames-before == 65 })
	bob.wantAlive()
	if n := g.handler.Stats().Frames - before; n != 66 {
		t.Errorf("%d frames were read, want alice's 65 and bob's", n)
	}
	if f := alice.Left("heartbeat"); len(f) != 0 {
		t.Errorf("a heartbeat was answered behind %d messages that wait", count)
	}
	release()
	for i := range count {
		if f := alice.next("ack"); f.ID != "m"+strconv.Itoa(i) || f.Offset != uint64(i+1) {
			t.Fatalf("ack %d is %s", i, f)
		}
	}
	alice.next("heartbeat")
	for i := range count {
		if m := bob.next("message"); string(m.Content) != strconv.Itoa(i) {
			t.Fatalf("message %d is %s", i, m)
		}
	}
}

// What is refused is counted by its code, and every code has its counter.
func TestRefusalsAreCounted(t *testing.T) {
	g := embedded(t)
	c := g.open()
	c.say(`{"type":"heartbeat"}`)
	c.wantError(protocol.CodeNotRegistered, "")
	c.register("alice")
	c.say(`{`)
	c.wantError(protocol.CodeBadRequest, "")
	c.say(`{"type":"message","id":"x","room":"r","content":1}`)
	c.wantError(protocol.CodeNotJoined, "x")
	c.send("bob", "one", "m1")
	c.send("bob", "two", "m1")
	s := g.handler.Stats()
	if s.Frames != 6 || len(s.Errors) != len(protocol.Errors) {
		t.Errorf("%d frames and %d codes counted", s.Frames, len(s.Errors))
	}
	for code, want := range map[protocol.ErrorCode]uint64{
		protocol.CodeNotRegistered: 1, protocol.CodeBadRequest: 1, protocol.CodeNotJoined: 1, protocol.CodeConflict: 1, protocol.CodeLimited: 0,
	} {
		if s.Errors[code] != want {
			t.Errorf("%s counted %d times, want %d", code, s.Errors[code], want)
		}
	}
}
