//go:build !secondpass

package handler

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
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

// Redis hangs. Heartbeats are answered from memory, within moments, and soon say that the gateway is degraded; presence says unknown,
// never offline; sockets stay. When Redis goes on, all of it is as before.
func TestHeartbeatAndPresenceWhileRedisIsAway(t *testing.T) {
	t.Parallel()
	r, within := gatewaytest.Shared(t, gatewaytest.Standalone), gatewaytest.Busier(t)
	g := newGateway(t, r, func(s *settings) {
		s.registry.Timeout = 300 * time.Millisecond
		real := router.DefaultConfig()
		s.router.Attempt, s.router.Suspect = real.Attempt, real.Suspect
	})
	alice := g.connect("alice")
	g.connect("bob")
	var states map[string]gatewaytest.UserState
	var err error
	eventually(t, "presence is known", func() bool {
		states, err = alice.Presence("bob", "nobody")
		return err == nil && states["bob"].State == "online" && states["nobody"].State == "offline"
	})
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "heartbeats say degraded", func() bool {
		began := time.Now()
		f, err := alice.Heartbeat(patience)
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d > within(time.Second) {
			t.Errorf("a heartbeat was answered after %v", d)
		}
		return f.Degraded
	})
	began := time.Now()
	states, err = alice.Presence("bob", "nobody")
	if err != nil || states["bob"].State != "unknown" || states["nobody"].State != "unknown" {
		t.Errorf("presence %v, %v, want everybody unknown", states, err)
	}
	if d := time.Since(began); d > within(2*time.Second) {
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
