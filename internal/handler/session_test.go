//go:build !secondpass

package handler

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"chatgate/internal/connection"
	"chatgate/internal/gatewaytest"
	"chatgate/internal/presence"
	"chatgate/internal/protocol"
	"chatgate/internal/router"
)

// The smallest client is three frames typed by hand.
func TestThreeFramesTypedByHand(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		g := newGateway(t, r)
		bob := g.connect("bob")
		alice := g.open()
		alice.say(`{"type":"register","userId":"alice"}`)
		f := alice.next("registered")
		if f.UserID != "alice" || f.ConnID == "" || f.GatewayID != string(g.id) || f.Epoch == "" || f.Offset != 0 || f.First != 1 || f.Top != 0 || !f.Recovered ||
			f.HeartbeatIntervalMs != 30_000 || f.PresenceTTLMs != 90_000 || f.MaxFrameBytes != 64<<10 || !recent(f.ServerTime) {
			t.Errorf("registered: %s", f)
		}
		alice.say(`{"type":"heartbeat"}`)
		if f := alice.next("heartbeat"); !recent(f.ServerTime) || f.Degraded {
			t.Errorf("heartbeat: %s", f)
		}
		alice.say(`{"type":"message","to":"bob","content":{"text":"hi"}}`)
		ack := alice.next("ack")
		wantAck(t, ack, protocol.StatusRouted, 1, 1)
		if m := bob.next("message"); m.Sender() != "alice" || string(m.Content) != `{"text":"hi"}` || m.ID != ack.ID || m.Epoch != ack.Epoch || m.Offset != 1 || m.Ts != ack.Ts || !recent(m.Ts) {
			t.Errorf("bob got %s, acknowledged was %s", m, ack)
		}
		alice.say(`{"type":"message","id":"m2","to":"nobody","content":1}`)
		wantAck(t, alice.answer("m2"), protocol.StatusStored, 1, 0)
	})
}

func recent(ms int64) bool { return time.Since(time.UnixMilli(ms)).Abs() < time.Minute }

// everyFrame is a good frame of each type but register.
var everyFrame = map[protocol.FrameType]string{
	protocol.TypeHeartbeat: `{"type":"heartbeat","id":"x"}`,
	protocol.TypeMessage:   `{"type":"message","id":"x","to":"bob","content":1}`,
	protocol.TypeReceived:  `{"type":"received","id":"x","epoch":"e","offset":1}`,
	protocol.TypeJoin:      `{"type":"join","id":"x","room":"lobby"}`,
	protocol.TypeLeave:     `{"type":"leave","id":"x","room":"lobby"}`,
	protocol.TypeHistory:   `{"type":"history","id":"x"}`,
	protocol.TypePresence:  `{"type":"presence","id":"x","users":["bob"]}`,
	protocol.TypeWatch:     `{"type":"watch","id":"x","users":["bob"]}`,
	protocol.TypeUnwatch:   `{"type":"unwatch","id":"x","users":["bob"]}`,
	protocol.TypeMembers:   `{"type":"members","id":"x","room":"lobby"}`,
	protocol.TypeRefresh:   `{"type":"refresh","id":"x","token":"t"}`,
}

// Whoever has not said who he is may say nothing else. He is told so, whatever he sends, and may register then.
func TestEveryFrameBeforeRegisterIsRefused(t *testing.T) {
	g := embedded(t)
	c := g.open()
	for kind := protocol.TypeRegister + 1; kind.String() != "unknown"; kind++ {
		frame, ok := everyFrame[kind]
		if !ok {
			t.Fatalf("no example of %s", kind)
		}
		c.say(frame)
		c.wantError(protocol.CodeNotRegistered, "x")
	}
	if n := len(everyFrame); n != 11 {
		t.Errorf("%d types were tried", n)
	}
	c.register("alice")
	c.wantAlive()
}

// A type that this gateway does not serve, a new token where it takes none, is answered as unknown, with the id of the frame, and hurts nothing.
func TestTypesNotServedAreUnknown(t *testing.T) {
	g := embedded(t)
	c := g.connect("alice")
	for kind, frame := range everyFrame {
		switch kind {
		case protocol.TypeHeartbeat, protocol.TypeMessage, protocol.TypePresence, protocol.TypeReceived, protocol.TypeHistory,
			protocol.TypeJoin, protocol.TypeLeave, protocol.TypeMembers, protocol.TypeWatch, protocol.TypeUnwatch:
			continue
		}
		c.say(frame)
		if f := c.wantError(protocol.CodeUnknownType, "x"); !strings.Contains(f.Message, kind.String()) {
			t.Errorf("the answer to %s is %s", frame, f)
		}
	}
	c.say(`{"type":"dance","id":"y"}`)
	c.wantError(protocol.CodeUnknownType, "y")
	c.wantAlive()
}

// Who a connection is can't change, neither to somebody else nor to itself once more.
func TestRegisterTwiceIsRefused(t *testing.T) {
	g := embedded(t)
	c, bob := g.connect("alice"), g.connect("bob")
	for _, user := range []string{"alice", "mallory", "bob"} {
		c.say(`{"type":"register","userId":"` + user + `"}`)
		c.wantError(protocol.CodeAlreadyRegistered, "")
	}
	wantAck(t, c.send("bob", "still me", "m1"), protocol.StatusRouted, 1, 1)
	if m := bob.next("message"); m.Sender() != "alice" {
		t.Errorf("bob got %s", m)
	}
	if n := len(g.manager.ByUser("alice")); n != 1 {
		t.Errorf("%d connections of alice, want 1", n)
	}
}

// Where anonymous users are not let in, a register without a token that is good ends the connection, and the client need not come back.
func TestAnonymousIsRefusedWhereItIsOff(t *testing.T) {
	for name, tc := range map[string]struct {
		anonymous bool
		frame     string
	}{
		"no token":                 {false, `{"type":"register","userId":"alice"}`},
		"a token nobody checks":    {false, `{"type":"register","userId":"alice","token":"x"}`},
		"only a token nobody asks": {true, `{"type":"register","token":"x"}`},
	} {
		t.Run(name, func(t *testing.T) {
			g := embedded(t, func(s *settings) { s.handler.Anonymous = tc.anonymous })
			c := g.open()
			c.say(tc.frame)
			c.wantError(protocol.CodeUnauthorized, "")
			if f := c.wantEnd(protocol.CloseUnauthorized); f.Reconnect {
				t.Errorf("told to come back: %s", f)
			}
			if locations, err := g.registry.Get(context.Background(), "alice"); err != nil || len(locations) != 0 {
				t.Errorf("the registry has %v (%v)", locations, err)
			}
		})
	}
}

// Redis is away when alice registers: she is told to try again, her socket stays, and her ten seconds start again. On this connection
// she can't become somebody else then, since nobody knows whether the first attempt was entered; as herself she gets in, once Redis is back.
func TestRegisterWhileRedisIsAway(t *testing.T) {
	r := gatewaytest.Shared(t, gatewaytest.Standalone)
	g := newGateway(t, r, func(s *settings) {
		s.registry.Timeout, s.conns.RegisterTimeout = 400*time.Millisecond, 1500*time.Millisecond
	})
	c := g.open()
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	opened := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for time.Since(opened) < 3*time.Second {
		<-tick.C
		c.say(`{"type":"register","userId":"alice"}`)
		began := time.Now()
		if f := c.wantError(protocol.CodeUnavailable, ""); f.Retry <= 0 {
			t.Errorf("no time to come back: %s", f)
		}
		if d := time.Since(began); d > 2*time.Second {
			t.Errorf("refused after %v", d)
		}
	}
	c.say(`{"type":"register","userId":"mallory"}`)
	c.wantError(protocol.CodeForbidden, "")
	c.say(`{"type":"heartbeat"}`)
	c.wantError(protocol.CodeNotRegistered, "")
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	c.say(`{"type":"register","userId":"mallory"}`)
	c.wantError(protocol.CodeForbidden, "")
	eventually(t, "a pulse is answered again", func() bool { return g.registry.Answers("u:alice") })
	c.register("alice")
	c.wantAlive()
	locations, err := g.registry.Get(context.Background(), "alice")
	if err != nil || len(locations) != 1 {
		t.Errorf("the registry has %v (%v), want one connection", locations, err)
	}
}

// The ten seconds to register start again with a refusal that was not the client's fault. They do end.
func TestRefusedRegisterStartsTheTimeAgain(t *testing.T) {
	r := gatewaytest.Shared(t, gatewaytest.Standalone)
	const limit = 1200 * time.Millisecond
	g := newGateway(t, r, func(s *settings) { s.registry.Timeout, s.conns.RegisterTimeout = 300*time.Millisecond, limit })
	c := g.open()
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	var refused time.Time
	for opened := time.Now(); time.Since(opened) < limit; {
		c.say(`{"type":"register","userId":"alice"}`)
		c.wantError(protocol.CodeUnavailable, "")
		refused = time.Now()
	}
	c.wantEnd(protocol.CloseRegisterTimeout)
	if d := time.Since(refused); d < limit-100*time.Millisecond || d > 2*limit {
		t.Errorf("the connection ended %v after the last refusal, want %v", d, limit)
	}
	if err := r.Resume(); err != nil { // or the gateway would wait for it at the end
		t.Fatal(err)
	}
}

// Her register was refused, and alice leaves. Redis may have entered her all the same when it woke: nothing of it stays.
func TestRefusedRegisterLeavesNoGhost(t *testing.T) {
	r := gatewaytest.Shared(t, gatewaytest.Standalone)
	g := newGateway(t, r, func(s *settings) { s.registry.Timeout = 300 * time.Millisecond })
	c := g.open()
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	c.say(`{"type":"register","userId":"alice"}`)
	c.wantError(protocol.CodeUnavailable, "")
	c.Cut()
	eventually(t, "the socket is gone", func() bool { return g.manager.Count() == 0 })
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	quiet := 0
	eventually(t, "the registry is empty, and stays so", func() bool {
		locations, err := g.registry.Get(context.Background(), "alice")
		holders, err2 := g.registry.Holders(context.Background(), "u:alice")
		if err != nil || err2 != nil || len(locations) != 0 || len(holders[0]) != 0 {
			quiet = 0
			return false
		}
		quiet++
		return quiet > 10
	})
}

// A connection may send so many messages a second, with as many at once, however hard it tries. Over that its reader is held: nothing is
// refused, and all of it is stored in the order it was sent.
func TestMessagesAreHeldToTheRate(t *testing.T) {
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

// Redis hangs. Heartbeats are answered from memory, within moments, and soon say that the gateway is degraded; presence says unknown,
// never offline; sockets stay. When Redis goes on, all of it is as before.
func TestHeartbeatAndPresenceWhileRedisIsAway(t *testing.T) {
	r := gatewaytest.Shared(t, gatewaytest.Standalone)
	g := newGateway(t, r, func(s *settings) {
		s.registry.Timeout = 300 * time.Millisecond
		real := router.DefaultConfig()
		s.router.Attempt, s.router.Suspect = real.Attempt, real.Suspect
	})
	alice := g.connect("alice")
	g.connect("bob")
	states, err := alice.Presence("bob", "nobody")
	if err != nil || states["bob"].State != "online" || states["nobody"].State != "offline" {
		t.Fatalf("presence %v, %v", states, err)
	}
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "heartbeats say degraded", func() bool {
		began := time.Now()
		f, err := alice.Heartbeat(patience)
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("a heartbeat was answered after %v", d)
		}
		return f.Degraded
	})
	began := time.Now()
	states, err = alice.Presence("bob", "nobody")
	if err != nil || states["bob"].State != "unknown" || states["nobody"].State != "unknown" {
		t.Errorf("presence %v, %v, want everybody unknown", states, err)
	}
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("presence was answered after %v", d)
	}
	f := alice.send("bob", "hi", "m1")
	if f.Type != "error" || f.CodeText() != "unknown" && f.CodeText() != "unavailable" || f.Retry <= 0 {
		t.Errorf("a message got %s", f)
	}
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "heartbeats say nothing of it any more", func() bool {
		f, err := alice.Heartbeat(patience)
		return err == nil && !f.Degraded
	})
	states, err = alice.Presence("bob")
	if err != nil || states["bob"].State != "online" {
		t.Errorf("presence %v, %v", states, err)
	}
}

// Presence tells state, devices and version of whom is asked for, in one answer that carries the id of the question.
func TestPresenceTellsWhoIsThere(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		a := newGateway(t, r, func(s *settings) { s.registry.Grace = 0 })
		b := newGateway(t, r, func(s *settings) { s.registry.Grace = 0 })
		alice := a.connect("alice")
		a.connect("bob", "deviceId", "laptop")
		b.connect("bob", "deviceId", "phone")
		carol := b.connect("carol")
		if err := carol.Close(); err != nil {
			t.Fatal(err)
		}
		var states map[string]gatewaytest.UserState
		eventually(t, "carol is offline", func() bool {
			var err error
			states, err = alice.Presence("bob", "carol", "nobody", "alice")
			if err != nil {
				t.Fatal(err)
			}
			return states["carol"].State == "offline" && states["carol"].LastSeen != 0
		})
		if s := states["bob"]; s.State != "online" || s.Devices != 2 || s.Version == "" || s.LastSeen != 0 {
			t.Errorf("bob: %+v", s)
		}
		if s := states["alice"]; s.State != "online" || s.Devices != 1 {
			t.Errorf("alice: %+v", s)
		}
		if s := states["carol"]; s.Devices != 0 || s.Version == "" || !recent(s.LastSeen) {
			t.Errorf("carol: %+v", s)
		}
		if s := states["nobody"]; s != (gatewaytest.UserState{State: "offline"}) {
			t.Errorf("somebody who never was: %+v", s)
		}
		if len(states) != 4 {
			t.Errorf("%d states for four questions: %v", len(states), states)
		}
		alice.say(`{"type":"presence","users":["bob"]}`)
		if f := alice.next("presence"); f.ID != "" && !strings.HasPrefix(f.ID, "presence-") {
			t.Errorf("the answer to a question without id: %s", f)
		}
	})
}

// A message without an id gets one, which is unique: sender and receiver see the same, and the next message, of this connection or of
// another one, has another. A second message with the same words is a second message.
func TestMessagesWithoutIDGetOne(t *testing.T) {
	g := embedded(t)
	alice, other, bob := g.connect("alice"), g.connect("alice"), g.connect("bob")
	var acked []string
	for range 5 {
		for _, c := range []*client{alice, other} {
			c.say(`{"type":"message","to":"bob","content":"same"}`)
			f := c.next("ack")
			wantAck(t, f, protocol.StatusRouted, uint64(len(acked)+1), 1)
			if !protocol.ValidID([]byte(f.ID), protocol.MaxMessageIDBytes) {
				t.Errorf("the id that was made, %q, is none a client might use", f.ID)
			}
			acked = append(acked, f.ID)
		}
	}
	var got []string
	for range acked {
		got = append(got, bob.next("message").ID)
	}
	if !slices.Equal(got, acked) {
		t.Errorf("bob got %v, acknowledged were %v", got, acked)
	}
	slices.Sort(acked)
	if len(slices.Compact(acked)) != 10 {
		t.Errorf("ids were used twice: %v", acked)
	}
}

// Signals with an id are acknowledged, without a position; those without one get no answer, whether somebody is there or not.
func TestSignalsAreAcknowledgedWhenTheyHaveAnID(t *testing.T) {
	g := embedded(t)
	alice, bob := g.connect("alice"), g.connect("bob")
	f := alice.send("bob", "typing", "t1", "ephemeral", true)
	wantAck(t, f, protocol.StatusRouted, 0, 1)
	if f.Epoch != "" {
		t.Errorf("a signal has the position %s", f)
	}
	wantAck(t, alice.send("nobody", "typing", "t2", "ephemeral", true), protocol.StatusDropped, 0, 0)
	alice.say(`{"type":"message","to":"bob","content":"silent","ephemeral":true}`)
	alice.say(`{"type":"message","to":"nobody","content":"silent","ephemeral":true}`)
	alice.wantAlive()
	for _, want := range []string{`"typing"`, `"silent"`} {
		if m := bob.next("message"); string(m.Content) != want || !m.Ephemeral || m.Epoch != "" {
			t.Errorf("bob got %s, want %s", m, want)
		}
	}
	wantAck(t, alice.send("nobody", "typing", "t3", "ephemeral", true), protocol.StatusDropped, 0, 0)
	if left := alice.Left("ack"); len(left) != 0 {
		t.Errorf("acks nobody asked for: %v", left)
	}
}

// A client that repeats a message with its id gets the first answer; other content under it is refused; the id is that of the client's
// user, on whichever connection.
func TestRepeatsByClients(t *testing.T) {
	g := embedded(t)
	alice, bob := g.connect("alice"), g.connect("bob")
	first := alice.send("bob", "hi", "m1")
	wantAck(t, first, protocol.StatusRouted, 1, 1)
	again := g.connect("alice").send("bob", "hi", "m1")
	if string(again.Raw) != string(first.Raw) {
		t.Errorf("the repeat got %s, the first %s", again, first)
	}
	f := alice.send("bob", "ho", "m1")
	if f.Type != "error" || f.CodeText() != "conflict" || f.ID != "m1" {
		t.Errorf("other content got %s", f)
	}
	wantAck(t, alice.send("bob", "end", "m2"), protocol.StatusRouted, 2, 1)
	for _, id := range []string{"m1", "m2"} {
		if m := bob.next("message"); m.ID != id {
			t.Errorf("bob got %s, want %s", m, id)
		}
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

// Alice's reader is held, and her socket breaks: her session ends all the same.
func TestHeldReaderEndsWithItsSocket(t *testing.T) {
	g := embedded(t, func(s *settings) { s.conns.InFlight = 1 })
	alice := g.connect("alice")
	release := g.lane.hold("")
	defer release()
	for i := range 5 {
		if _, err := alice.Send("bob", i, ""); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the window is full", func() bool { return g.handler.Stats().Frames == 3 })
	g.manager.ByUser("alice")[0].Close(connection.Cause{Kind: connection.KindKicked})
	eventually(t, "the session has ended", func() bool { return g.manager.Count() == 0 })
	release()
}

// The same device comes again: the older connection is replaced, and told by whom. Another device of the user stays.
func TestSameDeviceReplacesItself(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		a, b := newGateway(t, r), newGateway(t, r)
		phone := a.connect("bob", "deviceId", "phone")
		laptop := a.connect("bob", "deviceId", "laptop")
		again := b.open()
		f := again.register("bob", "deviceId", "phone")
		if closing := phone.wantEnd(protocol.CloseReplaced); closing.By != f.ConnID || closing.Reconnect {
			t.Errorf("closing %s, want it by %s for good", closing, f.ConnID)
		}
		laptop.wantAlive()
		again.wantAlive()
		eventually(t, "two devices are left", func() bool {
			states, err := laptop.Presence("bob")
			return err == nil && states["bob"].Devices == 2
		})
	})
}

// A user has so many connections in the whole cluster. One more, and the oldest goes.
func TestOldestConnectionGoesAtTheLimit(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		three := func(s *settings) { s.registry.ConnectionsPerUser = 3 }
		a, b := newGateway(t, r, three), newGateway(t, r, three)
		var devices []*client
		for i := range 5 {
			devices = append(devices, []*gateway{a, b}[i%2].connect("bob"))
		}
		devices[0].wantEnd(protocol.CloseReplaced)
		devices[1].wantEnd(protocol.CloseReplaced)
		for _, c := range devices[2:] {
			c.wantAlive()
		}
	})
}

// An operator kicks bob: every connection of his, on whichever gateway, is closed with the operator's reason.
func TestKickedUserIsClosedEverywhere(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		a, b := newGateway(t, r), newGateway(t, r)
		one, two, carol := a.connect("bob"), b.connect("bob"), b.connect("carol")
		if n, err := a.registry.Kick(context.Background(), "bob", presence.Order{Code: protocol.CloseKicked, Reason: "spam", By: "operator"}); n.Marked != 2 || err != nil {
			t.Fatalf("%+v marked, %v", n, err)
		}
		for _, c := range []*client{one, two} {
			if f := c.wantEnd(protocol.CloseKicked); f.Reason != "spam" || f.By != "operator" {
				t.Errorf("closing %s", f)
			}
		}
		carol.wantAlive()
	})
}

// A kick is for one life of a connection: a word about another fence, or for a connection that is not here, closes nothing. What the
// registry gave up while this gateway was away is told to come back, spread over a window.
func TestVerdictsMeetTheRightConnection(t *testing.T) {
	g := embedded(t)
	alice, bob := g.connect("alice"), g.connect("bob")
	c := g.manager.ByUser("alice")[0]
	fence := entryOf(c).Fence()
	Kicked(g.manager, protocol.Kick{Conn: c.ID(), Fence: fence + 1, Code: protocol.CloseKicked, Reason: "r"})
	Kicked(g.manager, protocol.Kick{Conn: "nobody", Fence: fence, Code: protocol.CloseKicked, Reason: "r"})
	Judged(g.manager, presence.Verdict{Conn: "nobody", Reaped: true}, time.Second)
	alice.wantAlive()
	Kicked(g.manager, protocol.Kick{Conn: c.ID(), Fence: fence, Code: protocol.CloseRevoked, Reason: "revoked", By: "x"})
	alice.wantEnd(protocol.CloseRevoked)
	if cause, _ := c.Cause(); cause.Kind != connection.KindRevoked {
		t.Errorf("counted as %s", cause.Kind)
	}
	Judged(g.manager, presence.Verdict{Conn: g.manager.ByUser("bob")[0].ID(), Reaped: true}, 50*time.Millisecond)
	if f := bob.wantEnd(protocol.CloseSuperseded); f.WindowMs != 1000 || !f.Reconnect {
		t.Errorf("closing %s", f)
	}
}

// A session ends in whatever way: the registry forgets the connection, the router its feed, and what is sent then is stored.
func TestEndedSessionIsForgotten(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		g := newGateway(t, r, func(s *settings) { s.registry.Grace = 0 })
		alice := g.connect("alice")
		for i, end := range []func(*client){
			func(c *client) { _ = c.Close() },
			func(c *client) { c.Cut() },
			func(c *client) { c.say("\xff") },
			func(c *client) { c.say(strings.Repeat(" ", 65<<10)) },
		} {
			bob := g.connect("bob")
			end(bob)
			eventually(t, fmt.Sprintf("bob is offline after end %d", i), func() bool {
				states, err := alice.Presence("bob")
				return err == nil && states["bob"].State == "offline"
			})
			wantAck(t, alice.send("bob", "x", ""), protocol.StatusStored, uint64(i+1), 0)
		}
		if n := g.router.Stats().Unheld; n != 0 {
			t.Errorf("%d messages came for users who had left", n)
		}
	})
}

// The feed of a user who left is gone too: what still comes for him is for nobody.
func TestEndedSessionLeavesNoFeed(t *testing.T) {
	g := embedded(t)
	bob := g.connect("bob")
	word := protocol.AppendEphemeralRecord(protocol.AppendEphemeralHeader(nil), "u:bob", []byte(`{"type":"message","id":"t"`))
	tell := func() {
		t.Helper()
		if err := g.router.RouteToGateway(context.Background(), g.id, word); err != nil {
			t.Fatal(err)
		}
	}
	tell()
	bob.next("message")
	if n := g.router.Stats().Unheld; n != 0 {
		t.Errorf("%d messages for nobody, while bob was there", n)
	}
	if err := bob.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "bob has no feed", func() bool { tell(); return g.router.Stats().Unheld > 0 })
}

// Frames of any kind refresh presence when the last refresh is old: a client that talks all the time may be late with its heartbeats.
func TestEveryFrameIsASignOfLife(t *testing.T) {
	g := embedded(t, func(s *settings) { s.handler.HeartbeatInterval = 200 * time.Millisecond })
	c := g.connect("alice")
	expiry := func() int64 {
		locations, err := g.registry.Get(context.Background(), "alice")
		if err != nil || len(locations) != 1 {
			t.Fatalf("the registry has %v, %v", locations, err)
		}
		return locations[0].Expiry
	}
	first := expiry()
	eventually(t, "the expiry moves on by messages alone", func() bool {
		c.send("bob", "x", "")
		return expiry() > first+200
	})
}

// The gateway drains: everybody is told to come back elsewhere, and who comes in at the last moment too.
func TestDrainingTellsEverybody(t *testing.T) {
	g := embedded(t)
	alice, silent := g.connect("alice"), g.open()
	silent.say(`{"type":"heartbeat"}`)
	silent.wantError(protocol.CodeNotRegistered, "")
	g.manager.CloseAll(connection.Cause{Kind: connection.KindDraining, WindowMs: 10}, 0)
	for _, c := range []*client{alice, silent} {
		if f := c.wantEnd(protocol.CloseDraining); !f.Reconnect || f.WindowMs != 10 {
			t.Errorf("closing %s", f)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := g.manager.Close(ctx); err != nil {
		t.Fatal(err)
	}
	g.open().wantEnd(protocol.CloseDraining)
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

// Meta and device of a register reach the registry as they were given.
func TestRegisterCarriesMetaAndDevice(t *testing.T) {
	g := embedded(t)
	g.connect("alice", "deviceId", "téléphone 1", "meta", json.RawMessage(`{"app":"7.1","n":1e400}`))
	locations, err := g.registry.Get(context.Background(), "alice")
	if err != nil || len(locations) != 1 || locations[0].Device != "téléphone 1" || locations[0].Meta != `{"app":"7.1","n":1e400}` {
		t.Errorf("the registry has %+v, %v", locations, err)
	}
	if locations[0].Gateway != g.id || locations[0].Fence == 0 || !recent(locations[0].Since) {
		t.Errorf("the registry has %+v", locations[0])
	}
}

// Where classes of devices are limited, a client must name one of them; what it says about a class is checked like any id.
func TestDeviceClassesAreChosenFromAList(t *testing.T) {
	g := embedded(t, func(s *settings) { s.handler.Classes = []string{"desktop", "phone"} })
	for name, class := range map[string]string{
		"none": ``, "unknown": `,"deviceClass":"tv"`, "other case": `,"deviceClass":"Phone"`, "empty": `,"deviceClass":""`,
		"a number": `,"deviceClass":1`, "a list": `,"deviceClass":["phone"]`, "too long": `,"deviceClass":"` + strings.Repeat("p", 129) + `"`,
		"control characters": `,"deviceClass":"ph\u001fone"`, "twice": `,"deviceClass":"tv","deviceClass":"phone"`,
	} {
		t.Run(name, func(t *testing.T) {
			c := g.open()
			c.say(`{"type":"register","userId":"alice"` + class + `}`)
			if f := c.wantError(protocol.CodeBadRequest, ""); !strings.Contains(string(f.Raw), "deviceClass") {
				t.Errorf("answered %s", f)
			}
			// Nothing happened yet: it can still do better.
			c.say(`{"type":"register","userId":"alice","deviceClass":"phone"}`)
			c.next("registered")
		})
	}
}
